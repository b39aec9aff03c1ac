# SPDX-License-Identifier: MIT
"""The compiled policy: the one JSON text that the boot path reads.

Imports: standard library only, and only what `docs/boot-path.md` allows.

The text is canonical (sorted keys, no spaces, ASCII, one newline at the end) and carries the
SHA-256 of its own content. The digest finds damage, not forgery: whoever can write the image
can write a digest too.
"""

from __future__ import annotations

from safemem.boot import model, plainjson, ranges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

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

#: What a rule may hold beside `name`, `action` and `when`: its closed set, or the type of its value.
ON_SHORTFALL = ("continue", *model.FINAL)
ENTER = ("", "maintenance")
BOOT_MEMORY = ("leave", "offline")
IF_ONLINED = ("report", "offline")
SOURCES = ("kho-scratch", "cmdline", "none")
DEADLINE = (1, 600)
OTHERWISE = "otherwise"

_COMPARISONS = ("<", "<=", ">", ">=")
_OPS = {
    "set": ("is",),
    "text": ("is", "glob"),
    "version": ("is", "glob", *_COMPARISONS),
    "number": ("is", *_COMPARISONS),
    "names": ("is", "has"),
}
_RULE_KEYS = (
    "accept_data_exposure",
    "action",
    "boot_memory",
    "enter",
    "exposed_max",
    "final",
    "floor",
    "if_onlined",
    "message",
    "name",
    "on_shortfall",
    "when",
    "zone",
)


class Invalid(ValueError):
    """A compiled policy that must not be used; the text says where and why."""


def dump(policy: model.Policy) -> bytes:
    """Return the compiled form of `policy`; its own `digest` is ignored and computed anew."""
    body = {"format": FORMAT, "policy": _plain(policy)}
    return _canonical({"digest": _digest(body), **body}) + b"\n"


def load(data: bytes, where: str) -> model.Policy:
    """Return the policy that `data`, read from `where`, holds, with its digest.

    Raises:
        Invalid: for every `data` that `dump` of this format did not write; nothing else is raised.
    """
    try:
        return _load(data)
    except _Fault as fault:
        raise Invalid(f"{where}: {fault}") from None
    except RecursionError:
        raise Invalid(f"{where}: the compiled policy is nested too deeply") from None


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
    digest = _digest({"format": version, "policy": document["policy"]})
    if document["digest"] != digest:
        _fail("the digest does not match the content: the compiled policy is damaged or was edited")
    # Spaces, key order and repeated keys are outside the digest, so they are held fixed here.
    if _canonical(document) + b"\n" != data:
        _fail("the compiled policy is not laid out as safemem writes it: it is damaged or was edited")
    return _policy(document["policy"])._replace(digest=digest)


def _canonical(value: object) -> bytes:
    return plainjson.dumps(value, sort=True).encode("ascii")


def _digest(body: dict[str, object]) -> str:
    return str(sha256(_canonical(body)).hexdigest())


def _plain(policy: model.Policy) -> dict[str, object]:
    return {
        "name": policy.name,
        "rules": [_plain_rule(rule) for rule in policy.rules],
        "otherwise": _plain_rule(policy.otherwise),
        "on_failure": policy.on_failure._asdict(),
        "sources": [str(source) for source in policy.sources],
        "allow_cmdline_override": policy.allow_cmdline_override,
        "memory": [{**item._asdict(), "range": str(item.range) if item.range else None} for item in policy.memory],
        "open_luo": policy.open_luo,
        "keep_crashkernel": policy.keep_crashkernel,
        "trust_guard": policy.trust_guard,
    }


def _plain_rule(rule: model.Rule) -> dict[str, object]:
    conditions = [
        {
            "fact": condition.fact,
            "groups": [[[term.op, term.value] for term in group] for group in condition.groups],
            "negate": condition.negate,
        }
        for condition in rule.when
    ]
    return {**rule._asdict(), "when": conditions}


