# SPDX-License-Identifier: MIT
"""The metrics as Prometheus takes them, and the shipped alerts, by Prometheus' own tool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from safemem.boot import account, record
from safemem.boot import main as boot
from safemem.boot.model import Override, Rule
from safemem.boot.ranges import Range
from safemem.cli import main
from safemem.host import incidents, standing
from safemem.realroot import maintenance
from tests.fakes import BLOCK, make_root
from tests.kit import REPOSITORY, install

RULES = REPOSITORY / "prometheus/safemem.rules.yml"


def machine(base: Path, rule: Rule, **more: Any) -> Path:
    """Return a machine that has decided by `rule`; `more` is a policy's, `dry` a dry run."""
    words = "kho=on safemem.dry_run" if more.pop("dry", False) else "kho=on memhp_default_state=offline"
    root = make_root(base, offered=True, cmdline=words)
    install(root, otherwise=rule, allow_cmdline_override=True, **more)
    boot.main(["--root", str(root)])
    settle(root)
    return root


def settle(root: Path) -> None:
    """Let the fake blocks show what the kernel would after a write."""
    for path in (root / "sys/devices/system/memory").glob("memory*/state"):
        path.write_text(path.read_text().split("_")[0].strip() + "\n")


def text(root: Path) -> str:
    """Return the metrics of the machine."""
    CliRunner().invoke(main, ["metrics", "-o", str(root / "m"), "--root", str(root)])
    return (root / "m").read_text()


