# SPDX-License-Identifier: MIT
"""Policies that are written to pass `check --strict` and expose memory, or to look stricter than they are."""

from __future__ import annotations

import json

import pytest

from safemem.policy import catalogue, invariants, load
from safemem.policy.space import LOST, Outcomes, Space

HEAD = 'format = 1\nname = "p"\n'
TAIL = '[on_failure]\naction = "panic"\n'
#: Cold boots and accepted handovers get all memory; of the rest `otherwise` decides.
GOOD = '[[rule]]\nname = "fine"\nwhen = { handover = ["none", "accepted"] }\naction = "online-all"\n'
SAFE = '[otherwise]\naction = "online-safe"\n'
PANIC = '[otherwise]\naction = "panic"\n'


def found(*parts: str, on_failure: str = TAIL) -> list[tuple[str, str]]:
    """Return what `check` says of a policy made of `parts`: codes and rules, without those about style."""
    policy = load.parse("".join((HEAD, *parts, on_failure)).encode(), "p").policy
    all_of_it = invariants.check(policy, Outcomes(Space(policy), policy))
    return [(item.code, item.rule) for item in all_of_it if item.code not in ("only-otherwise", "same-as-next")]


def region(*sources: str) -> str:
    """Return the table of a safe region."""
    return f"[safe_region]\nsources = {json.dumps(sources)}\n"


def fails(parts: list[str]) -> bool:
    """Return whether `check --strict` refuses the policy."""
    return any(catalogue.CODES[code][0] != "note" for code, _ in found(*parts))


EVERYTHING = "0x0-0xffffffffffffffff"
HALVES = ("0x0-0x7fffffffffffffff", "0x8000000000000000-0xffffffffffffffff")
SLICES = tuple(
    f"0x{n << 36:x}-0x{((n + 1) << 36) - 1:x}" for n in range(1, 18)
)  # 64 GiB each, more than 1 TiB together
ONE = "0x100000000-0x13fffffff"


def lost_rule(action: str, *words: str, lost: tuple[str, ...] = LOST, name: str = "lost") -> str:
    """Return a rule for handovers that were lost."""
    listed = ", ".join(f'"{value}"' for value in lost)
    return "\n".join(
        (f'[[rule]]\nname = "{name}"\nwhen = {{ handover = [{listed}] }}\naction = "{action}"', *words, "")
    )


#: A rule that asks for a release.
KERNEL = '[[rule]]\nname = "fine"\nwhen = {{ handover = "none", kernel = {} }}\naction = "online-all"\n'
UNSURE = lost_rule("panic", lost=(*LOST, "unknown"))


