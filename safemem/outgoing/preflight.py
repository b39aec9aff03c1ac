# SPDX-License-Identifier: MIT
"""The preflight: what this kernel hands over, crossed with what the next one is and is given; findings, and one verdict.

Reads nothing but through `running` and `guardline`; changes nothing.

INVARIANT: `compatible` takes versions on both sides that are known and meet: everything else is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from safemem.boot.model import UNKNOWN, Fact
from safemem.initramfs.check import Wanted
from safemem.outgoing import expected, guardline, nextinitrd, nextline, prediction, profile
from safemem.outgoing.expected import Ending, NextBoot, Policies
from safemem.outgoing.findings import AS_ROOT, SEVERITIES, Finding, finding, verdict
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.nextinitrd import Initrd
from safemem.outgoing.prediction import Prediction
from safemem.outgoing.running import Running

LOADERS = ("kexec_file", "kexec_load")


class Asked(NamedTuple):
    """What is about to be loaded, and what is meant."""

    kernels: tuple[Kernel, ...]  #: of the image, of a unified one that has several, one for each profile
    cmdline: str | None = None  #: None takes the image's own, if it has one
    initrds: tuple[Initrd, ...] = ()  #: beside those in the image
    loader: str = LOADERS[0]
    wanted: Wanted | None = None  #: the policies that are to be in the initrd; None if nobody says
    policies: Policies | None = None  #: the policy that is meant, where no initrd tells one
    profile: profile.Profile | None = None


class Report(NamedTuple):
    """What was found out."""

    kernel: Kernel
    running: Running
    prediction: Prediction
    found: tuple[Finding, ...]  #: the worst first
    endings: tuple[Ending, ...]  #: what comes of the kexec, the expected first

    @property
    def verdict(self) -> str:
        """One of VERDICTS."""
        return verdict(self.found)


def examine(running: Running, asked: Asked) -> Report:
    """Return everything that speaks for and against this kexec."""
    kernel = asked.kernels[0]
    line = nextline.line(kernel, asked.cmdline if asked.cmdline is not None else kernel.cmdline)
    looked = (
        nextinitrd.look(asked.initrds) if asked.initrds else _looked(asked.kernels)
    )  # kexec(8) passes one or the other
    policies = nextinitrd.policies(looked, line) or asked.policies
    boot = NextBoot(running, kernel, line, policies)
    outcome = prediction.predict(running.outgoing, kernel)
    if asked.loader != LOADERS[0] and outcome.outcome != "none":
        outcome = outcome._replace(outcome="none", why="kexec_load(2) hands nothing over", code="old-loader")
    ground, why = guardline.ground(running, kernel, looked.size)
    state = expected.state(outcome, line)
    # What is for another machine is not loaded, and nothing comes of it.
    endings = () if outcome.code == "other-arch" else expected.endings(boot, state)
    found = [
        *_running(running),
        *guardline.scratch(running, kernel, looked.size, ground),
        *_pairing(running, kernel, outcome, line),
        *_image(running, asked),
        *_loader(running, asked.loader),
        *nextline.check(running, kernel, line, policies.built_in if policies else None),
        *guardline.check(running, kernel, line, ground, why),
        *nextinitrd.checks(looked, line, asked.wanted, careless=running.at_stake.value == "no"),
        *_ends(boot, endings, state),
        *(profile.check(asked.profile, kernel, policies) if asked.profile else ()),
    ]
    return Report(kernel, running, outcome, tuple(sorted(found, key=_order)), endings)


def _looked(kernels: tuple[Kernel, ...]) -> nextinitrd.Looked:
    """Return what the initrds of an image have of safemem: of the profiles that a unified one has, the worst."""
    found: list[tuple[Kernel, nextinitrd.Looked]] = []
    for kernel in kernels:
        which = f"profile {kernel.profile}, " if len(kernels) > 1 and kernel.profile else ""
        own = tuple(Initrd(f"{kernel.path} ({which}initrd {n})", data) for n, data in enumerate(kernel.initrds, 1))
        # What profiles share is looked into once.
        if not any(kernel.initrds == other.initrds for other, _ in found):
            found.append((kernel, nextinitrd.look(own)))
    return max((looked for _, looked in found), key=nextinitrd.badness)


def _order(found: Finding) -> int:
    return SEVERITIES.index(found.severity)


# ---- this kernel


def _running(running: Running) -> Iterator[Finding]:
    kho = running.outgoing.kho
    if kho.value == UNKNOWN:
        yield finding("kho-untold", prediction.said(kho))
    stake = running.at_stake
    if stake.value != "no" and kho.value != "no":
        # Here it counts as yes; of a capture nobody has looked.
        severity = "" if running.root or stake.value == "yes" else UNKNOWN
        yield finding("at-stake" if stake.value == "yes" else "stake-untold", stake.reason, severity=severity)
    for area in running.in_kernel_zone:
        yield finding("kernel-zone", area, severity="warning" if stake.value == "no" else "error")
    for area in running.zone_untold:
        yield finding("zone-untold", area, severity="note" if stake.value == "no" else "")
    if running.replaced:
        yield finding("other-file", running.image_fault)
    image = running.image
    if image is None or running.proven:
        return
    if running.build_id and image.build_ids:
        seen = f"the kernel has build ID {running.build_id}, and the file {' and '.join(image.build_ids)}"
        yield finding("running-differs", seen, path=image.path)
    elif image.release and image.release != running.outgoing.release:
        yield finding("running-differs", f"it is {image.release}, and {running.outgoing.release} runs", path=image.path)
    else:
        shown = running.root and running.tree and stake.value == "no"
        yield finding("running-on-word", "--running", severity="warning" if shown else UNKNOWN, path=image.path)


def _pairing(running: Running, kernel: Kernel, outcome: Prediction, line: nextline.Line) -> Iterator[Finding]:
    """Yield what becomes of the handover by what both kernels speak, and what is lost of one that is accepted."""
    held = "warning" if running.at_stake.value == "no" else "error"
    if outcome.code == "old-loader":
        return  # said of the loader
    if outcome.code == "pairing-untold":
        yield finding(outcome.code, "; ".join((outcome.why, *outcome.untold)), help=_missing(running, kernel))
    elif outcome.code == "kho-off":
        yield finding(outcome.code, _off(running.outgoing.kho))
    elif outcome.code != "agreed" or line.kho:  # one that is told to have KHO off accepts nothing
        yield finding(outcome.code, outcome.why)
    if outcome.outcome != "accepted":
        return
    a = running.outgoing
    for name in outcome.lost:
        if name == "LUO":
            yield finding("no-luo", outcome.why, severity=held)
        elif name in a.preserves:
            yield finding("producer-missing", running.tree, name=name)
        elif name in a.speaks.handlers:
            yield finding(
                "handler-missing", f"{running.image.path if running.image else a.what} has it", severity=held, name=name
            )
        else:
            yield finding("producer-missing", a.what, severity=held, name=name)
    if a.luo.value != "no" and "LUO" not in outcome.lost:
        yield from _handlers(running)
    for module in kernel.modules:
        for name in sorted(module.handlers & a.speaks.handlers - kernel.speaks.handlers):
            yield finding("in-module", module.path, name=name)


def _off(kho: Fact) -> str:
    """Return by what it is known that this kernel hands nothing over."""
    if kho.reason == "not built in":
        return f"KHO is not built in, by {kho.source}"
    return f"{kho.reason or 'it is off'}, by {kho.source}" if kho.source else kho.reason


def _missing(running: Running, kernel: Kernel) -> str:
    """Return what would help to tell what becomes of the handover, by what is missing."""
    a, found = running.outgoing, []
    if not running.root and running.image is None:
        found.append("add --running IMAGE, the file that machine was booted from")
    elif a.kho.value == UNKNOWN or not a.speaks.tree:
        found.append(AS_ROOT if running.root else "look on that machine itself")
    if kernel.kho.value != "yes" or not (kernel.speaks.tree and kernel.arch and kernel.page_size):
        found.append("`safemem kernel IMAGE` shows what the next one's image tells; keep the `config` file beside it")
    return "; ".join(found) or "`safemem kernel IMAGE` shows what an image tells"


def _handlers(running: Running) -> Iterator[Finding]:
    """Yield whether handlers of the running kernel may be missing from what is compared."""
    severity = "note" if running.at_stake.value == "no" else ""
    if running.image is None:
        what, remedy = "the running kernel's own file was", "with --running, name the file this kernel was booted from"
        yield finding("handlers-untold", running.image_fault, severity=severity, what=what, help=remedy)
    elif why := running.image.modules_untold:
        what, remedy = "modules of the running kernel were", "keep its modules in /usr/lib/modules"
        yield finding("handlers-untold", why, severity=severity, what=what, help=remedy)


def _image(running: Running, asked: Asked) -> Iterator[Finding]:
    kernels, kernel = asked.kernels, asked.kernels[0]
    if len(kernels) > 1:
        # Which section of several a loader takes is its own affair: kexec(8) takes the last there is.
        names = ", ".join(item.profile or "the first" for item in kernels)
        same = len({_judged(item, asked) for item in kernels}) == 1
        yield finding("several-profiles", names, severity="" if same else UNKNOWN)
    if asked.cmdline is None and kernel.cmdline is not None:
        severity = "warning" if running.at_stake.value == "no" or running.outgoing.kho.value == "no" else UNKNOWN
        yield finding("cmdline-of-image", kernel.path, severity=severity)
    if kernel.untold:
        yield finding("image-untold", "; ".join(kernel.untold))


def _judged(kernel: Kernel, asked: Asked) -> tuple[object, ...]:
    """Return what of a profile of a unified image the judgement is of."""
    line, initrds = kernel.cmdline if asked.cmdline is None else "", () if asked.initrds else kernel.initrds
    return kernel.release, kernel.build_ids, kernel.speaks, kernel.untold, kernel.arch, kernel.page_size, line, initrds


def _loader(running: Running, loader: str) -> Iterator[Finding]:
    if loader == LOADERS[0]:
        return
    handed = running.snapshot.facts["handover"].value
    # kexec-tools copies the whole device tree there, with what the kernel before has left in it.
    stale = running.outgoing.arch == "aarch64" and handed != "none"
    if stale:
        yield finding("stale-handover", f"--loader {loader}; this boot's handover is {handed}")
    else:
        yield finding("old-loader", f"--loader {loader}")


# ---- the policy


def _ends(boot: NextBoot, endings: tuple[Ending, ...], state: str) -> Iterator[Finding]:
    """Yield what is wrong with how the next boot ends where the handover itself goes well, and where it does not."""
    if state == "accepted" and boot.kernel.kho.value == "yes" and not expected.by_token(boot):
        shown = expected.shows(boot)
        if shown is not True:
            code = "reads-unknown" if shown is False else "reads-untold"
            yield finding(code, boot.kernel.config_source or boot.kernel.path)
    if boot.policies is None:
        return
    name = boot.policies.built_in.name
    for item in endings:
        if item.state == "accepted" and item.expected:
            yield from _accepted(boot, item, name)
    if not boot.policies.built_in.observe:  # told of already, and as gravely
        yield from _loose(boot, endings, name)


def _loose(boot: NextBoot, endings: tuple[Ending, ...], name: str) -> Iterator[Finding]:
    """Yield which ways in which the handover may fail end with all memory online: what is preserved is written over."""
    held, seen = boot.running.at_stake.value != "no", set[tuple[str, str]]()
    # What is preserved a capture does not tell; and without a command line nobody knows what the next boot will be told.
    looked = boot.running.root or boot.running.at_stake.value != UNKNOWN
    severity = "warning" if not held else "error" if looked and boot.line.text is not None else UNKNOWN
    for item in endings:
        if item.expected or item.state == "accepted" or item.action != "online-all":
            continue
        if item.state == "lost" and item.reads == "none":
            if boot.line.text is not None:
                yield finding("lost-unseen", f"policy `{name}`, rule `{item.rule}`", severity=severity)
        elif held and (item.rule, item.reads) not in seen:
            seen.add((item.rule, item.reads))
            yield finding("policy-loose", f"policy `{name}`", severity=severity, rule=item.rule, state=item.reads)


def _accepted(boot: NextBoot, item: Ending, name: str) -> Iterator[Finding]:
    """Compare what comes of the acceptance that is expected with what would come of one that the next boot can see."""
    evidence = f"policy `{name}`"
    # Where it is not known what that kernel can show, it may show enough.
    severity = UNKNOWN if item.reads == UNKNOWN and expected.shows(boot) is None else ""
    said = {"action": item.action, "rule": item.rule}
    if expected.ends(item):
        yield finding("policy-ends", evidence, severity=severity, state=item.reads, **said)
    elif item.reads != "accepted":
        seen = boot._replace(kernel=boot.kernel._replace(config={"CONFIG_KEXEC_HANDOVER_DEBUGFS": "y"}))
        wanted = expected.ending(seen, "accepted")
        if wanted.action != item.action:
            yield finding("policy-holds", evidence, severity=severity, wanted=wanted.action, **said)
