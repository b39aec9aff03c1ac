# SPDX-License-Identifier: MIT
"""Preflight: each finding from what makes it, the verdict, what the policy makes of each end, and the formats."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from safemem.boot import compiled, handover_args
from safemem.boot.cmdline import sealed
from safemem.boot.model import Fact, Policy, Term
from safemem.cli import main
from safemem.initramfs.check import Wanted
from safemem.initramfs.items import PREFIX
from safemem.outgoing import guardline, image, modules, nextkernel, nextline, prediction, preflight, running
from safemem.outgoing.findings import CODES, SEVERITIES
from safemem.outgoing.kernel import Feature, Kernel, Module, Speaks
from safemem.outgoing.nextinitrd import Initrd
from safemem.outgoing.preflight import Asked, Report
from safemem.outgoing.running import Running
from safemem.policy import compiler, load
from safemem.render import preflight as render
from safemem.render.text import rooted
from tests import fakes
from tests.fakes import machine
from tests.kit import NEVER, POLICY, archive, base, policy, proof, rule, snapshot, units, when

ID = "ab" * 20
YES, NO, UNTOLD = Fact("yes", "config"), Fact("no", "config"), Fact("unknown", "image", "nothing tells")
CONFIG = {
    "CONFIG_KEXEC_HANDOVER": "y",
    "CONFIG_KEXEC_HANDOVER_DEBUGFS": "y",
    "CONFIG_HUGETLBFS": "y",
    "CONFIG_NUMA": "y",
}
SPEAKS = Speaks(
    frozenset({"kho-v4"}), frozenset({"luo-v5"}), frozenset({"memfd-v2"}), frozenset({"memblock-v1", "reserve-mem-v1"})
)
CURRENT = Kernel(
    "vmlinuz", "bzImage", arch="x86_64", release="7.3.4", build_ids=(ID,), page_size=4096, config=CONFIG,
    config_source="the image", kho=YES, luo=YES, speaks=SPEAKS,
)  # fmt: skip


class Case(NamedTuple):
    """A machine, what is about to be loaded there, and what reads the image of the kernel that runs."""

    root: Path
    asked: Asked
    images: running.Reader
    named: str = ""

    @property
    def kernel(self) -> Kernel:
        """The next kernel."""
        return self.asked.kernels[0]

    @property
    def cmdline(self) -> str:
        """The next command line."""
        return self.asked.cmdline or ""

    def now(self, **changes: Any) -> Case:
        """Return the case with another kernel than CURRENT running."""
        return self._replace(images=lambda path: (CURRENT._replace(path=path, **changes),))

    def next(self, **changes: Any) -> Case:
        """Return the case with another next kernel."""
        return self._replace(asked=self.asked._replace(kernels=(self.kernel._replace(**changes),)))

    def line(self, old: str, new: str) -> Case:
        """Return the case with something on the next command line replaced, or with `old` empty appended."""
        text = self.cmdline.replace(old, new) if old else f"{self.cmdline} {new}"
        assert text != self.cmdline
        return self._replace(asked=self.asked._replace(cmdline=text))

    def initrd(self, *parts: dict[str, bytes]) -> Case:
        """Return the case with another initrd, of so many parts."""
        made = tuple(Initrd(f"part {number}", archive(files)) for number, files in enumerate(parts))
        return self._replace(asked=self.asked._replace(initrds=made))

    def decided(self, by: Policy) -> Case:
        """Return the case with another policy in the initrd, which is meant."""
        data = compiler.dump(by)
        files = {**base(), **units(by.on_failure.action), f"{PREFIX}/policy.json": data, **proof(data)}
        digest = compiled.load(data, "p").digest
        return self.initrd(files)._replace(asked=self.initrd(files).asked._replace(wanted=Wanted(digest, {})))

    def report(self) -> Report:
        """Return what preflight says."""
        return preflight.examine(running.read(str(self.root), self.images, self.named), self.asked)


@pytest.fixture
def good(tmp_path: Path) -> Case:
    """Return a machine and a kexec in which nothing is wrong."""
    root = fakes.outgoing(machine(tmp_path), ID)
    (root / "boot").mkdir()
    (root / "boot/vmlinuz-7.3.4").write_bytes(bytes(1 << 20))
    next_image = tmp_path / "vmlinuz"
    next_image.write_bytes(bytes(1 << 20))
    kernel = CURRENT._replace(path=str(next_image))
    advice = handover_args.advise(str(root), str(next_image))
    cmdline = " ".join(("kho=on liveupdate=on", *advice.arguments))
    wanted = Wanted(load.read(POLICY).digest, {})
    asked = Asked((kernel,), cmdline, wanted=wanted)
    return Case(root, asked, lambda path: (CURRENT._replace(path=path),)).initrd({**base(), **units()})


def codes(report: Report, *severities: str) -> set[str]:
    """Return the codes of a report's findings."""
    return {item.code for item in report.found if item.severity in (severities or SEVERITIES)}


def test_nothing_wrong(good: Case) -> None:
    """Both kernels are known and speak the same: compatible, and notes are all that there is to say."""
    report = good.report()

    assert (report.verdict, codes(report)) == ("compatible", {"agreed", "no-kdump"}), report.found
    assert report.running.proven and report.running.tree == "sys/kernel/debug/kho/out/fdt"
    assert report.endings[0][:3] == ("accepted", "accepted", "online-all")


# ---- findings


def hold(case: Case, name: str = "guest") -> Case:
    """Have a process hold a session, with which the word on the next command line is no longer right."""
    fakes.process(case.root, 99, f"anon_inode:[luo_session] {name}")
    told = handover_args.advise(str(case.root), case.kernel.path).arguments
    return case._replace(asked=case.asked._replace(cmdline=" ".join(("kho=on liveupdate=on", *told))))


def gone(case: Case, *names: str) -> Case:
    """Take files of the machine away."""
    for name in names:
        (case.root / name).unlink()
    return case


def put(case: Case, name: str, text: str | bytes) -> Case:
    """Put a file of the machine."""
    path = case.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return case


def bare(case: Case) -> Case:
    """Have a next command line without what handover-args prints."""
    return case._replace(asked=case.asked._replace(cmdline=NO_GUARD))


def within(case: Case) -> Case:
    """Have the command line in the image, and none given."""
    kernel = case.kernel._replace(cmdline=case.cmdline)
    return case._replace(asked=case.asked._replace(kernels=(kernel,), cmdline=None))


