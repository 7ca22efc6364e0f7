"""One task: where it stands, and how it came there, in plain words."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgspec

from krq import ids
from krq.core import KRQ
from krq.dashboard.shapes import LONG, preview, result, row
from krq.info import Arguments, AttemptInfo, TaskInfo
from krq.inspector import Inspector
from krq.states import TaskStatus

#: dependencies and dependents that a task's page lists
MOST = 100


def detail(app: KRQ, task_id: str) -> dict[str, Any]:
    """Everything that a task's page shows: some ten round trips. Raises ``TaskNotFound``."""
    info = app.status(ids.check_task_id(task_id))
    inspector = app.inspector
    arguments = inspector.arguments([info.id])[0]
    history = inspector.history(info.id)
    after = arguments.after[:MOST] if arguments is not None else []
    dependents = inspector.dependents(info.id, MOST)
    known = inspector.infos([*after, *dependents])
    kin = [_kin(one, found) for one, found in zip([*after, *dependents], known, strict=True)]
    return {
        "task": {**row(info), "deaths": info.deaths, "interruptions": info.interruptions},
        "arguments": _arguments(arguments),
        "result": result(info, LONG) if info.status is TaskStatus.SUCCESS else None,
        "error": info.error,
        "history": history,
        "after": kin[: len(after)],
        "dependents": kin[len(after) :],
        "in_workflow": bool(kin) or len(app.tree(info.id, limit=3)) > 1,
        "story": story(info, history, kin[: len(after)]),
        "why": _why(inspector, info, kin[: len(after)]),
    }


def _arguments(found: Arguments | None) -> dict[str, Any] | None:
    if found is None:
        return None
    shown = msgspec.to_builtins(found)
    shown["after"] = len(found.after)
    if len(msgspec.json.encode([found.args, found.kwargs])) > LONG:
        shown.update(args=[preview(one, 2_000) for one in found.args[:20]], kwargs={}, cut=True)
    return dict(shown)


def _kin(task_id: str, info: TaskInfo | None) -> dict[str, Any]:
    return {"id": task_id, "name": info.name if info else "", "status": info.status if info else None}


# --- the story -------------------------------------------------------------------------------


def story(info: TaskInfo, history: list[AttemptInfo], after: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What happened, in order: when, how it went, in words."""
    steps: list[dict[str, Any]] = []
    if info.sent is not None:
        waits = f", to run after {len(after)} other {'task' if len(after) == 1 else 'tasks'}" if after else ""
        steps.append(_step(info.sent, "sent", f"Sent to the queue {info.queue}{waits}"))
    for one in history:
        if one.started is not None:
            steps.append(_step(one.started, "started", f"Attempt {one.attempt} began" + (f" on {one.worker}" if one.worker else "")))
        steps.append(_step(one.finished, "cancelled" if one.outcome == "cancelled" else "failed", _ended(one)))
    told = {one.attempt for one in history}
    if info.started is not None and info.attempt not in told:
        steps.append(_step(info.started, "started", f"Attempt {info.attempt} began on {info.worker}"))
    if info.finished is not None and not (history and info.attempt in told and info.status is not TaskStatus.SUCCESS):
        took = f" after {_span(info.finished - info.started)}" if info.started is not None and info.status is TaskStatus.SUCCESS else ""
        words = {TaskStatus.SUCCESS: f"Succeeded{took}", TaskStatus.CANCELLED: "Cancelled"}.get(info.status, "Failed for good")
        if info.status is TaskStatus.FAILED and info.error is not None:
            words += f": {info.error.type}"
        steps.append(_step(info.finished, info.status.value, words))
    if info.status is TaskStatus.SCHEDULED and info.due is not None:
        words = f"Attempt {info.attempt + 1} is due" if info.attempt else "It is due"
        steps.append({**_step(info.due, "due", words), "future": info.due > time.time()})
    return steps


def _ended(one: AttemptInfo) -> str:
    what = {
        "retry": "failed, to be tried again", "failed": "failed for good", "cancelled": "was cancelled", "died": "died with its process",
        "interrupted": "was interrupted: its worker died", "handed back": "was handed back by a worker that left",
    }.get(one.outcome, one.outcome)
    because = one.error.type if one.error is not None else one.cause
    return f"Attempt {one.attempt} {what}" + (f" ({because})" if because else "")


def _step(at: float | None, kind: str, text: str) -> dict[str, Any]:
    return {"at": at, "kind": kind, "text": text}


def _span(seconds: float) -> str:
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


# --- why it does not run ---------------------------------------------------------------------


def _why(inspector: Inspector, info: TaskInfo, after: list[dict[str, Any]]) -> str:
    """Why it is not running, "" where it is or has ended."""
    match info.status:
        case TaskStatus.WAITING:
            counts = Counter(str(one["status"] or "not published yet") for one in after if one["status"] is not TaskStatus.SUCCESS)
            return "It waits for other tasks" + (": " + ", ".join(f"{n} {name}" for name, n in counts.items()) if counts else "") + "."
        case TaskStatus.SCHEDULED:
            if info.error is not None:
                return f"It failed ({info.error.type}) and is tried again when the back-off is over."
            return "Its time has not come."
        case TaskStatus.QUEUED:
            return _why_queued(inspector, info)
    return ""


def _why_queued(inspector: Inspector, info: TaskInfo) -> str:
    queue = inspector.stats(backlog=False).queues.get(info.queue)
    if queue is not None and queue.paused:
        return f"The queue {info.queue} is paused."
    if info.waits_for:
        return f"It is kept back by its limit: {info.waits_for}."
    workers = [worker for worker in inspector.workers() if info.queue in (*worker.queues, worker.inbox)]
    if not workers:
        return f"No live worker serves the queue {info.queue}."
    if not {worker.incarnation for worker in inspector.serving(info.name)} & {worker.incarnation for worker in workers}:
        return f"No live worker of the queue {info.queue} knows a task named {info.name}."
    if all(worker.busy >= worker.slots for worker in workers):
        return f"All slots of the {len(workers)} {'worker' if len(workers) == 1 else 'workers'} of its queue are busy."
    return "It is about to be taken."
