# SPDX-License-Identifier: MIT
"""Programs and words of a shell that online nothing, whatever they are told; what they put out goes where a shell writes it."""

from __future__ import annotations

HARMLESS = frozenset(
    """
[ [[ : alias arch awk basename blkid break bzip2
case cat chgrp chmod chown cksum cmp column comm continue curl cut date declare df diff dirname dmesg
dmidecode done du echo egrep esac exit export expr false fgrep fi file find for free function gawk getent
getopt getopts grep gunzip gzip head hostname id in inotifywait kdump-config kdump-udev-throttler kdumpctl
kexec kill lsblk lscpu lsmem lsmod let ln local logger ls lspci makedumpfile mapfile mawk md5sum mkdir mkfifo
mktemp modinfo mountpoint nproc numactl pgrep pidof popd printf ps pwd pushd read readarray readlink readonly
realpath return rev rm rmdir select seq set sha256sum shift shopt sleep sort stat stty sum sync
systemd-detect-virt systemd-escape systemd-notify tac tail test touch tr trap true tty type typeset udevadm
ulimit umask uname uniq unset uptime wait wall wc which who xz zcat
    """.split()  # noqa: SIM905 - a table of words is read as one
)
#: Programs that write to files; which ones, `safemem.realroot.onlining` has looked at where a script is read.
WRITERS = frozenset(["cp", "dd", "install", "mv", "sed", "tee"])
