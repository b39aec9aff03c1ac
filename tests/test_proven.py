# SPDX-License-Identifier: MIT
"""What is built was proved: a policy with errors goes nowhere, unless it accepts them by name, which is then said."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from safemem.boot import compiled, engine, record
from safemem.boot import main as boot
from safemem.cli import main
from safemem.host import reader
from safemem.initramfs import proven
from safemem.policy.catalogue import CODES, ERRORS
from safemem.policy.space import MAX_STATES
from tests.fakes import make_root
from tests.kit import install, snapshot

BAD = Path(__file__).resolve().parent / "bad"
MANY = "".join(
    f'[[rule]]\nname = "r{n}"\nwhen = {{ handover = "accepted", kernel = "{n}.*", virt = "v{n}", kexec_count = {3 * n}, boot_attempts = {3 * n} }}\n'
    'action = "online-all"\n'
    for n in range(1, 31)
)
TAIL = '[otherwise]\naction = "panic"\n[on_failure]\naction = "panic"\n'


def run(*words: object) -> Result:
    """Run a command."""
    return CliRunner().invoke(main, [str(word) for word in words])


def accepting(folder: Path, name: str, *codes: str) -> Path:
    """Return one of the bad policies that accepts these errors."""
    path = folder / "policy.toml"
    path.write_text(f"accept_errors = {json.dumps(codes)}\n" + (BAD / f"{name}.toml").read_text())
    return path


@pytest.mark.parametrize("name", [path.stem for path in BAD.glob("*.toml") if path.stem in ERRORS])
@pytest.mark.parametrize("words", [("compile",), ("initramfs", "cpio", "--policy")], ids=["compile", "cpio"])
def test_an_error_keeps_a_policy_out(tmp_path: Path, name: str, words: tuple[str, ...]) -> None:
    """What `check` calls an error ends with 3 and leaves nothing behind; the words are those of `check`."""
    out = tmp_path / "out"
    result = run(*words, BAD / f"{name}.toml", "-o", out)
    told = [line for line in run("check", BAD / f"{name}.toml").stdout.splitlines() if f"[{name}]" in line]

    assert (result.exit_code, out.exists()) == (3, False)
    assert told and all(f"safemem: {line}\n" in result.stderr for line in told)
    assert f'write `accept_errors = ["{name}"]` at its top, which the image and the record will say' in result.stderr


def test_an_error_that_is_accepted_is_said(tmp_path: Path) -> None:
    """By `check` as a note, by what is built, by the record and by what reads it."""
    path = accepting(tmp_path, "exposes-handover", "exposes-handover")
    checked, built = run("check", path), run("compile", path, "-o", tmp_path / "out")

    assert checked.exit_code == built.exit_code == 0, checked.output + built.output
    assert ":8:1: note: a handover that was lost ends in online-all" in checked.stdout
    assert "(accepted by accept_errors) [exposes-handover]" in checked.stdout
    assert checked.stdout.splitlines()[-1].startswith(f"{path}: 0 errors, 1 error accepted")
    sarif = json.loads(run("check", path, "--format", "sarif").stdout)["runs"][0]["results"]
    assert [item.get("suppressions") for item in sarif if item["ruleId"] == "exposes-handover"] == [
        [{"kind": "inSource", "justification": "accept_errors"}]
    ]
    policy = compiled.load((tmp_path / "out").read_bytes(), "p")
    assert policy.accept_errors == ("exposes-handover",)
    decision = engine.decide(policy, snapshot(handover="rejected"))
    text = record.record_text(snapshot(handover="rejected"), decision, None)
    assert json.loads(text)["decision"]["accept_errors"] == ["exposes-handover"]
    assert reader.record_from_text(text, "r").decision.policy.accept_errors == ("exposes-handover",)


def test_nothing_is_measured_that_nobody_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive is told by its own size; to pack it once more as a distribution would takes longer than to make it."""
    (tmp_path / "zstd").write_text(f"#!/bin/sh\n: >{tmp_path}/called\n")
    (tmp_path / "zstd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = run("initramfs", "cpio", "--policy", "minimal", "-o", tmp_path / "out")

    assert result.exit_code == 0 and not (tmp_path / "called").exists(), result.output
    assert re.match(rf"{tmp_path}/out: \d+ files, [\d.]+ MiB, [\d.]+ MiB raw\n", result.stdout)


def test_status_says_what_was_accepted(tmp_path: Path) -> None:
    """Of the policy that decided this boot."""
    root = make_root(tmp_path, offered=True)
    install(root, otherwise="online-safe", accept_errors=("reboot-loop", "unreachable-rule"))
    assert boot.main(["--root", str(root)]) == 0
    assert (
        "\naccepted  the policy was built in with errors: reboot-loop, unreachable-rule\n"
        in run("status", "--root", root).stdout
    )


def test_accepting_more_is_looser(tmp_path: Path) -> None:
    """As `diff` sees it; that it is only an error of this policy's own is for `check` to say."""
    none, one = BAD / "reboot-loop.toml", accepting(tmp_path, "reboot-loop", "reboot-loop")
    more = run("diff", none, one)
    assert more.exit_code == 5
    assert "  - online-safe by `accept_errors` (built in with no error)\n" in more.stdout
    assert "  + online-safe by `accept_errors` (built in with these errors: reboot-loop)\n" in more.stdout
    assert run("diff", one, none).exit_code == 4


def test_accepting_one_error_leaves_the_others(tmp_path: Path) -> None:
    """A code is that of one kind of error."""
    path = accepting(tmp_path, "exposes-handover", "reboot-loop")
    result = run("compile", path, "-o", tmp_path / "out")

    assert result.exit_code == 3 and "[exposes-handover]" in result.stderr
    shown = run("check", path).stdout
    assert (
        f"{path}:1:18: warning: `reboot-loop` is accepted, and this policy has no such error [idle-accept-errors]\n"
        "    help: remove it, so that it does not hide what a later edit does\n"
    ) in shown


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (["reboot-lop"], "accept_errors: `reboot-lop` is not one of "),
        (["same-as-next"], "accept_errors: `same-as-next` is not one of "),  # a warning needs nobody's leave
        (["invalid-policy"], "accept_errors: `invalid-policy` is not one of "),
        (["reboot-loop", "reboot-loop"], "accept_errors: `reboot-loop` is listed twice"),
    ],
)
def test_what_no_error_is_called(tmp_path: Path, codes: list[str], message: str) -> None:
    """It is an error of the file, with its place."""
    result = run("check", accepting(tmp_path, "reboot-loop", *codes))
    assert result.exit_code == 3
    assert f"policy.toml:1:{18 if len(codes) == 1 else 33}: {message}" in result.stderr
    assert "did you mean `reboot-loop`?" in result.stderr or "lop" not in "".join(codes)


