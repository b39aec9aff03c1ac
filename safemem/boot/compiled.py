# SPDX-License-Identifier: MIT
"""The compiled policy: the one JSON text that the boot path reads; `safemem.policy.compiler` writes it.

Imports: standard library only, and only what `docs/boot-path.md` allows.

The text is canonical (sorted keys, no spaces, ASCII, one newline at the end) and carries the
SHA-256 of its own content. The digest finds damage, not forgery: whoever can write the image
can write a digest too.
"""

from __future__ import annotations

from safemem.boot import model, plainjson, ranges
from safemem.boot.conditions import is_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

    #: Gets a value and where it stands; returns what the policy holds, or fails.
    Check = Callable[[object, str], object]

# `hashlib` would serve, but importing it loads libcrypto, which the initramfs then has to carry.
try:
    from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # Python 3.12 and later
except ImportError:
    try:
        from _sha256 import sha256  # type: ignore[import-not-found,no-redef,unused-ignore]  # Python 3.11
    except ImportError:
        from hashlib import sha256

FORMAT = 1
#: Bytes; a policy is a few thousand.
MAX_SIZE = 1 << 20

#: Bytes of a text as UTF-8: a line of the kernel's log takes 1,024 (PRINTKRB_RECORD_MAX), with two names and a message.
MAX_TEXT = 250

#: The closed sets that nothing but the policy has; the language that operators write takes them from here.
ON_SHORTFALL = ("continue", *model.FINAL)
ENTER = ("maintenance",)
BOOT_MEMORY = ("leave", "offline")
QUIESCE = ("pci",)
IF_ONLINED = ("report", "offline")
SOURCES = ("kho-scratch", "cmdline", "none")
DEADLINE = (1, 600)
OTHERWISE = "otherwise"

_COMPARISONS = ("<", "<=", ">", ">=")
_OPS = {
    "set": ("is",),
    "text": ("is", "glob"),
    "version": ("is", "glob", "unordered", *_COMPARISONS),
    "number": ("is", *_COMPARISONS),
    "names": ("is", "has"),
}


class Invalid(model.Refused, ValueError):
    """A compiled policy that must not be used; the text says where and why."""

    kind = "invalid"


def load(data: bytes, where: str) -> model.Policy:
    """Return the policy that `data`, read from `where`, holds, with its digest.

    Raises:
        Invalid: for every `data` that no `compiler.dump` of this format wrote; nothing else is raised.
    """
    try:
        return _load(data)
    except _Fault as fault:
        raise Invalid(f"{where}: {fault}") from None
    except RecursionError:
        raise Invalid(f"{where}: the compiled policy is nested too deeply") from None


def check(one: Check, value: object, at: str) -> object:
    """Return what one check of the tables at the end makes of a value that stands at `at`. Raises Invalid."""
    try:
        return one(value, at)
    except _Fault as fault:
        raise Invalid(str(fault)) from None


class _Fault(Exception):
    """What is wrong, not yet where."""


def _fail(message: str) -> NoReturn:
    raise _Fault(message)


def _load(data: bytes) -> model.Policy:
    if len(data) > MAX_SIZE:
        _fail("the compiled policy is larger than 1 MiB")
    try:
        document = plainjson.loads(data.decode("ascii"))
    except ValueError:  # also bytes that are not ASCII, and integers of absurd length
        _fail("the compiled policy is not JSON")
    if not isinstance(document, dict):
        _fail("the compiled policy is not a JSON object")
    version = document.get("format")
    if type(version) is not int or version < 1:
        _fail("the compiled policy does not say its format")
    if version > FORMAT:
        _fail(
            f"format {_show(version)} is newer than the {FORMAT} this safemem reads: compile the policy with"
            " the safemem that built this image, or rebuild the image"
        )
    _keys(document, ("digest", "format", "policy"), "the compiled policy")
    try:
        own = digest({"format": version, "policy": document["policy"]})
    except TypeError:  # a fraction
        _fail("the compiled policy holds a value that no policy has")
    if document["digest"] != own:
        _fail("the digest does not match the content: the compiled policy is damaged or was edited")
    # Spaces, key order and repeated keys are outside the digest, so they are held fixed here.
    if canonical(document) + b"\n" != data:
        _fail("the compiled policy is not laid out as safemem writes it: it is damaged or was edited")
    return _policy(document["policy"])._replace(digest=own)


