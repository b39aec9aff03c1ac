# SPDX-License-Identifier: MIT
"""The `safemem` command: each command parses, calls and prints. Which there are is known without importing one."""

from __future__ import annotations

try:
    import os

    import click

    from safemem.cli.group import Entry, Group
except KeyboardInterrupt:  # the group, which tells of it, is not there yet; its number is `codes.Code.INTERRUPTED`
    raise SystemExit(130) from None

#: name -> where it is, and its short help; a test compares that with the command's own.
COMMANDS = {
    "status": Entry("safemem.cli.status", "status", "Show what was decided in this boot, and what is held."),
    "previous": Entry("safemem.cli.status", "previous_command", "Show the boot before: its record, or its last words."),
    "require": Entry("safemem.cli.require", "require", "Ask whether a service that needs memory may start."),
    "keep": Entry("safemem.cli.status", "keep_command", "Keep the record in the history of boots and the journal."),
    "metrics": Entry("safemem.cli.status", "metrics_command", "Write the metrics of this boot for node_exporter."),
    "release": Entry("safemem.cli.release", "release", "End a hold by hand, wholly or in part."),
    "doctor": Entry("safemem.cli.doctor", "doctor_command", "Find what would defeat the policy on this machine."),
    "watch": Entry("safemem.cli.watch", "watch_command", "Apply the standing decision to memory that arrives later."),
    "handover-args": Entry(
        "safemem.cli.outgoing", "handover_args", "Print what to append to the next kernel's command line."
    ),
    "layout": Entry(
        "safemem.cli.outgoing", "layout_command", "Print what to append to the boot loader's command line."
    ),
    "preflight": Entry(
        "safemem.cli.preflight", "preflight_command", "Say whether a kexec would come up, before it starts."
    ),
    "kernel": Entry(
        "safemem.cli.kernel", "kernel_command", "Show what a kernel image is, and which handovers it speaks."
    ),
    "matrix": Entry("safemem.cli.matrix", "matrix", "Show which kernels can hand over to which."),
    "simulate": Entry("safemem.cli.simulate", "simulate", "Show what a policy decides, and do nothing."),
    "capture": Entry("safemem.cli.simulate", "capture", "Write the state of this machine to a file."),
    "check": Entry("safemem.cli.policy", "check", "Prove a policy in every state."),
    "diff": Entry("safemem.cli.policy", "diff", "Compare two policies in every state."),
    "test": Entry("safemem.cli.policy", "test_cases", "Run *.cases.toml against their policies."),
    "schema": Entry("safemem.cli.policy", "schema", "Write the JSON Schema or the reference."),
    "explain": Entry("safemem.cli.explain", "explain", "Say what a word means."),
    "compile": Entry("safemem.cli.initramfs", "compile_policy", "Write the form that the boot path reads."),
    "initramfs": Entry("safemem.cli.initramfs", "initramfs", "Put safemem into an initramfs."),
}


@click.group(cls=Group, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="safemem")
def main() -> None:
    """Decide which memory a live-update host may use after a kernel handover."""
    os.umask(os.umask(0o077) | 0o022)  # an init may leave 0, with which others could write to what we make
