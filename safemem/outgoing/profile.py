# SPDX-License-Identifier: MIT
"""A fleet's profile, in TOML: which kernels, versions and policies it allows. Read, written, and held against a kernel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from safemem.boot.model import Refused
from safemem.outgoing.expected import Policies
from safemem.outgoing.findings import Finding, finding
from safemem.outgoing.kernel import Kernel
from safemem.policy import load, places
from safemem.policy.values import near, show

FORMAT = 1
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_Version = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,48}$")]
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{16,128}$")]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
#: The key of a profile, as a line of its own or several.
_POLICIES = re.compile(r"(?m)^policies *= *\[[^\]]*\][^\n]*\n")
_NAME = r"^[^\x00-\x1f\x7f]{1,200}$"
#: What each pattern asks for, in words.
_FORMS = {
    _NAME: "one line of text",
    r"^[\x21-\x7e]{1,48}$": "a version such as `kho-v4`",
    r"^[0-9a-f]{16,128}$": "a build ID, 16 to 128 hexadecimal digits",
    r"^[0-9a-f]{64}$": "a digest, 64 hexadecimal digits",
}


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AllowedKernel(_Table):
    """`[[kernel]]`: one that the fleet may boot."""

    release: str = Field(pattern=_NAME, description="What `uname -r` says of it.")
    arch: str = Field("", description="Its architecture, as /proc/sys/kernel/arch calls it; without it any.")
    build_ids: list[_Hex] = Field(
        [], description="Its build IDs, all that its image shows; without them any of the release."
    )
    tree: list[_Version] = Field([], description="Versions of the device tree that KHO passes.")
    luo: list[_Version] = Field([], description="Versions of LUO.")
    handlers: list[_Version] = Field([], description="Versions of the files that sessions may hold.")
    producers: list[_Version] = Field([], description="Versions of what else puts data into the tree.")


class Profile(_Table):
    """The file."""

    format: Literal[1] = Field(description="Format of this file.")
    name: str = Field(pattern=_NAME, description="Stands in messages.")
    kernel: list[AllowedKernel] = Field(min_length=1, description="The kernels that the fleet may boot.")
    policies: list[_Digest] = Field([], description="Digests of the policies that may decide; without them any.")


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of profiles."""
    return {"$schema": DRAFT, **Profile.model_json_schema()}


# ---- reading


def parse(data: bytes, where: str) -> Profile:
    """Return the profile in `data`, the content of the file `where`.

    Raises:
        load.PolicyError: it is not a valid profile; every problem with its place.
    """
    text = load.decode(data, where)
    document = load.toml(text, where)
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        found = places.find(text)
        problems = []
        for details in error.errors(include_url=False):
            path, message = _explain(details)
            problems.append(load.Problem(path, *places.nearest(found, path), message))
        raise load.PolicyError(where, sorted(problems, key=lambda item: (item.line, item.column))) from None


def _explain(details: ErrorDetails) -> tuple[places.Path, str]:
    """Return where one of pydantic's errors is, and what we say of it."""
    path, value = tuple(details["loc"]), details["input"]
    key = str(path[-1]) if path else ""
    wants = f"`{key}` must be" if path and isinstance(path[-1], str) else "expected"
    match details["type"]:
        case "extra_forbidden":
            keys = AllowedKernel.model_fields if path[:1] == ("kernel",) else Profile.model_fields
            return path, f"unknown key `{key}`{near(key, tuple(keys))}"
        case "missing":
            return path[:-1], f"`{key}` is missing"
        case "literal_error":
            return path, f"{show(value)} is not a format that this safemem reads; it reads {FORMAT}"
        case "too_short":
            return path, f"`{key}` must not be empty"
        case "string_pattern_mismatch":
            return path, f"{wants} {_FORMS[details['ctx']['pattern']]}, not {show(value)}"
        case "string_type":
            return path, f"{wants} text, not {show(value)}"
        case "list_type":
            return path, f"{wants} a list, not {show(value)}"
        case "model_type" | "dict_type":
            return path, f"{wants} a table, not {show(value)}"
    return path, f"{details['msg'].lower()}: {show(value)}"


# ---- writing


class Unspeakable(Refused):
    """A kernel cannot stand in a profile; the message says why."""

    kind = "invalid"


def write(name: str, kernels: Iterable[Kernel], digests: Iterable[str] = ()) -> str:
    """Return a profile that allows these kernels and policies.

    Raises:
        Unspeakable: what an image tells cannot be written, or it tells no release.
    """
    allowed: list[AllowedKernel] = []
    for kernel in kernels:
        if not any(_fits(item, kernel) for item in allowed):
            allowed.append(_entry(kernel))
    return _text(Profile(format=1, name=name, kernel=allowed, policies=sorted(set(digests))))


