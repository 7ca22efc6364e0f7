"""What KRQ tells about tasks, workers and queues, as values. All times are Unix seconds, None where they have not come."""

from __future__ import annotations

from typing import Any

import msgspec

from krq.outcome import ErrorInfo
from krq.states import TaskStatus


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands. ``str(info)`` is its status with the result or the error: ``success 3``."""

    id: str
    status: TaskStatus
    name: str = ""
    queue: str = ""
    result: Any = None
    """what the function returned, once it succeeded"""
    error: ErrorInfo | None = None
    """the last error: of the failure, or of the attempt before"""
    attempt: int = 0
    failures: int = 0
    deaths: int = 0
    """workers that died while it ran"""
    worker: str = ""
    """who runs it or ran it last"""
    priority: int = 0
    progress: tuple[int, int] | None = None
    sent: float | None = None
    due: float | None = None
    started: float | None = None
    """of the last attempt"""
    finished: float | None = None

    def __str__(self) -> str:
        if self.status is TaskStatus.SUCCESS:
            return f"{self.status} {msgspec.json.encode(self.result).decode()}"
        if self.status is TaskStatus.FAILED and self.error is not None:
            return f"{self.status} {self.error.type}: {self.error.message}"
        return str(self.status)


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A live incarnation of a worker."""

    id: str
    incarnation: str
    host: str = ""
    pid: int = 0
    queues: list[str] = []
    slots: int = 0
    busy: int = 0
    """tasks it holds now"""
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    started: float | None = None
    beat: float | None = None
    """its last heartbeat"""
    version: str = ""
    inbox: str = ""
    """the queue that it alone serves"""


class WorkerFailure(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an incarnation that nobody asked for."""

    worker: str
    incarnation: str
    at: float
    cause: str
    """exit code, signal, or the lease"""
    beat: float | None = None
    held: int = 0
    ran: list[str] = []
    """ids of the tasks that were running, where its supervisor could tell"""
    host: str = ""


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as it stands."""

    queue: str
    ready: int = 0
    scheduled: int = 0
    backlog: int = 0
    """records in the log that were not admitted yet"""
    admitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    paused: bool = False


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The whole namespace as it stands."""

    queues: dict[str, QueueStats]
    workers: int = 0
    processing: int = 0
    waiting: int = 0
    dead: int = 0
    """dead letters remembered, at most 1,000"""
    outbox: int = 0
    """ended attempts that the log has not got yet"""
