"""One look at all numbers, and what a row of looks tells: what both dashboards show."""

from __future__ import annotations

import time
from typing import NamedTuple

from krq.info import Latency, Stats, TaskFilter, TaskInfo, WorkerFailure, WorkerInfo
from krq.inspector import Inspector
from krq.states import TaskStatus


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


def look(inspector: Inspector, *, failed: int = 6, deaths: int = 5) -> Seen:
    """Ask Redis for all numbers: a bounded number of round trips, whatever the number of tasks. The broker is not asked.

    ``failed``, ``deaths``: at most so many failed tasks and deaths of workers. Raises ``RedisConnectionError``.
    """
    return Seen(
        time.time(), inspector.stats(backlog=False), inspector.workers(), inspector.latency(),
        inspector.page(TaskFilter(status=TaskStatus.FAILED), limit=failed).tasks, inspector.failures(deaths),
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