def no_kho(case: Case) -> Case:
    """Have this kernel built without KHO."""
    for name in ("fdt", "scratch_phys", "scratch_len"):
        (case.root / "sys/kernel/debug/kho/out" / name).unlink()
    for name in ("LUO", "kexec-metadata"):
        (case.root / "sys/kernel/debug/kho/out/sub_fdts" / name).unlink()
    (case.root / "sys/kernel/debug/kho/out/sub_fdts").rmdir()
    (case.root / "sys/kernel/debug/kho/out").rmdir()
    (case.root / "sys/class/misc/liveupdate/dev").unlink()
    (case.root / "sys/class/misc/liveupdate").rmdir()
    (case.root / "proc/config.gz").unlink()
    return put(case, "proc/config.gz", gzip.compress(b"# CONFIG_KEXEC_HANDOVER is not set\n"))


def no_debugfs(case: Case) -> Case:
    """Have this kernel show nothing of KHO but LUO's device."""
    shutil.rmtree(case.root / "sys/kernel/debug/kho")
    return case


def hot(case: Case, zone: str) -> Case:
    """Online the DIMM in a zone."""
    for number in range(32, 40):
        put(case, f"sys/devices/system/memory/memory{number}/state", "online\n")
        put(case, f"sys/devices/system/memory/memory{number}/valid_zones", f"{zone}\n")
    return case


def speaks(**changes: frozenset[str] | tuple[Feature, ...]) -> Speaks:
    """Return what CURRENT speaks, with changes."""
    return SPEAKS._replace(**changes)  # type: ignore[arg-type]


def words(*found: str) -> frozenset[str]:
    """Return a set of versions."""
    return frozenset(found)


def big(case: Case) -> Case:
    """Have an initrd that no scratch area holds."""
    part = case.asked.initrds[0]
    padding = Initrd("padding", bytes(300 << 20))
    return case._replace(asked=case.asked._replace(initrds=(part, padding)))


def seen(fallback: str, **more: Any) -> Policy:
    """Return a policy that onlines everything after a handover that it can see to be accepted."""
    return policy(
        rule("online-all", name="seen", when=when("handover", Term("is", "accepted"))), otherwise=fallback, **more
    )


