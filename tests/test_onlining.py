# SPDX-License-Identifier: MIT
"""What in a command, a script or a path onlines memory; what only looks at it does not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safemem.realroot import onlining, programs, shelltext, units

M = "/sys/devices/system/memory"
#: Paths as a configuration or a shell writes them, and whether they may be memory's files.
PATHS = {
    f"{M}/memory*/state": True,
    f"{M}/memory35/online": True,
    f"{M}/memory3[2-9]/state": True,
    f"{M}/*/state": True,
    f"{M}/{{memory1,memory2}}/state": True,
    f"{M}/auto_online_blocks": True,
    "/sys/devices/system/*/auto_online_blocks": True,
    "/sys/devices/system/node/node*/memory*/online": True,
    "/sys/devices/system/node/node1/memory40/state": True,
    "/sys/bus/memory/devices/memory1/state": True,
    "/sys//devices/./system/cpu/../memory//memory1/state": True,
    "/proc/1/root/sys/devices/system/memory/memory1/state": True,
    "/sys$devpath/state": True,
    "/sys${DEVPATH}/online": True,
    "/sys%p/state": True,
    "$f": True,
    '"$(find /sys)"': True,
    f"{M}/memory1/valid_zones": False,
    f"{M}/block_size_bytes": False,
    f"{M}/memory1": False,
    "/sys/devices/system/cpu/cpu*/online": False,
    "/sys/class/scsi_host/host0/scan": False,
    "/sys/block/*/device/state": False,
    "/sys/devices/system/memory_x/memory1/state": False,
    "/var/log/memory/state": False,
    "$LOG/x.log": False,
    "/dev/null": False,
    "": False,
}
SURE = (
    f"for f in {M}/memory*/state; do echo online > $f; done",
    f'for f in {M}/memory*/state\ndo\n  echo online > "$f"\ndone',
    f"echo online_kernel >{M}/auto_online_blocks 2>/dev/null || :",
    f"echo online | sudo tee {M}/auto_online_blocks",
    f"sudo sh -c 'echo online_movable > {M}/auto_online_blocks'",
    f"[ -w {M}/auto_online_blocks ] && printf 'online\\n' > {M}/auto_online_blocks",
    f"cd {M}; for i in memory*; do echo 1 >$i/online; done",
    f"M={M}\necho online > $M/memory32/state",
    f"while read a; do echo online > $a; done < <(ls {M}/memory*/state)",
    f"if [ -d {M} ]; then\n\techo online \\\n\t\t> {M}/memory32/state\nfi",
    f"ls {M} | while read b; do echo online >| /sys/bus/memory/devices/$b/state; done",
    f"#!/usr/bin/env python3\nfor p in glob('{M}/memory*/state'):\n    open(p, 'w').write('online')",
    f"#!/usr/bin/perl\nopen(F, '>', '{M}/auto_online_blocks'); syswrite(F, 'online_movable');",
    f"#!/usr/bin/python3\nos.system('echo online > {M}/memory1/state')",
    f"WORD=online_movable\nfor f in {M}/memory*/state; do echo $WORD > $f; done",
    f'FILE={M}/auto_online_blocks WORD=\'online\'\nprintf "%s" "${{WORD}}" > "$FILE"',
    f"for p in glob('{M}/memory*/state'):\n    open(p, 'w').write('online')",
    "SYS=/sys/devices/system\nfor m in $SYS/memory/memory*; do echo online > $m/state; done",
    'S=${SYSFS:-/sys}/devices/system\nfor m in "$S"/memory/memory*; do echo online > "$m/state"; done',
    "cd /sys/devices/system\ncd memory\nfor m in memory*; do echo 1 > $m/online; done",
    f"pushd {M} >/dev/null; echo online > auto_online_blocks",
    f"echo online | tee $(grep -l offline {M}/memory*/state)",
    "echo online > /host/sys/devices/system/memory/auto_online_blocks",
    f'chroot /host sh -c "echo online > {M}/auto_online_blocks"',
    'CHMEM=$(command -v chmem)\n"$CHMEM" -e 4g',
    f"P={M}\nP+=/auto_online_blocks\necho online > $P",
    "".join(f"F=/run/{i}\n" for i in range(99)) + f"F={M}/memory1/state\necho online > $F",
    f"declare -r D={M}\necho online > $D/auto_online_blocks",
    f'case "$1" in\nstart) echo online > {M}/auto_online_blocks ;;\nesac',
    f"B=( {M}/memory*/state )\nfor f in ${{B[@]}}; do echo online > $f; done",
    '#!/usr/bin/python3\nd = os.path.join("/sys/devices/system", "memory")\nopen(f(d, "state"), "w").write("online")',
    f'#!/usr/bin/env node\nfs.writeFileSync("{M}/auto_online_blocks", "online_movable")',
    "logger hello; chmem -e all",
    'echo "$(chmem -e all)"',
    "sh <<EOF\nchmem -e all\nEOF",
    "echo x 2>/dev/null; chmem -e all",
    "chmem -e all",
    "/usr/bin/chmem --enable --zone Movable 4G",
    "test -x /usr/bin/chmem && chmem -be 1G",
    "daxctl online-memory dax0.0",
    "daxctl reconfigure-device -m system-ram dax0.0",
    "nohup daxctl reconfigure-device -C dax0.0 &",
    "drmgr -c mem -a -q 4",
    "echo memory add index 0x1 > /sys/kernel/dlpar",
)
MAY = (
    f"wr() {{ echo $1 > $2; }}\nwr online {M}/memory1/state",
    f". /opt/lib.sh\nwrite_sysfs {M}/auto_online_blocks online",
    f"set() {{ echo $2 > $1/state; }}\nfor d in {M}/memory*; do set $d online; done",
    f"sed -i s/offline/online/ {M}/auto_online_blocks",
    f"cat > {M}/auto_online_blocks <<EOF\nonline\nEOF",
    f"ls {M}/memory*/state | while read f; do [ -w $f ] && cat /x > $f; done",
    f"echo $WORD > {M}/auto_online_blocks",
    f"WORD=offline\n[ -z $1 ] || WORD=online\necho $WORD > {M}/auto_online_blocks",
    f"WORD=offline\nread WORD\necho $WORD > {M}/auto_online_blocks",
    f"cat /etc/word > {M}/auto_online_blocks",
    f"dd if=/x of={M}/memory1/state",
    f"find {M} -name state -exec sh -c 'echo online > {{}}' \\;",
    f"ls {M}/memory*/state | xargs -I@ sh -c 'echo online > @'",
    f'for r in $(grep line {M}/*/state)\ndo\n  echo $r | sed "s/^/echo online > /" | source /dev/stdin\ndone',
    "chmem $OPTIONS $SIZE",
    "daxctl $@",
)
NOTHING = (
    f'for b in {M}/memory*; do grep -q online $b/state && echo online >> "$REPORT"; done',
    f'n=$(grep -c online {M}/memory*/state)\nTMP=$(mktemp)\necho "online $n" > "$TMP"\nmv "$TMP" /var/lib/x.prom',
    f'out="$1"\ntmp="$out.$$"\n{{ for b in {M}/memory*/state; do cat $b; done; }} > "$tmp"\nmv "$tmp" "$out"',
    f"OUT=$(mktemp)\nfor b in {M}/memory*/state; do\n case $(cat $b) in\n online) echo 1 >> $OUT;;\n esac\ndone",
    f'for f in {M}/memory*/state; do echo offline > $f; done\necho 1 > "$DONE"',
    f'for b in {M}/memory*; do echo $(cat $b/state) > "$DIR/$(basename $b)"; done',
    f"ls {M} | wc -l\nfor c in /sys/devices/system/cpu/cpu*/online; do echo 1 > $c; done",
    f"ls {M}\nfor c in $(ls -d /sys/devices/system/cpu/cpu*); do echo 1 > $c/online; done",
    f"cat {M}/memory1/state\ncd /run/x\necho online > state",
    'logger "run chmem -e 4g"',
    "echo run daxctl online-memory dax0.0 >&2",
    f'echo "do: echo online > {M}/auto_online_blocks"',
    f"cat <<EOF\nTo online memory:\n  echo online > {M}/auto_online_blocks\n  chmem -e all\nEOF",
    f"true # echo online > {M}/auto_online_blocks",
    "STATE=/run/net/$1\necho online > $STATE",
    f"grep -q online {M}/memory1/state && test $(cat {M}/memory1/online) = 1",
    f"sh -c 'grep -q online {M}/memory1/state'",
    f"grep -c online {M}/memory*/state > /run/count",
    f"cat {M}/auto_online_blocks",
    f"echo offline > {M}/auto_online_blocks",
    f"for f in {M}/memory*/state; do echo offline > $f; done",
    f"for f in {M}/memory*/online; do echo 0 > $f; done",
    f'echo "$(cat {M}/auto_online_blocks)" >> /var/log/x',
    f'[ "$(cat {M}/auto_online_blocks)" = online ] && echo online > /run/state',
    f"# echo online > {M}/memory32/state",
    f"#!/usr/bin/python3\nprint(open('{M}/memory32/state').read() == 'online')",
    "for c in /sys/devices/system/cpu/cpu*/online; do echo 1 > $c; done",
    f"LOG=/var/log/x\ncat {M}/memory*/state > $LOG",
    f"WORD=offline\nfor f in {M}/memory*/state; do echo $WORD > $f; done",
    "echo running > /sys/block/sda/device/state",
    "echo online > /run/my/state",
    "echo 1 > $fadump_registered",
    "command -v chmem",
    "[ -x /usr/bin/daxctl ] || exit 0",
    "chmem -d 4G",
    "chmem --help",
    "lsmem --json",
    "daxctl list",
    "daxctl offline-memory dax0.0",
    "daxctl reconfigure-device --no-online -m system-ram dax0.0",
    "daxctl reconfigure-device --mode=devdax dax0.0",
    'sender="<a@${host}>"',
    "",
)


@pytest.mark.parametrize(("path", "may"), PATHS.items(), ids=range(len(PATHS)))
def test_paths(path: str, may: bool) -> None:
    """Literal, as a glob, with variables: whatever it can come to."""
    assert onlining.is_memory(path) == may


@pytest.mark.parametrize("text", SURE, ids=range(len(SURE)))
def test_what_onlines(text: str) -> None:
    """Found, and called sure."""
    sign = onlining.in_script(text)
    assert sign is not None and sign.sure, sign


@pytest.mark.parametrize("text", MAY, ids=range(len(MAY)))
def test_what_may(text: str) -> None:
    """Found, and not called sure: what is written, or where, is not known."""
    sign = onlining.in_script(text)
    assert sign is not None and not sign.sure, sign


@pytest.mark.parametrize("text", NOTHING, ids=range(len(NOTHING)))
def test_what_does_not(text: str) -> None:
    """No word of what only looks, takes off, or is about something else."""
    assert onlining.in_script(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "$(" * 30000,
        "drmgr " * 30000,
        "memory add " * 30000,
        '>"' * 30000,
        "chmem " * 30000,
        'A="' * 20000,
        "A=b " * 20000,
        "find devpath " * 1200 + "-name ",
        "x \\\n" * 260000,
        "then echo " * 30000,
        "P+=a\n" * 30000 + "echo online > $P\n" * 9000,
        'A="$(a' * 10000,
        'A=("$(a`' * 10000,
        "cat <<E\n" * 30000,
        "for x in $x$x $x$x; do echo online > $x$x$x; done\n" * 2000,
        "".join(f"V{i}=$V{i + 1}$V{i + 1}\n" for i in range(3000)),
        "echo a > " + "$a*e" * 900,
        "\n" * 300000,
    ],
)
def test_it_takes_no_time(text: str) -> None:
    """Whoever may write a script cannot keep the hold at work with it."""
    begin = time.process_time()
    onlining.in_script(f"{text}\n# {M}\ntrue {M}/memory1/state", about=True)
    shelltext.started(text)
    onlining.is_memory(text)
    onlining.in_value(text)
    assert time.process_time() - begin < 5


def test_scripts_are_found_where_they_lie(tmp_path: Path) -> None:
    """Beside the one that starts them, in a folder whose programs are all run, behind what runs another program."""
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/b").write_text(f"#!/bin/sh\necho online > {M}/auto_online_blocks\n")
    for text in (
        'exec "$(dirname "$0")/b" "$@"',
        'DIR="$(cd "$(dirname "$0")" && pwd)"\n. "$DIR/b"',
        "source ${BASH_SOURCE[0]%/*}/b",
        'HERE=$(dirname "$(readlink -f "$0")")\n$HERE/b',
        "run-parts --verbose /opt",
        "systemd-cat -t m /opt/b",
        "systemd-run --unit x -p Type=oneshot /opt/b",
        "timeout 10s nice -n 10 /opt/b",
        "flock /run/lock /opt/b",
    ):
        (tmp_path / "opt/a").write_text(f"#!/bin/bash\n{text}\n")
        found = programs.onlines(programs.Scripts(str(tmp_path)), "/opt/a", about=False)
        assert found is not None and (found.sure, found.where) == (True, "opt/b:2"), text


def test_what_is_spoken_of_in_one_script_counts_in_another(tmp_path: Path) -> None:
    """A library writes to the file that whoever reads it in tells it of."""
    (tmp_path / "opt").mkdir()
    (tmp_path / "opt/lib.sh").write_text('up() {\n  echo online > "$1/state"\n}\n')
    scripts = programs.Scripts(str(tmp_path))
    assert programs.onlines(scripts, f". /opt/lib.sh; for b in {M}/memory*; do up $b; done", about=False) is not None
    assert programs.onlines(scripts, ". /opt/lib.sh; up /run/x", about=False) is None


def test_the_line_of_it() -> None:
    """Comments and continued lines are counted."""
    sign = onlining.in_script(f"#!/bin/sh\n# x\n\ntrue \\\n  false\necho online > {M}/memory1/state\n")
    assert sign == onlining.Sign(6, f"echo online > {M}/memory1/state", sure=True)


def test_for_a_device_of_memorys_a_variable_will_do() -> None:
    """What a rule for memory runs need not speak of it."""
    for text, about, found in (
        ("echo online > /sys$1/state", True, True),
        ("echo online > /sys$1/state", False, False),
        ('echo online > "$1"', True, True),
        ("echo 1 > $x", True, False),
        ("echo 1 > /sys$1/online", True, True),
    ):
        assert (onlining.in_script(text, about=about) is not None) == found, text


@settings(max_examples=300, deadline=None)
@given(
    before=st.text(alphabet=st.characters(exclude_characters="#\\")), after=st.text(), text=st.sampled_from(SURE[:4])
)
def test_no_text_hides_it(before: str, after: str, text: str) -> None:
    """Whatever stands in lines around it; reading never raises."""
    onlining.in_script(after, about=True)
    shelltext.started(before)
    assert onlining.in_script(f"{before}\n{text}\n{after}") is not None


def test_links_below_a_root(tmp_path: Path) -> None:
    """Followed as if the root were `/`: nothing of the machine that looks is read."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("/usr/bin")
    (tmp_path / "usr/bin/a").write_text("x\n")
    (tmp_path / "usr/bin/b").symlink_to("../../../../../bin/a")
    (tmp_path / "c").symlink_to("/etc/hostname")
    (tmp_path / "d").symlink_to("d")
    assert programs.resolve(str(tmp_path), "/bin/b") == "usr/bin/a"
    assert programs.read(str(tmp_path), "bin/b") == "x\n"
    assert [programs.resolve(str(tmp_path), name) for name in ("c", "d", "no/such", "usr/bin/a/x")] == [None] * 4


