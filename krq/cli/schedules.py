"""``krq schedules``: what fires when, and changes of it while workers run."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.info import ScheduleInfo

name_argument = click.argument("name", metavar="NAME")


@click.group(short_help="Schedules: list, add, remove, pause, resume, fire.", invoke_without_command=True)
@text.json_option
@connected
def schedules(app: KRQ, as_json: bool) -> None:
    """Tasks that are sent at their times: those of the workers' code, and those added here; the next to fire first.

    \b
    Example:
      krq schedules
      krq schedules add cleanup remove_old --cron '30 3 * * *' --tz Europe/Berlin
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        if any(context.params.values()):
            raise click.UsageError(f"Write options behind the command: krq schedules {context.invoked_subcommand} ...")
        return
    found = app.schedules()
    if as_json:
        text.print_json(found)
    elif not found:
        click.echo("There are no schedules.")
    else:
        rows = [[one.name, one.task, one.when, one.tz, _next(one), text.ago(one.last), one.last_id, one.source] for one in found]
        text.print_table(("NAME", "TASK", "WHEN", "ZONE", "NEXT", "LAST", "LAST ID", "SOURCE"), rows)


def _next(one: ScheduleInfo) -> Any:
    return text.Styled("paused", "yellow") if one.paused else text.until(one.next)


@schedules.command(short_help="Add one, or change the one of this name.")
@name_argument
@click.argument("task", metavar="TASK")
@click.option("--cron", metavar="LINE", help="Minute, hour, day, month, day of the week: '*/5 * * * *'.")
@click.option("--every", type=float, metavar="SECONDS", help="Every so many seconds, at least 1.")
@click.option("--tz", metavar="ZONE", help="Time zone of --cron, such as Europe/Berlin; else UTC.")
@click.option("--args", "raw_args", metavar="JSON", help="Arguments, as a JSON list: '[1, 2]'.")
@click.option("--kwargs", "raw_kwargs", metavar="JSON", help='Keyword arguments, as a JSON object: \'{"x": 1}\'.')
@click.option("--queue", "-q", metavar="QUEUE", help="Queue; else the task's own (with --app), else the default one.")
@click.option("--catch-up", type=float, metavar="SECONDS", help="Make up for ticks missed within so long; else 300.")
@click.option("--paused", is_flag=True, default=None, help="Do not fire until `krq schedules resume`.")
@connected
def add(app: KRQ, /, name: str, task: str, raw_args: str | None, raw_kwargs: str | None, **options: Any) -> None:
    """Send TASK at the times of --cron or --every. A schedule of this name is changed; one of the code, until it is removed.

    \b
    Example:
      krq schedules add cleanup remove_old --cron '30 3 * * *' --tz Europe/Berlin --args '[7]'
      krq schedules add ping ping --every 30
    """
    args: list[Any] = _json("--args", raw_args, list[Any], "list") or []
    kwargs: dict[str, Any] = _json("--kwargs", raw_kwargs, dict[str, Any], "object") or {}
    given: Any = {key: value for key, value in options.items() if value is not None}
    app.schedule(name, task, args, kwargs, **given)
    one = next((each for each in app.schedules() if each.name == name), None)
    if one is not None:
        click.echo(f"{name}: {one.when}{' ' + one.tz if one.tz else ''}, {'paused' if one.paused else 'next ' + text.clock(one.next or 0)}")


def _json(option: str, raw: str | None, kind: Any, what: str) -> Any:
    if raw is None:
        return None
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeError):
        raise click.UsageError(f"{option} {raw} is no JSON {what}.") from None


@schedules.command(short_help="Remove one.")
@name_argument
@connected
def remove(app: KRQ, name: str) -> int:
    """Remove a schedule. One that workers have in their code can't be removed here: pause it.

    \b
    Example:
      krq schedules remove cleanup
    """
    if not app.unschedule(name):
        return text.fail(f"There is no schedule {name}.")
    click.echo(f"{name} is removed.")
    return 0


@schedules.command(short_help="Fire no more until resume.")
@name_argument
@connected
def pause(app: KRQ, name: str) -> None:
    """Let a schedule fire no more until `krq schedules resume`.

    \b
    Example:
      krq schedules pause cleanup
    """
    app.pause_schedule(name)
    click.echo(f"{name} is paused.")


@schedules.command(short_help="Undo pause, from now on.")
@name_argument
@connected
def resume(app: KRQ, name: str) -> None:
    """Let a paused schedule go on, from now on: what was missed meanwhile does not fire.

    \b
    Example:
      krq schedules resume cleanup
    """
    app.resume_schedule(name)
    click.echo(f"{name} goes on.")


@schedules.command(short_help="Send its task now, once more.")
@name_argument
@text.json_option
@connected
def fire(app: KRQ, name: str, as_json: bool) -> None:
    """Send the task of a schedule now, once more than it would, also of a paused one; prints the task's id.

    \b
    Example:
      krq schedules fire cleanup
    """
    handle = app.fire(name)
    if as_json:
        text.print_json({"id": handle.id})
    else:
        click.echo(handle.id)


COMMANDS: tuple[click.Command, ...] = (schedules,)
