# SPDX-License-Identifier: MIT
"""The kernel's command line, split and read as the kernel does it (lib/cmdline.c, kernel/params.c)."""

from __future__ import annotations

#: What stands between words; not all that Python takes for a space.
_SPACE = " \t\n\v\f\r"
#: Arguments whose value the kernel leaves as it is where it understands no other, and what it understands. Names are
#: compared by parameq(), as all names are (early_param, __setup, module_param), so `-` is `_` in each of them.
_SWITCHES = ("kho", "liveupdate")
_WORDS = {"memhp_default_state": ("offline", "online", "online_kernel", "online_movable")}
#: Between what an argument says and the check sum of that.
_SEAL = ";crc32="


def split(cmdline: str) -> tuple[list[str], list[str], bool]:
    """Return the kernel's words, the words for init from `--` on, and whether a quotation mark is not closed.

    Words are as they are written, quotation marks included; what a mark that is not closed holds is one word.
    """
    words, word, quoted = [], "", False
    for char in cmdline:
        if char in _SPACE and not quoted:
            words += [word] if word else []
            word = ""
            continue
        quoted ^= char == '"'
        word += char
    if word.strip(_SPACE):
        words.append(word.strip(_SPACE))
    end = next((place for place, word in enumerate(words) if word.replace('"', "") == "--"), len(words))
    return words[:end], words[end:], quoted


def arguments(cmdline: str) -> list[tuple[str, str]]:
    """Return the kernel's arguments in order, as name and value; `-` in a name is `_`.

    A quotation mark is taken off where a word or a value begins with one, and its other at the end; one inside stays.
    And safemem's own from behind `--` as well: the kernel looks there for `crashkernel=` too, so a guard that was
    appended to a line with words for init is in force.
    """
    words, init, _ = split(cmdline)
    named = [_named(word) for word in (*words, *init)]
    return [item for item in named[: len(words)] if item[0]] + [
        item for item in named[len(words) :] if item[0] == "safemem" or item[0].startswith("safemem.")
    ]


def _named(word: str) -> tuple[str, str]:
    """Return name and value of a word, as next_arg() does."""
    quoted = word[:1] == '"'
    key, equals, value = word[quoted:].partition("=")
    if value[:1] == '"':
        quoted, value = True, value[1:]
    if quoted and equals:
        value = value.removesuffix('"')
    elif quoted:
        key = key.removesuffix('"')
    return key.replace("-", "_"), value


def last(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Return which value of each argument counts: the last one, of some the last that the kernel understands."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in found or _is_understood(name, value):
            found[name] = value
    return found


def _is_understood(name: str, value: str) -> bool:
    """Return whether the kernel takes a value instead of the one before."""
    if name in _SWITCHES:
        return boolean(value) is not None
    return value in _WORDS.get(name, (value,))


def argument(cmdline: str, name: str) -> str | None:
    """Return the value of the argument `name` that counts, or None if it is not there."""
    return last(arguments(cmdline)).get(name)


def sealed(text: str) -> str:
    """Return an argument's value with its check sum behind it: the kernel cuts a line that is too long."""
    import binascii  # only where something is to be checked

    return f"{text}{_SEAL}{binascii.crc32(text.encode()):08x}"


def unsealed(value: str) -> tuple[str, bool]:
    """Return a value without its check sum, and whether it had one. Raises ValueError: it does not match, or is cut off."""
    text, separator, _ = value.partition(_SEAL)
    if (separator and value.lower() != sealed(text).lower()) or (not separator and ";" in value):
        raise ValueError(f"check sum of `{value}` does not match: the command line may have been cut off")
    return text, bool(separator)


def boolean(value: str | None) -> bool | None:
    """Return what `kstrtobool` makes of a value; None for nothing or nonsense, which the kernel ignores."""
    if value is None:
        return None
    head = value[:2].lower()
    if head[:1] in ("e", "y", "t", "1") or head == "on":
        return True
    if head[:1] in ("d", "n", "f", "0") or head == "of":
        return False
    return None


def memparse(text: str) -> int:
    """Return what the kernel's memparse makes of a number with a unit such as 576M. Raises ValueError."""
    shift = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:].upper(), 0)
    return int(text[:-1] if shift else text, 0) << shift
