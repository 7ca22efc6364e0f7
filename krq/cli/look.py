"""Commands that look: what is where, as a table or as JSON."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import msgspec

from krq import phrases
from krq.cli import text
from krq.cli.target import connected
from krq.cli.watching import watched
from krq.config import mask
from krq.core import KRQ
from krq.info import QueueStats, Stats, TaskInfo
from krq.rates import WINDOWS
from krq.states import TaskStatus

NUMBERS = ("READY", "DELAYED", "BACKLOG", "PER S", "SUCCEEDED", "FAILED", "CANCELLED", "RETRIED")

Wanted = Mapping[str, str | None]


def filtered(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that narrow a list of tasks; it gets them as ``wanted``, to pass on to ``app.tasks``."""

    @click.option("--worker", metavar="WORKER", help="Only tasks that this worker has, or had last.")
    @click.option("--queue", metavar="QUEUE", help="Only tasks of this queue.")
    @click.option("--name", metavar="TASK", help="Only tasks of this name.")
    @functools.wraps(function)
    def command(*args: Any, name: str | None, queue: str | None, worker: str | None, **kwargs: Any) -> None:
        function(*args, wanted={"name": name, "queue": queue, "worker": worker}, **kwargs)

    return command


@click.command(short_help="Numbers of each queue and of all.")
@text.json_option
@connected
@watched
def stats(app: KRQ, as_json: bool) -> None:
    """Numbers of each queue and of all.

    READY waits for a worker, DELAYED for its time, BACKLOG in the log ("?": the broker does not answer);
    what is parked waits for a limit of its task. PER S is how many ended in a second of the last minute.

    \b
    Example:
      krq stats
      krq stats --json | jq '.queues.default.ready'
    """
    found = app.stats()
    if as_json:
        text.print_json(found)
        return
    if found.queues:
        text.print_table(("QUEUE", *NUMBERS, ""), [_queue_row(queue) for queue in found.queues.values()], right=NUMBERS)
        click.echo()
    click.echo(_summary(found))
    if any(queue.backlog < 0 for queue in found.queues.values()):
        click.echo(f"Note: the broker, {mask(app.config.broker)}, does not answer, so BACKLOG is not known.", err=True)


def _queue_row(queue: QueueStats) -> list[Any]:
    backlog = "?" if queue.backlog < 0 else queue.backlog
    notes = ["paused"] * queue.paused + [f"{queue.parked:,} parked"] * (queue.parked > 0)
    paused = text.Styled(", ".join(notes), "yellow") if notes else text.Styled(" ", None)
    rate = phrases.rate(queue.rates[0])
    return [queue.queue, queue.ready, queue.scheduled, backlog, rate, queue.succeeded, queue.failed, queue.cancelled, queue.retried, paused]


def _summary(found: Stats) -> str:
    rates = [f"{phrases.rate(rate)} in {window // 60} min" for rate, window in zip(found.rates, WINDOWS, strict=True)]
    parts = [text.count(found.workers, "worker"), f"{found.processing:,} processing", f"{found.waiting:,} waiting for others"]
    if found.dead:
        parts.append(click.style(text.count(found.dead, "dead letter"), fg="red"))
    if found.outbox:
        parts.append(f"{found.outbox:,} ended but not logged yet")
    return ", ".join(parts) + (f"\nper second: {' · '.join(rates)}" if found.queues else "")


@click.command(short_help="The live workers.")
@text.json_option
@connected
@watched
def workers(app: KRQ, as_json: bool) -> None:
    """The live workers: a line for each of their processes.

    \b
    Example:
      krq workers
    """
    found = app.workers()
    if as_json:
        text.print_json(found)
    elif not found:
        click.echo("No worker is alive. Start one with `krq worker APP`.")
    else:
        rows = [
            [one.id, one.host, one.pid, f"{one.busy}/{one.slots}", one.succeeded, one.failed, one.retried,
             text.coarse(time.time() - one.started) if one.started else "", text.ago(one.beat), ", ".join(one.queues)]
            for one in found
        ]
        columns = ("WORKER", "HOST", "PID", "BUSY", "SUCCEEDED", "FAILED", "RETRIED", "UP", "BEAT", "QUEUES")
        text.print_table(columns, rows, right=("PID", "BUSY", "SUCCEEDED", "FAILED", "RETRIED", "UP"))