def _policy(value: object) -> model.Policy:
    table = _keys(
        value,
        (
            "allow_cmdline_override",
            "keep_crashkernel",
            "memory",
            "name",
            "on_failure",
            "open_luo",
            "otherwise",
            "rules",
            "sources",
            "trust_guard",
        ),
        "`policy`",
    )
    rules = tuple(
        _rule(item, f"policy.rules[{index}]") for index, item in enumerate(_list(table["rules"], "policy.rules"))
    )
    seen = {OTHERWISE}
    for index, rule in enumerate(rules):
        if not rule.when:
            _fail(f"`policy.rules[{index}].when` is empty")
        if rule.name in seen:
            _fail(f"`policy.rules[{index}].name` is {_show(rule.name)}, which is taken")
        seen.add(rule.name)
    otherwise = _rule(table["otherwise"], "policy.otherwise")
    if otherwise.when:
        _fail("`policy.otherwise.when` is not empty")
    if otherwise.name != OTHERWISE:
        _fail(f"`policy.otherwise.name` is {_show(otherwise.name)}, not `{OTHERWISE}`")
    return model.Policy(
        name=_text(table["name"], "policy.name", empty=False),
        rules=rules,
        otherwise=otherwise,
        on_failure=_failure(table["on_failure"]),
        sources=_sources(table["sources"]),
        allow_cmdline_override=_bool(table["allow_cmdline_override"], "policy.allow_cmdline_override"),
        memory=tuple(
            _override(item, f"policy.memory[{index}]")
            for index, item in enumerate(_list(table["memory"], "policy.memory", True))
        ),
        open_luo=_bool(table["open_luo"], "policy.open_luo"),
        keep_crashkernel=_size(table["keep_crashkernel"], "policy.keep_crashkernel"),
        trust_guard=_bool(table["trust_guard"], "policy.trust_guard"),
    )


def _override(value: object, at: str) -> model.Override:
    table = _keys(value, model.Override._fields, f"`{at}`")
    area = None if table["range"] is None else _range(_text(table["range"], f"{at}.range"), f"{at}.range")
    node = _int(table["node"], -1, 1 << 16, f"{at}.node")
    driver = _choice(table["driver"], ("", *model.DRIVERS), f"{at}.driver")
    hold = _bool(table["hold"], f"{at}.hold")
    zone = _choice(table["zone"], ("", *model.ZONES), f"{at}.zone")
    if (area is not None) + (node >= 0) + bool(driver) != 1 or hold == bool(zone):
        _fail(f"`{at}` is not one range, node or driver with hold or a zone")
    return model.Override(area, node, driver, hold, zone)


def _range(text: str, at: str) -> ranges.Range:
    try:
        found = ranges.parse_range(text)
    except ValueError:
        _fail(f"`{at}` is {_show(text)}, neither a source nor a range")
    if str(found) != text:
        _fail(f"`{at}` is {_show(text)}, which safemem writes as `{found}`")
    return found


def _failure(value: object) -> model.Failure:
    at = "policy.on_failure"
    table = _keys(value, ("action", "deadline", "message"), f"`{at}`")
    return model.Failure(
        action=_choice(table["action"], model.FINAL, f"{at}.action"),
        message=_text(table["message"], f"{at}.message"),
        deadline=_int(table["deadline"], *DEADLINE, f"{at}.deadline"),
    )


def _sources(value: object) -> tuple[str | ranges.Range, ...]:
    at = "policy.sources"
    sources: list[str | ranges.Range] = []
    for index, item in enumerate(_list(value, at)):
        text = _text(item, f"{at}[{index}]", empty=False)
        if text in SOURCES:
            sources.append(text)
            continue
        sources.append(_range(text, f"{at}[{index}]"))
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