def names_text(listed: Iterable[str]) -> bytes:
    """Return file names as a text with its own digest, for `names`."""
    body: dict[str, object] = {"names": list(listed)}
    return canonical({**body, "digest": digest(body)}) + b"\n"


def names(data: bytes, where: str) -> list[str]:
    """Return the names that `names_text` made `data` of, read from `where`. Raises Invalid for everything else."""
    try:
        document = plainjson.loads(data.decode("ascii"))
    except (ValueError, RecursionError):
        document = None
    found = document.get("names") if isinstance(document, dict) else None
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found) or names_text(found) != data:
        raise Invalid(f"{where}: the list of names is damaged or was edited")
    return found


def canonical(value: object) -> bytes:
    """Return `value` as the one JSON text that stands for it, without the newline at the end."""
    return plainjson.dumps(value, sort=True).encode("ascii")


def digest(body: dict[str, object]) -> str:
    """Return the 64 hex digits that the compiled policy carries for `body`, its `format` and `policy`."""
    return str(sha256(canonical(body)).hexdigest())


def _policy(value: object) -> model.Policy:
    return model.Policy(**_checked(value, POLICY, "policy"))


def _rules(value: object, at: str) -> tuple[model.Rule, ...]:
    rules = tuple(_rule(item, f"{at}[{index}]") for index, item in enumerate(_list(value, at)))
    seen = {OTHERWISE}
    for index, rule in enumerate(rules):
        if not rule.when:
            _fail(f"`{at}[{index}].when` is empty")
        if rule.name in seen:
            _fail(f"`{at}[{index}].name` is {_show(rule.name)}, which is taken")
        seen.add(rule.name)
    return rules


def _otherwise(value: object, at: str) -> model.Rule:
    rule = _rule(value, at)
    if rule.when:
        _fail(f"`{at}.when` is not empty")
    if rule.name != OTHERWISE:
        _fail(f"`{at}.name` is {_show(rule.name)}, not `{OTHERWISE}`")
    return rule


def _rule(value: object, at: str) -> model.Rule:
    rule = model.Rule(**_checked(value, RULE, at))
    if rule.enter and rule.action in model.FINAL:
        _fail(f"`{at}.enter` is set, but the action is `{rule.action}`")
    return rule


def _memory(value: object, at: str) -> tuple[model.Override, ...]:
    return tuple(_override(item, f"{at}[{index}]") for index, item in enumerate(_list(value, at, empty=True)))


def _override(value: object, at: str) -> model.Override:
    item = model.Override(**_checked(value, OVERRIDE, at))
    if (item.range is not None) + (item.node >= 0) + bool(item.driver) != 1 or item.hold == bool(item.zone):
        _fail(f"`{at}` is not one range, node or driver with hold or a zone")
    return item


def _codes(value: object, at: str) -> tuple[str, ...]:
    """Return codes of errors; which there are, the desk knows."""
    return tuple(_name(item, f"{at}[{index}]") for index, item in enumerate(_list(value, at, empty=True)))


def _failure(value: object, at: str) -> model.Failure:
    return model.Failure(**_checked(value, FAILURE, at))


def _sources(value: object, at: str) -> tuple[str | ranges.Range, ...]:
    sources: list[str | ranges.Range] = []
    for index, item in enumerate(_list(value, at)):
        text = _name(item, f"{at}[{index}]")
        sources.append(text if text in SOURCES else _range(text, f"{at}[{index}]"))
    complaint = source_fault(sources)
    if complaint is not None:
        _fail(f"`{at}[{complaint[0]}]`: {complaint[1]}")
    return tuple(sources)


