# SPDX-License-Identifier: MIT
"""What stands against the policy at the next boot: its image, its policy, its kernel, and how that one is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safemem.boot import probe
from safemem.boot.cmdline import argument
from safemem.boot.conditions import matches
from safemem.boot.model import UNKNOWN, Policy, Refused
from safemem.host.catalogue import Finding, finding
from safemem.host.machine import Machine
from safemem.initramfs import bootplaces, check, target
from safemem.policy import installed
from safemem.policy.space import FROM_THE_TREE

if TYPE_CHECKING:
    from safemem.policy.load import Authored

_PANIC = "proc/sys/kernel/panic"


def _initrd(machine: Machine) -> Iterator[Finding]:
    image, release, rebuild = machine.image, machine.image.release, _rebuild(machine)
    if image.doubt:
        yield finding("initrd-not-told", image.doubt, release=release)
    elif not image.path:
        yield finding("no-initrd", bootplaces.places(release), release=release)
    elif image.fault:
        yield finding("initrd-unreadable", f"{image.path}: {image.fault}", rebuild=rebuild)
    elif image.hidden:
        yield finding("initrd-not-looked-into", f"{image.path}: {image.hidden}")
    elif image.inside is None:
        seen = image.called + (f": {image.why}" if image.why else "")
        yield finding("initrd-without-safemem", seen, rebuild=rebuild)
    else:
        if image.inside.fault:
            if image.inside.fault == check.UNSTARTED:
                rebuild = f"{rebuild}; or {check.START_IT}"
            yield finding("initrd-not-first", f"{image.called}: {image.inside.fault}", rebuild=rebuild)
        if image.undone:
            yield finding("entry-undoes", f"{image.called}: {image.undone}")
        unproven = check.unproven(image.inside)
        if unproven:
            yield finding("initrd-unproven", f"{image.called}: {unproven}", rebuild=_rebuild(machine))
        if image.inside.built_in.observe:
            yield finding("only-observes", image.called)
        if image.inside.built_in.accept_errors:
            yield finding("accepts-errors", f"{image.called}: {', '.join(image.inside.built_in.accept_errors)}")


def _rebuild(machine: Machine) -> str:
    """Return how the image of the next boot is made anew; where none is known, as `install` has it for the first one."""
    return target.anew(machine.root, machine.image.release)


def _operators(machine: Machine) -> Iterator[Finding]:
    """Compare the operator's policies with those in the initrd, and prove each where that does not say it was proved."""
    rebuild = _rebuild(machine)
    try:
        given = _counts(machine) + [(file, file.path.stem) for file in installed.others(machine.root)]
    except (Refused, OSError) as error:
        seen = str(error).splitlines()[0]
        yield finding("policy-refused", seen, policy=f"/{installed.POLICY}", rebuild=rebuild)
        return
    if not given:
        return
    try:
        from safemem.policy import load  # pydantic: for this check only
    except (ImportError, SystemError) as error:  # the latter is a pydantic that does not fit its own core
        yield finding("policy-not-read", str(error), policy=f"/{installed.POLICY}")
        return
    for file, called in given:
        try:
            own = load.parse(file.data, str(file.path))
        except Refused as error:
            seen = str(error).splitlines()[0]
            yield finding("policy-refused", seen, policy=_name(machine, file.path), rebuild=rebuild)
        else:
            yield from _compared(machine, _name(machine, file.path), called, own)


def _counts(machine: Machine) -> list[tuple[installed.Trusted, str]]:
    """Return the policy that counts here, without a name that the command line may say: as `initramfs check` has it.

    The shipped default is compared with an image that has another policy, and by root alone: nobody else's word for it counts.
    """
    own = os.path.lexists(Path(machine.root) / installed.POLICY)
    if own or (machine.image.inside is not None and os.geteuid() == 0):
        return [(installed.find(machine.root), "")]
    return []


def _name(machine: Machine, path: Path) -> str:
    """Return a file as the machine itself names it; what is not below its root, as we do."""
    name = os.path.relpath(path, machine.root)
    return str(path) if name.startswith("../") else f"/{name}"


