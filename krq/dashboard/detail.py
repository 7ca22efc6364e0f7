"""One task: its story as ``krq why`` tells it, what it was given, what came of it, and what hangs on it."""

from __future__ import annotations

from typing import Any

import msgspec

from krq import ids
from krq.core import KRQ
from krq.dashboard.shapes import LONG, preview, result, row
from krq.info import Arguments, Story, TaskInfo
from krq.states import TaskStatus

#: characters of lines that a task's page shows
LINES_TEXT = 100_000
#: dependencies and dependents that a task's page lists
MOST = 100


def known(app: KRQ, task_id: str) -> dict[str, Any]:
    """Everything that a task's page shows: some twenty round trips. Raises ``TaskNotFound`` for a task that Redis does not know."""
    app.status(ids.check_task_id(task_id))
    return _page(app, app.why(task_id))


def logged(app: KRQ, task_id: str) -> dict[str, Any]:
    """The same of a task that the log alone knows: seconds, with some brokers. Raises ``TaskNotFound``."""
    return _page(app, app.why(task_id))


def lines(app: KRQ, task_id: str) -> dict[str, Any]:
    """The newest lines of a task: one question, and a bounded answer."""
    found, room = [], LINES_TEXT
    for line in reversed(app.logs(task_id, log_too=False)):
        room -= len(line.text)
        if room < 0:
            break
        found.append({name: getattr(line, name) for name in line.__struct_fields__})
    return {"lines": found[::-1], "cut": room < 0}


def _page(app: KRQ, story: Story) -> dict[str, Any]:
    info, inspector = story.task, app.inspector
    arguments = inspector.arguments([story.id])[0]
    after = arguments.after[:MOST] if arguments is not None else []
    dependents = inspector.dependents(story.id, MOST)
    infos = inspector.infos([*after, *dependents])
    kin = [_kin(one, found) for one, found in zip([*after, *dependents], infos, strict=True)]
    return {
        "task": None if info is None else row(info),
        "past": story.past,
        "reasons": story.reasons,
        "next": story.next,
        "arguments": _arguments(arguments),
        "result": result(info, LONG) if info is not None and info.status is TaskStatus.SUCCESS else None,
        "error": None if info is None else info.error,
        "history": [] if info is None else inspector.history(info.id),
        "after": kin[: len(after)],
        "dependents": kin[len(after) :],
        "in_workflow": info is not None and (bool(kin) or len(app.tree(info.id, limit=3)) > 1),
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
