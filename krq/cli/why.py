"""``krq why``: the story of one task."""

from __future__ import annotations

import click

from krq import telling
from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ


@click.command(short_help="Why a task is where it is: its story in plain words.")
@click.argument("task_id", metavar="ID")
@text.json_option
@connected
def why(app: KRQ, task_id: str, as_json: bool) -> None:
    """The story of one task: what happened to it, what it waits for, what comes next.

    \b
    Example:
      krq why 019a2b3c4d5e0123456789abcdef
    """
    story = app.why(task_id)
    if as_json:
        text.print_json(story)
        return
    for line in (telling.head(story), [], *telling.lines(story)):
        click.echo("".join(click.style(part.text, fg=part.colour, bold=part.bold or None) for part in line))


COMMANDS: tuple[click.Command, ...] = (why,)
