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
from safemem.realroot.judge import CANNOT_TELL, COMPATIBLE, INCOMPATIBLE, Verdict
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
    if call.does == "other" or (call.crash and call.does in ("load", "unload")):
        return _run(program, argv)
    if call.does == "unload":
        with loaded.locked(root):
            loaded.dismiss(root)
            loaded.forget(root)  # first: what is loaded without a record cannot be told, and that is the safe side
            return _run(program, argv)
    if call.does == "exec" or call.crash:  # with the kernel for a panic loaded first, it jumps into the other one
        return _exec(root, program, argv)
    if call.unclear:
        return _unclear(root, program, argv, call)
    return _load(root, program, call) if call.kernel else _run(program, argv)  # which says what is missing


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
    verdict = _seen(root, call)
    if verdict.name != INCOMPATIBLE and not verdict.failed:
        verdict = Verdict(CANNOT_TELL, f"what is to be loaded cannot be told: {'; '.join(call.unclear)}", verdict.text)
    with loaded.locked(root):
        answer = _weighed(root, verdict, call.kernel)
        if not answer.passes:
            return gate.refuse(root, answer, _SO)
        _clear(root, answer)
        status = _run(program, words)
        if status:
            loaded.dismiss(root)
        else:
            loaded.use_up(root)
        return status


def _weighed(root: str, verdict: Verdict, kernel: str) -> Answer:
    """Return whether a kernel may be loaded; that it is against the verdict is on record, or it may not. Raises OSError."""
    answer = gate.weigh(root, verdict, os.environ.get(gate.ENVIRONMENT, ""))
    problem = gate.record(root, answer, kernel, started=False) if answer.passes and answer.override else ""
    if problem:
        return answer._replace(passes=False, why=problem, final=True)
    if answer.passes:
        gate.tell(root, answer)
    return answer


def _seen(root: str, call: Call) -> Verdict:
    """Return what preflight says of that which the line does tell: what would not come up stays so, whatever is added."""
    files = [os.path.abspath(path) for path in (call.kernel, call.initrd) if path]
    if not call.kernel or not all(os.path.isfile(path) for path in files):
        return Verdict(CANNOT_TELL, "", "")  # an option that is not known may take the next word, which is no file then
    return judge.judge(root, files[0], tuple(files[1:]), _line(root, call), _loader(call))


def _line(root: str, call: Call) -> str:
    with open(os.path.join(root, paths.CMDLINE), encoding="utf-8", errors="surrogateescape") as file:
        return kexecline.cmdline(call, file.read())


def _loader(call: Call) -> str:
    return "kexec_load" if call.loader == "kexec_load" else "kexec_file"


def _load(root: str, program: str, call: Call) -> int:
    files = [loaded.digest(os.path.abspath(path)) for path in (call.kernel, call.initrd) if path]
    line = _line(root, call)
    ids = judge.build_ids(root, files[0].path)
    word = f"{ARGUMENT}={'+'.join(ids) or 'unknown'}"
    loader = _loader(call)
    initrds = tuple(file.path for file in files[1:])
    verdict = judge.judge(root, files[0].path, initrds, f"{line} {word}".strip(), loader)
    with loaded.locked(root):
        answer = _weighed(root, verdict, files[0].path)
        if not answer.passes:
            return gate.refuse(root, answer, _SO)
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
        loaded.use_up(root)  # also by one that did not need it: it was for the next kernel
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
