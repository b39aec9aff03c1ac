# SPDX-License-Identifier: MIT
"""How the daemon logs: one line an event on standard error, which systemd's journal takes as it is."""

from __future__ import annotations

import sys

import structlog


def configure() -> None:
    """Set structlog up: JSON for programs, text for a terminal."""
    renderer = structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