def _compared(machine: Machine, name: str, called: str, own: Authored) -> Iterator[Finding]:
    """Compare one policy, the file `name`, with the one that the initrd has in its place: its own, or that `called` so."""
    from safemem.policy import prove

    inside, digest = machine.image.inside, own.policy.digest
    if inside:
        there = inside.named.get(called, "") if called else inside.digest
        has = inside.others[called].name if called and called in inside.others else inside.policy
        if there != digest:
            seen = f"its policy is `{has}` (digest {there[:12]})" if there else f"it has none called `{called}`"
            seen = f"{machine.image.called}: {seen}, not `{own.policy.name}` of {name} (digest {digest[:12]})"
            yield finding("initrd-other-policy", seen, policy=name, rebuild=_rebuild(machine))
        if (inside.proven and inside.proven.of(digest)) or not (called or name == f"/{installed.POLICY}"):
            return
    bad = [item for item in prove.prove(own.policy).found if item.level == "error"]
    if bad:
        line, column = own.place(bad[0].rule, bad[0].key)
        more = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        seen = f"{name}:{line}:{column}: {bad[0].message} [{bad[0].code}]{more}"
        yield finding("policy-condemned", seen, policy=name)


def _panic(machine: Machine) -> Iterator[Finding]:
    """Find what makes a reset of a panic; where the policy is not known, it may have one."""
    policy = _policy(machine)
    if policy and not _may_panic(policy):
        return
    asked, now = argument(machine.snapshot.cmdline, "panic"), machine.text(_PANIC)
    if asked not in (None, "", "0"):
        yield finding("panic-resets", f"panic={asked} on the command line")
    elif now not in ("", "0"):
        yield finding("panic-resets", f"{_PANIC} reads `{now}`")


def _policy(machine: Machine) -> Policy | None:
    """Return the policy of the next boot: the image's, or the operator's where no image has one; None if neither is known."""
    if machine.policy or not os.path.lexists(Path(machine.root) / installed.POLICY):
        return machine.policy
    try:
        from safemem.policy import load  # pydantic: for this check only

        file = installed.find(machine.root)
        return load.parse(file.data, str(file.path)).policy
    except (ImportError, SystemError, Refused, OSError):  # a finding of its own
        return None


def _may_panic(policy: Policy) -> bool:
    if policy.observe:
        return False
    ends = {word for rule in (*policy.rules, policy.otherwise) for word in (rule.action, rule.on_shortfall)}
    return "panic" in {*ends, policy.on_failure.action}


def _kernel(machine: Machine) -> Iterator[Finding]:
    built_in, source = probe.configured(machine.root, "CONFIG_KEXEC_HANDOVER")
    if built_in is False:
        yield finding("no-kho", f"{source}: CONFIG_KEXEC_HANDOVER is not set")


def _facts(machine: Machine) -> Iterator[Finding]:
    """Find facts that rules ask for and nothing on this machine tells, so that those rules never decide here.

    That a handover cannot be told is a finding of its own: every policy asks for it. What only an accepted one tells counts where one
    was, or where the kernel can accept none. What was preserved each kexec tells anew, or does not.
    """
    policy, facts = _policy(machine), machine.snapshot.facts
    if policy is None:
        return
    accepts = probe.configured(machine.root, "CONFIG_KEXEC_HANDOVER")[0] is not False
    names = [name for name in facts if facts[name].value == UNKNOWN and name not in ("handover", "preserved")]
    for name in names:
        if name in FROM_THE_TREE and accepts and machine.value("handover") != "accepted":
            continue
        rules = [
            f"`{rule.name}`"
            for rule in policy.rules
            if any(condition.fact == name and not matches(condition, facts[name]) for condition in rule.when)
        ]
        if rules:
            seen = f"{facts[name].source}: {facts[name].reason}"
            yield finding("fact-unknown", seen, fact=name, rules=", ".join(rules))


def _kexec(machine: Machine) -> Iterator[Finding]:
    """Find what would load the next kernel with kexec_load(2), which hands nothing over and leaves no mark."""
    if machine.value("kho") == "off":
        return
    script, settings = "etc/init.d/kexec-load", "etc/default/kexec"
    for number, line in enumerate(machine.text(script).splitlines(), 1):
        words = line.split()
        loads = words[:1] == ["/sbin/kexec"] and ("-l" in words or "--load" in words)
        if loads and not {"-s", "--kexec-file-syscall", "-a", "--kexec-syscall-auto"} & set(words):
            if _setting(machine.text(settings), "LOAD_KEXEC", "true") == "true":
                yield finding("old-kexec", f"{script}:{number}: {line.strip()}", settings=settings)
            return


def _setting(text: str, name: str, default: str) -> str:
    """Return what a shell file of plain assignments sets `name` to."""
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and key == name:
            default = value.strip().strip("\"'")
    return default


#: In the order in which a person would look.
CHECKS = (_initrd, _operators, _panic, _kernel, _facts, _kexec)
