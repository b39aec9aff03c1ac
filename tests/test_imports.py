# SPDX-License-Identifier: MIT
"""Folders are rules: what each may import is read from its sources, imports inside of functions included."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "safemem"
#: Folder -> the folders that it may import beside itself. No arrow goes back.
ROOMS: dict[str, set[str]] = {
    "boot": set(),
    "realroot": {"boot"},
    "policy": {"boot"},
    "initramfs": {"boot", "realroot"},
    "outgoing": {"boot", "realroot", "policy", "initramfs"},
    "host": {"boot", "realroot", "policy", "initramfs"},
    "render": {"boot", "policy", "outgoing", "host"},
    "cli": {"boot", "realroot", "policy", "initramfs", "outgoing", "host", "render"},
}
#: What the boot half may name of the standard library; `hashlib` only where an interpreter lacks its core.
BOOT_LIBRARY = {
    "__future__", "posix", "sys", "time", "_json", "_signal", "struct", "binascii", "zlib", "fcntl", "mmap", "_sha2", "_sha256", "hashlib", "json",
}  # fmt: skip
#: Names that exist for the type checker only.
TYPING = {"typing", "collections.abc"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield every module that the source at `path` names in an import, and whether only a type checker sees that."""
    tree = ast.parse(path.read_text())
    checked = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((item.name, id(node) in checked) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            if node.module == "safemem" or node.module in {f"safemem.{room}" for room in ROOMS}:
                yield from ((f"{node.module}.{item.name}", id(node) in checked) for item in node.names)
            else:
                yield node.module, id(node) in checked


def sources(room: str) -> list[Path]:
    """Return the sources of a folder."""
    return sorted((PACKAGE / room).rglob("*.py"))


def test_every_folder_has_a_rule() -> None:
    """Nothing lies beside the rooms, and importing the package or a room costs nothing."""
    found = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}

    assert found == {*ROOMS, "__init__.py", "py.typed"}
    assert [path for path in PACKAGE.glob("*/__init__.py") if path.read_bytes() and path.parent.name != "cli"] == []
    assert (PACKAGE / "__init__.py").read_bytes() == b""


def test_the_page_has_the_same_rules() -> None:
    """The table in docs/architecture.md has each room once, with the imports that this test allows it, in their order."""
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    rows = re.findall(r"^\| `safemem/(\w+)/` \| .+ \| (.*?) ?\|$", page, re.MULTILINE)
    told = {room: set(allowed.split(", ")) - {""} for room, allowed in rows}
    if told["cli"] == {"all of them"}:
        told["cli"] = set(ROOMS) - {"cli"}

    assert [room for room, _ in rows] == list(ROOMS)
    assert told == ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_arrows(room: str) -> None:
    """Each folder imports itself and the folders below it, also inside of functions and for types."""
    allowed = {room, *ROOMS[room]}
    for path in sources(room):
        for name, _ in imports(path):
            if name.split(".")[0] == "safemem":
                assert name.split(".")[1] in allowed, f"{path}: {name}"


def test_the_boot_half_imports_little() -> None:
    """What boots names a handful of modules of the standard library."""
    for path in sources("boot"):
        for name, checked in imports(path):
            assert name.startswith("safemem.boot.") or name in (TYPING if checked else BOOT_LIBRARY), f"{path}: {name}"


def test_the_real_root_imports_the_standard_library() -> None:
    """What runs on the distribution's interpreter, whatever else is broken there, needs nothing installed."""
    for path in sources("realroot"):
        for name, _ in imports(path):
            assert name.split(".")[0] in {"safemem", *sys.stdlib_module_names}, f"{path}: {name}"


_LOADED = """
import json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import safemem.boot.main
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_boot_program_starts_with_nothing_else() -> None:
    """In a fresh isolated interpreter the boot program loads its own folder, and none of what takes long."""
    words = [sys.executable, "-I", "-S", "-c", _LOADED, str(PACKAGE.parent)]
    loaded = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    assert not set(loaded) & {
        "typing",
        "enum",
        "re",
        "json",
        "collections",
        "dataclasses",
        "pathlib",
        "subprocess",
        "hashlib",
    }
    assert {name for name in loaded if name.startswith("safemem.")} <= {
        "safemem.boot", *(f"safemem.boot.{path.stem}" for path in sources("boot")),
    }  # fmt: skip


def test_one_module_opens_files() -> None:
    """Faults are injected into files.py: nothing else of the boot half opens, lists, links or removes anything."""
    for path in sources("boot"):
        tree = ast.parse(path.read_text())
        modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert path.name == "files.py" or not ("posix" in modules or "open" in calls), path


def test_one_module_names_the_kernels_files() -> None:
    """A rename by the kernel is an edit of paths.py: no other module of the boot half spells a path below these folders."""
    for path in sources("boot"):
        if path.name == "paths.py":
            continue
        texts = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        docs = {ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))}  # fmt: skip
        spelt = [text for text in texts - docs if isinstance(text, str) and re.match(r"/?(sys|proc|dev)/\w", text)]
        assert set(spelt) <= {"/dev/null"}, f"{path}: {spelt}"


def test_nothing_on_the_boot_path_asserts() -> None:
    """The archive's bytecode has no assertions, so none may be relied on."""
    for path in sources("boot"):
        assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)], path


def test_no_codec_that_the_archive_lacks() -> None:
    """The archive carries UTF-8 alone of the codecs that a text file can be opened with."""
    for path in sources("boot"):
        assert set(re.findall(r"encoding=\"(.*?)\"", path.read_text())) <= {"utf-8"}, path
