# SPDX-License-Identifier: MIT
"""Hold a token in the Live Update Orchestrator until the kexec; run by safemem-token.service, or by hand.

A session of safemem's with one page of random bytes: only a kernel that accepts the handover can retrieve it, which is how
the next boot knows, with debugfs or without (`safemem.boot.token`). LUO forgets a session when the last who has it open
closes it, so this process lives until the kernel is replaced, systemd's final kill included. Needs the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import time

from safemem.boot import files, paths, stake, token
from safemem.boot.files import reason
from safemem.realroot import storage

#: systemd-shutdown leaves alone what root has started with such a name (systemd.io/ROOT_STORAGE_DAEMONS); before systemd
#: 255 there is no other way, and a script's own name is that of its interpreter.
NAME = "@safemem-token"
#: Seconds that somebody else may have the device: systemd 261 opens it for moments.
PATIENCE = 10.0
BUSY = (
    "another program owns it, and has not let go of it in {patience:g} s: stop that program, or have it close the device"
    " once its sessions are made, for they stay. Where systemd 261 or later keeps it, what has to survive a kexec goes"
    " into the file descriptor store of its service (FileDescriptorStorePreserve=yes) or a session that systemd makes"
    " (LUOSession=); a token of safemem's cannot be held beside it"
)


class CannotHold(Exception):
    """No token can be held; the text says why, and what to do."""


def main(argv: list[str]) -> int:
    """Hold a token for `--root` (default `/`) until a signal ends it; return 0, 1 if none can be held, or 2 for a wrong call."""
    if argv and not (argv[0] == "--root" and len(argv) == 2):
        sys.stderr.write("usage: token [--root DIR]\n")
        return 2
    root = argv[1] if argv else "/"
    if not argv:
        _rename()
    os.umask(0o022)
    ends = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        session = hold(root)
    except CannotHold as error:
        sys.stderr.write(f"safemem: {error}\n")
        return 1
    with session:
        _tell_systemd()
        sys.stdout.write(
            "a token is held; `safemem handover-args --token` prints what the next kernel has to know of it\n"
        )
        sys.stdout.flush()
        signal.sigwait(ends)
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(root, paths.TOKEN_HELD))
    return 0


def hold(root: str, patience: float = PATIENCE) -> files.Device:
    """Put a token into LUO, and its digest into `paths.TOKEN_HELD`; return the session, which ends when it is closed.

    Raises:
        CannotHold: somebody holds one already, somebody else owns the device, or it is refused.
    """
    page = os.urandom(token.SIZE)
    with _device(root, patience) as device:
        # What came over and nobody looked at: a policy that does not ask leaves it.
        with contextlib.suppress(OSError), token.retrieve(device) as old:
            old.ask(token.FINISH, token.argument(8))
        try:
            session = device.made(token.CREATE, token.session_argument())
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise CannotHold(f"a session `{stake.SESSION}` is held already{_holder(root)}") from None
            raise CannotHold(f"LUO makes no session: {reason(error)}") from None
    try:
        fd = os.memfd_create("safemem-token", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, len(page))
            os.pwrite(fd, page, 0)
            session.ask(token.PRESERVE_FD, token.fd_argument(fd))
        finally:
            os.close(fd)
        storage.put(root, paths.TOKEN_HELD, f"{token.sha256_of(page)} {os.getpid()}\n")
    except BaseException as error:
        session.__exit__()
        if isinstance(error, OSError):
            raise CannotHold(f"the token cannot be preserved: {reason(error)}") from None
        raise
    return session


def _device(root: str, patience: float) -> files.Device:
    limit = time.monotonic() + patience
    while True:
        try:
            return files.device(root, paths.LUO_DEVICE)
        except FileNotFoundError:
            raise CannotHold(
                f"there is no /{paths.LUO_DEVICE}: boot a kernel that has LUO with kho=on liveupdate=on"
            ) from None
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise CannotHold(f"/{paths.LUO_DEVICE}: {reason(error)}") from None
            if time.monotonic() >= limit:
                raise CannotHold(f"/{paths.LUO_DEVICE}: {BUSY.format(patience=patience)}") from None
        time.sleep(min(0.2, patience))


def _holder(root: str) -> str:
    """Return who holds the session, and what to do; a file that was left over names a process that does not."""
    pid = stake.holder(root)
    try:
        known = pid.isdecimal() and token.holds(root, pid)
    except OSError:
        known = False
    if known:
        return f", by process {pid}: stop safemem-token.service, or that process if the service is not running"
    return (
        f", by another program, whose /proc/PID/fd has a link to `anon_inode:[luo_session] {stake.SESSION}`: stop that"
        " program, or safemem-token.service"
    )


def _rename() -> None:
    """Begin anew under a name that systemd's final kill knows, in the same process."""
    with open("/proc/self/cmdline", "rb") as file:
        if file.read(1) != b"@":
            os.execv(sys.executable, [NAME, "-IS", os.path.abspath(sys.argv[0])])


def _tell_systemd() -> None:
    """Say that the token is held (sd_notify(3)); nobody may have asked."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as peer:
            peer.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            peer.send(b"READY=1")
