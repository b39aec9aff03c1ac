# SPDX-License-Identifier: MIT
"""`safemem preflight`: whether a kexec into a kernel would come up, before it starts."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import click

from safemem.boot.cmdline import argument
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

_ENDS = {COMPATIBLE: Code.DONE, INCOMPATIBLE: Code.ENDED, CANNOT_TELL: Code.UNKNOWN}
#: Bytes of an initrd; the kernel unpacks it into memory.
_LIMIT = 1 << 31


@click.command("preflight", short_help="Say whether a kexec would come up, before it starts.")
@click.option("--kernel", "images", metavar="IMAGE", multiple=True, required=True, help="The next kernel.")
@click.option("--initrd", "initrds", metavar="FILE", multiple=True, help="Its initrd; may be repeated.")
@click.option("--cmdline", metavar="TEXT", help="Its command line. Default: the image's own.")
@click.option(
    "--loader", type=click.Choice(preflight.LOADERS), default=preflight.LOADERS[0], help="`kexec -s`, or `-c`."
)
@click.option("--policy", metavar="POLICY", help="The policy that is meant. Default: the operator's.")
@click.option("--profile", "allowed", metavar="FILE", help="What the fleet allows.")
@click.option("--running", "named", metavar="IMAGE", help="The file from which this kernel was booted.")
@ROOT
@click.option("--state", metavar="FILE", help="Take this machine from a capture.")
@click.option(
    "--write-profile", metavar="FILE", help="Write what allows these kernels and policies, and look no further."
)
@formats("sarif", "junit")
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

    safemem preflight --kernel /boot/vmlinuz --initrd /boot/initrd.img --cmdline "kho=on liveupdate=on"
    """
    if state is not None and root != "/":
        raise click.UsageError("--root and --state exclude each other")
    parts = tuple(Initrd(path, _bytes(path)) for path in initrds)
    if write_profile is not None:
        _write(write_profile, images, parts, policy)
        return
    if len(images) > 1:
        raise click.UsageError("several --kernel are for --write-profile alone")
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


def _bytes(path: str, limit: int = _LIMIT) -> bytes:
    """Return the whole file. Raises InputError."""
    with reading(path), open(path, "rb") as file:
        # A read of so many bytes would set them aside first.
        if os.fstat(file.fileno()).st_size > limit:
            raise InputError(f"{path}: it is larger than {limit >> 20} MiB")
        return file.read()


def _kernels(path: str, known: Kernel | None, read: running.Reader) -> tuple[Kernel, ...]:
    """Return what the image at `path` is; one that was read already is not read again."""
    there = known is not None and os.path.exists(path) and os.path.exists(known.path)
    if known is not None and there and not known.container and os.path.samefile(path, known.path):
        return (known._replace(path=path),)
    return read(path)


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
    """Write the profile that allows these kernels, and the policies of --policy and --initrd."""
    digests = [find_policy(policy).policy.digest] if policy else []
    inside = nextinitrd.look(parts).inside
    if inside is not None:
        digests += [inside.digest, *inside.named.values()]
    elif parts:
        raise InputError(f"{parts[0].name}: there is no policy of safemem's in it that can be used")
    kernels = [kernel for name in images for kernel in image.read(name)]
    name = os.path.basename(path).partition(".")[0] or "profile"
    write_whole(path, profile.write(name, kernels, digests).encode())