def source_fault(sources: list[str | ranges.Range]) -> tuple[int, str] | None:
    """Return the index of the first source that contradicts an earlier one, and how."""
    for index, source in enumerate(sources):
        for earlier in sources[:index]:
            if source == earlier:
                return index, f"`{source}` is listed twice"
            if earlier == "none":
                return index, f"`{source}` comes after `none`, which always ends the search"
            if (
                isinstance(source, ranges.Range)
                and isinstance(earlier, ranges.Range)
                and source.start < earlier.end
                and earlier.start < source.end
            ):
                return index, f"range `{source}` overlaps `{earlier}`"
    return None


def _area(value: object, at: str) -> ranges.Range | None:
    return None if value is None else _range(_text(value, at), at)


def _range(text: str, at: str) -> ranges.Range:
    try:
        found = ranges.parse_range(text)
    except ValueError:
        _fail(f"`{at}` is {_show(text)}, neither a source nor a range")
    if str(found) != text:
        _fail(f"`{at}` is {_show(text)}, which safemem writes as `{found}`")
    return found


def _when(value: object, at: str) -> tuple[model.Condition, ...]:
    conditions = tuple(_condition(item, f"{at}[{index}]") for index, item in enumerate(_list(value, at, empty=True)))
    facts = [condition.fact for condition in conditions]
    if len(set(facts)) != len(facts):
        _fail(f"`{at}` names a fact twice")
    return conditions


def _condition(value: object, at: str) -> model.Condition:
    table = _keys(value, ("fact", "groups", "negate"), f"`{at}`")
    fact = _choice(table["fact"], tuple(model.FACTS), f"{at}.fact")
    groups = tuple(
        tuple(
            _term(term, fact, f"{at}.groups[{index}][{place}]")
            for place, term in enumerate(_list(group, f"{at}.groups[{index}]"))
        )
        for index, group in enumerate(_list(table["groups"], f"{at}.groups"))
    )
    return model.Condition(fact, groups, _bool(table["negate"], f"{at}.negate"))


def _term(item: object, fact: str, at: str) -> model.Term:
    pair = _list(item, at)
    if len(pair) != 2:
        _fail(f"`{at}` is not an operator and a value")
    kind, members = model.FACTS[fact]
    op = _choice(pair[0], _OPS[kind], f"{at}[0]")
    value = pair[1]
    if kind == "set":
        return model.Term(op, _choice(value, members, f"{at}[1]"))
    if kind == "number" and not (op == "is" and value == model.UNKNOWN):
        return model.Term(op, _int(value, 0, (1 << 64) - 1, f"{at}[1]"))
    text = _name(value, f"{at}[1]")
    if op in _COMPARISONS and not is_version(text):
        _fail(f"`{at}[1]` is {_show(text)}, not a version")
    if op == "unordered" and text != model.UNORDERED:
        _fail(f"`{at}[1]` is {_show(text)}, not `{model.UNORDERED}`")
    if kind == "names" and op == "is" and text != model.UNKNOWN:
        _fail(f"`{at}[1]` is {_show(text)}, not `{model.UNKNOWN}`")
    return model.Term(op, text)


def _checked(value: object, checks: dict[str, Check], at: str) -> dict[str, Any]:
    """Return what the table at `at` holds, each value checked; it has exactly the keys of `checks`."""
    table = _keys(value, tuple(checks), f"`{at}`")
    return {key: check(table[key], f"{at}.{key}") for key, check in checks.items()}