@pytest.mark.parametrize(
    ("parts", "codes"),
    [
        # ranges that no host can promise
        ([region(EVERYTHING), GOOD, SAFE], [("exposes-handover", "otherwise")]),
        ([region(*HALVES), GOOD, SAFE], [("exposes-handover", "otherwise")]),
        ([region(*SLICES), GOOD, SAFE], [("exposes-handover", "otherwise")]),
        ([region("0x100000000-0xffffffffffff"), GOOD, SAFE], [("exposes-handover", "otherwise")]),
        ([region("kho-scratch", "cmdline", EVERYTHING), GOOD, SAFE], [("exposes-handover", "otherwise")]),
        ([region(EVERYTHING), GOOD, lost_rule("online-safe", 'on_shortfall = "panic"', "final = true"), PANIC],
         [("exposes-handover", "lost")]),
        ([region(ONE), GOOD, SAFE], [("named-region", "otherwise")]),
        ([region("0x0-0xfffffffff"), GOOD, lost_rule("online-safe", 'boot_memory = "offline"'), PANIC], [("named-region", "lost")]),
        # all memory where a handover was lost, or may have been
        ([GOOD, lost_rule("online-all", "accept_data_exposure = true"), '[otherwise]\naction = "online-all"\n'],
         [("exposes-handover", "otherwise")]),
        ([GOOD, lost_rule("online-all", lost=("lost",)), lost_rule("online-safe", lost=LOST[1:], name="more"), PANIC],
         [("exposes-handover", "lost")]),
        ([GOOD, '[[rule]]\nname = "quiet"\nwhen = { handover = { not = ["none", "accepted", "rejected"] } }\naction = "online-all"\n', PANIC],
         [("exposes-handover", "quiet")]),
        # a guard tells of a handover, so nothing is clean about it
        ([GOOD, '[[rule]]\nname = "guard"\nwhen = { handover = "none", guard = "held" }\naction = "online-all"\n', PANIC],
         [("unreachable-rule", "guard")]),
        # not knowing, rewarded in other words than the action
        ([GOOD, lost_rule("online-safe", 'on_shortfall = "panic"'), SAFE], [("unknown-milder", "otherwise")]),
        ([GOOD, lost_rule("online-safe", 'boot_memory = "offline"', "final = true"), SAFE], [("unknown-milder", "otherwise")]),
        ([GOOD, lost_rule("online-safe", 'on_shortfall = "halt"', 'exposed_max = "1%"'), SAFE,
          'on_shortfall = "halt"\nexposed_max = "50%"\n'], [("unknown-milder", "otherwise"), ("tight-limit", "lost")]),
        # limits without teeth
        ([GOOD, SAFE, 'on_shortfall = "panic"\nexposed_max = "100%"\n'], [("useless-limit", "otherwise")]),
        ([GOOD, SAFE, 'on_shortfall = "panic"\nexposed_max = "99.9%"\n'], [("useless-limit", "otherwise")]),
        ([GOOD, SAFE, 'on_shortfall = "panic"\nexposed_max = "999999999TiB"\n'], [("useless-limit", "otherwise")]),
        ([GOOD, SAFE, 'on_shortfall = "panic"\nexposed_max = "1025GiB"\n'], [("useless-limit", "otherwise")]),
        ([GOOD, SAFE, 'boot_memory = "offline"\nfloor = "64TiB"\n'], [("useless-limit", "otherwise")]),
        ([GOOD, SAFE, 'boot_memory = "offline"\nfloor = "0KiB"\n'], [("useless-limit", "otherwise")]),
        (['keep_crashkernel = "64TiB"\n', GOOD, PANIC], [("useless-limit", "keep_crashkernel")]),
        (['keep_crashkernel = "1KiB"\n', GOOD, PANIC], [("useless-limit", "keep_crashkernel")]),
        # words that say nothing
        (['keep_crashkernel = "256MiB"\n', UNSURE, SAFE], [("idle-word", "keep_crashkernel")]),
        (["open_luo = true\n", GOOD, PANIC], [("idle-word", "open_luo")]),
        (["retrieve_token = true\n", GOOD.replace('handover = ["none", "accepted"]', 'luo = "ready"') + "accept_data_exposure = true\n", PANIC], [("idle-word", "retrieve_token")]),
        # not knowing a handover is rewarded, and nobody knows how sure that is
        ([GOOD, '[[rule]]\nname = "sure"\nwhen = { handover = "rejected", handover_confidence = "proven" }\naction = "panic"\n', SAFE], [("unknown-permissive", "otherwise")]),
        ([GOOD, 'quiesce = "pci"\n', PANIC], [("quiesces-accepted", "fine")]),
        (["trust_guard = true\n", GOOD.replace(', "accepted"', ""), SAFE], [("idle-word", "trust_guard")]),
        ([region("none"), UNSURE, SAFE, 'zone = "movable"\n'], [("idle-word", "otherwise")]),
        (['[[memory]]\ndriver = "kmem"\nhold = true\n', region("none"), UNSURE, SAFE], [("idle-word", "memory")]),
        (['[[memory]]\nnode = 1\nhold = true\n', '[[memory]]\nnode = 1\nzone = "movable"\n', GOOD, PANIC], [("held-everywhere", "memory"), ("idle-word", "memory")]),
        (['[[memory]]\ndriver = "dimm"\nzone = "movable"\n', '[[memory]]\nrange = "0x0-0xfff"\nzone = "kernel"\n', GOOD, PANIC],
         [("useless-region", "memory"), ("idle-word", "memory")]),
        ([GOOD, lost_rule("online-safe", "accept_data_exposure = true"), PANIC], [("idle-acceptance", "lost")]),
        # reboots that find themselves again
        ([GOOD, SAFE, 'on_shortfall = "reboot"\n'], [("reboot-loop", "otherwise")]),
        ([UNSURE, SAFE, 'on_shortfall = "reboot"\n'], [("reboot-loop", "otherwise")]),
        (['[[rule]]\nname = "g"\nwhen = { handover = "rejected", guard = "held" }\naction = "reboot"\n', '[otherwise]\naction = "reboot"\n'],
         [("reboot-loop", "g"), ("reboot-loop", "otherwise")]),
        # one byte, one digit
        (['[[memory]]\nrange = "0x100000000-0x200000000"\nzone = "movable"\n', GOOD, PANIC], [("odd-edge", "memory")]),
        ([region("0x0-0x40000000"), GOOD, SAFE + "accept_data_exposure = true\n"], [("odd-edge", "safe_region")]),
        ([GOOD, SAFE, 'memory = [{ range = "0x100000000-0x200000000", hold = true }]\n'], [("odd-edge", "otherwise")]),
        ([KERNEL.format('"7.2"'), PANIC], [("exact-release", "fine")]),
        ([KERNEL.format('"7.2+"'), PANIC], [("exact-release", "fine")]),
        ([KERNEL.format('["6", "7.2.*"]'), PANIC], [("exact-release", "fine")]),
        # exceptions of a rule
        ([GOOD, SAFE, "memory = [{ node = 1, hold = true }]\n"], []),
        ([GOOD, SAFE, "memory = [{ node = 1, hold = true }, { node = 1, hold = true }]\n"], [("idle-word", "otherwise")]),
        (['[[memory]]\ndriver = "kmem"\nhold = true\n', GOOD, SAFE, 'memory = [{ driver = "kmem", zone = "movable" }]\n'],
         [("idle-word", "otherwise")]),
    ],
)  # fmt: skip
def test_what_check_finds(parts: list[str], codes: list[tuple[str, str]]) -> None:
    """Each deception is named, at the rule or table that holds it; nothing else is said of the policy."""
    assert found(*parts) == codes


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        (["allow_cmdline_override = true\n", GOOD, PANIC], ("loosened-by-cmdline", "allow_cmdline_override")),
        ([GOOD, SAFE, 'boot_memory = "offline"\non_shortfall = "panic"\nexposed_max = "1.5%"\n'], ("tight-limit", "otherwise")),
        (['[[memory]]\nnode = 1\nhold = true\n', GOOD, PANIC], ("held-everywhere", "memory")),
        (["allow_cmdline_override = true\n", region("cmdline"), GOOD, SAFE], ("loosened-by-cmdline", "allow_cmdline_override")),
        (["trust_guard = true\n", GOOD, PANIC], ("trusts-guard", "fine")),
        (['[[memory]]\nrange = "0x100000000-0x1ffffffff"\nzone = "movable"\n[[memory]]\ndriver = "kmem"\nhold = true\n', GOOD, PANIC], ("held-anyway", "memory")),
        (['[[memory]]\ndriver = "kmem"\nhold = true\n[[memory]]\nrange = "0x100000000-0x1ffffffff"\nzone = "movable"\n', GOOD, PANIC], ("held-anyway", "memory")),
    ],
)  # fmt: skip
def test_what_check_notes(parts: list[str], code: tuple[str, str]) -> None:
    """What a policy may say on purpose is said by `check` too."""
    assert found(*parts) == [code]


