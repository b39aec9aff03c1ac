# SPDX-License-Identifier: MIT
"""What the boot program needs of an interpreter: found by reading its imports and by running it, then made ready to ship.

Of safemem it is the folder `safemem/boot`, all of it and nothing else. Of the standard library it is what the folder's
sources name, inside of functions too, and what loads by itself while the program runs.
"""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safemem.initramfs.items import PACKAGE, PREFIX, BuildError, Item

#: Modules that only an interpreter without the core beside them needs; `json` and libcrypto would double the archive's modules.
_STANDS_IN = {"json": ("_json",), "hashlib": ("_sha2", "_sha256")}

#: Runs in the interpreter that is to be shipped, after lines that set the variables: takes the boot program through
#: a capture, the arguments for a handover and a boot on each root, then loads what it names, and lists what that loaded.
_LIST = """
import io, sys
sys.path.insert(0, folder)
from safemem.boot import handover_args, main
runs, out, err = [], sys.stdout, sys.stderr
for root in roots:
    for run in (lambda: main.main(["--root", root, "capture"]), lambda: handover_args.main(["--root", root]),
                lambda: main.main(["--root", root])):
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        status = run()
        said = sys.stderr.getvalue()
    runs.append((status, said))
sys.stdout, sys.stderr = out, err
ran = [name for name in sys.modules if name.startswith("safemem.boot.")]
for name, required in named.items():
    cores = stands_in.get(name, ())
    try:
        for core in cores:
            try:
                __import__(core)
                break
            except ImportError:
                pass
        else:
            __import__(name)
    except ImportError:
        if required:
            raise
import os
files = {}
for name, module in list(sys.modules.items()):
    spec = getattr(module, "__spec__", None)
    if spec is None or name == "__main__" or name.partition(".")[0] == "safemem":
        continue
    # The program does without `os`, but finding its file is how Python finds its own folder.
    files[name] = module.__file__ if spec.has_location or name == "os" else None
import json  # only now: it brings more modules than the boot program has
print(json.dumps({"version": "python%d.%d" % sys.version_info[:2], "files": files, "ran": ran, "runs": runs}))
"""

_COMPILE = """
import json, py_compile, sys
# Level 2 leaves out docstrings and assertions: nothing on the boot path asserts.
for source, target, shown in json.load(sys.stdin):
    py_compile.compile(source, target, shown, True, 2, py_compile.PycInvalidationMode.UNCHECKED_HASH)
"""


class Listing(NamedTuple):
    """What an interpreter loads for the boot program."""

    version: str  #: `python3.11`
    files: dict[str, str | None]  #: module of the standard library -> its file, None if it is built in
    ran: frozenset[str]  #: modules of `safemem.boot` that the program loaded while it ran
    runs: tuple[tuple[int, str], ...]  #: for each root how the boot ended: the program's status and what it said


def listing(python: str, roots: Sequence[Path]) -> Listing:
    """Run the boot program on each of the fake `roots`, which it changes; return what that took.

    Raises:
        OSError, subprocess.CalledProcessError: the interpreter cannot be run, or has not what the program imports.
    """
    values = (str(PACKAGE.parent), [str(root) for root in roots], named(), _STANDS_IN)
    code = f"folder, roots, named, stands_in = {values!r}\n{_LIST}"
    result = subprocess.run([python, "-I", "-S", "-B", "-c", code], check=True, capture_output=True, text=True)
    found = json.loads(result.stdout.splitlines()[-1])
    runs = tuple((status, said) for status, said in found["runs"])
    return Listing(found["version"], found["files"], frozenset(found["ran"]), runs)


def sources() -> list[Path]:
    """Return the sources that are shipped."""
    return [PACKAGE / "__init__.py", *sorted((PACKAGE / "boot").glob("*.py"))]


