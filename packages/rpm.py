# SPDX-License-Identifier: MIT
"""Build the RPM from this tree, or put its files where rpmbuild wants them: what the Debian package has, differently.

    python3 -m packages.rpm [-o FOLDER]
    python3 -m packages.rpm --stage ROOT LISTING

safemem's modules are private to it, and so one package serves every version of Python.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packages import tree
from packages.tree import PROJECT, TREE, UNITS, put

MODULES = "usr/lib/safemem/python"
PRESET = "usr/lib/systemd/system-preset/80-safemem.preset"
MAN = "/usr/share/man/"


def main() -> None:
    """Build the package and print where it is."""
    parser = argparse.ArgumentParser(description="Build the RPM.")
    parser.add_argument("-o", "--output", type=Path, default=TREE / "build")
    parser.add_argument(
        "--stage", type=Path, nargs=2, metavar=("ROOT", "LISTING"), help="only put the files below ROOT, for the spec"
    )
    words = parser.parse_args()
    os.umask(0o022)
    with tempfile.TemporaryDirectory(prefix="safemem-rpm-") as scratch:
        if words.stage:
            root, names = words.stage
            stage(root, Path(scratch))
            names.write_text("".join(f"{line}\n" for line in listing(root)))
            return
        name = "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm"
        given = macros(Path(scratch) / "files")
        given |= {"_topdir": scratch, "_rpmdir": str(words.output.resolve()), "_rpmfilename": name,
                  "_dbpath": f"{scratch}/db", "__python3": sys.executable}  # fmt: skip
        defines = [word for key, value in given.items() for word in ("--define", f"{key} {value}")]
        spec = str(TREE / "packages/rpm/safemem.spec")
        # Not the machine's RPM database but pip brought what the spec says is needed to build.
        command = ["rpmbuild", "-bb", "--nodeps", "--build-in-place", *defines, spec]
        subprocess.run(command, check=True, cwd=TREE, stdout=sys.stderr)
        query = ["rpmspec", "-q", *defines, "--qf", name, spec]
        built = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    print(words.output / built)


def macros(files: Path) -> dict[str, str]:
    """Return what the spec takes from the project, by macro; `files` is the LISTING."""
    needs = (need.replace(">=", " >= ") for need in PROJECT["dependencies"])
    return {
        "safemem_version": PROJECT["version"],
        "safemem_python": PROJECT["requires-python"].replace(">=", ">= "),
        "safemem_needs": ", ".join(f"python3-{need}" for need in needs),
        "safemem_modules": f"/{MODULES}",
        "safemem_units": " ".join(UNITS),
        "safemem_files": str(files),
    }


def stage(root: Path, scratch: Path) -> None:
    """Put everything below `root`."""
    tree.fill(root, "rpm", MODULES, MODULES, scratch)
    put(root / PRESET, "".join(f"enable {unit}\n" for unit in UNITS).encode())


def listing(root: Path) -> Iterator[str]:
    """Yield lines for `%files -f`: each file, and each folder that is ours, which stands for everything below it."""
    policy = Path("/") / tree.POLICY
    yield from (f"%dir {policy.parent}", f"%config(noreplace) {policy}")
    for path in sorted(root.rglob("*")):
        name = Path("/") / path.relative_to(root)
        ours = path.is_file() or "safemem" in name.name
        if (
            ours
            and policy.parent not in (name, *name.parents)
            and not any("safemem" in part for part in name.parts[:-1])
        ):
            # rpmbuild may pack manual pages in another way.
            yield f"{name.with_suffix('')}*" if str(name).startswith(MAN) else str(name)


if __name__ == "__main__":
    main()