def _rule(value: object, at: str) -> model.Rule:
    table = _keys(value, _RULE_KEYS, f"`{at}`")
    conditions = tuple(
        _condition(item, f"{at}.when[{index}]") for index, item in enumerate(_list(table["when"], f"{at}.when", True))
    )
    facts = [condition.fact for condition in conditions]
    if len(set(facts)) != len(facts):
        _fail(f"`{at}.when` names a fact twice")
    action = _choice(table["action"], model.ACTIONS, f"{at}.action")
    enter = _choice(table["enter"], ENTER, f"{at}.enter")
    if enter and action in model.FINAL:
        _fail(f"`{at}.enter` is set, but the action is `{action}`")
    return model.Rule(
        name=_text(table["name"], f"{at}.name", empty=False),
        action=action,
        when=conditions,
        message=_text(table["message"], f"{at}.message"),
        zone=_choice(table["zone"], ("", *model.ZONES), f"{at}.zone"),
        enter=enter,
        on_shortfall=_choice(table["on_shortfall"], ON_SHORTFALL, f"{at}.on_shortfall"),
        exposed_max=_size(table["exposed_max"], f"{at}.exposed_max", share=True),
        floor=_size(table["floor"], f"{at}.floor"),
        boot_memory=_choice(table["boot_memory"], BOOT_MEMORY, f"{at}.boot_memory"),
        accept_data_exposure=_bool(table["accept_data_exposure"], f"{at}.accept_data_exposure"),
        if_onlined=_choice(table["if_onlined"], IF_ONLINED, f"{at}.if_onlined"),
        final=_bool(table["final"], f"{at}.final"),
    )


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
    text = _text(value, f"{at}[1]", empty=False)
    if op in _COMPARISONS and not is_version(text):
        _fail(f"`{at}[1]` is {_show(text)}, not a version")
    if kind == "names" and op == "is" and text != model.UNKNOWN:
        _fail(f"`{at}[1]` is {_show(text)}, not `{model.UNKNOWN}`")
    return model.Term(op, text)


def is_version(text: str) -> bool:
    """Return whether `text` is a version that can be ordered: `7`, `7.2`, `7.2.1`, `7.2-rc3`."""
    numbers, dash, candidate = text.partition("-")
    parts = numbers.split(".")
    if dash:
        if not candidate.startswith("rc"):
            return False
        parts.append(candidate[2:])
    return all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts)


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


def _list(value: object, at: str, empty: bool = False) -> list[object]:
    if not isinstance(value, list):
        _fail(f"`{at}` is not a list")
    if not value and not empty:
        _fail(f"`{at}` is empty")
    return value


def _text(value: object, at: str, empty: bool = True) -> str:
    if not isinstance(value, str):
        _fail(f"`{at}` is not text")
    if not value.strip() and not (empty and value == ""):
        _fail(f"`{at}` is empty")
    # It goes to consoles and the kernel log: one line, and encodable.
    if not value.isprintable():
        _fail(f"`{at}` holds characters that cannot be printed")
    return value


def _size(value: object, at: str, share: bool = False) -> str:
    text = _text(value, at)
    try:
        if text:
            ranges.parse_limit(text, 0) if share else ranges.parse_size(text)
    except ValueError as error:
        _fail(f"`{at}`: {error}")
    return text


def _choice(value: object, choices: tuple[str, ...], at: str) -> str:
    if not isinstance(value, str) or value not in choices:
        _fail(f"`{at}` is {_show(value)}, not one of {', '.join(f'`{choice}`' for choice in choices)}")
    return value


def _bool(value: object, at: str) -> bool:
    if not isinstance(value, bool):
        _fail(f"`{at}` is {_show(value)}, neither true nor false")
    return value


def _int(value: object, low: int, high: int, at: str) -> int:
    if type(value) is not int or not low <= value <= high:
        _fail(f"`{at}` is {_show(value)}, not an integer between {low} and {high}")
    return value


def _show(value: object) -> str:
    """Return `value` for a message: in backticks, on one line, short."""
    text = value if isinstance(value, str) and value.isprintable() else plainjson.dumps(value)
    return f"`{text[:60]}…`" if len(text) > 60 else f"`{text}`"
