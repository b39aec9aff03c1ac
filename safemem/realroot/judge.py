# SPDX-License-Identifier: MIT
"""Ask `safemem preflight` about a kernel that is to be loaded or started, and read what is to become of `cannot tell`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any, NamedTuple

from safemem.boot import files
from safemem.boot.files import reason

COMPATIBLE, INCOMPATIBLE, CANNOT_TELL = "compatible", "incompatible", "cannot tell"
#: Exit code of `safemem preflight` -> the last line that goes with it.
_CODES = {0: COMPATIBLE, 5: INCOMPATIBLE, 6: CANNOT_TELL}
PROGRAM = "usr/bin/safemem"
SETTINGS = "etc/safemem/preflight.toml"
#: What the operator can say in it.
_CHOICES = ("refuse", "allow")
WRITE = 'write `cannot_tell = "refuse"` or `cannot_tell = "allow"` there, and nothing else'
#: Bytes of it.
_LIMIT = 1 << 16
#: Seconds; an answer takes a few.
PATIENCE = 300.0
#: Build IDs, and digits of each, that go on a command line.
_MOST_IDS, _DIGITS = 4, 16
#: How the finding ends that is no reason to refuse a kexec: every plain one would be.
_OFF = " [kho-off]"
_ID = re.compile(r"[0-9a-f]{8,128}")


class BadSettings(Exception):
    """The settings cannot be used; the message says where, and what to do."""


class Verdict(NamedTuple):
    """What preflight says."""

    name: str  #: `compatible`, `incompatible` or `cannot tell`
    why: str  #: one sentence
    text: str  #: its whole report
    failed: bool = False  #: it ended, and not with a verdict: whatever the settings say, that lets nothing pass
    off: bool = (
        False  #: KHO is off here, which is all that there is against it: nothing is handed over that could be lost
    )


def judge(root: str, kernel: str, initrds: tuple[str, ...], cmdline: str, loader: str) -> Verdict:
    """Return what preflight says of a kernel, its initrds, its command line and the system call that loads it.

    Whatever goes wrong is `cannot tell`: nothing is compatible without having been looked at.
    """
    words = ["preflight", "--kernel", kernel, *(word for path in initrds for word in ("--initrd", path))]
    words += [f"--cmdline={cmdline}", "--loader", loader, "--format", "text"]
    try:
        result = _ask(root, words)
    except subprocess.TimeoutExpired:
        return Verdict(CANNOT_TELL, f"preflight gave no answer in {PATIENCE:g} s", "")
    except OSError as error:
        return Verdict(CANNOT_TELL, f"preflight cannot be run: /{PROGRAM}: {reason(error)}", "")
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    said = lines[-1].strip().lower() if lines else ""
    name = _CODES.get(result.returncode, "")
    # Two witnesses: a program of another version, or one that died while it wrote, has no such end.
    if name and re.search(rf"\b{name}\b", said):
        return _off(lines, result.stdout) or Verdict(name, _first(lines), result.stdout)
    errors = [line.strip() for line in result.stderr.splitlines() if line.strip()]
    why = errors[-1].removeprefix("safemem: ") if errors else "it did not end with a verdict"
    return Verdict(CANNOT_TELL, f"preflight failed with code {result.returncode}: {why}", result.stdout, failed=True)


def _off(lines: list[str], text: str) -> Verdict | None:
    """Return what a report comes to whose one error is that KHO is off here; None for any other one."""
    errors = [line for line in lines if line.startswith("error: ")]
    if not errors or not all(line.endswith(_OFF) for line in errors):
        return None
    rest = [line for line in lines if line not in errors]
    if any(line.startswith("unknown: ") for line in rest):
        return Verdict(CANNOT_TELL, _first(rest), text)
    return Verdict(COMPATIBLE, _first(lines), text, off=True)


def _first(lines: list[str]) -> str:
    """Return the worst finding of a report, which comes first, with what was seen; or its first line if there is none."""
    place = next((n for n, line in enumerate(lines) if line.startswith(("error: ", "unknown: "))), None)
    if place is None:
        return lines[0].strip()
    said = re.sub(r" \[[a-z-]+\]$", "", lines[place].partition(": ")[2])
    seen = lines[place + 1].strip() if place + 1 < len(lines) else ""
    return f"{said} ({seen.removeprefix('seen: ')})" if seen.startswith("seen: ") else said


def build_ids(root: str, kernel: str) -> tuple[str, ...]:
    """Return the build IDs of an image, shortened for a command line; none if they cannot be told."""
    try:
        document = json.loads(_ask(root, ["kernel", kernel, "--format", "json"]).stdout)
    except (OSError, ValueError, RecursionError, subprocess.TimeoutExpired):
        return ()
    ids = [text[:_DIGITS] for text in _named(document, "build_ids") if isinstance(text, str) and _ID.fullmatch(text)]
    found = tuple(dict.fromkeys(ids))
    return found if len(found) <= _MOST_IDS else ()


def _named(document: Any, name: str) -> Iterator[Any]:
    """Yield the items of every list of that name, wherever it stands: a unified image has one for each profile."""
    todo = [document]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            yield from item[name] if isinstance(item.get(name), list) else ()
            todo += item.values()
        elif isinstance(item, list):
            todo += item


def _ask(root: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    # Of the caller's environment nothing counts: it may be anybody's who may call kexec by sudo.
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [os.path.join(root, PROGRAM), *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
        errors="replace", env=environment, cwd="/", timeout=PATIENCE,
    )  # fmt: skip


def on_cannot_tell(root: str) -> str:
    """Return what is done where nothing can be told: `allow`, or `refuse` if the operator says so.

    Raises:
        BadSettings: the file is there and cannot be used.
    """
    where = f"/{SETTINGS}"
    try:
        data = files.read(root, SETTINGS, _LIMIT + 1)
        if len(data) > _LIMIT:
            raise BadSettings(f"{where}: it is larger than {_LIMIT >> 10} KiB")
        text = data.decode("utf-8")
        values = tomllib.loads(text)
    except FileNotFoundError:
        return "allow"
    except OSError as error:
        raise BadSettings(f"{where}: {reason(error)}") from None
    except UnicodeDecodeError:
        raise BadSettings(f"{where}: this is not text in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"^(.*) \(at line (\d+), column (\d+)\)$", str(error))
        said = f"{place[2]}:{place[3]}: {place[1][:1].lower()}{place[1][1:]}" if place else f" {error}"
        raise BadSettings(f"{where}:{said}") from None
    except (ValueError, RecursionError):  # of tomllib: a number of thousands of digits, lists in lists in lists
        raise BadSettings(f"{where}: this cannot be read") from None
    for key, value in values.items():
        line = next((number for number, line in enumerate(text.splitlines(), 1) if key in line), 1)
        if key != "cannot_tell":
            raise BadSettings(f"{where}:{line}: unknown key `{key}`; the one there is is `cannot_tell`")
        if value not in _CHOICES:
            raise BadSettings(f'{where}:{line}: `cannot_tell` is "refuse" or "allow"')
    return str(values.get("cannot_tell", "allow"))
