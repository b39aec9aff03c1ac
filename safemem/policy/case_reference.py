# SPDX-License-Identifier: MIT
"""What a file of cases may hold, for editors (JSON Schema) and for people (docs/cases.md), from what reads it."""

from __future__ import annotations

from typing import Any

from safemem.boot.model import Rule
from safemem.policy import glossary, pieces, reference
from safemem.policy.casefile import BESIDE, ENDS, EXPECTED

#: Key of a file -> what it is; the others are a policy's own.
FILE = {
    "policy": "The policy that the cases are about, relative to this file.",
    "machine": "A machine in words, as `safemem simulate --machine` takes it, for the cases that say what becomes of one.",
    "case": "In any order; each must hold by itself.",
}
#: Key of a case -> what it is; every other one is a rule's word, which has to be as it says.
CASE = {
    "name": "What is expected, in words.",
    "state": "Facts and what they may be, as in `when`; facts that are left out may have any value. Beside a value, a list and "
    "`{ not = … }` there is `{ all = [ … ] }`, conditions that must all hold.",
    "action": "The action that is expected in every one of these states.",
    "rule": "The name of the rule that has to decide; `otherwise` for the last.",
    "message": "A part of the message that is expected.",
    "machine": "Another machine, for this case.",
    "plan": "Piece of the machine -> what is to become of it. Blocks that cannot go offline are in use all the same: `ends` counts them.",
    "ends": "How the boot ends on this machine by all that is decided, limits and shortfalls included: `panic`, `reboot`, "
    '`halt`; with `""` it goes on. At best: what no description shows, such as a page that cannot be moved, can only make it worse.',
}


def keys() -> list[tuple[str, str, str]]:
    """Return where each key of a file of cases stands, the key, and what it says."""
    tables = (("the file", FILE), ("[[case]]", CASE))
    return [(title, key, text) for title, table in tables for key, text in table.items()]


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of files of cases."""
    policy = reference.schema()
    rule, beside = policy["$defs"]["RuleTable"]["properties"], policy["properties"]
    rule = {key: _word(key, rule[key]) for key in EXPECTED if key in rule}
    steps = glossary.values("step")
    plan = {"oneOf": [{"const": op, "description": steps[op]} for op in pieces.OPS]}
    case: dict[str, Any] = {
        **rule,
        **{key: {"type": "string", "description": text} for key, text in CASE.items() if key not in rule},
        "message": {"type": "string", "description": CASE["message"]},
        "state": {"type": "object", "description": CASE["state"], "additionalProperties": False, "properties": _states()},
        "plan": {"type": "object", "description": CASE["plan"], "additionalProperties": plan},
        "ends": {"enum": list(ENDS), "description": CASE["ends"]},
    }  # fmt: skip
    return {
        "$schema": reference.DRAFT,
        "$defs": {name: item for name, item in policy["$defs"].items() if name not in ("When", "RuleTable", "Outcome")},
        "type": "object", "required": ["policy", "case"], "additionalProperties": False,
        "properties": {
            **{key: _beside(beside, key) for key in BESIDE},
            "policy": {"type": "string", "description": FILE["policy"]},
            "machine": {"type": "string", "description": FILE["machine"]},
            "case": {"type": "array", "description": FILE["case"], "minItems": 1,
                     "items": _table(case, ("name", "action", "rule"))},
        },
    }  # fmt: skip


def _word(key: str, item: dict[str, Any]) -> dict[str, Any]:
    """Return what a case may say of a rule's word: what a rule may, and that there is none."""
    text = item.get("description", "")
    value = {name: inner for name, inner in item.items() if name not in ("default", "description", "title")}
    if Rule._field_defaults.get(key) != "":
        return {"description": text, **value}
    return {"description": text, "anyOf": [value, {"const": "", "description": "The rule says nothing of it."}]}