@pytest.mark.parametrize(
    "parts",
    [
        [region(EVERYTHING), GOOD, SAFE, "accept_data_exposure = true\n"],
        [region(ONE), GOOD, SAFE, "accept_data_exposure = true\n"],
        [region(EVERYTHING), GOOD, PANIC],
        [region("cmdline", "none"), GOOD, SAFE],
        [GOOD, SAFE, 'on_shortfall = "panic"\nexposed_max = "5%"\n'],
        [GOOD, SAFE, 'on_shortfall = "panic"\nexposed_max = "64GiB"\nboot_memory = "offline"\nfloor = "2GiB"\nfinal = true\n'],
        ['keep_crashkernel = "512MiB"\n', GOOD, PANIC],
        ['[[memory]]\nnode = 1\nhold = true\n[[memory]]\ndriver = "dimm"\nzone = "movable"\n', GOOD, SAFE],
    ],
)  # fmt: skip
def test_what_is_meant_passes(parts: list[str]) -> None:
    """What was said on purpose, and limits that limit, hold `check --strict`."""
    assert not fails(parts)


@pytest.mark.parametrize("action", ["panic", "reboot", "halt"])
@pytest.mark.parametrize(
    ("word", "why"),
    [
        ('zone = "kernel"', "`zone` has no effect: `{}` onlines nothing"),
        ('on_shortfall = "panic"', "`on_shortfall` has no effect: after `{}` the boot does not go on"),
    ],
)
def test_a_word_beside_an_action_that_ends_the_boot(action: str, word: str, why: str) -> None:
    """Such a word looks stricter and says nothing."""
    with pytest.raises(load.PolicyError, match=why.format(action)):
        found(GOOD, f'[otherwise]\naction = "{action}"\n{word}\n')


def test_a_deadline_that_leaves_no_time() -> None:
    """Half of it is what a block has to go offline."""
    short = '[on_failure]\naction = "panic"\ndeadline = 3\n'
    assert found(GOOD, SAFE, 'boot_memory = "offline"\n', on_failure=short) == [("useless-limit", "on_failure")]
    assert found(GOOD, SAFE, on_failure=short) == []
