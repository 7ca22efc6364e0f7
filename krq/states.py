"""The states of a task, and which of them are final."""

from __future__ import annotations

from enum import StrEnum


class TaskStatus(StrEnum):
    """Where a task stands. ``success``, ``failed`` and ``cancelled`` are final."""

    WAITING = "waiting"
    """waits for other tasks"""
    SCHEDULED = "scheduled"
    """waits for a time: ETA, delay, back-off"""
    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more happens to the task, unless somebody retries it."""
        return self in (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)