@click.command(short_help="Tasks that are queued or being processed.")
@filtered
@text.limit_option
@text.json_option
@connected
@watched
def pending(app: KRQ, wanted: Wanted, limit: int, as_json: bool) -> None:
    """Tasks that are queued or being processed.

    \b
    Example:
      krq pending --name add -n 10
    """
    found = app.tasks(TaskStatus.PROCESSING, limit=limit, **wanted)
    found += app.tasks(TaskStatus.QUEUED, limit=limit - len(found), **wanted) if len(found) < limit else []
    if _empty_or_json(found, as_json, "No task is queued or being processed."):
        return
    rows = [
        [one.id, one.name, one.status, one.queue, one.attempt, text.ago(one.sent), _running(one), one.worker if one.started else ""]
        for one in found
    ]
    text.print_table(("ID", "TASK", "STATUS", "QUEUE", "ATTEMPT", "SENT", "RUNNING", "WORKER"), rows, right=("ATTEMPT",))
    _more(found, limit)


def _running(one: TaskInfo) -> str:
    if one.status is not TaskStatus.PROCESSING or one.started is None:
        return ""
    progress = f" ({one.progress[0]}/{one.progress[1]})" if one.progress else ""
    return text.coarse(time.time() - one.started) + progress


@click.command(short_help="Tasks that have ended, the latest first.")
@click.option("--status", type=click.Choice([one.value for one in TaskStatus if one.final]), help="Only tasks that ended so.")
@filtered
@text.limit_option
@text.json_option
@connected
@watched
def recent(app: KRQ, status: str | None, wanted: Wanted, limit: int, as_json: bool) -> None:
    """Tasks that have ended, the latest first.

    \b
    Example:
      krq recent --status failed
    """
    ends = [TaskStatus(status)] if status else [one for one in TaskStatus if one.final]
    found = [one for each in ends for one in app.tasks(each, limit=limit, **wanted)]
    found = sorted(found, key=lambda one: one.finished or 0, reverse=True)[:limit]
    if _empty_or_json(found, as_json, "No task has ended yet."):
        return
    rows = [
        [one.id, one.name, one.status, one.queue, one.attempt, text.ago(one.finished), text.between(one.started, one.finished), _end(one)]
        for one in found
    ]
    text.print_table(("ID", "TASK", "STATUS", "QUEUE", "ATTEMPT", "ENDED", "TOOK", "RESULT"), rows, right=("ATTEMPT", "TOOK"))
    _more(found, limit)


def _end(one: TaskInfo) -> str:
    if one.status is TaskStatus.SUCCESS:
        return msgspec.json.encode(one.result).decode()
    return phrases.error(one.error)


@click.command(short_help="Tasks that wait for their time, the next first.")
@filtered
@text.limit_option
@text.json_option
@connected
@watched
def delayed(app: KRQ, wanted: Wanted, limit: int, as_json: bool) -> None:
    """Tasks that wait for their time (a delay, an ETA, the back-off before another attempt), the next first.

    \b
    Example:
      krq delayed
    """
    found = sorted(app.tasks(TaskStatus.SCHEDULED, limit=limit, **wanted), key=lambda one: one.due or 0)
    if _empty_or_json(found, as_json, "No task is scheduled."):
        return
    rows = [[one.id, one.name, one.queue, one.attempt, text.until(one.due), text.ago(one.sent), phrases.error(one.error)] for one in found]
    text.print_table(("ID", "TASK", "QUEUE", "ATTEMPT", "DUE", "SENT", "LAST ERROR"), rows, right=("ATTEMPT",))
    _more(found, limit)


