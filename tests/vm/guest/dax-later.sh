# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# After the decision: the guests go on in their memory, it is given to kmem again, and at last it is released.
give device_dax
report count "$(dax count "$START" 64)"
give kmem
report bound "$(bound)"
dax_blocks rebound
safemem release --reason "the guests moved away"
report released "$CODE"
report_file said /tmp/out
dax_blocks after
