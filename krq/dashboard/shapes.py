"""What the pages get: numbers, lists, one task with its story. Values only; deciding nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from krq.events import DeadLetter
from krq.info import TaskInfo
from krq.looking import Point, Seen
from krq.masking import masked, record
from krq.message import reread
from krq.states import TaskStatus

#: characters of a result in a list, and of one on its own page
SHORT, LONG = 160, 100_000


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
        "rates": stats.rates, "failure_rates": stats.failure_rates,
        "latency": seen.latency,
        "queues": [msgspec.structs.replace(queue, backlog=backlog.get(name, -1)) for name, queue in stats.queues.items()],
        "workers": seen.workers,
        "failed": [row(info) for info in seen.failed],
        "deaths": [msgspec.structs.replace(death, tail=[]) for death in seen.deaths],
        "points": list(history) if whole else [last],
    }


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
