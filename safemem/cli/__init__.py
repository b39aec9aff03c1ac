# SPDX-License-Identifier: MIT
"""The `safemem` command: each command parses, calls and prints."""

from __future__ import annotations

import click

from safemem.cli.doctor import doctor_command
from safemem.cli.initramfs import compile_policy, initramfs
from safemem.cli.outgoing import handover_args, layout_command
from safemem.cli.policy import check, diff, schema, test_cases
from safemem.cli.release import release
from safemem.cli.simulate import capture, simulate
from safemem.cli.status import status
from safemem.cli.watch import watch_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="safemem")
def main() -> None:
    """Decide which memory a live-update host may use after a kernel handover."""


for command in (
    status,
    release,
    doctor_command,
    watch_command,
    handover_args,
    layout_command,
    simulate,
    check,
    diff,
    test_cases,
    schema,
    capture,
    compile_policy,
    initramfs,
):
    main.add_command(command)