def families(root: Path) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the metrics as a strict parser of OpenMetrics reads them: by name, values by label values."""
    # In the older format, which node_exporter reads, a counter's family has the name of its sample.
    new = re.sub(r"^(# (?:TYPE|HELP) \S+)_total ", r"\1 ", text(root), flags=re.MULTILINE) + "# EOF\n"
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(new)  # type: ignore[no-untyped-call]
    }


def states(root: Path) -> dict[str, int]:
    """Return the bytes in each state that are not 0, which have to add up to all memory blocks."""
    found = {labels[0]: int(value) for labels, value in families(root)["safemem_memory_bytes"].items()}
    assert set(found) == set(account.KINDS)
    assert sum(found.values()) == 16 * BLOCK
    return {kind: size // BLOCK for kind, size in found.items() if size}


HOLD = (Override(range=Range(32 * BLOCK, 34 * BLOCK), hold=True),)


@pytest.mark.parametrize(
    ("rule", "more", "then", "after"),
    [
        (Rule("otherwise", "online-all"), {}, {"in_use": 16}, {"in_use": 16}),
        (Rule("otherwise", "online-all"), {"memory": HOLD}, {"in_use": 14, "held": 2}, {"in_use": 16}),
        (Rule("otherwise", "online-safe"), {}, {"exposed": 8, "held": 8}, {"in_use": 16}),
        (Rule("otherwise", "online-safe"), {"sources": (Range(0, 4 * BLOCK),)}, {"safe": 4, "exposed": 4, "held": 8}, {"in_use": 16}),
        (Rule("otherwise", "online-safe"), {"dry": True}, {"exposed": 8, "held": 8}, {"in_use": 16}),
        (Rule("otherwise", "panic"), {}, {"exposed": 8, "held": 8}, {"in_use": 16}),
        (Rule("otherwise", "reboot"), {}, {"exposed": 8, "held": 8}, {"in_use": 16}),
        (Rule("otherwise", "halt"), {}, {"exposed": 8, "held": 8}, {"in_use": 16}),
    ],
)  # fmt: skip
def test_every_byte_is_in_one_state(
    tmp_path: Path, rule: Rule, more: dict[str, Any], then: dict[str, int], after: dict[str, int]
) -> None:
    """For every action, before a release and after it, the states add up to all memory blocks."""
    root = machine(tmp_path, rule, **more)
    assert states(root) == then
    CliRunner().invoke(main, ["release", "--reason", "moved away", "--root", str(root)])
    settle(root)
    assert states(root) == after


def test_memory_that_somebody_onlined_and_somebody_took_off(tmp_path: Path) -> None:
    """Onlined by others it is exposed; what was online and is no more is quarantined, whoever did that."""
    root = machine(tmp_path, Rule("otherwise", "online-safe"))
    for number, state in ((32, "online"), (7, "offline"), (6, "going-offline")):
        (root / f"sys/devices/system/memory/memory{number}/state").write_text(f"{state}\n")
    assert states(root) == {"exposed": 8, "held": 7, "quarantined": 1}


def test_how_a_boot_stands(tmp_path: Path) -> None:
    """In maintenance until it was left and everything was released; when it was decided; what there is to look at."""
    root = machine(tmp_path, Rule("otherwise", "online-safe", enter="maintenance"))
    found = families(root)
    shown = {name: values for name, values in found.items() if name not in ("safemem_memory_bytes",)}
    assert shown.pop("safemem_decision_info").keys() == {
        ("online-safe", "otherwise", "test", standing.read(str(root)).decision.policy.digest, "rejected")
    }
    stamp = shown.pop("safemem_decision_timestamp_seconds")[()]
    assert int(stamp) == int((root / record.RECORD).stat().st_mtime)
    assert shown == {
        "safemem_decision_recorded": {(): 1},
        "safemem_decision_in_force": {(): 1},
        "safemem_mode": {("enforce",): 1, ("dry_run",): 0, ("observe",): 0},
        "safemem_maintenance": {(): 1},
        "safemem_shortfall": {(): 0},
        "safemem_onlined_by_others_bytes": {(): 0},
        "safemem_problems": {(): 0},
        "safemem_findings": {("severe",): 0, ("warning",): 2, ("note",): 0},
        "safemem_releases": {(): 0},
        "safemem_releases_unfinished": {(): 0},
    }
    incidents.write(str(root), incidents.Counts(incidents=2))
    assert families(root)["safemem_held_memory_onlined"] == {(): 2}

    (root / maintenance.ISSUE).parent.mkdir(parents=True)
    (root / maintenance.ISSUE).touch()
    CliRunner().invoke(main, ["release", "--reason", "moved away", "--root", str(root)])
    assert families(root)["safemem_maintenance"] == {(): 1}
    (root / maintenance.ISSUE).unlink()
    assert families(root)["safemem_maintenance"] == {(): 0}
    path = root / standing.RELEASES
    document = json.loads(path.read_text())
    path.write_text(json.dumps([{**document[0], "state": "partly"}]))
    assert families(root)["safemem_releases_unfinished"] == {(): 1}


def test_a_dry_run_says_so(tmp_path: Path) -> None:
    """Nothing of it is in force, and that is as it should be."""
    found = families(machine(tmp_path, Rule("otherwise", "online-safe", enter="maintenance"), dry=True))
    assert found["safemem_mode"] == {("enforce",): 0, ("dry_run",): 1, ("observe",): 0}
    assert (found["safemem_decision_in_force"], found["safemem_maintenance"]) == ({(): 0}, {(): 0})


@pytest.mark.parametrize(("limit", "expected"), [("50%", 0), ("1%", 1), ("", 0)])
def test_a_shortfall_is_what_the_policy_does_not_tolerate(tmp_path: Path, limit: str, expected: int) -> None:
    """More than `exposed_max`; where it is not given, the policy goes on whatever refuses."""
    rule = Rule("otherwise", "online-safe", boot_memory="offline", exposed_max=limit)
    root = make_root(tmp_path, offered=True)
    install(root, otherwise=rule)
    boot.main(["--root", str(root)])  # no meminfo: below the floor, every block stays
    found = families(root)
    assert found["safemem_shortfall"] == {(): expected}
    assert found["safemem_decision_in_force"] == {(): 1 - expected}
    assert found["safemem_findings"][("severe",)] == expected and found["safemem_findings"][("note",)] == 1 - expected


@pytest.mark.needs("promtool")
def test_prometheus_finds_nothing_to_say(tmp_path: Path) -> None:
    """Names, units and help are as its own linter wants them, with a decision and without."""
    root = machine(tmp_path, Rule("otherwise", "online-safe"))
    incidents.write(str(root), incidents.Counts())
    for _ in range(2):
        result = subprocess.run(["promtool", "check", "metrics"], input=text(root), capture_output=True, text=True)
        assert (result.returncode, result.stdout + result.stderr) == (0, "")
        (root / record.RECORD).unlink(missing_ok=True)


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    "words", [("check", "rules", str(RULES)), ("test", "rules", str(RULES).replace(".yml", ".test.yml"))]
)
def test_the_alerts_are_sound(words: tuple[str, ...]) -> None:
    """They are valid, and fire on what they are for and on nothing else."""
    result = subprocess.run(["promtool", *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_each_alert_is_tested_and_asks_for_metrics_that_exist(tmp_path: Path) -> None:
    """One that nobody tests, or that waits for a name that was never written, would never fire."""
    rules = RULES.read_text()
    alerts = re.findall(r"- alert: (\S+)", rules)
    tests = (RULES.parent / "safemem.rules.test.yml").read_text()
    fired = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:", tests))
    assert len(alerts) == 7 and set(alerts) == fired
    root = machine(tmp_path, Rule("otherwise", "online-safe"))
    incidents.write(str(root), incidents.Counts())
    asked = {name for line in re.findall(r"expr: (.*)", rules) for name in re.findall(r"safemem_\w+", line)}
    assert asked <= set(re.findall(r"^# TYPE (\S+)", text(root), re.MULTILINE))
