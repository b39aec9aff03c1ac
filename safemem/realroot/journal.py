# SPDX-License-Identifier: MIT
"""Entries for systemd's journal, with fields to search for."""

from __future__ import annotations

import os
import socket
import struct

SOCKET = "run/systemd/journal/socket"


def send(root: str, entry: dict[str, str]) -> bool:
    """Hand one entry to the journal; return False if there is no journal that takes it."""
    # The native protocol, systemd.io/JOURNAL_NATIVE_PROTOCOL: a value of several lines carries its length.
    data = b""
    for name, value in entry.items():
        raw = value.encode("utf-8", "surrogateescape")
        data += name.encode() + (b"\n" + struct.pack("<Q", len(raw)) if b"\n" in raw else b"=") + raw + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
            out.sendto(data, os.path.join(root, SOCKET))
    except OSError:
        return False
    return True