def named() -> dict[str, bool]:
    """Return every module that the shipped sources import, and whether they need it: False where they do without."""
    found = {f"safemem.boot.{path.stem}": True for path in sources() if path.stem != "__init__"}
    for path in sources():
        for name, required in _imports(ast.parse(path.read_text()), True):
            found[name] = found.get(name, False) or required
    return found


def _imports(node: ast.AST, required: bool) -> Iterator[tuple[str, bool]]:
    if isinstance(node, ast.Import):
        yield from ((item.name, required) for item in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield node.module or "", required  # of safemem every module is named by its file
    else:
        for child, needed in _children(node, required):
            if not isinstance(child, ast.expr):
                yield from _imports(child, needed)


def _children(node: ast.AST, required: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Yield what may import, and whether that has to succeed: what only a type checker sees is left out."""
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        yield from ((child, required) for child in node.orelse)
    elif isinstance(node, ast.Try):
        types = [part for handler in node.handlers if handler.type for part in ast.walk(handler.type)]
        caught = {part.id for part in types if isinstance(part, ast.Name)}
        yield from ((child, required and "ImportError" not in caught) for child in node.body)
        yield from ((child, required) for child in (*node.handlers, *node.orelse, *node.finalbody))
    else:
        yield from ((child, required) for child in ast.iter_child_nodes(node))


def items(python: str, found: Listing, scratch: Path) -> dict[str, Item]:
    """Return the interpreter, its libraries, and the modules as bytecode; `scratch` is a folder to work in.

    Raises:
        BuildError: the interpreter cannot be shipped.
        OSError, subprocess.CalledProcessError: a file cannot be read, or a source not compiled.
    """
    home = f"{PREFIX}/lib/{found.version}"
    binaries = {f"{PREFIX}/bin/python3": python}
    jobs = []
    for path in sources():
        name = path.relative_to(PACKAGE.parent)
        jobs.append((str(path), f"{PREFIX}/app/{name.with_suffix('.pyc')}", str(name)))
    for module, file in sorted(found.files.items()):
        if file is None:
            continue
        parts = module.split(".")
        if Path(file).name.startswith("__init__."):
            parts.append("__init__")
        if file.endswith(".py"):
            jobs.append((file, f"{home}/{'/'.join(parts)}.pyc", f"{found.version}/{'/'.join(parts)}.py"))
        else:
            binaries[f"{home}/lib-dynload/{Path(file).name}"] = file
    work = [(source, str(scratch / target), shown) for source, target, shown in jobs]
    subprocess.run([python, "-I", "-c", _COMPILE], input=json.dumps(work), text=True, check=True, capture_output=True)
    made = {target: Item((scratch / target).read_bytes(), 0o644) for _, target, _ in jobs}
    loader, libraries = needs(list(binaries.values()))
    if not loader:
        raise BuildError(f"{python} has no loader: a statically linked interpreter cannot be used")
    binaries |= {f"{PREFIX}/lib/{Path(library).name}": library for library in libraries}
    binaries[f"{PREFIX}/lib/ld.so"] = loader
    made |= {target: Item(Path(file).read_bytes(), 0o755) for target, file in binaries.items()}
    # Python looks for this folder, also when nothing is in it.
    made.setdefault(f"{home}/lib-dynload/README", Item(b"", 0o644))
    return made


def needs(binaries: Sequence[str]) -> tuple[str, set[str]]:
    """Return the loader of `binaries`, "" if all are linked statically, and the libraries that it would load for them.

    Raises:
        BuildError: one of the libraries is not installed.
        OSError: there is no ldd.
    """
    loader, found = "", set()
    for binary in binaries:
        # ldd ends with 1 for what is linked statically.
        for line in subprocess.run(["ldd", binary], capture_output=True, text=True).stdout.splitlines():
            if " => " in line:
                path = line.split(" => ")[1].split(" (")[0].strip()
                if path == "not found":
                    raise BuildError(f"{binary} needs {line.split()[0]}, which is not installed")
                found.add(path)
            elif line.strip().startswith("/"):
                loader = line.split()[0]
    return loader, found