def test_too_many_states_are_no_proof(tmp_path: Path) -> None:
    """A policy that cannot be looked at whole is refused; nobody can accept what could hide any other error."""
    path = tmp_path / "many.toml"
    path.write_text(f'format = 1\nname = "many"\n{MANY}{TAIL}')
    result = run("compile", path, "-o", tmp_path / "out")
    assert result.exit_code == 3 and not (tmp_path / "out").exists()
    assert "many.toml:1:1: error: " in result.stderr and f"{MAX_STATES:,} is the limit" in result.stderr
    assert "[too-many-states]" in result.stderr
    assert run("check", path).exit_code == 3

    path.write_text(f'accept_errors = ["too-many-states"]\nformat = 1\nname = "many"\n{MANY}{TAIL}')
    result = run("compile", path, "-o", tmp_path / "out")
    assert result.exit_code == 3 and "`too-many-states` is not one of" in result.stderr


def test_what_an_image_says_of_its_proof() -> None:
    """It reads back as it was written, and nothing else does."""
    proof = proven.Proof("0" * 64, 72, ("reboot-loop",))
    made = proven.Proven("1.2", ("reboot-loop", "unsafe-block"), (proof,))
    data = proven.dump(made)

    assert proven.load(data, "p") == made
    assert proven.text(made, "0" * 64) == "by 1.2: 2 checks over 72 states, 1 accepted, reboot-loop"
    assert proven.missing(made, ["0" * 64]) == ""
    assert (
        proven.missing(made, ["0" * 64, "1" * 64])
        == "its proof is for another policy than the one with digest 111111111111"
    )
    assert proven.missing(None, ["0" * 64]) == "it does not say which checks its policy has passed"
    for at in range(len(data)):
        with pytest.raises(compiled.Invalid, match=r"^p: what was proved is damaged or was edited$"):
            proven.load(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "p")


def test_every_error_can_be_accepted_but_no_policy_at_all() -> None:
    """What may be accepted are the errors of the catalogue, but for the one behind which any other could hide."""
    assert set(ERRORS) == {code for code, (level, _) in CODES.items() if level == "error"} - {
        "invalid-policy",
        "too-many-states",
    }
