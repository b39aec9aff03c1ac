# SPDX-License-Identifier: MIT
"""`safemem compile`, and `safemem initramfs`: an archive for any initrd, and the initramfs that the distribution makes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import click

from safemem.boot import compiled, paths, record
from safemem.boot.model import Policy, Refused
from safemem.boot.printable import printable
from safemem.boot.ranges import size_text
from safemem.cli import codes
from safemem.cli.codes import Code
from safemem.cli.common import FORMAT, write_whole
from safemem.cli.policies import Named, find_policy, named_policies, operators, operators_policy, proof
from safemem.initramfs import bootplaces, build, check, install, items, kernelname, on_failure, proven, target, uki
from safemem.initramfs.bootplaces import Boots
from safemem.initramfs.makers import MAKERS
from safemem.initramfs.packed import Unreadable
from safemem.policy import compiler, installed
from safemem.render.text import clean

_POLICY = click.option(
    "--policy", "policy_file", metavar="POLICY", help="Instead of /etc/safemem/policy.toml, or the shipped default."
)
_KERNEL = click.option("--kernel", metavar="RELEASE", help="Default: the one that runs, or the only one installed.")
_ROOT = click.option("--root", metavar="DIR", default="/", type=click.Path(exists=True, file_okay=False), help="The system below DIR.")  # fmt: skip


@click.command("compile", short_help="Write the form that the boot path reads.")
@click.argument("policy_file", metavar="POLICY")
@click.option("--output", "-o", metavar="FILE", required=True, help="File to write.")
@codes.ends(done="written", failure="nothing was written", invalid="the policy is invalid")
def compile_policy(policy_file: str, output: str) -> None:
    """Prove POLICY, as `check` does, and write the form that the boot path reads; one with errors is refused."""
    chosen = find_policy(policy_file)
    proof(chosen)
    data = compiler.dump(chosen.policy)
    write_whole(output, data)
    click.echo(
        f"{printable(output)}: {len(data)} bytes, digest {compiled.load(data, output).digest}", err=output == "-"
    )


@click.group()
def initramfs() -> None:
    """Put safemem into an initramfs."""


@initramfs.command(short_help="Write an archive that can be appended to any initrd.")
@click.option("--policy", "policy_file", metavar="POLICY", required=True, help="Policy to build in.")
@click.option("--output", "-o", metavar="FILE", required=True, help="Archive to write.")
@click.option(
    "--also",
    metavar="POLICY",
    multiple=True,
    help="One that safemem.policy=NAME on the kernel command line may name; may be repeated.",
)
@click.option("--systemd", is_flag=True, help="With the units that start it in an initrd with systemd.")
@codes.ends(done="written", failure="nothing was written", invalid="a policy is invalid")
def cpio(policy_file: str, output: str, also: tuple[str, ...], systemd: bool) -> None:
    """Write a self-contained archive, packed with gzip, that can be appended to any initrd.

    Each policy is proved first, as `check` does, and one with errors is refused.

    An init that is a script calls /usr/lib/safemem/boot before anything onlines memory, and goes on
    only if that ends with 42; with --systemd nothing of the initrd has to be changed.
    """
    chosen = find_policy(policy_file)
    # The units come first: an archive that is cut off behind them starts nothing that may online memory.
    named = {Path(path).stem: find_policy(path) for path in also}
    acting = [each.policy for each in named.values()]
    more = on_failure.unit_files(on_failure.of(chosen.policy, *acting)) if systemd else {}
    more |= _beside(chosen, named)
    data, cost = build.build(compiler.dump(chosen.policy), more=more, named=acting)
    write_whole(output, data)
    click.echo(cost_text(output, cost), err=output == "-")


@initramfs.command(short_help="Put the files into a folder that becomes an initramfs.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@_POLICY
@codes.ends(done="they are there", failure="they are not, or not all of them", invalid="a policy is invalid")
def tree(folder: str, policy_file: str | None) -> None:
    """Put the files into DIR, which becomes an initramfs; called by the hooks of initramfs-tools and dracut."""
    chosen = operators(policy_file)
    named = {} if policy_file else named_policies()
    beside = _beside(chosen, named)
    made = build.files(compiler.dump(chosen.policy), named=[each.policy for each in named.values()])
    items.put({**made, **items.plain(beside)}, Path(folder))


def _beside(chosen: Named, named: Mapping[str, Named]) -> dict[str, bytes]:
    """Return the files beside a policy: those that the command line may name, and what was proved of all."""
    proved = proof(chosen, named)
    files = build.policies({name: compiler.dump(each.policy) for name, each in named.items()}) | {proven.PATH: proved}
    return files | machine_class([each.policy for each in (chosen, *named.values())])


def machine_class(policies: list[Policy], root: str = "/") -> dict[str, bytes]:
    """Return the file by which rules tell machines apart, if one asks; that there is none is said."""
    asking = [rule for policy in policies for rule in policy.rules for c in rule.when if c.fact == "machine_class"]
    path = Path(root) / paths.MACHINE_CLASS
    if not asking:
        return {}
    if path.exists():
        return {paths.MACHINE_CLASS: installed.trusted(path).data}
    text = (
        f"safemem: {path} is not there: rule `{asking[0].name}` asks for machine_class, which this image leaves unknown"
    )
    click.echo(clean(text), err=True)
    return {}


@initramfs.command(short_help="Put the units for an initramfs with systemd into a folder.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@_POLICY
@codes.ends(done="they are there", failure="they are not, or not all of them", invalid="a policy is invalid")
def units(folder: str, policy_file: str | None) -> None:
    """Put the units for an initramfs with systemd into DIR; called by the module of dracut."""
    named = {} if policy_file else named_policies()
    failure = on_failure.of(operators_policy(policy_file), *(each.policy for each in named.values()))
    items.put(items.plain(on_failure.units(failure)), Path(folder))


def cost_text(output: str, cost: build.Cost) -> str:
    """Return what the archive costs, largest items last named."""
    output, cost = clean((output, cost))
    biggest = "".join(f"\n  {size_text(size):>9}  {name}" for name, size in cost.biggest)
    return f"{output}: {cost.files} files, {size_text(cost.size)}, {size_text(cost.raw)} raw{biggest}"


def _maker(command: Callable[..., None]) -> Callable[..., None]:
    for name, text in (
        ("auto", "Whichever is installed; the default."),
        *((maker.name, f"{maker.name}, by `{maker.command[0]}`.") for maker in MAKERS),
    ):
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
    policy, named = operators(None, root), named_policies(root)
    proof(policy, named)
    wanted = _wanted(policy, named)
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
@click.argument("images", nargs=-1, metavar="[IMAGE]...")
@_KERNEL
@_ROOT
@FORMAT
@click.pass_context
@codes.ends(
    done="safemem is in it, comes first and has the policy of /etc/safemem",
    failure="it has not",
    invalid="that policy is invalid",
    unknown="there is no image, it cannot be read or told which one boots, or most of it lies in a file system within it",
)
def check_image(context: click.Context, images: tuple[str, ...], kernel: str | None, root: str, form: str) -> None:
    """Look into an initrd or a unified kernel image; several are read one behind the other, as a boot loader does.

    Default: what the boot loader's entry for the kernel that runs names, or for the only one that is
    installed below --root; without entries, the image where the distribution puts it.
    """
    if images:
        _need_plain(images)
    release, boots = ("", Boots(tuple(map(Path, images)))) if images else _installed_image(root, kernel)
    path = str(boots)
    try:
        data = boots.read()
    except OSError as error:
        raise Unreadable(printable(f"{error.filename}: {error.strerror}")) from None
    policy = operators(None, root)
    wanted = _wanted(policy, named_policies(root))
    try:
        judged = check.judged(data, wanted)
    except ValueError as error:
        what = error.help if isinstance(error, Unreadable) else Unreadable.help
        raise Unreadable(printable(f"{path}: {error}") + f"\n    help: {what}") from None
    found = judged.inside
    beside = tuple(item for file in boots.files for item in uki.addons(file)) if data.startswith(b"MZ") else ()
    good = found is not None and not check.wrong(found, wanted) and not boots.undone
    if good and (untold := uki.untold(beside)):
        raise Unreadable(printable(f"{path}: {untold}"))
    if form == "json":
        click.echo(
            json.dumps(
                {
                    "schema": 1, "kind": "initramfs", "exit_code": Code.DONE if good else Code.FAILURE, "image": path,
                    "files": [str(file) for file in boots.files], "entry": str(boots.entry or ""), "good": good,
                    "profile": judged.profile, "inside": _inside(found), "addons": [str(item.path) for item in beside], "undone": boots.undone, "operator": wanted._asdict(),
                },
                indent=1,
            )
        )  # fmt: skip
    else:
        lines = _text(path, judged, beside, wanted, policy.file)
        if boots.undone:
            lines.append(f"undone    by {boots.undone}")
        if not good:
            lines.append(f"help      {_anew(root, boots, judged, release)}")
        click.echo("\n".join(clean(lines)))
    context.exit(Code.DONE if good else Code.FAILURE)


def _installed_image(root: str, kernel: str | None) -> tuple[str, Boots]:
    """Return the kernel that was named, that runs, or that is the only one installed, and what boots it. Raises Unreadable."""
    there = install.installed(root)
    here = os.path.realpath(root) == "/"
    running = os.uname().release
    doubt = ""
    for release in [kernel] if kernel else [running, *(there if len(there) == 1 else ())]:
        boots = bootplaces.find(root, release)
        if boots.files:
            return release, boots
        # Of a kernel that only runs, and is not below another root, nothing is expected there.
        if boots.doubt and (release in (kernel, *there) or here):
            doubt = f"it cannot be told which image boots kernel {release}: {boots.doubt}"
    number = "s" if len(there) > 1 else ""
    modules = f"{Path(root) / 'lib/modules'} has {f'kernel{number} ' + ', '.join(there) if there else 'no kernel'}"
    if doubt:
        raise Unreadable(printable(doubt + (f"; {modules}" if kernel and kernel not in there else "")))
    known = [release for release in there if bootplaces.find(root, release).files]
    name = f"name one of {', '.join(known)} by --kernel, or an IMAGE" if known else "name an IMAGE"
    if kernel is None and not here and len(there) != 1:
        raise Unreadable(printable(f"{root}: which kernel is meant is not known: {modules}: {name}"))
    meant = kernel or (running if here else there[0])
    if known and not kernel:
        raise Unreadable(printable(f"{root}: there is no image for kernel {meant}, which runs: {name}"))
    looked = f"no boot loader entry names one, and none is at {bootplaces.places(meant).replace(' ', ', ')}"
    raise Unreadable(printable(f"{root}: there is no image for kernel {meant}: {looked}; {modules}"))


def _need_plain(images: tuple[str, ...]) -> None:
    """Refuse a program of firmware among several images: what boots it reads nothing behind it. Raises UsageError."""
    for name in images if len(images) > 1 else ():
        try:
            said = kernelname.read(Path(name))
        except OSError:
            continue  # told when it is read
        if said.unified:
            raise click.UsageError(f"{name} is a unified kernel image: give it alone")
        if said.program or said.release:
            raise click.UsageError(f"{name} is a kernel, or another program that firmware starts: leave it out")


def _anew(root: str, boots: Boots, judged: check.Judged, release: str) -> str:
    """Return what to do about an image that is not good; `release` is that of the kernel which it boots, "" if not known."""
    if boots.unified or any(kernelname.read(file).unified for file in boots.files):
        return target.unified_anew(boots.files[0])
    how = f"have it made anew: {target.anew(root, release) if release else '`safemem initramfs install`'}"
    unstarted = judged.inside is not None and judged.inside.fault == check.UNSTARTED
    return f"{check.START_IT}; or {how}" if unstarted else how


def _inside(found: check.Inside | None) -> dict[str, object] | None:
    """Return what is in an image as JSON has it: its policy by name and digest."""
    if found is None:
        return None
    words = {key: record.plain(value) for key, value in found._asdict().items() if key != "built_in"}
    return {**words, "observe": found.built_in.observe}


def _text(path: str, judged: check.Judged, beside: tuple[uki.Addon, ...], wanted: check.Wanted, file: str) -> list[str]:
    found = judged.inside
    if found is None:
        return [f"{path}: {judged.where}safemem is not in it{f': {judged.why}' if judged.why else ''}"]
    lines = [f"{path}: policy `{found.policy}`, digest {found.digest[:12]}"]
    lines += _profiles(judged, wanted)
    lines += [f"addon     {item.path}: {', '.join(item.sections)}, which is not looked at" for item in beside]
    lines.append(f"started   {found.fault or check.started(found)}")
    lines += [f"named     {name}, digest {digest[:12]}" for name, digest in found.named.items()]
    lines.append(f"policy    {check.differs(found, wanted) or f'as in {file}'}")
    lines.append(f"proven    {check.unproven(found) or check.proof_text(found)}")
    if found.built_in.observe:
        lines.append("observe   it only observes: what it decides is recorded, and nothing of it is done")
    return lines


def _profiles(judged: check.Judged, wanted: check.Wanted) -> list[str]:
    """Return what a unified image's profiles have, if there are any: the worst one's name, or that nothing is wrong in any."""
    if not judged.every:
        return []
    if judged.inside is None or check.wrong(judged.inside, wanted):
        number = len(judged.every)
        return [f"profile   {judged.profile}{f', the worst of {number}' if number > 1 else ''}"]
    if all(inside == judged.inside for _, inside in judged.every):
        return [f"profiles  {len(judged.every)}, all alike"]
    return [
        f"profile   {name}: policy `{inside.policy}`, digest {inside.digest[:12]}, started by {inside.start}"
        f"{', it only observes' if inside.built_in.observe else ''}"
        for name, inside in judged.every
        if inside is not None
    ]


def _wanted(policy: Named, named: Mapping[str, Named]) -> check.Wanted:
    digests = {name: each.policy.digest for name, each in named.items()}
    return check.Wanted(policy.policy.digest, digests, policy.policy.name, policy.file)


def _need_root() -> None:
    if os.geteuid():
        raise Refused("only root can make an initramfs")
