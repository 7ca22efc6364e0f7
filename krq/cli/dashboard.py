"""``krq dashboard``: the display in a terminal."""

from __future__ import annotations

import sys

import click

from krq.cli.target import connected
from krq.core import KRQ
from krq.errors import ConfigError


@click.command(short_help="Queues, workers, tasks and failures, live in this terminal.")
@click.option("--interval", default=1.0, show_default=True, metavar="SECONDS", type=click.FloatRange(0.2, 3600),
              help="Between two looks; longer where a look takes long.")
@click.option("--read-only", is_flag=True, help="Refuse to pause, retry and cancel.")
@connected
def dashboard(app: KRQ, interval: float, read_only: bool) -> None:
    """Queues, workers, tasks in progress and failures, live in this terminal, until q or Ctrl-C. Press ? for the keys.

    \b
    Example:
      krq dashboard
      krq dashboard --app tasks.py --interval 5 --read-only
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("krq dashboard needs a terminal. Elsewhere there is `krq stats --watch`.")
    try:
        from krq.terminal.app import Dashboard
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library not in ("textual", "rich"):
            raise
        raise ConfigError(f"krq dashboard needs {library}, which is not installed", cure="pip install 'krq[terminal]'") from error

    shown = Dashboard(app, interval, read_only=read_only)
    shown.run()
    if shown.return_code:
        sys.exit(shown.return_code)


COMMANDS: tuple[click.Command, ...] = (dashboard,)