def _keys(value: object, keys: tuple[str, ...], what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        _fail(f"{what} is not a table")
    for key in keys:
        if key not in value:
            _fail(f"{what} lacks the key `{key}`")
    for key in value:
        if key not in keys:
            _fail(f"{what} has the unknown key {_show(key)}")
    return value


def _list(value: object, at: str, *, empty: bool = False) -> list[object]:
    if not isinstance(value, list):
        _fail(f"`{at}` is not a list")
    if not value and not empty:
        _fail(f"`{at}` is empty")
    return value


def _text(value: object, at: str) -> str:
    return value if value == "" and isinstance(value, str) else _name(value, at)


def _name(value: object, at: str) -> str:
    if not isinstance(value, str):
        _fail(f"`{at}` is not text")
    if not value.strip():
        _fail(f"`{at}` is empty")
    # It goes to consoles and the kernel log: one line, and encodable.
    if not value.isprintable():
        _fail(f"`{at}` holds characters that cannot be printed")
    if len(value.encode()) > MAX_TEXT:
        _fail(f"`{at}` is longer than {MAX_TEXT} bytes")
    return value


def _size(value: object, at: str) -> str:
    return _amount(value, at, ranges.parse_size)


def _limit(value: object, at: str) -> str:
    return _amount(value, at, lambda text: ranges.parse_limit(text, 0))


def _amount(value: object, at: str, parse: Callable[[str], int]) -> str:
    text = _text(value, at)
    try:
        if text:
            parse(text)
    except ValueError as error:
        _fail(f"`{at}`: {error}")
    return text


def _one_of(*choices: str) -> Check:
    return lambda value, at: _choice(value, choices, at)


def _choice(value: object, choices: tuple[str, ...], at: str) -> str:
    if not isinstance(value, str) or value not in choices:
        _fail(f"`{at}` is {_show(value)}, not one of {', '.join(f'`{choice}`' for choice in choices)}")
    return value


def _bool(value: object, at: str) -> bool:
    if not isinstance(value, bool):
        _fail(f"`{at}` is {_show(value)}, neither true nor false")
    return value


def _whole(low: int, high: int) -> Check:
    return lambda value, at: _int(value, low, high, at)


def _int(value: object, low: int, high: int, at: str) -> int:
    if type(value) is not int or not low <= value <= high:
        _fail(f"`{at}` is {_show(value)}, not an integer between {low} and {high}")
    return value


def _show(value: object) -> str:
    """Return `value` for a message: in backticks, on one line, short."""
    try:
        text = value if isinstance(value, str) and value.isprintable() else plainjson.dumps(value)
    except TypeError:  # a fraction
        text = ascii(value)
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"


# What each word of a policy may be. A word that is in the model and not here would be refused at boot, so a test
# compares. The policy was checked at a desk as well, but the archive may come from another version.
RULE: dict[str, Check] = {
    "name": _name,
    "action": _one_of(*model.ACTIONS),
    "when": _when,
    "message": _text,
    "zone": _one_of("", *model.ZONES),
    "enter": _one_of("", *ENTER),
    "on_shortfall": _one_of(*ON_SHORTFALL),
    "exposed_max": _limit,
    "boot_memory": _one_of(*BOOT_MEMORY),
    "floor": _size,
    "accept_data_exposure": _bool,
    "if_onlined": _one_of(*IF_ONLINED),
    "final": _bool,
    "quiesce": _one_of("", *QUIESCE),
    "memory": _memory,
}
OVERRIDE: dict[str, Check] = {
    "range": _area,
    "node": _whole(-1, 1 << 16),
    "driver": _one_of("", *model.DRIVERS),
    "hold": _bool,
    "zone": _one_of("", *model.ZONES),
}
FAILURE: dict[str, Check] = {"action": _one_of(*model.FINAL), "message": _text, "deadline": _whole(*DEADLINE)}
#: Without `digest`, which stands beside the policy.
POLICY: dict[str, Check] = {
    "name": _name,
    "rules": _rules,
    "otherwise": _otherwise,
    "on_failure": _failure,
    "sources": _sources,
    "allow_cmdline_override": _bool,
    "memory": _memory,
    "observe": _bool,
    "open_luo": _bool,
    "retrieve_token": _bool,
    "keep_crashkernel": _size,
    "trust_guard": _bool,
    "accept_errors": _codes,
}