def test_units_as_systemd_reads_them(tmp_path: Path) -> None:
    """Precedence, masks, drop-ins of all kinds, and an empty setting that forgets."""
    files = {
        "usr/lib/systemd/system/foo-bar@.service": "[Service]\nExecStart=/a\nExecStartPre=-/b \\\n# x\n  $$c\n[Install]\nExecStart=/no\n",
        "etc/systemd/system/foo-bar@1.service.d/20.conf": "[Service]\nExecStart=\nExecStart=@/d\n",
        "usr/lib/systemd/system/foo-.service.d/10.conf": "[Service]\nExecStop=/e\n",
        "usr/lib/systemd/system/service.d/20.conf": "[Service]\nExecStart=/hidden\n",
        "usr/lib/systemd/system/gone.service": "[Service]\nExecStart=/a\n",
        "usr/lib/systemd/system/empty.service": "",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "etc/systemd/system/gone.service").symlink_to("/dev/null")
    (tmp_path / "etc/systemd/system/foo-bar@.service").symlink_to("nowhere")
    there = units.names(str(tmp_path))

    def commands(name: str) -> list[str] | None:
        unit = units.read(str(tmp_path), name, there)
        return None if unit is None else [command.text for command in unit.commands]

    assert commands("foo-bar@.service") == ["/a", "/hidden", "/b    $c", "/e"]
    assert commands("foo-bar@1.service") == ["/d", "/b    $c", "/e"]
    assert [commands(f"{name}.service") for name in ("gone", "empty", "no")] == [None] * 3
