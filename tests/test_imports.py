# SPDX-License-Identifier: MIT
"""The boot path imports the standard library only, and little of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "safemem"
BOOT_PATH = {"safemem"} | {
    f"safemem.{name}"
    for name in (
        "account",
        "apply",
        "boot",
        "compiled",
        "engine",
        "fdt",
        "model",
        "plainjson",
        "probe",
        "record",
        "tuples",
    )
}
#: What those modules may name in an import statement.
ALLOWED = {
    "__future__",
    "os",
    "sys",
    "time",
    "_json",
    "_signal",
    "struct",
    "binascii",
    "zlib",
    "_sha2",
    "_sha256",
    "hashlib",
}

_LIST_IMPORTS = """
import builtins, json, sys
sys.path.insert(0, sys.argv[1])
named, real = set(), builtins.__import__
def spy(name, globals=None, *rest, **more):
    if globals and str(globals.get("__name__", "")).split(".")[0] == "safemem":
        named.add(name)
    return real(name, globals, *rest, **more)
builtins.__import__ = spy
import safemem.boot
print(json.dumps([sorted(named), sorted(m for m in sys.modules if m.split(".")[0] == "safemem")]))
"""


def test_boot_path_imports() -> None:
    """In a fresh isolated interpreter, boot.py loads only the upper half, which names only what is allowed."""
    out = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LIST_IMPORTS, str(PACKAGE.parent)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    named, loaded = json.loads(out)

    assert set(loaded) == BOOT_PATH
    assert {name for name in named if name.split(".")[0] != "safemem"} <= ALLOWED


def test_nothing_on_the_boot_path_asserts() -> None:
    """The archive's bytecode has no assertions, so none may be relied on."""
    for name in BOOT_PATH - {"safemem"}:
        assert "\n    assert " not in (PACKAGE / f"{name.partition('.')[2]}.py").read_text()


def test_importing_the_package_costs_nothing() -> None:
    """safemem/__init__.py is empty."""
    assert (PACKAGE / "__init__.py").read_bytes() == b""


def test_no_codec_that_the_archive_lacks() -> None:
    """The archive carries UTF-8 alone of the codecs that a text file can be opened with."""
    for name in (*BOOT_PATH, "safemem.handover"):
        path = PACKAGE.parent / f"{name.replace('.', '/')}.py"
        text = path.read_text() if path.exists() else ""
        assert set(re.findall(r"encoding=\"(.*?)\"", text)) <= {"utf-8"}, name