def add(known: Profile, kernels: Iterable[Kernel], digests: Iterable[str], text: str) -> str:
    """Return a profile that allows these kernels and policies beside those that `known` does; `text` is what it was read from.

    One that allows any policy still does. What people have written in the file stays, where that can be done.

    Raises:
        Unspeakable: as in `write`.
    """
    allowed = list(known.kernel)
    for kernel in kernels:
        if not any(_fits(item, kernel) for item in allowed):
            allowed.append(_entry(kernel))
    policies = [*known.policies, *sorted(set(digests) - set(known.policies))] if known.policies else []
    wanted = known.model_copy(update={"kernel": allowed, "policies": policies})
    kept = (
        _POLICIES.sub(f"policies = {_listed(policies, 'the digests')}\n", text, 1)
        if policies != known.policies
        else text
    )
    more = "".join(line + "\n" for item in allowed[len(known.kernel) :] for line in _lines(item))
    kept = kept.rstrip("\n") + "\n" + more
    try:
        same = parse(kept.encode(), known.name).model_dump() == wanted.model_dump()
        return kept if same else _text(wanted)
    except load.PolicyError:
        return _text(wanted)


def _entry(kernel: Kernel) -> AllowedKernel:
    """Return what allows a kernel. Raises Unspeakable."""
    if not kernel.release:
        raise Unspeakable(f"{kernel.path}: its release cannot be told, so no profile can name it")
    if not kernel.build_ids:
        # Without any a profile allows whatever kernel calls itself so.
        raise Unspeakable(f"{kernel.path}: it has no build ID, so no profile can tell it from others of its release")
    found = {"build_ids": frozenset(kernel.build_ids), **_spoken(kernel)}
    for text in (kernel.release, *(text for texts in found.values() for text in texts)):
        _quoted(text, kernel.path)
    lists = {key: sorted(set(texts)) for key, texts in found.items()}
    return AllowedKernel.model_validate({"release": kernel.release, "arch": kernel.arch, **lists})


def _text(found: Profile) -> str:
    """Return a profile as it stands in a file. Raises Unspeakable."""
    lines = [f"format = {FORMAT}", f"name = {_quoted(found.name, 'the name')}"]
    if found.policies:
        lines.append(f"policies = {_listed(found.policies, 'the digests')}")
    return "\n".join([*lines, *(line for item in found.kernel for line in _lines(item))]) + "\n"


def _lines(item: AllowedKernel) -> list[str]:
    lines = ["", "[[kernel]]", f"release = {_quoted(item.release, 'the profile')}"]
    if item.arch:
        lines.append(f"arch = {_quoted(item.arch, 'the profile')}")
    for key in ("build_ids", "tree", "luo", "handlers", "producers"):
        lines.append(f"{key} = {_listed(getattr(item, key), 'the profile')}")
    return lines


def _listed(texts: Iterable[str], where: str) -> str:
    return f"[{', '.join(_quoted(text, where) for text in sorted(set(texts)))}]"


def _quoted(text: str, where: str) -> str:
    """Return a basic string of TOML."""
    if not re.fullmatch(r"[\x20-\x7e]+", text):
        raise Unspeakable(f"{where}: {show(text)} cannot stand in a profile: it is not one line of ASCII")
    return json.dumps(text)


# ---- comparing


def check(allowed: Profile, kernel: Kernel, policies: Policies | None) -> Iterator[Finding]:
    """Yield in what a kernel and the policy of its boot are outside the profile."""
    entries = [item for item in allowed.kernel if _is(item, kernel)]
    entry = next((item for item in entries if _fits(item, kernel)), entries[0] if entries else None)
    if entry is None:
        ids = ", ".join(kernel.build_ids) or "no build ID"
        yield finding(
            "profile-kernel", f"{kernel.path} is {kernel.release or 'of no known release'}, {ids}", name=allowed.name
        )
    else:
        for key, found in _spoken(kernel).items():
            wanted = frozenset(getattr(entry, key))
            if found != wanted:
                why = f"{key} {', '.join(sorted(found)) or 'none'}, not {', '.join(sorted(wanted)) or 'none'}"
                yield finding("profile-versions", kernel.path, why=why)
    if allowed.policies:
        found_policies = (policies.built_in, *policies.named) if policies else ()
        digests = [item.digest for item in found_policies]
        if not digests or not set(digests) <= set(allowed.policies):
            seen = ", ".join(digest[:12] for digest in digests) or "none is known"
            yield finding("profile-policy", seen, name=allowed.name)


def _spoken(kernel: Kernel) -> dict[str, frozenset[str]]:
    speaks = kernel.speaks
    return {"tree": speaks.tree, "luo": speaks.luo, "handlers": kernel.handlers, "producers": speaks.producers}


def _fits(entry: AllowedKernel, kernel: Kernel) -> bool:
    """Return whether an entry allows a kernel as it is."""
    return _is(entry, kernel) and all(set(getattr(entry, key)) == found for key, found in _spoken(kernel).items())


def _is(entry: AllowedKernel, kernel: Kernel) -> bool:
    """Return whether a kernel is the one that an entry allows. A part of an image's build IDs may be shared by others."""
    if entry.release != kernel.release or (entry.arch and entry.arch != kernel.arch):
        return False
    return not entry.build_ids or set(entry.build_ids) == set(kernel.build_ids)
