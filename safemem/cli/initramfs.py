# SPDX-License-Identifier: MIT
"""`safemem compile`, and `safemem initramfs`: an archive for any initrd, and the initramfs that the distribution makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import click

from safemem.boot import compiled
from safemem.boot.model import Refused
from safemem.boot.printable import printable
from safemem.boot.ranges import size_text
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT, write_whole
from safemem.cli.policies import load_policy, named_policies, operators_policy
from safemem.initramfs import build, check, install, items, on_failure
from safemem.initramfs.makers import MAKERS
from safemem.initramfs.packed import Unreadable
from safemem.policy import compiler
from safemem.render.text import clean

_POLICY = click.option(
    "--policy", "policy_file", metavar="POLICY", help="Instead of /etc/safemem/policy.toml, or the shipped default."
)
_KERNEL = click.option("--kernel", metavar="RELEASE", help="Default: the one that runs, or the only one installed.")
_ROOT = click.option("--root", metavar="DIR", default="/", type=click.Path(exists=True, file_okay=False), help="The system below DIR.")  # fmt: skip


@click.command("compile", short_help="Write the form that the boot path reads.")
@click.argument("policy_file", metavar="POLICY")
@click.option("--output", "-o", metavar="FILE", required=True, help="File to write.")
def compile_policy(policy_file: str, output: str) -> None:
    """Check POLICY and write the form that the boot path reads."""
    data = compiler.dump(load_policy(policy_file))
    write_whole(output, data)
    click.echo(f"{printable(output)}: {len(data)} bytes, digest {compiled.load(data, output).digest}")


@click.group()
def initramfs() -> None:
    """Put safemem into an initramfs."""


@initramfs.command()
@click.option("--policy", "policy_file", metavar="POLICY", required=True, help="Policy to build in.")
@click.option("--output", "-o", metavar="FILE", required=True, help="Archive to write.")
@click.option(
    "--also",
    metavar="POLICY",
    multiple=True,
    help="One that safemem.policy=NAME on the kernel command line may name; may be repeated.",
)
@click.option("--systemd", is_flag=True, help="With the units that start it in an initrd with systemd.")
def cpio(policy_file: str, output: str, also: tuple[str, ...], systemd: bool) -> None:
    """Write a self-contained archive, packed with gzip, that can be appended to any initrd.

    An init that is a script calls /usr/lib/safemem/boot before anything onlines memory, and goes on
    only if that ends with 42; with --systemd nothing of the initrd has to be changed.
    """
    chosen = load_policy(policy_file)
    # The units come first: an archive that is cut off behind them starts nothing that may online memory.
    more = on_failure.unit_files(chosen.on_failure) if systemd else {}
    more |= build.policies({Path(path).stem: compiler.dump(load_policy(path)) for path in also})
    data, cost = build.build(compiler.dump(chosen), more=more)
    write_whole(output, data)
    click.echo(cost_text(output, cost))


@initramfs.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@_POLICY
def tree(folder: str, policy_file: str | None) -> None:
    """Put the files into DIR, which becomes an initramfs; called by the hooks of initramfs-tools and dracut."""
    data = compiler.dump(operators_policy(policy_file))
    named = {} if policy_file else {name: compiler.dump(policy) for name, policy in named_policies().items()}
    items.put({**build.files(data), **items.plain(build.policies(named))}, Path(folder))


@initramfs.command()
@click.argument("folder", metavar="DIR")
@_POLICY
def units(folder: str, policy_file: str | None) -> None:
    """Put the units for an initramfs with systemd into DIR; called by the module of dracut."""
    failure = operators_policy(policy_file).on_failure
    items.put(items.plain(on_failure.units(failure)), Path(folder))


def cost_text(output: str, cost: build.Cost) -> str:
    """Return what the archive costs, largest items last named."""
    output, cost = clean((output, cost))
    packed = "unknown, zstd is not installed" if cost.compressed is None else size_text(cost.compressed)
    biggest = "".join(f"\n  {size_text(size):>9}  {name}" for name, size in cost.biggest)
    sizes = f"{size_text(cost.size)}, {size_text(cost.raw)} raw, {packed} with zstd -19"
    return f"{output}: {cost.files} files, {sizes}{biggest}"


def _maker(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in (("auto", "Whichever is installed; the default."), *((maker.name, "") for maker in MAKERS)):
        command = click.option(f"--{name}", "maker", flag_value=name, help=text)(command)
    return command


@initramfs.command("install", short_help="Have the distribution make its initramfs with safemem in it.")
@_maker
@_KERNEL
@_ROOT
@codes.ends(done="done", failure="nothing has changed", invalid="the policy is invalid")
def install_image(maker: str | None, kernel: str | None, root: str) -> None:
    """Put the hook into place where no package has, and make the image by the distribution's own command.

    The image in place is replaced in one step, once the new one is known to hold the policy of
    /etc/safemem and to start it before everything else. If anything is wrong it stays as it is.
    """
    _need_root()
    wanted = _wanted(root)
    chosen = install.choose(root, maker or "auto")
    image = install.install(root, chosen, install.release(root, kernel), wanted)
    click.echo(f"{printable(str(image))}: made by {chosen.name}, with the policy of digest {wanted.digest[:12]}")


@initramfs.command(short_help="Have the distribution make its initramfs without safemem.")
@_maker
@_KERNEL
@_ROOT
@codes.ends(done="done", failure="nothing has changed")
def remove(maker: str | None, kernel: str | None, root: str) -> None:
    """Take the hook that `install` has put into place away, and make the image without it."""
    _need_root()
    chosen = install.choose(root, maker or "auto")
    image = install.remove(root, chosen, install.release(root, kernel))
    click.echo(f"{printable(str(image))}: made by {chosen.name}, without safemem")


@initramfs.command("check", short_help="Say whether safemem is in an initramfs, and with which policy.")
@click.argument("image", required=False, metavar="[IMAGE]")
@_KERNEL
@_ROOT
@FORMAT
@click.pass_context
@codes.ends(
    done="safemem is in it, comes first and has the policy of /etc/safemem",
    failure="it has not",
    invalid="that policy is invalid",
    unknown="there is no image, or it cannot be read",
)
def check_image(context: click.Context, image: str | None, kernel: str | None, root: str, form: str) -> None:
    """Look into an initrd or a unified kernel image; default: the one of the kernel that runs."""
    try:
        path = Path(image) if image else check.find(root, kernel or os.uname().release)
        if path is None:
            raise OSError(0, f"there is no image for kernel {kernel or os.uname().release}", root)
        found = check.inside(path.read_bytes())
    except (OSError, ValueError) as error:
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else f"{path}: {error}"
        raise Unreadable(printable(why)) from None
    wanted = _wanted(root)
    good = found is not None and not found.fault and not check.differs(found, wanted)
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
        click.echo("\n".join(clean(_text(str(path), found, wanted))))
    context.exit(Code.DONE if good else Code.FAILURE)


def _text(path: str, found: check.Inside | None, wanted: check.Wanted) -> list[str]:
    if found is None:
        return [f"{path}: safemem is not in it: `safemem initramfs install`"]
    lines = [f"{path}: policy `{found.policy}`, digest {found.digest[:12]}"]
    lines.append(f"started   {found.fault or f'by {found.start}, before everything else'}")
    lines += [f"named     {name}, digest {digest[:12]}" for name, digest in found.named.items()]
    other = check.differs(found, wanted)
    lines.append(f"policy    {other or 'as in /etc/safemem'}")
    return lines + (["help      `safemem initramfs install` makes the image anew"] if other or found.fault else [])


def _wanted(root: str) -> check.Wanted:
    named = {name: policy.digest for name, policy in named_policies(root).items()}
    return check.Wanted(operators_policy(None, root).digest, named)


def _need_root() -> None:
    if os.geteuid():
        raise Refused("only root can make an initramfs")
