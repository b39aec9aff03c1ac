# SPDX-License-Identifier: MIT
"""JSON without the `json` package, for the boot path: it would bring `re`, `enum` and more.

The work is done by `_json`, the accelerator that `json` itself is built on since Python 2.6;
an interpreter without it gets `json`.
"""

from __future__ import annotations

try:
    import _json
except ImportError:
    _json = None  # type: ignore[assignment]


class _Context:
    """What `json.JSONDecoder` would hand to the scanner."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float  # NaN and Infinity: numbers that no field of ours accepts
    memo: dict[str, str] = {}  # noqa: RUF012  (the scanner wants the attribute and empties it itself)


def loads(text: str) -> object:
    """Return the value that `text` holds.

    Raises:
        ValueError: not JSON, or something after it.
        RecursionError: nested too deeply.
    """
    if _json is None:
        import json

        return json.loads(text)
    try:
        value, end = _json.make_scanner(_Context())(text, 0)  # type: ignore[arg-type]
    except (StopIteration, ImportError):  # to say what is wrong, the scanner would import `json.decoder`
        raise ValueError("not JSON") from None
    if text[end:].strip(" \t\r\n"):
        raise ValueError("something comes after the JSON value")
    return value


def dumps(value: object, *, sort: bool = False) -> str:
    """Return `value` as JSON in ASCII without spaces. Raises TypeError for what JSON cannot hold."""
    if isinstance(value, str):
        return _quoted(value)
    if value is None or value is True or value is False:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join([dumps(item, sort=sort) for item in value])}]"
    if isinstance(value, dict):
        items = sorted(value.items()) if sort else value.items()
        return f"{{{','.join([f'{_quoted(key)}:{dumps(item, sort=sort)}' for key, item in items])}}}"
    raise TypeError(f"{type(value).__name__} is not JSON")


def _quoted(text: str) -> str:
    if _json is None:
        import json

        return json.dumps(text)
    return _json.encode_basestring_ascii(text)
