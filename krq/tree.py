"""A workflow as it stands, as a value: its tasks, what each waits for, and drawings of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import msgspec

from krq.states import TaskStatus


class TreeNode(msgspec.Struct, frozen=True, kw_only=True):
    """One task of a workflow. All times are Unix seconds, None where they have not come."""

    id: str
    name: str = ""
    status: TaskStatus | None = None
    """None: nobody knows it (any more, or yet)"""
    after: list[str] = []
    """ids that it waits for, or has waited for"""
    parent: str | None = None
    """id of the task that sent it while it ran"""
    attempt: int = 0
    worker: str = ""
    error: str = ""
    """type and message, where it did not succeed"""
    sent: float | None = None
    started: float | None = None
    """of the last attempt"""
    finished: float | None = None


class Line(NamedTuple):
    """One line of a drawing."""

    rule: str
    """what stands before the task: ``├─ ``, ``↓ `` and the like"""
    node: TreeNode
    waits: int
    """for how many tasks it waits, where it is more than the one that it is drawn beneath"""


class Tree(msgspec.Struct, frozen=True, kw_only=True):
    """The tasks of a workflow, each behind those that it waits for."""

    id: str
    """of its first task"""
    tasks: list[TreeNode]
    truncated: bool = False
    """whether it has more tasks than these"""

    def __iter__(self) -> Iterator[TreeNode]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)

    def edges(self) -> list[tuple[str, str]]:
        """(id, id of one that waits for it), also for tasks that are not among these."""
        return [(on, node.id) for node in self.tasks for on in node.after]

    def lines(self) -> list[Line]:
        """A drawing line by line. Each task stands once: beneath the one it waits for; of several, beneath what all of them come from."""
        places = self._places()
        beneath: dict[str, list[TreeNode]] = {}
        for node in self.tasks:
            beneath.setdefault(places[node.id], []).append(node)
        drawn: list[Line] = []
        todo = [(node, "", "") for node in reversed(beneath.get("", []))]
        while todo:
            node, rule, indent = todo.pop()
            drawn.append(Line(rule, node, len(node.after) if places[node.id] not in node.after or len(node.after) > 1 else 0))
            below = beneath.get(node.id, [])
            if len(below) == 1:
                todo.append((below[0], f"{indent}↓ ", indent))
            for n, child in enumerate(reversed(below)) if len(below) > 1 else ():
                todo.append((child, f"{indent}{'├─ ' if n else '└─ '}", f"{indent}{'│  ' if n else '   '}"))
        return drawn

    def _places(self) -> dict[str, str]:
        """Beneath which task each is drawn, "" for none."""
        places: dict[str, str] = {}
        depths = {"": 0}

        def meeting(one: str, other: str) -> str:
            while one != other:
                if depths[one] < depths[other]:
                    one, other = other, one
                one = places[one]
            return one

        for node in self.tasks:
            place: str | None = node.parent if node.parent in depths else None
            for on in node.after if place is None else ():
                if on in depths:
                    place = on if place is None else meeting(place, on)
            places[node.id] = place or ""
            depths[node.id] = depths[place or ""] + 1
        return places

    def __str__(self) -> str:
        return "\n".join(f"{line.rule}{line.node.name or '?'} {line.node.id} {line.node.status or 'unknown'}" for line in self.lines())

    def to_mermaid(self) -> str:
        """A Mermaid flowchart, for documents; the classes are the states."""
        numbers = {node.id: n for n, node in enumerate(self.tasks)}
        text = ["flowchart TD"]
        for node in self.tasks:
            label = (node.name or node.id).replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")
            text.append(f'  t{numbers[node.id]}["{label}"]:::{node.status or "unknown"}')
        text += [f"  t{numbers[on]} --> t{numbers[task_id]}" for on, task_id in self.edges() if on in numbers]
        text += [f"  t{numbers[node.parent]} -.-> t{numbers[node.id]}" for node in self.tasks if node.parent in numbers]
        text += [f"  classDef {state} {style}" for state, style in _STYLES.items()]
        return "\n".join(text)


_STYLES = {
    "success": "fill:#d3f2d8,stroke:#2f9e44", "failed": "fill:#ffd8d8,stroke:#e03131", "cancelled": "fill:#fff3bf,stroke:#e8a800",
    "processing": "fill:#d0ebff,stroke:#1971c2", "queued": "fill:#f1f3f5,stroke:#495057", "scheduled": "fill:#f1f3f5,stroke:#868e96",
    "waiting": "fill:#ffffff,stroke:#adb5bd", "unknown": "fill:#ffffff,stroke:#adb5bd,stroke-dasharray:4",
}


def ordered(nodes: Iterable[TreeNode]) -> list[TreeNode]:
    """Each behind those that it waits for, else in the order in which they come. What waits in a circle comes last."""
    given = {node.id: node for node in nodes}
    waits: dict[str, set[str]] = {node.id: _before(node, given) for node in given.values()}
    behind: dict[str, list[str]] = {}
    for task_id, before in waits.items():
        for on in before:
            behind.setdefault(on, []).append(task_id)
    ready = [task_id for task_id in given if not waits[task_id]]
    found: list[TreeNode] = []
    for task_id in ready:
        found.append(given.pop(task_id))
        for other in behind.get(task_id, ()):
            waits[other].discard(task_id)
            if not waits[other]:
                ready.append(other)
    return [*found, *given.values()]


def _before(node: TreeNode, given: Mapping[str, TreeNode]) -> set[str]:
    before = {on for on in node.after if on in given and on != node.id}
    return before | {node.parent} if node.parent in given and node.parent is not None else before