def _table(properties: dict[str, Any], required: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _beside(properties: dict[str, Any], key: str) -> dict[str, Any]:
    """Return what a file of cases may say of what stands beside the rules: the value that the policy is to have."""
    if key == "sources":
        return {"type": "array", "items": {"type": "string"}, "description": "What `[safe_region]` is to have."}
    found = {name: item for name, item in properties[key].items() if name != "default"}
    if key == "on_failure":  # a part of the table
        return {"type": "object", "description": found.get("description", "")}
    return found


def _states() -> dict[str, Any]:
    """Return what a state may ask for: the conditions of `when`, and `all`."""
    found = {}
    for name, item in reference.facts_schema().items():
        conditions = {"anyOf": item["anyOf"]}
        every = _table({"all": {"type": "array", "items": conditions, "minItems": 1}}, ("all",))
        found[name] = {**item, "anyOf": [*item["anyOf"], every]}
    return found


def markdown() -> str:
    """Return docs/cases.md."""
    lines = [
        "# Cases",
        "",
        "Generated by `safemem schema --of cases --reference`; a test keeps it in step. Cases say what a policy is expected",
        "to decide; `safemem test NAME.cases.toml` fails if it decides otherwise, or for another reason. They are written",
        "beside the policy, in TOML; each policy in `policies/` has some.",
        "",
        "```toml",
        *_EXAMPLE.strip().splitlines(),
        "```",
        "",
        "A case holds if **every** state that it describes has the expected outcome: a fact that is left out may have any",
        "value. (In `safemem simulate` a fact that is left out is `unknown`.) `safemem test --coverage` says how many of the",
        "states that policy and cases tell apart are described, and prints the cases that are missing, to be pasted;",
        "`--threshold 100` fails if there are any. A case that fails prints the command that shows the state.",
        "",
        "## The file",
        "",
        "| key | is |",
        "| --- | --- |",
        *(f"| `{key}` | {text} |" for key, text in FILE.items()),
        "",
        f"Beside them may stand what the policy has beside its rules, to be compared: {_listed(BESIDE)}.",
        "",
        "## `[[case]]`",
        "",
        "| key | is |",
        "| --- | --- |",
        *(f"| `{key}` | {text} |" for key, text in CASE.items()),
        "",
        f"And every other word of a rule, as it has to be: {_listed(tuple(key for key in EXPECTED if key not in CASE))}.",
        "A word that is left out is not looked at; `enter = \"\"` and `zone = \"\"` say that there is none.",
        "",
        "A release that cannot be compared, such as `next-20260101`, is matched by no comparison and no `{ not = … }` of one:",
        "`unordered` names those.",
        "",
        "## Machines",
        "",
        "A case with `plan` or `ends` is about a machine, and about those states only that the machine can be in: it decides how",
        "many NUMA nodes there are, whether a guard is in force, and what follows from blocks and safe region. Pieces of it are",
        f"{pieces.FORMS}.",
        "`boot memory` is online when safemem decides, what is hot-added is offline; blocks that the guard has a part of are in",
        "no other piece.",
        "",
        "What may become of a piece:",
        "",
        "| in `plan` | means |",
        "| --- | --- |",
        *(f"| `{op}` | {glossary.values('step')[op]} |" for op in pieces.OPS),
        "",
        "A piece that the safe region or an exception divides becomes two things, and the case fails saying both.",
        "",
        "## In an editor",
        "",
        "`safemem schema --of cases -o cases.schema.json`, and as the first line of the file `#:schema ./cases.schema.json`.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(f"`{key}`" for key in keys)


_EXAMPLE = """
policy = "two-node.toml"
sources = ["kho-scratch", "cmdline"]    # what stands beside the rules, as the policy has it

machine = "2 nodes of 4GiB, DIMM 8GiB on node 1"

[[case]]
name = "a rejected handover leaves node 1 alone"
state = { handover = "rejected", kernel = ">=7.2" }
action = "online-safe"
rule = "rejected"
enter = "maintenance"
plan = { "DIMM on node 1" = "hold", "boot memory" = "offline" }
ends = "panic"                          # more than its one percent stays exposed
"""
