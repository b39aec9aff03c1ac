# SPDX-License-Identifier: MIT
"""What preflight found: as text, the verdict last; as JSON, SARIF 2.1.0 and JUnit XML."""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from urllib.parse import quote

import click

from safemem.boot.printable import printable
from safemem.outgoing.findings import CODES, Finding
from safemem.outgoing.kernel import Kernel, Speaks
from safemem.outgoing.preflight import Report
from safemem.render.findings import SARIF, Case, junit
from safemem.render.text import clean, folded, rooted, terminal_width

SCHEMA = 1
_COLOUR = {"error": "red", "unknown": "magenta", "warning": "yellow", "note": "cyan"}
_VERDICT_COLOUR = {"compatible": "green", "incompatible": "red", "cannot tell": "magenta"}
#: SARIF knows three: what could not be looked at is no error, and never nothing.
_LEVEL = {"error": "error", "unknown": "warning", "warning": "warning", "note": "note"}


def text(report: Report) -> str:
    """Return the findings, the worst first, what the kexec ends in, and the verdict as the last line."""
    report, width = clean(_rooted(report._replace(kernel=_bare(report.kernel)))), terminal_width()
    running = report.running.outgoing.release or "a release that is not known"
    following = report.kernel.release or "a release that is not known"
    lines = [f"{report.kernel.path}: next {following}, running {running}"]
    for item in report.found:
        severity = click.style(item.severity, fg=_COLOUR[item.severity], bold=True)
        first, *rest = folded(f"{item.severity}: {item.message} [{item.code}]", width, "    ")
        lines += [severity + first.removeprefix(item.severity), *rest]
        lines += folded(f"    seen: {item.evidence}", width, "          ")
        if item.remedy:
            lines += folded(f"    help: {item.remedy}", width, "          ")
    for line in endings(report):
        lines += folded(line, width, "    ")
    return "\n".join([*lines, click.style(report.verdict, fg=_VERDICT_COLOUR[report.verdict], bold=True)])


def endings(report: Report) -> list[str]:
    """Return what comes of a kexec now, and of each way in which it can fail; those with one end in one sentence."""
    lines = []
    unseen = any(item.code == "no-initrd" for item in report.found)
    nobody = "what safemem makes of it is not known" if unseen else "safemem does not run in that boot"
    failures: dict[str, list[str]] = {}
    for item in report.endings:
        if item.state == "panic":
            lines.append("if you kexec now: the next kernel panics by itself")
            continue
        what = f"{item.action} by rule `{item.rule}`" if item.action else nobody
        if item.expected:
            lines.append(f"if you kexec now: {what}; the handover reads as `{item.reads}`")
        elif item.state != "accepted":  # that it could be accepted is nothing that goes wrong
            because = f", because it reads as `{item.reads}`" if item.reads != item.state else ""
            failures.setdefault(what + because, []).append(item.state)
    if report.prediction.code == "other-arch":
        lines.append("if you kexec now: it cannot be loaded here")
    elif not lines:
        lines.append("if you kexec now: what becomes of the handover cannot be told")
    for what, states in failures.items():
        *most, last = states
        lines.append(f"if the handover is {' or '.join(filter(None, (', '.join(most), last)))}: {what}")
    return lines


def as_json(report: Report, exit_code: int) -> str:
    """Return the report as JSON, schema 1."""
    report = _rooted(report)
    kernel, running, outcome = report.kernel, report.running, report.prediction
    document = {
        "schema": SCHEMA, "kind": "preflight", "exit_code": exit_code, "verdict": report.verdict,
        "kernel": {
            "path": kernel.path, "release": kernel.release or None, "build_ids": list(kernel.build_ids),
            "speaks": _speaks(kernel.speaks),
        },
        "running": {
            "release": running.outgoing.release or None, "build_id": running.build_id or None,
            "image": running.image.path if running.image else None, "proven": running.proven,
            "kho": running.outgoing.kho.value, "luo": running.outgoing.luo.value,
            "preserved": running.at_stake.value, "nodes": list(running.nodes), "speaks": _speaks(running.outgoing.speaks),
        },
        "prediction": {
            "outcome": outcome.outcome, "why": outcome.why, "lost": list(outcome.lost), "untold": list(outcome.untold),
        },
        "findings": [item._asdict() for item in report.found],
        "endings": [item._asdict() for item in report.endings],
    }  # fmt: skip
    return json.dumps(document, indent=1)


def _speaks(found: Speaks) -> dict[str, list[str]]:
    return {key: sorted(getattr(found, key)) for key in ("tree", "luo", "handlers", "producers")}


def sarif(report: Report) -> str:
    """Return SARIF 2.1.0: a rule for each finding that there can be, a result for each that was made, about the image."""
    report, codes = _rooted(report), list(CODES)
    driver = {
        "name": "safemem preflight",
        "version": version("safemem"),
        "rules": [
            {"id": code, "shortDescription": {"text": entry.message}, "defaultConfiguration": {"level": _LEVEL[entry.severity]}}
            for code, entry in CODES.items()
        ],
    }  # fmt: skip
    results = [
        {
            "ruleId": item.code, "ruleIndex": codes.index(item.code), "level": _LEVEL[item.severity],
            "message": {"text": _sentence(item)},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": quote(os.fsencode(report.kernel.path))}}}],
            "properties": {"severity": item.severity, "evidence": item.evidence},
        }
        for item in report.found
    ]  # fmt: skip
    run = {
        "tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results,
        "properties": {"verdict": report.verdict, "endings": [item._asdict() for item in report.endings]},
    }  # fmt: skip
    return json.dumps({"$schema": SARIF, "version": "2.1.0", "runs": [run]}, indent=1)


def as_junit(report: Report) -> str:
    """Return one test case for each code: an error, or what could not be looked at, is a failure; and one for the verdict."""
    report, suite = _rooted(report), printable(report.kernel.path)
    cases = [Case(suite, "verdict", "" if report.verdict == "compatible" else report.verdict)]
    for code in CODES:
        bad = [item for item in report.found if item.code == code and item.severity in ("error", "unknown")]
        detail = "\n".join(printable(_sentence(item)) for item in bad)
        cases.append(Case(suite, code, f"{len(bad)} found" if bad else "", detail))
    return junit("safemem preflight", cases)


def _sentence(item: Finding) -> str:
    said = f"{item.message}; seen: {item.evidence}" if item.evidence else item.message
    return f"{said}; help: {item.remedy}" if item.remedy else said


def _rooted(report: Report) -> Report:
    """Return the report with paths as an operator types them, which facts name relative to a root."""
    return report._replace(found=tuple(item._replace(evidence=rooted(item.evidence)) for item in report.found))


def _bare(kernel: Kernel) -> Kernel:
    """Return a kernel without what no text shows, and nobody wants to go through for characters."""
    return kernel._replace(initrds=(), config=None)
