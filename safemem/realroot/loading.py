# SPDX-License-Identifier: MIT
"""What stands in front of kexec once the gate is enabled: no kernel is loaded for a live update that was not judged.

`/usr/lib/safemem/kexec` (packages/kexec.sh) is what is called, and leaves this aside once the machine is going down. What
is loaded is told apart from what is looked at afterwards by digests: a file that changed in between is unloaded again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from safemem.boot import paths
from safemem.realroot import gate, gatesetup, judge, kexecline, loaded
from safemem.realroot.gate import Answer
from safemem.realroot.judge import CANNOT_TELL, COMPATIBLE, Verdict
from safemem.realroot.kexecline import ARGUMENT, Call
from safemem.realroot.loaded import Loaded

_SO = "nothing was loaded"


def main(argv: list[str], root: str = "/") -> int:
    """Do what `kexec` with these arguments does, if it may; return its exit status, or 5 or 6 for a refusal."""
    os.umask(0o022)
    program = gatesetup.real(root)
    if not program:
        sys.stderr.write("safemem: kexec is not installed: there is no /usr/sbin/kexec.distrib\n")
        return 127
    try:
        return _do(root, program, argv, kexecline.parse(argv, os.uname().machine))
    except OSError as error:
        sys.stderr.write(f"safemem: {loaded.why_not(error)}\n")
        return 1


def _do(root: str, program: str, argv: list[str], call: Call) -> int:
    """Do what the call asks for, if it may. Raises OSError: a file of ours, or one that is to be loaded, cannot be used."""
    if call.does == "other" or call.crash:
        return _run(program, argv)
    if call.does == "unload":
        loaded.dismiss(root)
        loaded.forget(root)  # first: what is loaded without a record cannot be told, and that is the safe side
        return _run(program, argv)
    if call.does == "exec":
        return _exec(root, program, argv)
    if call.unclear or not call.kernel:
        return _unclear(root, program, argv, call)
    return _load(root, program, call)


def _run(program: str, words: list[str]) -> int:
    """Run the distribution's kexec; return its exit status."""
    # getopt_long(3) would read the arguments otherwise than we have.
    environment = {key: value for key, value in os.environ.items() if key != "POSIXLY_CORRECT"}
    try:
        status = subprocess.run([program, *words], env=environment).returncode
    except OSError as error:
        sys.stderr.write(f"safemem: {loaded.why_not(error)}\n")
        return 127
    return status if status >= 0 else 128 - status


def _exec(root: str, program: str, words: list[str]) -> int:
    answer, found = gate.consider(root, os.environ.get(gate.ENVIRONMENT, ""))
    kernel = found.kernel.path if found else ""
    problem = gate.record(root, answer, kernel, started=True) if answer.passes and answer.override else ""
    if problem or not answer.passes:
        return gate.refuse(
            root, answer._replace(why=problem or answer.why, final=bool(problem) or answer.final), "this system goes on"
        )
    gate.tell(root, answer)
    return _run(program, words)


def _unclear(root: str, program: str, words: list[str], call: Call) -> int:
    """Load what the line does not tell, or refuse it; without a record the gate can tell no more of it."""
    if not call.kernel:
        return _run(program, words)  # which says what is missing
    verdict = Verdict(CANNOT_TELL, f"what is to be loaded cannot be told: {'; '.join(call.unclear)}", "")
    answer = gate.weigh(root, verdict, os.environ.get(gate.ENVIRONMENT, ""))
    if not answer.passes:
        return gate.refuse(root, answer, _SO)
    problem = gate.record(root, answer, call.kernel, started=False) if answer.override else ""
    if problem:
        return gate.refuse(root, answer._replace(why=problem, final=True), _SO)
    gate.tell(root, answer)
    _clear(root, answer)
    return _run(program, words)


def _load(root: str, program: str, call: Call) -> int:
    files = [loaded.digest(os.path.abspath(path)) for path in (call.kernel, call.initrd) if path]
    with open(os.path.join(root, paths.CMDLINE), encoding="utf-8", errors="surrogateescape") as file:
        line = kexecline.cmdline(call, file.read())
    ids = judge.build_ids(root, files[0].path)
    word = f"{ARGUMENT}={'+'.join(ids) or 'unknown'}"
    loader = "kexec_load" if call.loader == "kexec_load" else "kexec_file"
    initrds = tuple(file.path for file in files[1:])
    verdict = judge.judge(root, files[0].path, initrds, f"{line} {word}".strip(), loader)
    answer = gate.weigh(root, verdict, os.environ.get(gate.ENVIRONMENT, ""))
    problem = gate.record(root, answer, files[0].path, started=False) if answer.passes and answer.override else ""
    if problem or not answer.passes:
        return gate.refuse(root, answer._replace(why=problem or answer.why, final=bool(problem) or answer.final), _SO)
    gate.tell(root, answer)
    line = f"{line} {word}{_flags(answer)}".strip()
    _clear(root, answer)
    status = _run(program, kexecline.again(call, line))
    if status == 0:
        found = Loaded(
            loaded.boot_id(root), int(time.time()), files[0], tuple(files[1:]), line, loader, answer.verdict,
            answer.why, ids, answer.override,
        )  # fmt: skip
        status = _written(root, program, found)
    if status:
        loaded.dismiss(root)
        return status
    return _go_on(root, program, call)


def _clear(root: str, answer: Answer) -> None:
    """Remove what is said of the kernel that was loaded before this one.

    INVARIANT: a record never stands beside a kernel that it does not describe, wherever this is interrupted.
    """
    loaded.forget(root)
    if not answer.override:
        loaded.dismiss(root)


def _flags(answer: Answer) -> str:
    """Return what the next boot is told beside which kernel was judged."""
    if answer.override:
        return ",overridden"
    return "" if answer.verdict == COMPATIBLE else ",cannot-tell"


def _written(root: str, program: str, found: Loaded) -> int:
    """Write down what was loaded, or unload it: what has changed under our hands was not judged."""
    why = ""
    try:
        if [loaded.digest(file.path) for file in (found.kernel, *found.initrds)] != [found.kernel, *found.initrds]:
            why = "a file changed while it was loaded"
        else:
            loaded.write(root, found)
    except OSError as error:
        why = loaded.why_not(error)
    if not why:
        return 0
    _run(program, ["--unload"])
    answer = Answer(False, CANNOT_TELL, why, final=True)
    return gate.refuse(root, answer, "what was loaded is unloaded again")


def _go_on(root: str, program: str, call: Call) -> int:
    """Do what the call asks for beyond loading."""
    if call.does == "now":
        return _run(program, ["--exec", *call.less])
    if call.does == "shutdown":
        return _run(os.path.join(root, "sbin/shutdown"), ["-r", "now"])  # as kexec-tools does (my_shutdown)
    return 0