ZONES = [f"sys/devices/system/memory/memory{number}/valid_zones" for number in range(32, 40)]
BUILT_IN = {**CONFIG, "CONFIG_CMDLINE_BOOL": "y", "CONFIG_CMDLINE": '"kho=off quiet"'}
BLIND = {**CONFIG, "CONFIG_KEXEC_HANDOVER_DEBUGFS": ""}
Change = Callable[[Case], Case]
#: What is done to a kexec in which nothing is wrong -> the findings that are then made beside the notes, and the verdict.
TABLE: dict[str, tuple[Change, set[str], str]] = {
    # This kernel.
    "no KHO here": (no_kho, {"kho-off", "guard-untold"}, "incompatible"),
    "no debugfs here": (no_debugfs, {"scratch-untold", "stake-untold", "word-stale", "policy-loose", "guard-untold"}, "incompatible"),
    "kernel replaced": (lambda case: case.now(build_ids=("cd" * 20,)), {"other-file", "handlers-untold"}, "compatible"),
    "kernel not found": (lambda case: gone(case, "boot/vmlinuz-7.3.4"), {"handlers-untold"}, "compatible"),
    "not found and a session held": (
        lambda case: hold(gone(case, "boot/vmlinuz-7.3.4")), {"handlers-untold", "at-stake"}, "cannot tell",
    ),
    "other file named": (
        lambda case: case.now(build_ids=("cd" * 20,))._replace(named="/boot/old"), {"running-differs"}, "cannot tell",
    ),
    "named, and nothing proves it": (
        lambda case: gone(case, "sys/kernel/notes")._replace(named="/boot/old"), {"running-on-word"}, "compatible",
    ),
    "a session held": (hold, {"at-stake"}, "compatible"),
    "processes hidden": (
        lambda case: put(case, "proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw,hidepid=2\n"),
        {"stake-untold", "word-stale", "policy-loose"}, "incompatible",
    ),
    "movable": (lambda case: hot(case, "Movable"), set(), "compatible"),
    "kernel zone, nothing held": (lambda case: hot(case, "Normal"), {"kernel-zone"}, "compatible"),
    "kernel zone": (lambda case: hold(hot(case, "Normal")), {"kernel-zone", "at-stake"}, "incompatible"),
    "zone not shown, nothing held": (lambda case: gone(hot(case, "Normal"), *ZONES), {"zone-untold"}, "compatible"),
    "zone not shown": (lambda case: hold(gone(hot(case, "Normal"), *ZONES)), {"zone-untold", "at-stake"}, "cannot tell"),
    "scratch too small": (big, {"scratch-small", "guard-untold"}, "incompatible"),
    "scratch tight": (
        lambda case: big(case)._replace(
            asked=case.asked._replace(initrds=(*case.asked.initrds, Initrd("more", bytes(100 << 20))))
        ).next(release="7.2.1"),
        {"scratch-tight", "guard-other"}, "compatible",
    ),
    # The two kernels.
    "other architecture": (lambda case: case.next(arch="aarch64"), {"other-arch"}, "incompatible"),
    "other page size": (lambda case: case.next(page_size=65536), {"page-size"}, "incompatible"),
    "no KHO there": (lambda case: case.next(kho=NO, luo=NO), {"no-kho"}, "incompatible"),
    "KHO differs": (lambda case: case.next(speaks=speaks(tree=words("kho-v3"))), {"kho-differs"}, "incompatible"),
    "two versions there": (lambda case: case.next(speaks=speaks(tree=words("kho-v3", "kho-v4"))), set(), "compatible"),
    "LUO differs": (lambda case: case.next(speaks=speaks(luo=words("luo-v4"))), {"luo-differs"}, "incompatible"),
    "LUO differs and is off": (
        lambda case: case.next(speaks=speaks(luo=words("luo-v4"))).line("liveupdate=on", "liveupdate=off"),
        {"luo-differs", "luo-not-asked"}, "incompatible",
    ),
    "KHO there not known": (lambda case: case.next(kho=UNTOLD), {"pairing-untold"}, "cannot tell"),
    "no version there": (lambda case: case.next(speaks=Speaks()), {"pairing-untold"}, "cannot tell"),
    "no LUO version there": (lambda case: case.next(speaks=speaks(luo=words())), {"pairing-untold"}, "cannot tell"),
    "no LUO there": (lambda case: case.next(luo=NO), {"no-luo"}, "compatible"),
    "no LUO there, a session held": (lambda case: hold(case.next(luo=NO)), {"no-luo", "at-stake"}, "incompatible"),
    "a handler missing": (lambda case: case.next(speaks=speaks(handlers=words())), {"handler-missing"}, "compatible"),
    "a handler missing, a session held": (
        lambda case: hold(case.next(speaks=speaks(handlers=words()))), {"handler-missing", "at-stake"}, "incompatible",
    ),
    "a handler in a module": (
        lambda case: case.next(speaks=speaks(handlers=words()), modules=(Module("memfd.ko", words("memfd-v2")),)),
        {"in-module"}, "compatible",
    ),
    "a producer missing": (lambda case: case.next(speaks=speaks(producers=words())), {"producer-missing"}, "compatible"),
    "a producer with data missing": (
        lambda case: hold(
            put(case, "sys/kernel/debug/kho/out/sub_fdts/memblock", fakes.fdt((), b"memblock-v1\0"))
        ).next(speaks=speaks(producers=words())),
        {"producer-missing", "at-stake"}, "incompatible",
    ),
    "a feature missing": (
        lambda case: case.now(speaks=speaks(features=(Feature("memfd", 3, 2, 2),))).next(
            speaks=speaks(features=(Feature("memfd", 1, 0, 0),))
        ),
        {"features-differ"}, "incompatible",
    ),
    "a feature not told of": (
        lambda case: case.now(speaks=speaks(features=(Feature("memfd", 3, 2, 2),))), {"pairing-untold"}, "cannot tell",
    ),
    "not told by the image": (lambda case: case.next(untold=("numbers in blobs",)), {"image-untold"}, "compatible"),
    "several profiles": (
        lambda case: case._replace(asked=case.asked._replace(kernels=case.asked.kernels * 2)), {"several-profiles"}, "compatible",
    ),
    "several profiles, with kernels of their own": (
        lambda case: case._replace(asked=case.asked._replace(kernels=(case.kernel, case.kernel._replace(speaks=Speaks())))),
        {"several-profiles"}, "cannot tell",
    ),
    "several profiles, with lines that are not taken": (
        lambda case: case._replace(asked=case.asked._replace(kernels=(case.kernel, case.kernel._replace(cmdline="x")))),
        {"several-profiles"}, "compatible",
    ),
    "a module of this kernel has more": (
        lambda case: hold(case.now(modules=(Module("m.ko", words("vfio-pci-v1")),))), {"handler-missing", "at-stake"}, "incompatible",
    ),
    "modules of this kernel are not there": (
        lambda case: hold(case.now(untold=(modules.find("/nonexistent", "7.3.4").fault,))), {"handlers-untold", "at-stake"}, "cannot tell",
    ),
    # The loader.
    "old loader": (lambda case: case._replace(asked=case.asked._replace(loader="kexec_load")), {"old-loader"}, "incompatible"),
    # The next command line.
    "no command line": (
        lambda case: case._replace(asked=case.asked._replace(cmdline=None)), {"no-cmdline"}, "cannot tell",
    ),
    "the image's own": (lambda case: within(case), {"cmdline-of-image"}, "compatible"),
    "the image's own, a session held": (lambda case: within(hold(case)), {"cmdline-of-image", "at-stake"}, "cannot tell"),
    "the built-in line takes over": (
        lambda case: case.next(config={**BUILT_IN, "CONFIG_CMDLINE_OVERRIDE": "y"}),
        {"cmdline-dropped", "kho-not-asked", "luo-not-asked", "memhp-online", "no-guard", "no-safe", "lost-unseen"}, "incompatible",
    ),
    "the built-in line comes first": (lambda case: case.next(config=BUILT_IN), set(), "compatible"),
    "the built-in line alone has kho=": (
        lambda case: case.next(config=BUILT_IN).line("kho=on ", ""), {"kho-not-asked", "luo-not-asked"}, "incompatible",
    ),
    "another program first": (lambda case: case.line("", "rdinit=/bin/sh"), {"word-undoes"}, "incompatible"),
    "a stop in initramfs-tools": (lambda case: case.line("", "break=top"), {"word-undoes"}, "incompatible"),
    "no initrd taken": (lambda case: case.line("", "noinitrd"), {"word-undoes"}, "incompatible"),
    "/init first": (lambda case: case.line("", "rdinit=/init"), set(), "compatible"),
    "the unit masked": (lambda case: case.line("", "rd.systemd.mask=safemem-decide.service"), {"word-undoes"}, "incompatible"),
    "another unit masked": (lambda case: case.line("", "systemd.mask=x.service systemd.mask=y.service"), set(), "compatible"),
    "calls left out": (lambda case: case.line("", "initcall_blacklist=kho_init"), {"word-undoes"}, "cannot tell"),
    "other memory": (lambda case: case.line("", "memmap=1G!4G"), {"word-undoes"}, "cannot tell"),
    "quotation mark": (lambda case: case.line("", 'x="y'), {"quote-open"}, "incompatible"),
    "too long": (lambda case: case.line("", "x=" + "y" * 2000), {"cmdline-long"}, "incompatible"),
    "kho=off": (lambda case: case.line("kho=on", "kho=off"), {"kho-not-asked", "luo-not-asked"}, "incompatible"),
    "no kho=": (lambda case: case.line("kho=on ", ""), {"kho-not-asked", "luo-not-asked"}, "incompatible"),
    "no kho=, on by default": (
        lambda case: case.line("kho=on ", "").next(config={**CONFIG, "CONFIG_KEXEC_HANDOVER_ENABLE_DEFAULT": "y"}),
        set(), "compatible",
    ),
    "no kho=, no configuration": (
        lambda case: case.line("kho=on ", "").next(config=None), {"kho-ask-untold", "built-in-untold"}, "cannot tell",
    ),
    "no configuration, a session held": (
        lambda case: hold(case.next(config=None)), {"built-in-untold", "reads-untold", "policy-ends", "at-stake"}, "cannot tell",
    ),
    "no liveupdate=": (lambda case: case.line("liveupdate=on ", ""), {"luo-not-asked"}, "compatible"),
    "no liveupdate=, a session held": (
        lambda case: hold(case).line("liveupdate=on ", ""), {"luo-not-asked", "at-stake"}, "incompatible",
    ),
    "no hold": (lambda case: case.line("memhp_default_state=offline", ""), {"memhp-online"}, "compatible"),
    "safemem=off": (lambda case: case.line("", "safemem=off"), {"safemem-off"}, "compatible"),
    "safemem.dry_run": (lambda case: case.line("", "safemem.dry_run"), {"safemem-off"}, "compatible"),
    "no guard": (lambda case: bare(case), {"no-guard", "no-safe", "lost-unseen"}, "compatible"),
    "no guard, a session held": (
        lambda case: bare(hold(case)), {"no-guard", "no-safe", "lost-unseen", "at-stake"}, "incompatible",
    ),
    "no guard, processes hidden": (
        lambda case: bare(put(case, "proc/self/mountinfo", "22 27 0:21 / /proc rw - proc proc rw,hidepid=2\n")),
        {"no-guard", "no-safe", "lost-unseen", "stake-untold"}, "incompatible",
    ),
    "no guard, and the policy holds at each boot": (
        lambda case: bare(hold(case)).decided(seen("online-safe")), {"no-guard", "no-safe", "at-stake"}, "compatible",
    ),
    "guard cut": (lambda case: case.line("", "safemem.guard=0x1000000"), {"guard-bad"}, "incompatible"),
    "guard not asked for": (lambda case: case.line("crashkernel=", "crashkernel_x="), {"guard-not-asked"}, "incompatible"),
    "guard in scratch": (
        lambda case: case.line("", "safemem.guard=0x28000000-0x28ffffff crashkernel=16M@0x28000000"),
        {"guard-stale"}, "incompatible",
    ),
    "another guard": (
        lambda case: case.line("", "safemem.guard=0x1000000-0x1ffffff crashkernel=16M@0x1000000"), {"guard-other"}, "compatible",
    ),
    "cma": (lambda case: case.line("", "cma=64M"), {"guard-defeated"}, "incompatible"),
    "hugetlb_cma": (lambda case: case.line("", "hugetlb_cma=2G"), {"guard-defeated"}, "incompatible"),
    "init_on_free": (lambda case: case.line("", "init_on_free=1"), {"guard-overwritten"}, "compatible"),
    "too many pages": (lambda case: case.line("", "hugepages=400"), {"guard-pages"}, "compatible"),
    "safe region cut": (lambda case: case.line("safemem.safe=", "safemem.safe=0x1000-0x1fff,"), {"safe-bad", "word-bad"}, "incompatible"),
    "safe region without its sum": (
        lambda case: case.line("", f"safemem.safe={AREAS}"), {"safe-unsealed", "word-bad"}, "compatible",
    ),
    "another safe region": (
        lambda case: case.line("", f"safemem.safe={sealed('0x1000-0x1fff')}"), {"safe-stale", "word-bad"}, "incompatible",
    ),
    "a token that nobody holds": (
        lambda case: case.line("", f"safemem.token={sealed('ab' * 32)}"), {"token-stale", "word-bad"}, "incompatible",
    ),
    "a token that is cut": (lambda case: case.line("", "safemem.token=ab"), {"token-stale", "word-bad"}, "incompatible"),
    "panic=10": (lambda case: case.line("", "panic=10"), {"panic-resets"}, "compatible"),
    # The next initrd.
    "no initrd": (lambda case: case.initrd(), {"no-initrd"}, "cannot tell"),
    "an initrd in two parts": (lambda case: case.initrd({"kernel/x": b""}, {**base(), **units()}), set(), "compatible"),
    "an initrd that is none": (
        lambda case: case._replace(asked=case.asked._replace(initrds=(Initrd("x", b"\x1f\x8bx" * 9),))),
        {"initrd-unreadable"}, "incompatible",
    ),
    "an initrd that is empty": (
        lambda case: case._replace(asked=case.asked._replace(initrds=(*case.asked.initrds, Initrd("x", b"")))), {"initrd-none"}, "incompatible",
    ),
    "an initrd that is a kernel": (
        lambda case: case._replace(asked=case.asked._replace(initrds=(Initrd("x", b"MZ" + bytes(600)), *case.asked.initrds))),
        {"initrd-none"}, "incompatible",
    ),
    "the initrd in the image is not passed": (
        lambda case: case.next(initrds=(case.asked.initrds[0].data,)).initrd({"init": b"x"}), {"initrd-without-safemem"}, "incompatible",
    ),
    "safemem is not in it": (lambda case: case.initrd({"init": b"#!/bin/sh\n"}), {"initrd-without-safemem"}, "incompatible"),
    "an initrd within an initrd": (
        lambda case: case.initrd({"init": b"#!/bin/sh\n", "squash-root.img": b"hsqs" + bytes(2000)}),
        {"initrd-not-looked-into"}, "cannot tell",
    ),
    "a profile without safemem": (
        lambda case: case._replace(asked=case.asked._replace(initrds=(), kernels=tuple(
            case.kernel._replace(profile=name, initrds=(data,))
            for name, data in (("main", case.asked.initrds[0].data), ("old", archive({"init": b"x"})))
        ))),
        {"initrd-without-safemem", "several-profiles"}, "incompatible",
    ),
    "another format": (
        lambda case: case.initrd({**base(), **units(), f"{PREFIX}/policy.json": b'{"format": 9}'}),
        {"initrd-policy-unfit"}, "incompatible",
    ),
    "nothing starts it": (lambda case: case.initrd(base()), {"initrd-not-first"}, "incompatible"),
    "another policy": (
        lambda case: case._replace(asked=case.asked._replace(wanted=Wanted("0" * 64, {}))), {"initrd-other-policy"}, "incompatible",
    ),
    "not proved": (
        lambda case: case.initrd({name: data for name, data in {**base(), **units()}.items() if "proven" not in name}),
        {"initrd-unproven"}, "compatible",
    ),
    "no policy of that name": (lambda case: case.line("", "safemem.policy=x"), {"policy-not-named"}, "compatible"),
    "only observes": (lambda case: case.decided(seen("panic", observe=True)), {"only-observes"}, "compatible"),
    "only observes, a session held": (
        lambda case: hold(case).decided(seen("panic", observe=True)), {"only-observes", "at-stake"}, "incompatible",
    ),
    "safemem.dry_run, a session held": (
        lambda case: hold(case).line("", "safemem.dry_run").decided(seen("panic", allow_cmdline_override=True)),
        {"safemem-off", "policy-loose", "at-stake"}, "incompatible",
    ),
    # What the policy makes of it.
    "cannot show, and the policy panics": (
        lambda case: case.next(config=BLIND).decided(seen("panic")), {"reads-unknown", "policy-ends"}, "incompatible",
    ),
    "cannot show, and the policy holds": (
        lambda case: case.next(config=BLIND).decided(seen("online-safe")), {"reads-unknown", "policy-holds"}, "incompatible",
    ),
    "cannot show, and the policy trusts the guard": (
        lambda case: case.next(config=BLIND).decided(seen("panic", trust_guard=True)), {"reads-unknown"}, "compatible",
    ),
    "no configuration": (
        lambda case: case.next(config=None).decided(seen("panic")), {"reads-untold", "built-in-untold", "policy-ends"}, "cannot tell",
    ),
    "the policy ends all boots": (lambda case: case.decided(policy(NEVER, otherwise="reboot")), {"policy-ends"}, "incompatible"),
    "the policy onlines after a rejection": (
        lambda case: hold(case).decided(policy(NEVER, otherwise="online-all")), {"policy-loose", "at-stake"}, "incompatible",
    ),
    "the policy onlines after a loss": (
        lambda case: hold(case).decided(
            policy(rule("online-all", name="cold", when=when("handover", Term("is", "lost"))),
                   rule("online-all", name="seen", when=when("handover", Term("is", "accepted"))), otherwise="panic")
        ),
        {"policy-loose", "at-stake"}, "incompatible",
    ),
}  # fmt: skip
AREAS = "0x22400000-0x307fffff,0x33c00000-0x397fffff"
NO_GUARD = "kho=on liveupdate=on memhp_default_state=offline"
#: Said where nothing is wrong.
USUAL = {"agreed", "no-kdump"}


