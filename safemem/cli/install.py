# SPDX-License-Identifier: MIT
"""`safemem initramfs install`, `check` and `remove`: the initramfs that the distribution makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click

from safemem.cli.initramfs import named_policies, operators_policy
from safemem.initramfs import check, makers

_ROOT = click.option("--root", metavar="DIR", default="/", type=click.Path(exists=True, file_okay=False), help="The system below DIR.")  # fmt: skip
_KERNEL = click.option("--kernel", metavar="RELEASE", help="Default: the one that runs, or the only one installed.")


def _maker(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in (("auto", "Whichever is installed; the default."), ("initramfs-tools", ""), ("dracut", "")):
        command = click.option(f"--{name}", "maker", flag_value=name, help=text)(command)
    return command


@click.command(short_help="Have the distribution make its initramfs with safemem in it.")
@_maker
@_KERNEL
@_ROOT
def install(maker: str | None, kernel: str | None, root: str) -> None:
    """Put the hook into place where no package has, and make the image by the distribution's own command.

    The image in place is replaced in one step, once the new one is known to hold the policy of
    /etc/safemem and to start it before everything else. If anything is wrong it stays as it is.

    Exit code: 0 done, 1 nothing has changed, 3 the policy is invalid.
    """
    _need_root()
    wanted = _wanted(root)
    try:
        chosen = makers.choose(root, maker or "auto")
        image = makers.install(root, chosen, makers.release(root, kernel), wanted)
    except makers.Failed as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{image}: made by {chosen.name}, with the policy of digest {wanted.digest[:12]}")


@click.command(short_help="Have the distribution make its initramfs without safemem.")
@_maker
@_KERNEL
@_ROOT
def remove(maker: str | None, kernel: str | None, root: str) -> None:
    """Take the hook that `install` has put into place away, and make the image without it.

    Exit code: 0 done, 1 nothing has changed.
    """
    _need_root()
    try:
        chosen = makers.choose(root, maker or "auto")
        image = makers.remove(root, chosen, makers.release(root, kernel))
    except makers.Failed as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{image}: made by {chosen.name}, without safemem")


@click.command("check", short_help="Say whether safemem is in an initramfs, and with which policy.")
@click.argument("image", required=False, metavar="[IMAGE]")
@_KERNEL
@_ROOT
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def check_image(context: click.Context, image: str | None, kernel: str | None, root: str, form: str) -> None:
    """Look into an initrd or a unified kernel image; default: the one of the kernel that runs.

    Exit code: 0 safemem is in it, comes first and has the policy of /etc/safemem; 1 it has not; 3 that
    policy is invalid; 6 there is no image, or it cannot be read.
    """
    try:
        path = Path(image) if image else check.find(root, kernel or os.uname().release)
        if path is None:
            raise OSError(0, f"there is no image for kernel {kernel or os.uname().release}", root)
        found = check.inside(path.read_bytes())
    except (OSError, ValueError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else f"{path}: {error}"
        click.echo(f"safemem: {why}", err=True)
        context.exit(6)
    wanted = _wanted(root)
    good = found is not None and not found.fault and not makers.differs(found, wanted)
    if form == "json":
        click.echo(
            json.dumps(
                {
                    "schema": 1, "kind": "initramfs", "image": str(path), "good": good,
                    "inside": found._asdict() if found else None, "operator": wanted._asdict(),
                },
                indent=1,
            )
        )  # fmt: skip
    else:
        click.echo("\n".join(_text(str(path), found, wanted)))
    context.exit(0 if good else 1)


def _text(path: str, found: check.Inside | None, wanted: makers.Wanted) -> list[str]:
    if found is None:
        return [f"{path}: safemem is not in it: `safemem initramfs install`"]
    lines = [f"{path}: policy `{found.policy}`, digest {found.digest[:12]}"]
    lines.append(f"started   {found.fault or f'by {found.start}, before everything else'}")
    lines += [f"named     {name}, digest {digest[:12]}" for name, digest in found.named.items()]
    other = makers.differs(found, wanted)
    lines.append(f"policy    {other or 'as in /etc/safemem'}")
    return lines + (["help      `safemem initramfs install` makes the image anew"] if other or found.fault else [])


def _wanted(root: str) -> makers.Wanted:
    named = {name: policy.digest for name, policy in named_policies(root).items()}
    return makers.Wanted(operators_policy(None, root).digest, named)


def _need_root() -> None:
    if os.geteuid():
        raise click.ClickException("only root can make an initramfs")
