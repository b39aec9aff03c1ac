# SPDX-License-Identifier: MIT
"""How the daemon logs: one line an event on standard error, which systemd's journal takes as it is."""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from safemem.boot.printable import printable


def _clean(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Make texts fit for a terminal: names of rules, programs and policies are others'."""
    return {
        key: printable(value)
        if isinstance(value, str)
        else [printable(str(item)) for item in value]
        if isinstance(value, list)
        else value
        for key, value in event.items()
    }


def configure(*, colours: bool = True) -> None:
    """Set structlog up: JSON for programs, text for a terminal, with `colours` or without."""
    text = structlog.dev.ConsoleRenderer(colors=colours)
    renderer = text if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            _clean,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
