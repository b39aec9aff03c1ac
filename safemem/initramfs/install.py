# SPDX-License-Identifier: MIT
"""Have the distribution's own command make an initramfs, and put it where the old one is only once it is known to be good."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from safemem.boot.model import Refused
from safemem.initramfs import check
from safemem.initramfs.bootplaces import Boots
from safemem.initramfs.check import Wanted
from safemem.initramfs.items import BuildError, replace, shipped
from safemem.initramfs.makers import MAKERS, Maker
from safemem.initramfs.target import target

#: What hooks are run with when a package or a kernel is updated; nothing of a shell's own counts.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: Where an image is made, beside the one that it will replace.
_WORKSHOP = ".safemem-"
#: In a private mount namespace, so nothing is left behind, whatever happens.
_ENTER = 'for at in proc sys dev; do mount --rbind "/$at" "$0/$at" || exit; done; exec chroot "$0" "$@"'


class Failed(Refused):
    """Nothing has changed; the message says why."""


class Unfinished(Refused):
    """The image in place is a new one, and the hook is as it was asked for; the message says what is left to do."""


def choose(root: str, name: str) -> Maker:
    """Return the maker called `name`, or for `auto` the only one that is installed. Raises Failed."""
    found = [maker for maker in MAKERS if (Path(root) / maker.program).exists() and name in ("auto", maker.name)]
    if not found:
        wanted = [maker.program for maker in MAKERS if name in ("auto", maker.name)]
        raise Failed(
            f"{name}: {' and '.join(wanted)} are not in {root}"
            if len(wanted) > 1
            else f"{name}: no {wanted[0]} in {root}"
        )
    if len(found) > 1:
        both = "both " if len(found) == 2 else ""
        names = " and ".join(sorted(maker.name for maker in found))
        raise Failed(f"{both}{names} are installed: say which makes this machine's images")
    return found[0]


def installed(root: str) -> list[str]:
    """Return the kernel releases whose modules are below `root`."""
    modules = Path(root) / "lib/modules"
    return sorted(path.name for path in modules.iterdir()) if modules.is_dir() else []


def release(root: str, given: str | None) -> str:
    """Return the kernel release that was given, that is running, or that is the only one below `root`. Raises Failed."""
    modules, there = Path(root) / "lib/modules", installed(root)
    wanted = given or os.uname().release
    if wanted in there:
        return wanted
    if given is None and len(there) == 1:
        return there[0]
    known = ", ".join(there) or "none"
    raise Failed(
        f"kernel {wanted} is not in {modules}" + (f": name one of {known}" if given is None else f": there is {known}")
    )


def packaged(root: str, maker: Maker) -> bool:
    """Return whether the distribution's package has brought the hook."""
    path = Path(root) / maker.packaged
    return path.exists() and not (maker.mark and (path.parent / maker.mark).exists())


def install(root: str, maker: Maker, kernel: str, wanted: Wanted) -> Path:
    """Put the hook into place where no package has, and have the image made; return where it is.

    Raises:
        Failed: the image could not be made, or is not what it should be; the old one and the hooks are as they were.
        Unfinished: the image is in place, and what copies it to the boot loader failed.
        Unplaced: no image that is made here would boot.
    """
    if shutil.which("safemem", path=os.pathsep.join(root.rstrip("/") + place for place in PATH.split(":"))) is None:
        raise Failed(f"the hook calls `safemem`, which is not in {PATH} of {root}: put a link to it there")
    undone = target(root, kernel).boots.undone  # before anything is touched
    if undone:
        raise Failed(f"an image with safemem would not be started as such: {undone}")
    hook = Path(root) / maker.hook
    fresh = not packaged(root, maker)
    before = hook.read_bytes() if fresh and hook.exists() else None
    try:
        if fresh:
            _put(hook, shipped(maker.source), maker.mark)
        return _rebuild(root, maker, kernel, wanted)
    except Unfinished:
        # Taken away again it would be missing from the next image, while this one has safemem.
        raise
    except BaseException as error:
        if fresh and before is None:
            _take(hook, maker.mark)
        elif before is not None:
            _put(hook, before, maker.mark)
        if isinstance(error, (OSError, BuildError)):
            raise Failed(str(error)) from None
        raise


def remove(root: str, maker: Maker, kernel: str) -> Path:
    """Take the hook away and have the image made without it; return where it is.

    Raises:
        Failed: the hook is a package's, or the image could not be made; the old one and the hook are as they were.
        Unfinished: the image is in place, and what copies it to the boot loader failed.
        Unplaced: no image that is made here would boot.
    """
    hook = Path(root) / maker.hook
    if packaged(root, maker):
        raise Failed(f"/{maker.packaged} is the package's: remove the package, and the image is made without it")
    target(root, kernel, without=True)  # before anything is touched
    before = hook.read_bytes() if hook.exists() else None
    try:
        _take(hook, maker.mark)
        return _rebuild(root, maker, kernel, None)
    except Unfinished:
        raise
    except BaseException as error:
        if before is not None:
            _put(hook, before, maker.mark)
        if isinstance(error, OSError):
            raise Failed(str(error)) from None
        raise


