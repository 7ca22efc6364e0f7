"""What the tables say: from a look and the filter to rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from krq.info import QueueStats, TaskInfo, TaskPage, WorkerFailure, WorkerInfo
from krq.phrases import COLOURS, Styled, ago, between, coarse, count, error, rate, until
from krq.states import TaskStatus
from krq.terminal.charts import short
from krq.terminal.filter import Wanted
from krq.terminal.poll import DEATHS, FAILED, RUNNING, Look
from krq.terminal.table import Column, Row

Cell = Styled | str | int


class Kind(NamedTuple):
    """A table: its name, its columns, where its rows come from, and what to say when there are none."""

    name: str
    title: Callable[[Look], str]
    columns: Sequence[Column]
    rows: Callable[[Look, Wanted], list[Row]]
    empty: Callable[[Look], str]


def _number(number: int, colour: str | None = None, more: bool = False) -> Styled:
    """A count; 0 is there, but does not call. ``more``: there may be more."""
    return Styled(short(number) + "+" * more, colour) if number else Styled("0", "bright_black")


def _since(moment: float | None) -> str:
    return "" if moment is None else coarse(max(0.0, time.time() - moment))


# --- queues --------------------------------------------------------------------------------------

QUEUES = (
    Column("QUEUE", 16), Column("READY", right=True), Column("SCHED", right=True), Column("WAIT", right=True), Column("RUN", right=True),
    Column("BACKLOG", right=True), Column("DONE", right=True), Column("FAILED", right=True), Column("PER S", right=True),
    Column("5 MIN", rank=2, right=True), Column("15 MIN", rank=2, right=True), Column("RETRIED", rank=3, right=True),
    Column("CANCELLED", rank=3, right=True), Column("", 6),
)


def queues(look: Look, wanted: Wanted) -> list[Row]:
    """A row for each queue."""
    running, waiting = _by_queue(look.running), _by_queue(look.waiting)
    return [
        Row(one.queue, _queue(one, look.backlog.get(one.queue, -1), running(one.queue, "cyan"), waiting(one.queue, None)), one)
        for one in look.seen.stats.queues.values() if wanted.of(queues=[one.queue])
    ]


def _by_queue(page: TaskPage) -> Callable[[str, str | None], Styled]:
    """How many of these are of a queue, in a colour."""
    found = Counter(one.queue for one in page.tasks)
    return lambda queue, colour: _number(found[queue], colour, more=page.cursor is not None)


def _queue(one: QueueStats, backlog: int, running: Styled, waiting: Styled) -> list[Cell]:
    notes = ["paused"] * one.paused + [f"{short(one.parked)} parked"] * (one.parked > 0)
    return [
        Styled(one.queue, bold=True), _number(one.ready), _number(one.scheduled), waiting, running,
        Styled("?", "yellow") if backlog < 0 else _number(backlog), _number(one.succeeded, "green"),
        _number(one.failed, "red"), *(rate(each) for each in one.rates),
        _number(one.retried), _number(one.cancelled), Styled(", ".join(notes), "yellow"),
    ]


# --- workers -------------------------------------------------------------------------------------

WORKERS = (
    Column("WORKER", 16), Column("", 10, 2), Column("BUSY", right=True), Column("DONE", right=True), Column("FAILED", right=True),
    Column("RETRIED", right=True, rank=1), Column("BEAT", 7), Column("UP", rank=1, right=True), Column("HOST", 6, 3),
    Column("PID", rank=4, right=True), Column("QUEUES", 24),
)
#: a heart that has not beaten for so many seconds is worth a look
LATE = 3.0


def workers(look: Look, wanted: Wanted) -> list[Row]:
    """A row for each live incarnation."""
    return [Row(one.incarnation, _worker(one), one) for one in look.seen.workers if wanted.of(worker=one.id, queues=one.queues)]


def _worker(one: WorkerInfo) -> list[Cell]:
    late = "yellow" if one.beat is not None and time.time() - one.beat > LATE else None
    return [
        Styled(one.id, bold=True), Styled(_gauge(one.busy, one.slots, 10), "cyan"), f"{one.busy}/{one.slots}",
        _number(one.succeeded, "green"), _number(one.failed, "red"), _number(one.retried), Styled(ago(one.beat), late),
        _since(one.started), one.host, str(one.pid or ""), ", ".join(one.queues),
    ]


def _gauge(part: int, whole: int, width: int) -> str:
    full = min(width, round(width * part / whole)) if whole else 0
    return "█" * full + "░" * (width - full)


# --- tasks ---------------------------------------------------------------------------------------

TASK_COLUMNS = (
    Column("TASK", 20), Column("STATUS", 10), Column("QUEUE", 12), Column("FOR", right=True), Column("PROGRESS", 15, 1),
    Column("WORKER", 12), Column("TRY", right=True), Column("AGE", rank=2, right=True), Column("ID", 28, 3), Column("", 24, 1),
)


def tasks(look: Look, _wanted: Wanted) -> list[Row]:
    """A row for each task that was asked for."""
    return [Row(one.id, _task(one), one) for one in look.tasks.tasks]


def _task(one: TaskInfo) -> list[Cell]:
    return [
        Styled(one.name, bold=True), Styled(one.status.value, COLOURS.get(one.status)), one.queue, _time_of(one), _progress(one),
        one.worker if one.started else "", one.attempt or "", _since(one.sent), one.id, Styled(error(one.error), "red"),
    ]


def _time_of(one: TaskInfo) -> str:
    """How long it has run, or took, or waits."""
    match one.status:
        case TaskStatus.PROCESSING:
            return _since(one.started)
        case TaskStatus.SCHEDULED:
            return until(one.due)
        case status if status.final:
            return between(one.started, one.finished)
    return _since(one.sent)


def _progress(one: TaskInfo) -> str:
    if one.progress is None or one.status.final:
        return ""
    done, total = one.progress
    return f"{_gauge(done, total, 8)} {short(done)}/{short(total)}"


# --- failures ------------------------------------------------------------------------------------

FAILURES = (
    Column("AGO", right=True), Column("WHAT", 6), Column("NAME", 20), Column("WHY", 36),
    Column("TRY", right=True, rank=1), Column("WORKER", 8, 2), Column("QUEUE", 7, 3), Column("ID", 28, 4),
)


def failures(look: Look, wanted: Wanted) -> list[Row]:
    """Tasks that failed and workers that died, the latest first."""
    dead = [(one.at, Row(f"{one.incarnation} {one.at}", _death(one), one)) for one in look.seen.deaths if wanted.of(worker=one.worker)
            and not (wanted.name or wanted.queue)]
    failed = [(one.finished or 0.0, Row(one.id, _failed(one), one)) for one in look.seen.failed
              if wanted.of(name=one.name, queues=[one.queue], worker=one.worker)]
    return [row for _, row in sorted([*dead, *failed], key=lambda each: each[0], reverse=True)]


def _death(one: WorkerFailure) -> list[Cell]:
    cause = one.cause + (f"; held {count(one.held, 'task')}" if one.held else "")
    return [_since(one.at), Styled("worker", "magenta"), Styled(one.worker, bold=True), Styled(cause, "red"), "", one.worker, "", ""]


def _failed(one: TaskInfo) -> list[Cell]:
    return [
        _since(one.finished), "task", Styled(one.name, bold=True), Styled(error(one.error), "red"), one.attempt or "", one.worker,
        one.queue, one.id,
    ]


# --- all of them ---------------------------------------------------------------------------------


def asked(look: Look) -> str:
    """What the list of tasks is of: ``Failed``, ``Tasks``."""
    return look.asked.status.value.capitalize() if look.asked.status else "Tasks"


def _workers_title(look: Look) -> str:
    workers = look.seen.workers
    busy = f" · {sum(min(one.busy, one.slots) for one in workers)}/{sum(one.slots for one in workers)} busy" if workers else ""
    return f"Workers {len(workers)}{busy}"


def _tasks_title(look: Look) -> str:
    if look.asked == RUNNING:
        return f"Running {short(look.processing)}"
    return f"{asked(look)} {len(look.tasks.tasks)}{'+' * (look.tasks.cursor is not None)}"


def _failures_title(look: Look) -> str:
    failed, deaths = look.seen.failed, look.seen.deaths
    return f"Failures {len(failed) + len(deaths)}{'+' * (len(failed) >= FAILED or len(deaths) >= DEATHS)}"


def _no_task(look: Look) -> str:
    if look.asked == RUNNING:
        return "No task is in progress."
    return "There is no such task."


KINDS = (
    Kind("Queues", lambda look: f"Queues {len(look.seen.stats.queues)}", QUEUES, queues, lambda _: "There are no queues yet."),
    Kind("Workers", _workers_title, WORKERS, workers,
         lambda _: "No worker is alive. Start one with: krq worker APP"),
    Kind("Tasks", _tasks_title, TASK_COLUMNS, tasks, _no_task),
    Kind("Failures", _failures_title, FAILURES, failures, lambda _: "No task has failed, no worker has died."),
)
