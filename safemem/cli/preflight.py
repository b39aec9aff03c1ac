# SPDX-License-Identifier: MIT
"""`safemem preflight`: whether a kexec into a kernel would come up, before it starts."""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from pathlib import Path

import click
from click.core import ParameterSource

from safemem.boot.cmdline import argument
from safemem.boot.printable import printable
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import ROOT, InputError, formats, reading, write_whole
from safemem.cli.policies import find_policy, named_policies, operators
from safemem.host import reader
from safemem.initramfs.check import Wanted
from safemem.outgoing import image, nextinitrd, preflight, profile, running
from safemem.outgoing.expected import Policies
from safemem.outgoing.findings import CANNOT_TELL, COMPATIBLE, INCOMPATIBLE
from safemem.outgoing.kernel import Kernel
from safemem.outgoing.nextinitrd import Initrd
from safemem.policy import installed, load
from safemem.render import preflight as render
from safemem.render.text import plural

_ENDS = {COMPATIBLE: Code.DONE, INCOMPATIBLE: Code.ENDED, CANNOT_TELL: Code.UNKNOWN}
#: Bytes of an initrd; the kernel unpacks it into memory.
_LIMIT = 1 << 31


@click.command("preflight", short_help="Say whether a kexec would come up, before it starts.")
@click.option(
    "--kernel", "images", metavar="IMAGE", multiple=True, required=True, help="Next kernel; repeat for --write-profile."
)
@click.option("--initrd", "initrds", metavar="FILE", multiple=True, help="Its initrd; may be repeated.")
@click.option("--cmdline", metavar="TEXT", help="Its command line.  [default: the image's own]")
@click.option(
    "--loader", type=click.Choice(preflight.LOADERS), default=preflight.LOADERS[0], metavar="CALL",
    help="kexec_file (kexec -s, default) or kexec_load (-c).",
)  # fmt: skip
@click.option("--policy", metavar="POLICY", help="Policy that is meant.  [default: the operator's]")
@click.option("--profile", "allowed", metavar="FILE", help="What the fleet allows, made by --write-profile.")
@click.option("--running", "named", metavar="IMAGE", help="File this kernel was booted from, if not in /boot.")
@ROOT
@click.option("--state", metavar="FILE", help="Take this machine from a capture.")
@click.option("--write-profile", metavar="FILE", help="Add these kernels and policies to FILE, and end.")
@formats("sarif", "junit", metavar="FORMAT", help="text (default), json, sarif or junit.")
@click.pass_context
@codes.ends(done="compatible", invalid="invalid input", ended="incompatible", unknown="cannot tell")
def preflight_command(
    context: click.Context,
    images: tuple[str, ...],
    initrds: tuple[str, ...],
    cmdline: str | None,
    loader: str,
    policy: str | None,
    allowed: str | None,
    named: str | None,
    root: str,
    state: str | None,
    write_profile: str | None,
    form: str,
) -> None:
    """Compare what this kernel hands over with the next one, its command line, initrd and policy. Changes nothing.

    \b
    Example: safemem preflight --kernel vmlinuz --initrd initrd --cmdline "kho=on
        liveupdate=on $(safemem handover-args)"
    """
    if write_profile is not None:
        _alone(context)
        _write(write_profile, images, _parts(initrds), policy)
        return
    if state is not None and root != "/":
        raise click.UsageError("--root and --state exclude each other")
    if not os.path.isdir(root):
        raise InputError(f"{root}: no such directory")
    if len(images) > 1:
        raise click.UsageError("several --kernel are for --write-profile alone")
    parts = _parts(initrds)
    wanted, policies = _meant(policy, root, cmdline) if state is None or policy else (None, None)
    given = None if allowed is None else profile.parse(_bytes(allowed, load.MAX_SIZE), allowed)
    read = partial(image.read, root=root)
    now = _capture(state, named, read) if state is not None else running.read(root, read, named or "")
    kernels = _kernels(images[0], now.image, read)
    asked = preflight.Asked(kernels, cmdline, parts, loader, wanted, policies, given)
    report = preflight.examine(now, asked)
    code = _ENDS[report.verdict]
    forms = {"text": render.text, "sarif": render.sarif, "junit": render.as_junit}
    click.echo(render.as_json(report, code) if form == "json" else forms[form](report))
    context.exit(code)


