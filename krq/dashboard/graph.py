"""Workflows as graphs: tasks, and who waits for whom, around one of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from krq import ids
from krq.core import KRQ
from krq.info import TaskFilter, TaskInfo
from krq.states import TaskStatus

#: tasks that one picture shows
MOST_NODES = 300
#: waiting and failed tasks that the list of workflows is made of
SAMPLE = 100


def around(app: KRQ, task_id: str) -> dict[str, Any]:
    """The workflow that a task is in, and who waits for it without being of it. Raises ``TaskNotFound``."""
    tree = app.tree(ids.check_task_id(task_id), limit=MOST_NODES)
    more = set(app.inspector.dependents(task_id, MOST_NODES)) - {node.id for node in tree}
    if more:
        tree = app.tree(task_id, *sorted(more), limit=MOST_NODES)
    known = {node.id for node in tree}
    return {
        "id": task_id, "cut": tree.truncated,
        "nodes": [{"id": node.id, "name": node.name, "status": node.status} for node in tree],
        "edges": [edge for edge in tree.edges() if known.issuperset(edge)],
        "children": [(node.parent, node.id) for node in tree if node.parent in known],
    }


def listed(app: KRQ) -> list[dict[str, Any]]:
    """Workflows of which a task waits or has failed of late: what hangs together, with how many stand where. The latest first."""
    inspector = app.inspector
    found: list[TaskInfo] = []
    for status in (TaskStatus.WAITING, TaskStatus.FAILED):
        found += inspector.page(TaskFilter(status=status), limit=SAMPLE).tasks
    known = {info.id: info for info in found}
    leaders: dict[str, str] = {}

    def leader(one: str) -> str:
        while leaders.setdefault(one, one) != one:
            leaders[one] = leaders[leaders[one]]
            one = leaders[one]
        return one

    for info, arguments in zip(found, inspector.arguments([info.id for info in found]), strict=True):
        for before in arguments.after[:500] if arguments is not None else ():
            leaders[leader(info.id)] = leader(before)
    members: dict[str, list[str]] = {}
    for one in list(leaders):
        members.setdefault(leader(one), []).append(one)
    missing = [one for group in members.values() for one in group if one not in known][: 5 * SAMPLE]
    known.update((info.id, info) for info in inspector.infos(missing) if info is not None)
    seen = [([known[one] for one in group if one in known], len(group)) for group in members.values()]
    flows = [_flow(infos, n) for infos, n in seen if infos]
    return sorted(flows, key=lambda flow: flow["sent"], reverse=True)[:SAMPLE]


def _flow(infos: list[TaskInfo], n: int) -> dict[str, Any]:
    """``n``: how many tasks of it were seen; more may hang on them."""
    last = max(infos, key=lambda info: (not info.status.final, info.sent or 0.0, info.id))
    counts = Counter(info.status.value for info in infos)
    names = Counter(info.name for info in infos)
    return {
        "id": last.id, "name": last.name, "n": n, "counts": counts, "names": [name for name, _ in names.most_common(4)],
        "sent": min(info.sent or 0.0 for info in infos),
    }
