# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Has the machine's own command judge a kexec into each of $KERNELS with $INITRD, of the tree at $TREE; at the end with a
# session held. The running kernel's file is $RUNNING.
export PYTHONPATH="$TREE"

# judge NAME IMAGE [WORDS]: report code, verdict and the whole document.
judge() {
    name=$1 image=$2
    shift 2
    safemem preflight --kernel "$image" --initrd "$INITRD" --cmdline "kho=on liveupdate=on $ARGUMENTS" --format json "$@"
    report "code_$name" "$CODE"
    report_file "said_$name" /tmp/out
}

arguments
# shellcheck disable=SC2086
set -- $KERNELS
for image; do judge "${image##*/}" "$image" --running "$RUNNING"; done
judge other "$1" --running "$2"
preserve 16
safemem preflight --kernel "$1" --initrd "$INITRD" --cmdline "kho=on liveupdate=on $ARGUMENTS" --running "$RUNNING"
report code_held "$CODE"
report_file text /tmp/out
