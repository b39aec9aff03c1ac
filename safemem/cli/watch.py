# SPDX-License-Identifier: MIT
"""`safemem watch`: the daemon for memory that arrives later."""

from __future__ import annotations

import click

from safemem.boot.model import Refused
from safemem.boot.printable import printable
from safemem.cli import codes
from safemem.cli.common import ROOT, InputError
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
@codes.ends(done="it was told to stop", invalid="another policy decided", unknown="no decision is in force")
def watch_command(context: click.Context, policy_file: str | None, root: str) -> None:
    """Watch for memory blocks that arrive, and apply the decision of this boot to them.

    Runs until it is told to stop; meant for the unit safemem-watch.service. Refuses a --policy that is
    not the one that decided; the operator's may have been edited since, for the next boot, and the decision
    stands. Does nothing after a dry run.
    """
    from safemem.host import logs, watch  # pyudev and structlog: for this command only

    found = standing.read(root)
    _compare(policy_file, root, found.decision.policy.digest)
    if found.mode != "enforce":
        why = "the policy of this boot only observes" if found.mode == "observe" else "this boot is a dry run"
        # To systemd this is success, not a unit that failed before it was ready.
        watch.notify(f"READY=1\nSTATUS={why}: nothing is in force")
        raise standing.NoDecision(f"{why}: its decision is not in force, so there is nothing to apply")
    logs.configure(colours=context.color is not False)
    watch.run(root, found)


def _compare(given: str | None, root: str, decided: str) -> None:
    """Refuse a `given` policy that is not the one of digest `decided`, and say so of the operator's.

    The record says all that counts of the policy. So an edit, or an upgrade that brings another policy, ends nothing:
    the decision stands until the next boot. That is told from a policy that is named to be compared.
    """
    try:
        from safemem.cli import policies

        known = (
            [policies.load_policy(given)]
            if given
            else [each.policy for each in (policies.operators(None, root), *policies.named_policies(root).values())]
        )
    except (ImportError, SystemError) as error:  # the latter is a pydantic that does not fit its own core
        text = f"{given or installed.POLICY}: whether this is the policy that decided cannot be told: {error}"
        if given:
            raise Refused(text) from None
        _say(text)
        return
    except (Refused, OSError) as error:
        if given:
            raise
        _say(f"{str(error).splitlines()[0]}: the decision of {decided[:12]} stands until the next boot")
        return
    if decided not in [policy.digest for policy in known]:
        text = (
            f"{given or installed.POLICY}: digest {known[0].digest[:12]}, but this boot was decided by {decided[:12]}"
        )
        if given:
            raise InputError(f"{text}: give the same policy")
        _say(f"{text}, which stands until the next boot")


def _say(text: str) -> None:
    click.echo(f"safemem: {printable(text)}", err=True)
