"""What the pages get: numbers, lists, one task with its story. Values only; asking is done here, deciding nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from krq.core import KRQ
from krq.events import DeadLetter
from krq.info import Latency, Stats, TaskFilter, TaskInfo, WorkerFailure, WorkerInfo
from krq.masking import masked, record
from krq.message import reread
from krq.states import TaskStatus

#: characters of a result in a list, and of one on its own page
SHORT, LONG = 160, 100_000
WINDOWS = ((60, "1m"), (300, "5m"), (900, "15m"))


class Seen(NamedTuple):
    """One look at all numbers."""

    at: float
    stats: Stats
    workers: list[WorkerInfo]
    latency: Latency
    failed: list[TaskInfo]
    deaths: list[WorkerFailure]


class Point(NamedTuple):
    """What a look leaves for the charts. Rates are tasks a second since the point before."""

    at: float
    succeeded: int
    failed: int
    done_rate: float | None
    failed_rate: float | None
    ready: int
    processing: int
    scheduled: int
    waiting: int
    run: float | None
    wait: float | None


def look(app: KRQ) -> Seen:
    """Ask Redis for all numbers: a bounded number of round trips, whatever the number of tasks."""
    inspector = app.inspector
    return Seen(
        time.time(), inspector.stats(backlog=False), inspector.workers(), inspector.latency(),
        inspector.page(TaskFilter(status=TaskStatus.FAILED), limit=6).tasks, inspector.failures(5),
    )


def point(seen: Seen, before: Point | None) -> Point:
    """A look as a point of the charts."""
    queues = seen.stats.queues.values()
    succeeded, failed = sum(queue.succeeded for queue in queues), sum(queue.failed for queue in queues)
    passed = seen.at - before.at if before is not None else 0.0
    return Point(
        round(seen.at, 2), succeeded, failed,
        round(max(0, succeeded - before.succeeded) / passed, 2) if before is not None and passed > 0 else None,
        round(max(0, failed - before.failed) / passed, 2) if before is not None and passed > 0 else None,
        sum(queue.ready for queue in queues), seen.stats.processing, sum(queue.scheduled for queue in queues), seen.stats.waiting,
        seen.latency.run, seen.latency.wait,
    )


def overview(seen: Seen, history: Sequence[Point], backlog: Mapping[str, int], *, whole: bool) -> dict[str, Any]:
    """The numbers for the page: with all points at first, with the last one later."""
    stats, last = seen.stats, history[-1]
    backlogs = [backlog.get(name, -1) for name in stats.queues]
    return {
        "at": seen.at,
        "totals": {
            "ready": last.ready, "scheduled": last.scheduled, "waiting": stats.waiting, "processing": stats.processing,
            "succeeded": last.succeeded, "failed": last.failed, "cancelled": sum(queue.cancelled for queue in stats.queues.values()),
            "retried": sum(queue.retried for queue in stats.queues.values()), "dead": stats.dead, "outbox": stats.outbox,
            "backlog": -1 if -1 in backlogs else sum(backlogs), "workers": stats.workers,
            "slots": sum(worker.slots for worker in seen.workers), "busy": sum(worker.busy for worker in seen.workers),
        },
        "rates": rates(history),
        "latency": seen.latency,
        "queues": [msgspec.structs.replace(queue, backlog=backlog.get(name, -1)) for name, queue in stats.queues.items()],
        "workers": seen.workers,
        "failed": [row(info) for info in seen.failed],
        "deaths": [msgspec.structs.replace(death, tail=[]) for death in seen.deaths],
        "points": list(history) if whole else [last],
    }


def rates(history: Sequence[Point]) -> dict[str, Any]:
    """Tasks a second over 1, 5 and 15 minutes, or as long as somebody has looked."""
    last, found = history[-1], {}
    for seconds, name in WINDOWS:
        first = next((one for one in history if one.at >= last.at - seconds), last)
        passed = last.at - first.at
        done = last.succeeded + last.failed - first.succeeded - first.failed
        found[name] = {"rate": round(max(0, done) / passed, 2) if passed > 0 else 0.0, "seconds": round(passed)}
    return found


def row(info: TaskInfo) -> dict[str, Any]:
    """A task as a line of a list: without its traceback, its result cut short."""
    error = info.error
    return {
        "id": info.id, "name": info.name, "status": info.status, "queue": info.queue, "worker": info.worker if info.started else "",
        "attempt": info.attempt, "failures": info.failures, "sent": info.sent, "due": info.due, "started": info.started,
        "finished": info.finished, "progress": info.progress, "priority": info.priority,
        "deaths": info.deaths, "interruptions": info.interruptions, "waits_for": info.waits_for,
        "error": None if error is None else {"type": error.type, "message": error.message[:SHORT]},
        "result": result(info, SHORT) if info.status is TaskStatus.SUCCESS else None,
    }


def result(info: TaskInfo, most: int) -> str:
    """What a task returned; values whose keys say that they are secrets stay hidden."""
    return preview(masked([info.result], {}, {})[0][0], most)


def preview(value: Any, most: int) -> str:
    """A value as JSON text, at most so many characters."""
    text = msgspec.json.encode(value)
    shown = text[: 4 * most].decode(errors="ignore")
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def letter(one: DeadLetter) -> dict[str, Any]:
    """A dead letter; what its message hides stays hidden."""
    shown: dict[str, Any] = {
        "ref": one.ref, "reason": one.reason, "code": one.code, "at": one.at / 1000, "queue": one.queue, "partition": one.partition,
        "offset": one.offset, "id": one.id, "name": one.name, "base64": one.base64, "arguments": None, "raw": "", "attempt": one.attempt,
        "traceback": one.error.traceback if one.error is not None else "",
    }
    try:
        found = reread(one.value)
        args, kwargs = masked(found.args, found.kwargs, found.headers)
        shown["arguments"] = preview({"args": args, "kwargs": kwargs}, 4_000)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        shown["raw"] = record(one.value, cut=bool(one.size))[:2_000]
    return shown