@pytest.mark.parametrize("name", TABLE)
def test_finding(good: Case, name: str) -> None:
    """What is wrong is found, nothing else is, and the verdict follows."""
    change, expected, said = TABLE[name]
    report = change(good).report()

    for item in report.found:
        assert "{" not in item.message + item.remedy, item
    assert (codes(report) - USUAL, report.verdict) == (expected, said), report.found


def test_every_finding_is_in_the_table() -> None:
    """Each code is made by one of the cases, and none by all of them; what the profile and other machines show has tests of its own."""
    made = set().union(*(expected for _, expected, _ in TABLE.values())) | USUAL
    others = {"kho-untold", "stale-handover", "profile-kernel", "profile-versions", "profile-policy"}

    assert made | others == set(CODES)
    assert not made & others


def test_a_kernel_that_shows_nothing(good: Case) -> None:
    """Of one without any file or configuration it is not known whether it hands anything over."""
    case = gone(no_debugfs(good), "sys/class/misc/liveupdate/dev", "proc/config.gz")
    (case.root / "sys/class/misc/liveupdate").rmdir()
    report = case.report()

    assert "kho-untold" in codes(report, "unknown")


@pytest.mark.parametrize(("offered", "code"), [(False, "old-loader"), (True, "stale-handover")])
def test_the_old_loader_on_arm64(good: Case, offered: bool, code: str) -> None:
    """There it passes the handover of the kernel before on, if there was one."""
    case = put(good, "proc/sys/kernel/arch", "aarch64\n").next(arch="aarch64")
    if offered:
        fakes.pass_on(case.root, (0xA, bytes(32)))
    case = case._replace(asked=case.asked._replace(loader="kexec_load"))

    assert {"old-loader", "stale-handover"} & codes(case.report(), "error") == {code}


