# SPDX-License-Identifier: MIT
"""Runs in a guest, beside safemem's own modules: bursts of memory, and what becomes of them.

The reports are lines on standard output, which the guest's script passes on.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safemem.host import logs, standing, watch

MEMORY = Path("/sys/devices/system/memory")
LOOP = """
until [ -e /sys/devices/system/memory/memory{last} ]; do sleep 0.02; done
n={first}
while [ $n -le {last} ]; do
    [ "$(cat /sys/devices/system/memory/memory$n/state)" = online ] ||
        echo online_movable >/sys/devices/system/memory/memory$n/state
    n=$((n + 1))
done
"""


def say(key: str, value: object) -> None:
    """Report from the guest."""
    with open("/dev/vport0p1", "w") as port:
        port.write(f"{key}={value}\n")


def state(number: int) -> str:
    """Return a block's state, or nothing while it is not there."""
    try:
        return (MEMORY / f"memory{number}/state").read_text().strip()
    except OSError:
        return ""


def write(number: int, word: str) -> None:
    """Write a block's state; a refusal is for the reader of the states to see."""
    with contextlib.suppress(OSError):
        (MEMORY / f"memory{number}/state").write_text(word)


def start(log: str) -> int:
    """Start `safemem watch` as a process of its own, everything imported already; return its number."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    child = os.fork()
    if child:
        os.close(out)
        return child
    os.dup2(out, 2)
    logs.configure()
    watch.run("/", standing.read("/"))
    os._exit(0)


def stop(child: int, number: int = signal.SIGKILL) -> None:
    """End a process and wait for it."""
    os.kill(child, number)
    os.waitpid(child, 0)


def seconds(first: int, last: int) -> float:
    """Wait until the blocks arrive and are all online; return the seconds in between."""
    while not state(first):
        time.sleep(0.005)
    began = time.monotonic()
    while any(state(number) != "online" for number in (last, *range(first, last))):
        time.sleep(0.005)
    return time.monotonic() - began


def race() -> None:
    """Three plugs of 64 blocks: onlined by the kernel itself, by a shell loop, by `watch`."""
    auto = MEMORY / "auto_online_blocks"
    auto.write_text("online_movable")
    say("checkpoint", 1)
    say("kernel", seconds(40, 103))
    auto.write_text("offline")
    loop = subprocess.Popen(["/bin/sh", "-c", LOOP.format(first=104, last=167)])
    say("checkpoint", 2)
    say("loop", seconds(104, 167))
    loop.wait()
    child = start("/run/watch.log")
    while "watching" not in Path("/run/watch.log").read_text():
        time.sleep(0.1)
    say("checkpoint", 3)
    say("watch", seconds(168, 231))
    time.sleep(1)
    stop(child, signal.SIGTERM)
    applied = [line for line in Path("/run/watch.log").read_text().splitlines() if '"onlined"' in line]
    say("lines", len(applied))
    say("line", applied[-1])


def many(number: int) -> None:
    """One plug of so many blocks, onlined by `watch`."""
    child = start("/run/watch.log")
    while "watching" not in Path("/run/watch.log").read_text():
        time.sleep(0.1)
    say("checkpoint", 1)
    say("watch", seconds(40, 39 + number))
    time.sleep(3)
    stop(child, signal.SIGTERM)
    applied = [line for line in Path("/run/watch.log").read_text().splitlines() if '"onlined"' in line]
    say("lines", len(applied))
    say("line", applied[-1])


def kill(seed: str, turns: int) -> None:
    """Kill `watch` at random while blocks arrive and go; blocks 72 and up of each plug must stay held."""
    draw = random.Random(int(seed))
    wanted, forbidden, bad, killed = [*range(40, 72)], [*range(32, 40)], [], 0
    early = cut = 0
    plugs = (turns // 5, turns // 2, turns * 4 // 5)
    for turn in range(turns):
        child = start("/run/watch.log")
        if turn in plugs:
            say("checkpoint", turn)
            first = 40 + 64 * plugs.index(turn)
            forbidden += range(first + (32 if first == 40 else 0), first + 64)
        time.sleep(draw.uniform(0, 0.2))
        for number in wanted:
            write(number, "offline")
        if turn % 2:
            time.sleep(draw.uniform(0, 1))
        else:  # as soon as some are online: how long that takes is this machine's business
            some = draw.randrange(1, len(wanted))
            deadline = time.monotonic() + 10
            while sum(state(number) == "online" for number in wanted) < some and time.monotonic() < deadline:
                time.sleep(0.005)
        stop(child)
        killed += 1
        left = sum(state(number) == "offline" for number in wanted)
        early += left == len(wanted)
        cut += 0 < left < len(wanted)
        bad += [f"{turn}:{number}:{state(number)}" for number in forbidden if state(number) not in ("offline", "")]
        bad += [f"{turn}:{number}:{state(number)}" for number in wanted if state(number) == "going-offline"]
    say("killed", killed)
    say("bad", " ".join(bad))
    say("seen", sum(state(number) == "offline" for number in forbidden))
    child = start("/run/watch.log")
    deadline = time.monotonic() + 60
    while any(state(number) != "online" for number in wanted) and time.monotonic() < deadline:
        time.sleep(0.1)
    stop(child, signal.SIGTERM)
    say("early", early)
    say("cut", cut)
    say("end", " ".join(sorted({state(number) for number in wanted})))
    say("held", " ".join(sorted({state(number) for number in forbidden})))


if sys.argv[1] == "race":
    race()
elif sys.argv[1] == "many":
    many(int(sys.argv[2]))
else:
    kill(sys.argv[2], int(sys.argv[3]))
