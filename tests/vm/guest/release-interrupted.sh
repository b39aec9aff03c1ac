# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# A signal ends a release, and the same command goes on. The shell ignores SIGINT for what it runs behind its back, so
# the release is in front.
{
    middle
    kill -INT "$RELEASE"
} &
(release) >/tmp/out 2>&1
report interrupted $?
report_file said /tmp/out
report guard "$(left)"
report blocks "$(blocks "$FIRST" "$LAST")"
safemem status
report between "$CODE"
report_file between_text /tmp/out
safemem release --reason "guests moved away"
report resumed "$CODE"
report_file resumed_text /tmp/out
report guard_after "$(left)"
report blocks_after "$(blocks "$FIRST" "$LAST")"
safemem status
report after "$CODE"
report_file after_text /tmp/out