# ---- what the kernel that runs tells


def test_running(good: Case) -> None:
    """The tree and LUO's data say in which versions they are, notes which file it is, the file what else it has."""
    now = running.read(str(good.root), good.images)

    assert now.outgoing.speaks == SPEAKS and now.build_id == ID
    assert now.nodes == ("LUO", "kexec-metadata", "memblock")
    assert (now.outgoing.page_size, now.outgoing.arch, now.outgoing.release) == (4096, "x86_64", "7.3.4")
    assert (now.outgoing.kho.value, now.outgoing.luo.value, now.at_stake.value) == ("yes", "yes", "no")


@pytest.mark.parametrize("release", ["7.2.1", "7.3.4"])
@pytest.mark.parametrize("spoken", [Speaks(), SPEAKS])
def test_one_rule_for_how_a_kernel_is_built(good: Case, release: str, spoken: Speaks) -> None:
    """The guard that is computed for a kernel is held against what is known of that kernel in the same way."""
    kernel = good.kernel._replace(kho=UNTOLD, release=release, speaks=spoken)
    found, _ = guardline.ground(running.read(str(good.root), good.images), kernel, 0)

    assert found is not None and found.spares_scratch == nextkernel.of(kernel).spares_scratch


def test_luo_as_a_tree(good: Case) -> None:
    """Before luo-v3 its data is a tree of its own."""
    put(good, "sys/kernel/debug/kho/out/sub_fdts/LUO", fakes.fdt((), b"luo-v2\0"))

    assert running.read(str(good.root), good.images).outgoing.speaks.luo == {"luo-v2"}


#: The tree of a 7.3.4 as debugfs shows it: it says 285 bytes, and 233 are there.
SHOWN = bytes.fromhex(
    "d00dfeed0000011d00000038000000e400000028000000110000001000000000000000390000 00ac00000000000000000000000000000000"
    "00000001000000000000000300000007000000156b686f2d763400000000000300000008000000000080540000000000000000014c554f00"
    "00000003000000080000002f200000000000000000000003000000080000002000 50a301000000000000000200000001"
    "6b657865632d6d65746164617461000000000003000000080000002f4900000000000000000000030000000800000020"
    "00f0540000000000000000020000000200000009 7072657365"
)


def test_the_tree_is_cut(good: Case) -> None:
    """A real kernel's file is shorter than its tree: version and nodes stand before the cut, and a cut before them tells nothing."""
    assert len(SHOWN) == 233
    case = good.now(speaks=Speaks())
    now = running.read(str(put(case, "sys/kernel/debug/kho/out/fdt", SHOWN).root), case.images)
    assert (now.outgoing.speaks.tree, now.nodes) == (words("kho-v4"), ("LUO", "kexec-metadata"))
    for length in (0, 39, 60, 80):
        put(case, "sys/kernel/debug/kho/out/fdt", SHOWN[:length])
        assert running.read(str(case.root), case.images).tree == "", length


def test_what_is_shown_counts_before_the_file(good: Case) -> None:
    """What a kernel writes its tree says, whatever strings are in its file."""
    case = good.now(speaks=speaks(tree=words("kho-v3", "kho-v4"), luo=words("luo-v4")))

    assert running.read(str(case.root), case.images).outgoing.speaks[:2] == (SPEAKS.tree, SPEAKS.luo)