def _put(hook: Path, data: bytes, mark: str) -> None:
    hook.parent.mkdir(parents=True, exist_ok=True)
    if mark:
        text = "put here by `safemem initramfs install`; `safemem initramfs remove` takes it away\n"
        replace(hook.parent / mark, text.encode(), 0o644)
    # Of a hook that is cut off the shell would run what is left, and an image be made without safemem.
    replace(hook, data, 0o755)


def _take(hook: Path, mark: str) -> None:
    hook.unlink(missing_ok=True)
    if mark:
        (hook.parent / mark).unlink(missing_ok=True)
        if hook.parent.is_dir():
            hook.parent.rmdir()


def _rebuild(root: str, maker: Maker, kernel: str, wanted: Wanted | None) -> Path:
    """Make the image beside the old one, look into it, and only then put it in the old one's place."""
    place = target(root, kernel)
    path = place.path
    keeps = f"{path} stays as it was" if path.exists() else "no image was there, and none is now"
    with _workshop(path.parent) as folder:
        draft = folder / path.name
        image = "/" + os.path.relpath(draft, root)
        words = [word.format(image=image, release=kernel) for word in maker.command]
        result = _run(root, words)
        # dracut ends with 0 as well when it has decided that no image is wanted.
        if result.returncode or not draft.exists():
            lines = (result.stdout + result.stderr).strip().splitlines()[-5:]
            said = "".join(f"\n  {line}" for line in lines)
            raise Failed(f"`{' '.join(words)}` has made no image (exit status {result.returncode}); {keeps}{said}")
        fault = _fault(place.drafted(draft), wanted)
        if fault:
            raise Failed(f"the image that {maker.name} has made is not used: {fault}; {keeps}")
        # What the image in place was copied from comes first: whoever copies it again in between copies the new one.
        for copy in place.copies:
            with _workshop(copy.parent) as other:
                shutil.copyfile(draft, other / copy.name)
                _in_place(other / copy.name, copy)
        _in_place(draft, path)
    if maker.after and (Path(root) / maker.after).is_dir():
        image = "/" + os.path.relpath(next(iter(place.copies), path), root)
        after = _run(root, ["run-parts", f"--arg={kernel}", f"--arg={image}", f"/{maker.after}"])
        if after.returncode:
            said = " ".join((after.stderr or after.stdout).split())
            again = f"mend that and run `run-parts --arg={kernel} --arg={image} /{maker.after}`"
            raise Unfinished(f"{path} is new and good, and the hook stays, but /{maker.after} failed: {said}: {again}")
        fault = _fault(target(root, kernel).boots, wanted)
        if fault:
            raise Unfinished(
                f"/{maker.after} has put another image in place of the new one: {fault}; the hook stays as it is now"
            )
    return path


@contextlib.contextmanager
def _workshop(place: Path) -> Iterator[Path]:
    """Give a folder of root's own beside the images; one that was killed before leaves is taken away. Raises Failed."""
    lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Failed(f"{place}: another `safemem initramfs` is making an image there") from None
        for left in place.glob(f"{_WORKSHOP}*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_WORKSHOP, dir=place) as folder:
            yield Path(folder)
    finally:
        os.close(lock)


def _in_place(draft: Path, path: Path) -> None:
    """Put a draft in the place of an image, in one step, once the disk has all of it."""
    if path.exists():
        draft.chmod(path.stat().st_mode & 0o777)
    _settle(draft)
    draft.rename(path)
    _settle(path.parent)


def _fault(boots: Boots, wanted: Wanted | None) -> str:
    """Return what is wrong with an image that should have these policies, or no safemem at all."""
    try:
        judged = check.judged(boots.read(), wanted)
    except check.NotLookedInto as error:
        # Made without it, nothing of ours is left where it could be seen.
        return "" if wanted is None else str(error)
    except ValueError as error:
        return f"it cannot be read: {error}"
    if wanted is None:
        return "safemem is still in it: another hook puts it there" if judged.inside else ""
    if judged.inside is None:
        return f"{judged.where}safemem is not in it: {judged.why or 'has the configuration left the hook out?'}"
    return judged.where + why if (why := check.wrong(judged.inside, wanted)) else ""


def _run(root: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    env = {"PATH": PATH, "LC_ALL": "C.UTF-8"}
    if os.path.realpath(root) != "/":
        words = ["unshare", "--mount", "sh", "-c", _ENTER, root, *words]
    return subprocess.run(words, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")


def _settle(path: Path) -> None:
    """Have the disk keep a file or the names in a folder: a power failure must not leave half of an image."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
