# SPDX-License-Identifier: MIT
"""`safemem compile` and `safemem initramfs`."""

from __future__ import annotations

from pathlib import Path

import click

from safemem.boot import compiled
from safemem.boot.model import Policy
from safemem.boot.ranges import size_text
from safemem.cli.common import InputError, load_policy, write_whole
from safemem.initramfs import build
from safemem.initramfs import check as inside_image
from safemem.policy import compiler, installed


@click.command("compile", short_help="Write the form that the boot path reads.")
@click.argument("policy_file", metavar="POLICY")
@click.option("--output", "-o", metavar="FILE", required=True, help="File to write.")
def compile_policy(policy_file: str, output: str) -> None:
    """Check POLICY and write the form that the boot path reads."""
    data = compiler.dump(load_policy(policy_file))
    write_whole(output, data)
    click.echo(f"{output}: {len(data)} bytes, digest {compiled.load(data, output).digest}")


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
    """Write a self-contained archive that can be appended to any initrd.

    An init that is a script calls /usr/lib/safemem/boot before anything onlines memory, and goes on
    only if that returns 0; with --systemd nothing of the initrd has to be changed.
    """
    chosen = load_policy(policy_file)
    try:
        more = build.policies({Path(path).stem: compiler.dump(load_policy(path)) for path in also})
        more |= inside_image.unit_files(chosen.on_failure) if systemd else {}
        cost = build.build(compiler.dump(chosen), Path(output), more=more)
    except build.BuildError as error:
        raise InputError(str(error)) from None
    click.echo(cost_text(output, cost))


_POLICY = click.option(
    "--policy", "policy_file", metavar="POLICY", help="Instead of /etc/safemem/policy.toml, or the shipped default."
)


@initramfs.command()
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@_POLICY
def tree(folder: str, policy_file: str | None) -> None:
    """Put the files into DIR, which becomes an initramfs; called by the hooks of initramfs-tools and dracut."""
    data = compiler.dump(operators_policy(policy_file))
    named = {} if policy_file else {name: compiler.dump(policy) for name, policy in named_policies().items()}
    try:
        build.put({**build.files(data), **build.plain(build.policies(named))}, Path(folder))
    except build.BuildError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{folder}: {(error.strerror or 'cannot be written').lower()}") from None


@initramfs.command()
@click.argument("folder", metavar="DIR")
@_POLICY
def units(folder: str, policy_file: str | None) -> None:
    """Put the units for an initramfs with systemd into DIR; called by the module of dracut."""
    failure = operators_policy(policy_file).on_failure
    try:
        build.put(build.plain(inside_image.units(failure)), Path(folder))
    except build.BuildError as error:
        raise InputError(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{folder}: {(error.strerror or 'cannot be written').lower()}") from None


def operators_policy(given: str | None, root: str = "/") -> Policy:
    """Return the policy that was named, or the operator's. Raises InputError, also if others than root can write it."""
    try:
        path = installed.trusted(Path(given)) if given else installed.find(root)
    except installed.Untrusted as error:
        raise InputError(str(error)) from None
    return load_policy(str(path))


def named_policies(root: str = "/") -> dict[str, Policy]:
    """Return the policies that the command line may name, by name. Raises InputError."""
    try:
        return {path.stem: load_policy(str(path)) for path in installed.others(root)}
    except installed.Untrusted as error:
        raise InputError(str(error)) from None


def cost_text(output: str, cost: build.Cost) -> str:
    """Return what the archive costs, largest items last named."""
    packed = "unknown, zstd is not installed" if cost.compressed is None else size_text(cost.compressed)
    biggest = "".join(f"\n  {size_text(size):>9}  {name}" for name, size in cost.biggest)
    return f"{output}: {cost.files} files, {size_text(cost.raw)} raw, {packed} with zstd -19{biggest}"