@pytest.mark.parametrize("notes", [b"", b"\0" * 11, b"\xff" * 40, bytes.fromhex("0400000014000000030000004758550000")])
def test_notes_without_a_build_id(good: Case, notes: bytes) -> None:
    """What is cut off or damaged is none."""
    put(good, "sys/kernel/notes", notes)
    now = running.read(str(good.root), good.images)

    assert (now.build_id, now.image) == ("", None)
    assert now.image_fault == "/sys/kernel/notes shows no build ID by which a file could be known"


@pytest.mark.parametrize(("size", "expected"), [(4, 4096), (16, 16384), (64, 65536), (0, 0)])
def test_pages_of_arm64(good: Case, size: int, expected: int) -> None:
    """Its configuration says how large they are; without one and without its file nobody knows."""
    config = f"CONFIG_ARM64_{size}K_PAGES=y\nCONFIG_KEXEC_HANDOVER=y\n" if size else "CONFIG_X=y\n"
    case = put(gone(good, "proc/config.gz", "boot/vmlinuz-7.3.4"), "proc/config.gz", gzip.compress(config.encode()))
    put(case, "proc/sys/kernel/arch", "aarch64\n")

    assert running.read(str(case.root), case.images).outgoing.page_size == expected


FACTS = [YES, NO, UNTOLD]


def versions(*found: str) -> st.SearchStrategy[frozenset[str]]:
    """Draw a set of versions."""
    return st.frozensets(st.sampled_from(found))


@st.composite
def kernels(draw: st.DrawFn) -> Kernel:
    """Draw a kernel of which anything may be unknown."""
    spoken = Speaks(
        draw(versions("kho-v3", "kho-v4")),
        draw(versions("luo-v4", "luo-v5")),
        draw(versions("memfd-v1", "memfd-v2")),
        draw(versions("memblock-v1")),
        draw(st.sampled_from([(), (Feature("memfd", 1, 1, 1),), (Feature("memfd", 3, 2, 0),)])),
    )
    kho, luo = draw(st.sampled_from(FACTS)), draw(st.sampled_from(FACTS))
    arch, page = draw(st.sampled_from(["x86_64", "aarch64", ""])), draw(st.sampled_from([0, 4096, 65536]))
    return CURRENT._replace(speaks=spoken, kho=kho, luo=luo, arch=arch, page_size=page)


DATA = archive({**base(), **units()})


def desk(a: Kernel, b: Kernel, stake: str) -> Report:
    """Return what preflight says of one kernel after another, with all else as it should be."""
    known = snapshot(kho="on", luo="ready", arch=a.arch, kernel=a.release, handover="none")
    outgoing = prediction.of_image(a)._replace(what="this kernel")
    now = Running(outgoing, known, "/nonexistent", at_stake=Fact(stake, "test"), image=a, build_id=ID)
    asked = Asked(
        (b,),
        f"{NO_GUARD} safemem.preserved=yes",
        (Initrd("initrd", DATA),),
        wanted=Wanted(load.read(POLICY).digest, {}),
    )
    return preflight.examine(now, asked)


@given(kernels(), kernels(), st.sampled_from(["yes", "no", "unknown"]))
def test_compatible_takes_versions_that_meet(a: Kernel, b: Kernel, stake: str) -> None:
    """Never by default: both sides are known, and what may be written can be read; nothing that is held is lost."""
    report = desk(a, b, stake)

    if report.verdict != "compatible":
        return
    assert a.kho.value == b.kho.value == "yes" and a.arch == b.arch != "" and a.page_size == b.page_size != 0
    assert a.speaks.tree and a.speaks.tree <= b.speaks.tree
    if "no" not in (a.luo.value, b.luo.value):
        assert a.luo.value == b.luo.value == "yes" and a.speaks.luo and a.speaks.luo <= b.speaks.luo
    if stake != "no":
        assert a.speaks.handlers <= b.speaks.handlers and (a.luo.value == "no" or b.luo.value == "yes")


def test_handlers_of_modules_are_handed_over() -> None:
    """What the modules of the kernel that hands over have, the next one has to know too."""
    more = CURRENT._replace(modules=(Module("m.ko", words("vfio-pci-v1")),))

    assert prediction.predict(prediction.of_image(more), CURRENT).lost == ("vfio-pci-v1",)
    assert desk(more, CURRENT, "yes").verdict == "incompatible" and desk(more, more, "yes").verdict == "compatible"


def test_the_desk_can_say_compatible() -> None:
    """What the property is about does happen."""
    assert desk(CURRENT, CURRENT, "yes").verdict == "compatible"


# ---- the ends


def test_ends(good: Case) -> None:
    """The expected end first, then each way in which it can fail, as the engine decides it."""
    report = hold(good).report()

    assert render.endings(report) == [
        "if you kexec now: online-all by rule `live update arrived whole`; the handover reads as `accepted`",
        "if the handover is rejected or lost: panic by rule `otherwise`",
    ]


@pytest.mark.parametrize(
    ("change", "first", "others"),
    [
        (lambda case: case, "accepted", {"rejected", "lost"}),
        (lambda case: case.line("kho=on", "kho=off"), "orphaned", {"lost"}),
        (lambda case: case.line("kho=on ", "").next(config=None), "", {"accepted", "rejected", "orphaned", "lost"}),
        (lambda case: case.next(kho=UNTOLD), "", {"accepted", "rejected", "unsupported", "lost"}),
        (lambda case: case.next(arch="aarch64"), "", set()),
        (lambda case: case.next(kho=NO), "unsupported", {"lost"}),
        (lambda case: case.next(speaks=speaks(tree=words("kho-v3"))), "rejected", {"lost"}),
        (lambda case: case.next(speaks=speaks(luo=words("luo-v4"))), "panic", {"rejected", "lost"}),
        (lambda case: case._replace(asked=case.asked._replace(loader="kexec_load")), "none", set()),
    ],
)
def test_which_ends_there_can_be(good: Case, change: Change, first: str, others: set[str]) -> None:
    """What is predicted stands first; of the others those that may come all the same, and none that cannot."""
    report = change(good).report()
    found = [item for item in report.endings if not item.expected]

    assert [item.state for item in report.endings if item.expected] == ([first] if first else [])
    assert {item.state for item in found} == others
    assert not first or report.endings[0].expected


