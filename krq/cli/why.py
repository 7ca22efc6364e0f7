"""``krq why``: the story of one task."""

from __future__ import annotations

from datetime import datetime

import click

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.info import Moment, Reason, Story
from krq.states import TaskStatus

#: colours of what happened
_COLOURS = {
    "success": "green", "failed": "red", "retry": "red", "died": "red", "interrupted": "red", "cancelled": "yellow",
    "handed back": "yellow",
}


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
    click.echo(_head(story))
    if story.past:
        click.echo("\nWhat happened")
        for moment in story.past:
            click.echo(_moment(moment))
    if story.reasons:
        running = story.task is not None and story.task.status is TaskStatus.PROCESSING
        click.echo("\nWhat it does" if running else "\nWhat it waits for" if story.task is not None else "\nWhere it is")
        for reason in story.reasons:
            click.echo(f"  {_reason(reason)}")
    click.echo(f"\nWhat comes next\n  {text.cell(story.next).text}")


def _head(story: Story) -> str:
    if story.task is None:
        return f"{story.id}  not known to Redis"
    return f"{click.style(text.cell(story.task.name).text, bold=True)}  {story.id}  {text.status(story.task.status)}"


def _moment(one: Moment) -> str:
    when = "" if one.at is None else datetime.fromtimestamp(one.at).astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return f"  {when:<23}  {click.style(text.cell(one.text).text, fg=_COLOURS.get(one.kind))}"


def _reason(one: Reason) -> str:
    times = [f"since {_clock(one.since)}, {text.ago(one.since)}"] if one.since is not None else []
    times += [f"until {_clock(one.until)}, {text.until(one.until)}"] if one.until is not None else []
    return text.cell(one.text).text + (f" ({'; '.join(times)})" if times else "")


def _clock(moment: float) -> str:
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


COMMANDS: tuple[click.Command, ...] = (why,)
