"""``krq submit``: send a task from a shell."""

from __future__ import annotations

import math
from typing import Any

import click
import msgspec

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ


@click.command(short_help="Send a task, and wait for its result if you like.", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="TASK")
@click.argument("args", nargs=-1, metavar="[ARG]...", type=click.UNPROCESSED)
@click.option("--kwargs", metavar="JSON", help='Keyword arguments, as a JSON object: \'{"x": 1}\'.')
@click.option("--queue", "-q", metavar="QUEUE", help="Queue; else the task's own (with --app), else the default one.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Run it so many seconds from now.")
@click.option("--wait", type=click.FloatRange(min=0), is_flag=False, flag_value=math.inf, metavar="[SECONDS]",
              help="Wait for the end (for ever, or so long) and print the result. Give it last.")
@text.json_option
@connected
def submit(app: KRQ, name: str, args: tuple[str, ...], kwargs: str | None, queue: str | None, delay: float | None,
           wait: float | None, as_json: bool) -> None:
    """Send the task NAME with arguments, each as JSON; prints its id, or with --wait its result.

    \b
    Example:
      krq submit add 1 2 --wait
      krq submit greet '"World"' --kwargs '{"loud": true}' --delay 5
    """
    positional = [_argument(arg) for arg in args]
    named = {} if kwargs is None else _keywords(kwargs)
    options: dict[str, Any] = {key: value for key, value in (("queue", queue), ("delay", delay)) if value is not None}
    task_id = app.send_task(name, positional, named, **options)
    if wait is None:
        if as_json:
            text.print_json({"id": task_id})
        else:
            click.echo(task_id)
        return
    click.echo(f"{task_id} was sent", err=True)
    if not app.workers():
        click.echo("No worker is alive; it waits until one is: `krq worker APP`.", err=True)
    handle = app.handle(task_id)
    timeout = None if math.isinf(wait) else wait
    if as_json:
        text.print_json(handle.wait(timeout))
    result = handle.result(timeout)
    if not as_json:
        text.print_json(result)


def _argument(raw: str) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError):
        if raw.startswith("-"):
            raise click.UsageError(f"No such option: {raw.partition('=')[0]}") from None
        quoted = f"'{msgspec.json.encode(raw).decode()}'"
        raise click.UsageError(f"The argument {raw} is no JSON. A string needs quotes of its own: {quoted}") from None


def _keywords(raw: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError):
        raise click.UsageError(f"--kwargs {raw} is no JSON object; write '{{\"name\": value}}'.") from None


COMMANDS: tuple[click.Command, ...] = (submit,)