#: What is done to a kexec -> the code of a finding, and what it has seen and advises.
SAID: list[tuple[Change, str, str, str]] = [
    (lambda case: case.line("liveupdate=on ", ""), "luo-not-asked", "the next command line: no liveupdate=on", ""),
    (lambda case: case.line("liveupdate=on", "liveupdate=off"), "luo-not-asked", "the next command line: liveupdate=off", ""),
    (no_kho, "kho-off", "KHO is not built in, by /proc/config.gz", ""),
    (
        lambda case: case.now(build_ids=("cd" * 20,))._replace(named="/boot/old"), "running-differs",
        f"the kernel has build ID {ID}, and the file {'cd' * 20}", "with --running, name the file this kernel was booted from",
    ),
    (lambda case: case.next(untold=("a b", "c d")), "image-untold", "a b; c d", ""),
    (
        lambda case: case.next(kho=UNTOLD, arch="", speaks=Speaks()), "pairing-untold",
        "KHO of vmlinuz: image: nothing tells; the architecture cannot be told; which version of the tree vmlinuz reads cannot be told",
        "`safemem kernel IMAGE` shows what the next one's image tells; keep the `config` file beside it",
    ),
    (
        lambda case: gone(no_debugfs(case), "boot/vmlinuz-7.3.4"), "pairing-untold",
        "which version of the tree this kernel writes cannot be told: its outgoing tree cannot be read, and no file of release"
        " 7.3.4 is there", "run it as root, with debugfs on /sys/kernel/debug",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "code", "evidence", "remedy"), SAID)
def test_what_is_said(good: Case, change: Change, code: str, evidence: str, remedy: str) -> None:
    """Once, with what was seen, and what would help here."""
    case = change(good)
    (found,) = [item for item in case.report().found if item.code == code]

    assert rooted(found.evidence).replace(case.kernel.path, "vmlinuz") == evidence
    assert not remedy or found.remedy == remedy


def test_a_kernel_that_accepts_nothing(good: Case) -> None:
    """With KHO off on its command line no note says that it accepts; one for another machine is not loaded."""
    assert "agreed" not in codes(good.line("kho=on", "kho=off").report())
    assert render.endings(good.next(arch="aarch64").report()) == ["if you kexec now: it cannot be loaded here"]


def test_paths_are_said_once(good: Case) -> None:
    """As an operator types them."""
    case = gone(no_debugfs(good), "sys/class/misc/liveupdate/dev", "proc/config.gz")
    (case.root / "sys/class/misc/liveupdate").rmdir()
    shutil.rmtree(case.root / "sys/kernel/debug")
    seen = [line for line in render.text(case.report()).splitlines() if line.startswith("    seen: ")]

    assert "    seen: /sys/kernel/debug: no such file or directory" in seen


def test_what_a_loss_reads_as(good: Case) -> None:
    """Where an end is another one's, because the next boot cannot see what has happened, that is said."""
    assert render.endings(bare(good).report())[1:] == [
        "if the handover is rejected: panic by rule `otherwise`",
        "if the handover is lost: online-all by rule `clean boot`, because it reads as `none`",
    ]


def test_a_handover_that_does_not_come(good: Case) -> None:
    """The next boot knows by its command line that one was to come, where handover-args has written it."""
    old = good._replace(asked=good.asked._replace(loader="kexec_load"))

    assert [(item.state, item.reads) for item in old.report().endings] == [("none", "lost")]
    assert [(item.state, item.reads) for item in bare(old).report().endings] == [("none", "none")]


def test_what_is_said_of_a_panic_and_of_nothing(good: Case) -> None:
    """A kernel that panics by itself asks no policy; and where nothing is known, that is said first."""
    report = good.next(speaks=speaks(luo=words("luo-v4"))).report()
    assert render.endings(report)[0] == "if you kexec now: the next kernel panics by itself"
    report = good.initrd({"init": b"x"}).report()
    assert render.endings(report)[0].startswith("if you kexec now: safemem does not run in that boot")
    report = good.next(kho=UNTOLD).initrd().report()
    assert render.endings(report) == [
        "if you kexec now: what becomes of the handover cannot be told",
        "if the handover is rejected, unsupported or lost: what safemem makes of it is not known",
    ]


# ---- the command


def run(*given_words: object) -> Result:
    """Run `safemem preflight`."""
    return CliRunner().invoke(main, ["preflight", *map(str, given_words)])


