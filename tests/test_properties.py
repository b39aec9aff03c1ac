# SPDX-License-Identifier: MIT
"""What holds for every policy and machine that can be drawn: decided once for all, the same at a desk, never rewarded for not knowing."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from safemem.boot import engine, plan
from safemem.boot.model import ACTIONS, FINAL, UNKNOWN, Blocks, Fact, Policy, Snapshot
from safemem.host import reader
from safemem.policy import catalogue, invariants, load
from safemem.policy.space import Outcomes, Space
from tests.draws import DRAWS, Machine, looser, machines, outcome, policies
from tests.fakes import SHIPPED

#: Not shrunk: a policy and a machine take minutes to make small.
SEARCH = settings(
    max_examples=max(300, DRAWS // 4), deadline=None, suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)  # fmt: skip


def carried_out(policy: Policy, snapshot: Snapshot) -> Snapshot:
    """Return the machine after the plan was carried out, every block as it was meant to be."""
    runs = []
    for run in snapshot.blocks:
        for number in range(run.first, run.last + 1):
            op = next(step.op for step in engine.decide(policy, snapshot).steps if step.first <= number <= step.last)
            state = {"online": "online", "offline": "offline"}.get(op, run.state)
            runs.append(Blocks(number, number, state, run.node, run.driver))
    return snapshot._replace(blocks=tuple(runs))


@SEARCH
@given(policies(), machines())
def test_it_always_decides_and_always_the_same(policy: Policy, machine: Machine) -> None:
    """Each block is in the plan exactly once, and a second look at the same machine says the same."""
    decision = engine.decide(policy, machine.snapshot)

    assert decision.action in ACTIONS and decision == engine.decide(policy, machine.snapshot)
    planned = [number for step in decision.steps if step.first >= 0 for number in range(step.first, step.last + 1)]
    assert planned == [number for run in machine.snapshot.blocks for number in range(run.first, run.last + 1)]


@SEARCH
@given(policies(), machines())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(policy: Policy, machine: Machine) -> None:
    """The rule that decided, applied again, onlines nothing more and takes nothing more off."""
    decision = engine.decide(policy, machine.snapshot)
    assume(decision.action not in FINAL)
    after = carried_out(policy, machine.snapshot)
    again = plan.steps(
        decision.rule, after, decision.region, decision.zone, decision.policy.memory, policy.keep_crashkernel
    )

    assert {step.op for step in again if step.first >= 0} <= {"keep", "hold"}


@SEARCH
@given(policies(), machines())
def test_a_capture_decides_as_the_machine_did(policy: Policy, machine: Machine) -> None:
    """What is written down of a machine and read back at a desk leads to the same decision."""
    found = reader.snapshot_from_text(reader.capture_text(machine.snapshot), "a capture")

    assert engine.decide(policy, found) == engine.decide(policy, machine.snapshot)


def in_use(found: dict[Any, int]) -> dict[Any, int]:
    """Return an outcome without zones: a rule that names none follows `kho`, and what is unknown may end in one that does."""
    return {
        key: min(value, 2) if isinstance(key, int) and value < 5 else min(value, 1) if key == "arrivals" else value
        for key, value in found.items()
    }


@SEARCH
@given(st.one_of(policies(), st.sampled_from([load.read(path) for path in SHIPPED])), machines())
def test_not_knowing_is_never_rewarded(policy: Policy, machine: Machine) -> None:
    """With a policy that `check` has nothing to say about, no fact that becomes unknown loosens the outcome."""
    found = invariants.check(policy, Outcomes(Space(policy), policy))
    assume(not [item for item in found if catalogue.CODES[item.code][0] != "note"])
    assume(not any(rule.accept_data_exposure for rule in (*policy.rules, policy.otherwise)))
    if machine.snapshot.scratch:  # two regions are named: each of them is safe, whichever counts
        machine = machine._replace(snapshot=machine.snapshot._replace(cmdline_safe=()))
    before, facts = in_use(outcome(policy, machine)), machine.snapshot.facts
    for name in facts:
        unknown = {**facts, name: Fact(UNKNOWN, "test")}
        seen = machine.snapshot._replace(facts=unknown, overrides=())
        # The scratch areas of a handover of which nobody knows whether it was accepted are nobody's.
        if name == "handover":
            seen = seen._replace(scratch=())
        after = in_use(outcome(policy, machine._replace(snapshot=seen, device=False)))
        assert not looser(before, after), name
