# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Has the machine's own command judge a kexec into each of $KERNELS with $INITRD, by the tree at $TREE; the running kernel's
# file is $RUNNING. Then with a session held, with arguments of before and anew; and hands over.
export PYTHONPATH="$TREE"

# judge NAME IMAGE RUNNING [WORDS]: report code and the output.
judge() {
    name=$1 image=$2 booted=$3
    shift 3
    safemem preflight --kernel "$image" --initrd "$INITRD" --cmdline "$CMDLINE $ARGUMENTS" --running "$booted" "$@"
    report "code_$name" "$CODE"
    report_file "said_$name" /tmp/out
}

arguments
# shellcheck disable=SC2086
set -- $KERNELS
for image; do judge "${image##*/}" "$image" "$RUNNING" --format json; done
judge other "$1" "$2" --format json
preserve 16
judge stale "$1" "$RUNNING"
arguments
judge held "$1" "$RUNNING" --format json
handover "$CMDLINE $ARGUMENTS"
