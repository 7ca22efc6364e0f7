"""What can be done to a row: the question before it, and the deed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from krq.core import KRQ
from krq.info import QueueStats, TaskInfo
from krq.states import TaskStatus

Queues = Mapping[str, QueueStats]


class Act(NamedTuple):
    """``run`` is called in a thread, and may raise ``KRQError``."""

    question: str
    note: str
    run: Callable[[], object]
    done: str
    refused: str = ""
    """what to say when it returns False"""


def pause(app: KRQ, of: Any, queues: Queues) -> Act | str:
    """Pause the queue, or let it go on."""
    queue = queues.get(of.queue) if isinstance(of, QueueStats | TaskInfo) else None
    if queue is None:
        return "Choose a queue first (1), or a task of it."
    name = queue.queue
    if queue.paused:
        return Act(f"Let the queue {name} go on?", "", lambda: app.resume(name), f"{name} goes on.")
    note = "Workers take nothing more of it. What runs goes on, what is sent waits."
    return Act(f"Pause the queue {name}?", note, lambda: app.pause(name), f"{name} is paused.")


def retry(app: KRQ, of: Any, _queues: Queues) -> Act | str:
    """Run a task again."""
    if not isinstance(of, TaskInfo):
        return "Choose a task first (3 or 4)."
    if of.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
        return f"It is {of.status}. Only failed and cancelled tasks can be run again."
    note = f"{of.id}, with all its retries."
    return Act(f"Run {of.name} again?", note, lambda: app.retry(of.id), f"{of.name} was sent again.")


def cancel(app: KRQ, of: Any, _queues: Queues) -> Act | str:
    """End a task that has not started, or tell its worker to stop it."""
    if not isinstance(of, TaskInfo):
        return "Choose a task first (3 or 4)."
    if of.status.final:
        return f"It has ended already: {of.status}."
    runs = of.status is TaskStatus.PROCESSING
    note = f"{of.id}; it runs on {of.worker}, which is told to stop it." if runs else f"{of.id}; it is {of.status}."

    done = f"The worker of {of.name} was told to stop it." if runs else f"{of.name} is cancelled."
    return Act(f"Cancel {of.name}?", note, lambda: app.cancel(of.id), done, f"{of.name} had ended already.")


Making = Callable[[KRQ, Any, Queues], Act | str]
ACTS: Mapping[str, Making] = {"pause": pause, "retry": retry, "cancel": cancel}
