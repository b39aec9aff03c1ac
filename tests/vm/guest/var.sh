# SPDX-License-Identifier: MIT
# shellcheck shell=sh
# The disk that outlives the guest, over /var/lib of the share.
mount -t ext4 "$(disk var)" /host/var/lib || report disk failed
