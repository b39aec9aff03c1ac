# SPDX-License-Identifier: MIT
"""How many boots in a row did not online all memory: read, counted, kept in firmware, or handed to the next kernel."""

from __future__ import annotations

from safemem.boot import files, paths, plainjson, record
from safemem.boot.files import reason
from safemem.boot.model import UNKNOWN, Fact, Note

#: On the kernel command line, where firmware keeps no count.
ARGUMENT = "safemem.attempts"
#: A variable is non-volatile, for boot and run time; its four bytes come before the value (Documentation/filesystems/efivarfs.rst).
_ATTRIBUTES = 7
_MOST = 1 << 16


def read(root: str, arguments: dict[str, str]) -> Fact:
    """Return how many boots right before this one did not online all memory, as far as anything kept count.

    `arguments` are those of the kernel by name, empty if they cannot be read.
    """
    why = "there are no EFI variables"
    if files.exists(root, paths.EFI) is not False:
        try:
            shown = files.names(root, paths.EFIVARS)
        except OSError as error:
            why = f"{paths.EFIVARS}: {reason(error)}"
        else:
            if shown:
                return _variable(root, shown)
            why = f"{paths.EFIVARS} is empty: it is not mounted"
    text = arguments.get(ARGUMENT)
    if text is None:
        return Fact(UNKNOWN, "command line", f"nothing keeps count: {why}, and no {ARGUMENT}= from handover-args")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        return Fact(UNKNOWN, "command line", f"{ARGUMENT}=: `{text}` is not a number")
    return Fact(int(text), "command line", "the predecessor's count")


def _variable(root: str, shown: list[str]) -> Fact:
    """Return the count that firmware keeps, among the variables `shown`."""
    try:
        data = files.read(root, paths.ATTEMPTS)
    except FileNotFoundError as error:
        if paths.ATTEMPTS.rpartition("/")[2] not in shown:
            return Fact(0, paths.ATTEMPTS, "it does not exist")
        return Fact(UNKNOWN, paths.ATTEMPTS, reason(error))
    except OSError as error:
        return Fact(UNKNOWN, paths.ATTEMPTS, reason(error))
    if len(data) != 8:
        return Fact(UNKNOWN, paths.ATTEMPTS, f"it has {len(data)} bytes, not 8")
    return Fact(int.from_bytes(data[4:], "little"), paths.ATTEMPTS)


def in_firmware(fact: Fact) -> bool:
    """Return whether firmware keeps the count, so that nobody else has to."""
    return fact.source == paths.ATTEMPTS


def following(fact: Fact, whole: bool) -> int:
    """Return the count for the next boot; `whole` says that this one has onlined all memory."""
    return 0 if whole else (fact.value if isinstance(fact.value, int) else 0) + 1


def handed_on(root: str, fact: Fact) -> int:
    """Return the count that the next kernel is handed, by the record of this boot."""
    try:
        document = plainjson.loads(files.read(root, record.RECORD, 1 << 26).decode())
        return following(fact, document["decision"]["action"] == "online-all")  # type: ignore[index]
    except FileNotFoundError:
        return fact.value if isinstance(fact.value, int) else 0  # no decision in this boot: it is not counted
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return following(fact, False)


def keep(root: str, number: int) -> Note | None:
    """Keep `number` in the EFI variable, or remove it for 0; return what went wrong, or None."""
    there = files.exists(root, paths.ATTEMPTS) is not False
    try:
        if there:
            try:
                files.make_mutable(root, paths.ATTEMPTS)
            except OSError:
                pass  # then the write says so
        if number:
            data = _ATTRIBUTES.to_bytes(4, "little") + min(number, _MOST).to_bytes(4, "little")
            files.create(root, paths.ATTEMPTS, data, mode=0o600, truncate=False)
            if files.read(root, paths.ATTEMPTS) != data:
                raise OSError(0, "it reads otherwise after it was written")
        elif there:
            files.remove(root, paths.ATTEMPTS)
    except OSError as error:
        why = reason(error, "cannot be written")
        return Note("not-counted", f"{paths.ATTEMPTS} could not be written, so boots are not counted: {why}")
    return None