def _alone(context: click.Context) -> None:
    """Refuse what would do nothing beside --write-profile. Raises UsageError."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and name in ("cmdline", "loader", "allowed", "named", "root", "state"):
            raise click.UsageError(f"{parameter.opts[0]} does nothing with --write-profile, which looks at no kexec")


def _parts(initrds: tuple[str, ...]) -> tuple[Initrd, ...]:
    return tuple(Initrd(path, _bytes(path)) for path in initrds)


def _bytes(path: str, limit: int = _LIMIT) -> bytes:
    """Return the whole file. Raises InputError."""
    with reading(path), open(path, "rb") as file:
        # A read of so many bytes would set them aside first.
        if os.fstat(file.fileno()).st_size > limit:
            raise InputError(f"{path}: it is larger than {limit >> 20} MiB")
        return file.read()


def _kernels(path: str, known: Kernel | None, read: running.Reader) -> tuple[Kernel, ...]:
    """Return what the image at `path` is; one that was read already is not read again."""
    _no_folder(path)
    there = known is not None and os.path.exists(path) and os.path.exists(known.path)
    if known is not None and there and not known.container and os.path.samefile(path, known.path):
        return (known._replace(path=path),)
    return read(path)


def _no_folder(path: str) -> None:
    """Refuse a folder in the words that there are for any other file. Raises InputError."""
    if os.path.isdir(path):
        with reading(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def _meant(policy: str | None, root: str, cmdline: str | None) -> tuple[Wanted | None, Policies | None]:
    """Return the policies that are to be in the next initrd, and those that would decide; none where nobody has said."""
    if policy is not None:
        own = find_policy(policy).policy
    elif os.path.lexists(Path(root) / installed.POLICY):
        own = operators(None, root).policy
    else:
        return None, None
    others = {name: item.policy for name, item in named_policies(root).items()}
    named = argument(cmdline or "", "safemem.policy")
    chosen = (others[named],) if named in others else ()
    return Wanted(own.digest, {name: item.digest for name, item in others.items()}), Policies(own, chosen)


def _capture(state: str, named: str | None, read: running.Reader) -> running.Running:
    """Return the kernel that ran when a capture was made. Raises Refused."""
    try:
        with reading(state):
            text = Path(state).read_text("utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{state}: this is not a capture: it is not text") from None
    return running.of_capture(reader.snapshot_from_text(text, state), read, named or "")


def _write(path: str, images: tuple[str, ...], parts: tuple[Initrd, ...], policy: str | None) -> None:
    """Add these kernels, and the policies of --policy and --initrd, to what a profile allows. Raises Refused."""
    known = _known(path)
    digests = [find_policy(policy).policy.digest] if policy else []
    inside = nextinitrd.look(parts).inside
    if inside is not None:
        digests += [inside.digest, *inside.named.values()]
    elif parts:
        raise InputError(f"{parts[0].name}: there is no policy of safemem's in it that can be used")
    for name in images:
        _no_folder(name)
    kernels = [kernel for name in images for kernel in image.read(name)]
    if known is None:
        name = "" if path == "-" else os.path.basename(path).partition(".")[0]
        made = profile.write(name or "profile", kernels, digests)
        before = 0
    else:
        made, before = profile.add(known[0], kernels, digests, known[1]), len(known[0].kernel)
    mode = None if known is None else stat.S_IMODE(os.stat(path).st_mode)
    write_whole(path, made.encode(), mode)
    if path != "-":
        count = len(profile.parse(made.encode(), path).kernel)
        what = f"{path}: allows {plural(count, 'kernel')}, {count - before} of them new"
        click.echo(f"safemem: {printable(what)}", err=True)


def _known(path: str) -> tuple[profile.Profile, str] | None:
    """Return the profile that is at `path` and its text; None if nothing is. Raises InputError."""
    if path == "-" or not os.path.isfile(path):
        return None
    data = _bytes(path, load.MAX_SIZE)
    try:
        return profile.parse(data, path), data.decode()
    except load.PolicyError as error:
        raise InputError(f"{path} is no profile and is left as it is\n{error}") from None
