"""Logging of the command line and of workers: colours on a terminal, plain when piped."""

from __future__ import annotations

import logging
import sys

import colorlog

COLOURS = {"DEBUG": "cyan", "INFO": "green", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red,bg_white"}


def configure(level: str = "INFO") -> None:
    """Show KRQ's log on stderr, unless the application has set up logging itself."""
    logger = logging.getLogger("krq")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(colorlog.ColoredFormatter(
        "%(log_color)s%(asctime)s %(levelname)-8s%(reset)s %(name)s: %(message)s", log_colors=COLOURS, stream=sys.stderr,
    ))
    logger.addHandler(handler)
    logger.setLevel(level)
