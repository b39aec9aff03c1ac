# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Looks at a machine whose boot_params something else is mounted over, in a cold boot and after a handover; decides then.
PARAMS=/sys/kernel/boot_params
# look NAME: report what a capture has, and take away what was mounted for it.
look() {
    /usr/lib/safemem/capture >/tmp/capture.json
    report_file "$1.$STAGE" /tmp/capture.json
    umount "${2:-$PARAMS}" 2>/dev/null
}
mount -t debugfs d /sys/kernel/debug
report "params.$STAGE" "$(cd $PARAMS && find . | sort | tr '\n' ' ')"
cp -r $PARAMS /tmp/copy
look plain /nowhere
mount -t tmpfs none $PARAMS
look empty
mount --bind /sys/kernel/mm $PARAMS
look another
mount --bind /tmp/copy $PARAMS
look copy
mount --bind /dev/null $PARAMS/data
look masked $PARAMS/data
mount --bind /tmp/copy/version $PARAMS/version
look version $PARAMS/version
if [ -e $PARAMS/setup_data ]; then
    mount -t tmpfs none $PARAMS/setup_data
    look list $PARAMS/setup_data
fi
[ "$STAGE" = 2 ] || handover "$CMDLINE"
mount -t tmpfs none $PARAMS
decide
