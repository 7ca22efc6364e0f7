"""The command line, ``krq``: one file for each concern."""

from krq.cli.root import main

__all__ = ["main"]
