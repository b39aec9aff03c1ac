# SPDX-License-Identifier: MIT
"""`safemem watch`: the daemon for memory that arrives later."""

from __future__ import annotations

import click

from safemem.cli.common import ROOT, InputError, load_policy, read_standing
from safemem.cli.policies import named_policies, operators_policy
from safemem.host import standing
from safemem.policy import installed


@click.command("watch", short_help="Apply the standing decision to memory that arrives later.")
@click.option(
    "--policy",
    "policy_file",
    metavar="POLICY",
    help="The policy of this boot, as a file. Default: the one in /etc/safemem that decided.",
)
@ROOT
@click.pass_context
def watch_command(context: click.Context, policy_file: str | None, root: str) -> None:
    """Watch for memory blocks that arrive, and apply the decision of this boot to them.

    Runs until it is told to stop; meant for the unit safemem-watch.service. Refuses a policy that is
    not the one that decided, and does nothing after a dry run.

    Exit code: 0 it was told to stop, 3 another policy decided, 6 no decision is in force.
    """
    from safemem.host import logs, watch  # pyudev and structlog: for this command only

    found = read_standing(context, root)
    decided = found.decision["policy"]["digest"]
    known = (
        [load_policy(policy_file)] if policy_file else [operators_policy(None, root), *named_policies(root).values()]
    )
    policy = next((item for item in known if item.digest == decided), None)
    if policy is None:
        raise InputError(
            f"{policy_file or installed.POLICY}: digest {known[0].digest[:12]}, but this boot was decided by {decided[:12]}: give the same policy"
        )
    if found.dry_run:
        # To systemd this is success, not a unit that failed before it was ready.
        watch.notify("READY=1\nSTATUS=dry run: nothing is in force")
        click.echo(
            "safemem: this boot is a dry run: its decision is not in force, so there is nothing to apply", err=True
        )
        context.exit(6)
    logs.configure()
    try:
        watch.run(root, policy, found)
    except OSError as error:
        raise click.ClickException(f"the kernel's events cannot be had: {error.strerror or error}") from None
    except standing.NoDecision as error:
        raise click.ClickException(str(error)) from None
