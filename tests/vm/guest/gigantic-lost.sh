# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# Hands over with what handover-args prints, which stands for what the operator asks for too; then decides.
if [ "$STAGE" = 1 ]; then
    arguments
    handover "$CMDLINE $ARGUMENTS"
fi
decide
pools _held
