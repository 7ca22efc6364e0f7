"""The tasks of an app, by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from krq.errors import DuplicateTask, UnknownTask
from krq.task import Task

#: serves names nobody registered: called with the task's name and the list of its arguments
CatchAll = Callable[[str, list[Any]], Any]


class Registry:
    """Names and their tasks. Filled at import time, read by many threads afterwards."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}
        self.catch_all: CatchAll | None = None

    def add(self, task: Task[..., Any]) -> None:
        """Enter a task. Raises ``DuplicateTask`` when the name stands for another function."""
        other = self._tasks.get(task.name)
        if other is not None and _place(other) != _place(task):
            raise DuplicateTask(f"{task.name!r} is {_place(other)} already, now also {_place(task)}")
        self._tasks[task.name] = task

    def get(self, name: str) -> Task[..., Any] | None:
        """The task of this name, or None."""
        return self._tasks.get(name)

    def find(self, name: str) -> Task[..., Any]:
        """The task of this name. Raises ``UnknownTask`` with the nearest name there is."""
        task = self._tasks.get(name)
        if task is None:
            near = difflib.get_close_matches(name, self._tasks, 1)
            raise UnknownTask(f"No task {name!r} is registered" + (f"; did you mean {near[0]!r}?" if near else ""))
        return task

    @property
    def names(self) -> Sequence[str]:
        """What a worker with this registry knows; ``["*"]``: every name."""
        return ["*"] if self.catch_all is not None else sorted(self._tasks)

    def __iter__(self) -> Iterator[Task[..., Any]]:
        return iter(self._tasks.values())

    def __len__(self) -> int:
        return len(self._tasks)


def _place(task: Task[..., Any]) -> str:
    code = getattr(task.function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else repr(task.function)