@pytest.fixture
def call(good: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the words for the kexec in which nothing is wrong; images are read as CURRENT is."""
    monkeypatch.setattr(image, "read", lambda path, root: good.images(path))
    (tmp_path / "initrd").write_bytes(good.asked.initrds[0].data)
    return [
        "--root", str(good.root), "--kernel", good.kernel.path, "--initrd", str(tmp_path / "initrd"),
        "--cmdline", good.cmdline, "--policy", str(POLICY),
    ]  # fmt: skip


def test_text(call: list[str]) -> None:
    """Findings with evidence, what comes of it, and the verdict as the last line; 0 for compatible."""
    result = run(*call)
    lines = result.stdout.splitlines()

    assert (result.exit_code, lines[-1], result.stderr) == (0, "compatible", "")
    assert lines[0] == f"{call[3]}: next 7.3.4, running 7.3.4"
    assert lines[1:3] == [
        "note: the next kernel accepts what this one hands over [agreed]",
        "    seen: both speak kho-v4 and luo-v5",
    ]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [(["--loader", "kexec_load"], 5, "incompatible"), (["--cmdline", "kho=on x"], 0, "compatible")],
)
def test_codes(call: list[str], more: list[str], code: int, said: str) -> None:
    """An error is 5; a warning changes nothing."""
    result = run(*call, *more)

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (code, said), result.stdout
    assert "\n    help: " in result.stdout


def test_cannot_tell(call: list[str]) -> None:
    """Without an initrd nobody knows what decides: 6."""
    result = run(*call[:4], *call[6:])

    assert (result.exit_code, result.stdout.splitlines()[-1]) == (6, "cannot tell"), result.stdout


def test_json(call: list[str]) -> None:
    """The same as data, with the code that it ends with."""
    result = run(*call, "--loader", "kexec_load", "--format", "json")
    document = json.loads(result.stdout)

    assert (document["schema"], document["kind"], document["exit_code"], result.exit_code) == (1, "preflight", 5, 5)
    assert document["verdict"] == "incompatible"
    assert document["findings"][0] == {
        "code": "old-loader", "severity": "error", "message": "kexec_load(2) hands nothing over",
        "evidence": "--loader kexec_load", "remedy": "load it with `kexec -s`",
    }  # fmt: skip
    assert document["running"]["proven"] is True and document["running"]["speaks"]["tree"] == ["kho-v4"]
    assert document["running"]["luo"] == "yes" and document["kernel"]["speaks"]["luo"] == ["luo-v5"]
    assert document["endings"][0]["expected"] is True
    assert set(document["prediction"]) == {"outcome", "why", "lost", "untold"}


def test_sarif(call: list[str]) -> None:
    """As SARIF 2.1.0 wants it: rules, and results that name one by its place, at a level that there is."""
    run_ = json.loads(run(*call, "--loader", "kexec_load", "--format", "sarif").stdout)
    (found,) = run_["runs"]
    rules = found["tool"]["driver"]["rules"]

    assert (run_["version"], run_["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    assert [item["id"] for item in rules] == list(CODES)
    assert found["results"] and found["properties"]["verdict"] == "incompatible"
    for item in found["results"]:
        assert rules[item["ruleIndex"]]["id"] == item["ruleId"] and item["level"] in (
            "none",
            "note",
            "warning",
            "error",
        )
        assert item["message"]["text"] and item["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


def test_junit(call: list[str]) -> None:
    """A case for each code and one for the verdict; numbers are those of the cases."""
    text = run(*call, "--loader", "kexec_load", "--format", "junit").stdout
    (suite,) = ElementTree.fromstring(text.partition("\n")[2]).findall("testsuite")
    failed = [case.get("name") for case in suite.findall("testcase") if case.find("failure") is not None]

    assert [case.get("name") for case in suite.findall("testcase")] == ["verdict", *CODES]
    assert (
        failed == ["verdict", "old-loader"]
        and suite.get("failures") == "2"
        and suite.get("tests") == str(len(CODES) + 1)
    )


def test_a_capture(call: list[str], good: Case, tmp_path: Path) -> None:
    """It does not tell which versions that kernel writes; with the file from which it was booted they are known."""
    state = str(tmp_path / "state.json")
    assert CliRunner().invoke(main, ["capture", "--root", str(good.root), "-o", state]).exit_code == 0
    alone, named = (
        run(*call[2:], "--state", state),
        run(*call[2:], "--state", state, "--running", "/boot/vmlinuz-7.3.4", "--format", "json"),
    )
    found = json.loads(named.stdout)

    assert (alone.exit_code, alone.stdout.splitlines()[-1]) == (6, "cannot tell"), alone.stdout
    assert (
        "    seen: a capture does not hold which version of the tree this kernel writes\n"
        "    help: add --running IMAGE, the file that machine was booted from\n"
    ) in alone.stdout
    assert (named.exit_code, found["verdict"]) == (6, "cannot tell")
    assert {item["code"] for item in found["findings"] if item["severity"] == "unknown"} >= {
        "running-on-word", "stake-untold", "scratch-untold", "guard-untold",
    }  # fmt: skip


def test_bad_input(call: list[str], tmp_path: Path) -> None:
    """What is given and cannot be read is 3, with its name."""
    for words_ in (["--initrd", "none/there"], ["--profile", "none/there"], ["--state", "none/there"]):
        rest = call[2:] if words_[0] == "--state" else call
        result = run(*rest, *words_)
        assert (result.exit_code, result.stderr) == (3, "safemem: none/there: no such file or directory\n")


def test_folders(call: list[str], tmp_path: Path) -> None:
    """A folder that is not there is no machine; one in place of a file is called so, whatever file it is."""
    result = run("--root", "/nonexistent", *call[2:])
    assert (result.exit_code, result.stderr) == (3, "safemem: /nonexistent: no such directory\n")
    for option in ("--initrd", "--kernel"):
        found = run("--kernel", tmp_path) if option == "--kernel" else run(*call, option, tmp_path)
        assert (found.exit_code, found.stderr) == (3, f"safemem: {tmp_path}: is a directory\n")


def test_a_file_that_is_too_large(call: list[str], tmp_path: Path) -> None:
    """It is refused by its size, before anything of it is read."""
    with open(tmp_path / "large", "wb") as file:
        file.truncate((2 << 30) + 1)
    for option, size in (("--initrd", 2048), ("--profile", 1)):
        result = run(*call, option, tmp_path / "large")
        assert (result.exit_code, result.stderr) == (3, f"safemem: {tmp_path}/large: it is larger than {size} MiB\n")


def test_what_is_no_text(call: list[str], good: Case, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are looked at like any other."""
    odd = shutil.copy(call[3], tmp_path / "vmlinuz-\udcff")
    words_ = [*call[:3], str(odd), *call[4:], "--cmdline", f"{good.cmdline} x=\udcff", "--format"]
    assert [run(*words_, form).exit_code for form in ("text", "json", "sarif", "junit")] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("config", "given_", "expected"),
    [
        ({"CONFIG_CMDLINE": '"a"'}, "b", "b"),
        ({"CONFIG_CMDLINE": '"a"'}, "", "a"),
        ({"CONFIG_CMDLINE": '"a"', "CONFIG_CMDLINE_EXTEND": "y"}, "b", "b a"),
        ({"CONFIG_CMDLINE": '"a"', "CONFIG_CMDLINE_FORCE": "y"}, "b", "a"),
        ({"CONFIG_CMDLINE": '"a"', "CONFIG_CMDLINE_FORCE": "y"}, None, "a"),
        ({"CONFIG_CMDLINE": '"a"'}, None, None),
    ],
)
def test_built_in_on_arm64(config: dict[str, str], given_: str | None, expected: str | None) -> None:
    """There it counts where nothing is given, unless it says otherwise."""
    assert nextline.line(CURRENT._replace(arch="aarch64", config=config), given_).text == expected


def test_usage(call: list[str]) -> None:
    """What excludes each other, and what needs more."""
    result = run(*call, "--kernel", "x")
    assert result.exit_code == 2 and "several --kernel are for --write-profile alone" in result.stderr
    result = run(*call, "--state", "x")
    assert result.exit_code == 2 and "--root and --state exclude each other" in result.stderr


def test_help() -> None:
    """It fits a screen, and has an example."""
    text = run("--help").stdout

    example = 'Example: safemem preflight --kernel vmlinuz --initrd initrd --cmdline "kho=on liveupdate=on $(safemem handover-args)"'
    assert example in " ".join(text.split())
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 80
    assert click.unstyle(text) == text