def _empty_or_json(found: Sequence[Any], as_json: bool, nothing: str) -> bool:
    """Print what is no table; whether that was all."""
    if as_json:
        text.print_json(found)
    elif not found:
        click.echo(nothing)
    return as_json or not found


def _more(found: Sequence[Any], limit: int) -> None:
    if len(found) >= limit:
        click.echo(f"There may be more than these {limit}: see --limit.", err=True)


@click.command(short_help="Workers that died, the latest first.")
@text.limit_option
@text.json_option
@click.option("--log", "-v", "with_log", is_flag=True, help="Also the last lines of each one's log.")
@connected
@watched
def failures(app: KRQ, limit: int, as_json: bool, with_log: bool) -> None:
    """Workers that ended without being asked to, the latest first; HELD tasks were given to others.

    \b
    Example:
      krq failures
      krq failures -n 1 --log
    """
    found = app.failures(limit)
    if _empty_or_json(found, as_json, "No worker has died."):
        return
    rows = [[text.ago(one.at), one.worker, one.host, one.cause, text.ago(one.beat), one.held, ", ".join(one.ran)] for one in found]
    text.print_table(("WHEN", "WORKER", "HOST", "CAUSE", "LAST BEAT", "HELD", "WAS RUNNING"), rows, right=("HELD",))
    _more(found, limit)
    for one in found if with_log else ():
        click.echo(f"\n{one.worker}, {text.clock(one.at)}: {one.cause}")
        for line in one.tail or ["(nobody kept its log)"]:
            click.echo(f"  {text.cell(line).text}")


@click.command(short_help="One task: where it stands, its result, its error.")
@click.argument("task_id", metavar="ID")
@text.json_option
@connected
def task(app: KRQ, task_id: str, as_json: bool) -> None:
    """One task: where it stands, its times, its result or its error with the worker's traceback.

    \b
    Example:
      krq task 019a2b3c4d5e0123456789abcdef
    """
    one = app.status(task_id)
    attempts, given = app.history(task_id), app.arguments(task_id)
    if as_json:
        text.print_json({**msgspec.structs.asdict(one), "arguments": given, "history": attempts})
        return
    for label, value in _details(one):
        if value:
            click.echo(f"{label:<10}{value}")
    if given is not None and (given.args or given.kwargs):
        click.echo(f"{'Arguments':<10}{text.cell(phrases.arguments(given)).text}")
    text.print_attempts(attempts)
    if one.error is not None and one.error.traceback:
        click.echo("\n" + text.printable(one.error.traceback.rstrip()))


def _details(one: TaskInfo) -> list[tuple[str, str]]:
    took = text.between(one.started, one.finished)
    attempts = f"{one.attempt}" + (f", after {text.count(one.failures, 'failure')}" if one.failures else "")
    attempts += f", {text.count(one.deaths, 'death')} of its process" if one.deaths else ""
    attempts += f", {text.count(one.interruptions, 'interruption')}" if one.interruptions else ""
    return [
        ("ID", one.id), ("Task", text.cell(one.name).text), ("Status", text.status(one.status)), ("Waits for", one.waits_for),
        ("Result", text.cell(msgspec.json.encode(one.result).decode()).text if one.status is TaskStatus.SUCCESS else ""),
        ("Error", text.cell(phrases.error(one.error)).text if one.error else ""),
        ("Progress", f"{one.progress[0]}/{one.progress[1]}" if one.progress else ""),
        ("Queue", text.cell(one.queue).text), ("Priority", str(one.priority or "")),
        ("Attempt", attempts if one.attempt else ""), ("Worker", one.worker),
        ("Sent", text.clock(one.sent) if one.sent else ""), ("Due", text.clock(one.due) if one.due else ""),
        ("Started", text.clock(one.started) if one.started else ""),
        ("Ended", text.clock(one.finished) + (f", it took {took}" if took else "") if one.finished else ""),
    ]


COMMANDS: tuple[click.Command, ...] = (stats, workers, pending, recent, delayed, task, failures)
