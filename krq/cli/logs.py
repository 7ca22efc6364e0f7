"""``krq logs``: what a task has logged and printed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime

import click

from krq import loglines
from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.loglines import KEPT, LogLine
from krq.logs import COLOURS


@click.command(short_help="What a task has logged and printed, wherever it ran.")
@click.argument("task_id", metavar="ID")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes until the task has ended, or Ctrl-C.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="Only of this attempt.")
@click.option("--limit", "-n", default=KEPT, show_default=True, type=click.IntRange(1, KEPT), help="Without -f: the last so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line; times are Unix seconds.")
@connected
def logs(app: KRQ, task_id: str, follow: bool, attempt: int | None, limit: int, as_json: bool) -> None:
    """What a task has logged and printed: the last 1,000 lines or so, of all its attempts.

    \b
    Example:
      krq logs 019a2b3c4d5e0123456789abcdef
      krq logs 019a2b3c4d5e0123456789abcdef -f
      krq logs 019a2b3c4d5e0123456789abcdef --attempt 2 --json | jq -r .text
    """
    found: Iterable[LogLine] = app.follow_logs(task_id, attempt) if follow else app.logs(task_id, attempt, limit)
    before: tuple[int, str] | None = None
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        for line in found:
            if as_json:
                click.echo(loglines.encode(line))
                continue
            at = (line.attempt, line.worker)
            if at != (before or (1, line.worker)):
                click.echo(click.style(f"— attempt {line.attempt} on {text.cell(line.worker).text} —", dim=True))
            before = at
            click.echo(_line(line))
    if before is None and not as_json:
        click.echo("No line of it is kept.", err=True)


def _line(line: LogLine) -> str:
    """What has several lines is indented, so that nothing a task says looks like another line."""
    when = datetime.fromtimestamp(line.at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    colour, _, background = COLOURS.get(line.level, "").partition(",bg_")
    level = click.style(f"{text.cell(line.level or line.stream).text:<8}", fg=colour or None, bg=background or None)
    who = f"{click.style(text.cell(line.logger).text, dim=True)}: " if line.logger else ""
    return f"{when}  {level}  {who}" + "\n    ".join(text.printable(line.text).split("\n"))


COMMANDS: tuple[click.Command, ...] = (logs,)
