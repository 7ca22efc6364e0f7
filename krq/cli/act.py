"""Commands that act upon tasks and queues."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from krq import ids
from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.errors import KRQError
from krq.info import QueueStats
from krq.states import TaskStatus

ids_argument = click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
queue_argument = click.argument("queue", metavar="QUEUE")
yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command(short_help="End tasks that have not started, stop those that run.")
@click.argument("task_ids", metavar="[ID...]", nargs=-1)
@click.option("--name", metavar="TASK", help="All tasks of this name.")
@click.option("--queue", metavar="QUEUE", help="All tasks of this queue.")
@click.option("--key", metavar="KEY", help="All tasks of this key.")
@yes_option
@connected
def cancel(app: KRQ, task_ids: tuple[str, ...], name: str | None, queue: str | None, key: str | None, yes: bool) -> int:
    """End tasks that have not started, tell running ones to stop. One that has ended already stays as it is.

    With --name, --queue or --key: all that meet what is given. What stands in the backlog alone, behind a full window, is not reached.

    \b
    Example:
      krq cancel 019a2b3c4d5e0123456789abcdef
      krq cancel --name mail --key customer-7 --yes
    """
    given = {option: value for option, value in (("name", name), ("queue", queue), ("key", key)) if value is not None}
    if bool(task_ids) == bool(given):
        raise click.UsageError("Give ids, or --name, --queue and --key.")
    if given:
        meant = " and ".join(f"{option} {value}" for option, value in given.items())
        return _drop(f"Cancel all tasks of {meant}?", lambda: app.cancel_many(**given), yes, "cancelled")

    def one(task_id: str) -> str:
        if not app.cancel(task_id):
            return f"had ended already: {app.status(task_id).status}"
        return "it runs; its worker was told to stop it" if app.status(task_id).status is TaskStatus.PROCESSING else "cancelled"

    return _each(task_ids, one)


@click.command(short_help="Run failed or cancelled tasks again.")
@ids_argument
@connected
def retry(app: KRQ, task_ids: tuple[str, ...]) -> int:
    """Run failed or cancelled tasks again, under their ids and with all their retries.

    \b
    Example:
      krq recent --status failed --json | jq -r '.[].id' | xargs krq retry
    """

    def one(task_id: str) -> str:
        app.retry(task_id)
        return "sent again"

    return _each(task_ids, one)


def _each(task_ids: tuple[str, ...], act: Callable[[str], str]) -> int:
    """Do it to every task, whatever became of the others; the exit code."""
    code = 0
    for task_id in dict.fromkeys(task_ids):
        try:
            click.echo(f"{task_id}  {act(task_id)}")
        except ConnectionError:  # no other would fare better
            raise
        except KRQError as error:
            code = text.fail(str(error))
    return code


@click.command(short_help="Let workers take nothing more of a queue.")
@queue_argument
@connected
def pause(app: KRQ, queue: str) -> None:
    """Let workers take nothing more of a queue until `krq resume`. What runs goes on, what is sent waits.

    \b
    Example:
      krq pause default
    """
    app.pause(queue)
    click.echo(f"{queue} is paused; `krq resume {queue}` lets it go on.")
    served = sorted({name for one in app.workers() for name in one.queues})
    if served and queue not in served:
        click.echo(f"Note: no live worker serves a queue of this name; they serve {', '.join(served)}.", err=True)


@click.command(short_help="Undo pause.")
@queue_argument
@connected
def resume(app: KRQ, queue: str) -> None:
    """Let workers take from a paused queue again.

    \b
    Example:
      krq resume default
    """
    app.resume(queue)
    click.echo(f"{queue} goes on.")


@click.command(short_help="Drop all that waits in a queue.")
@queue_argument
@yes_option
@connected
def purge(app: KRQ, queue: str, yes: bool) -> int:
    """Drop all that is ready or scheduled in a queue, and its backlog in the log. What runs goes on. There is no way back.

    \b
    Example:
      krq purge default --yes
    """
    known = _queues(app)
    if ids.check_queue(queue) not in known:
        click.echo(f"There is no queue {queue}; there are {', '.join(known) or 'none'}.")
        return 0
    return _drop(f"Drop {_contents([known[queue]])} of the queue {queue}?", lambda: app.purge(queue), yes)


@click.command(short_help="Drop all that waits in every queue.")
@yes_option
@connected
def clear(app: KRQ, yes: bool) -> int:
    """Drop all that is ready or scheduled in every queue, and the backlogs. What runs goes on. There is no way back.

    \b
    Example:
      krq clear --yes
    """
    known = _queues(app)
    if not known:
        click.echo("There are no queues yet.")
        return 0
    return _drop(f"Drop {_contents(list(known.values()))} of all queues ({', '.join(known)})?", app.clear, yes)


def _queues(app: KRQ) -> dict[str, QueueStats]:
    return app.stats().queues


def _contents(queues: list[QueueStats]) -> str:
    ready, scheduled = sum(queue.ready + queue.parked for queue in queues), sum(queue.scheduled for queue in queues)
    backlog = sum(max(0, queue.backlog) for queue in queues)
    return f"{text.count(ready, 'ready task')}, {scheduled:,} scheduled and {backlog:,} in the backlog"


def _drop(question: str, act: Callable[[], int], yes: bool, done: str = "dropped") -> int:
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError(f"Tasks would be {done} for good, and there is no terminal to ask: give --yes.")
        if not click.confirm(question):
            click.echo(f"Nothing was {done}.")
            return 1
    click.echo(f"{text.count(act(), 'task')} {done}.")
    return 0


COMMANDS: tuple[click.Command, ...] = (cancel, retry, pause, resume, purge, clear)
