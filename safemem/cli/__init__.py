# SPDX-License-Identifier: MIT
"""The `safemem` command: each command parses, calls and prints."""

import click

from safemem.cli.hold import doctor_command, handover_args, release, status, watch_command
from safemem.cli.image import compile_policy, initramfs
from safemem.cli.prove import check, diff, schema, test_cases
from safemem.cli.simulate import capture, simulate


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
