"""What all handles share: what they ask of the app, and what one can ask of the tasks in them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from krq.info import TaskInfo
from krq.loglines import KEPT, LogLine
from krq.tree import Tree

T = TypeVar("T")


class Results(Protocol):
    """What handles ask of the app."""

    def status(self, task_id: str) -> TaskInfo: ...

    def result(self, task_id: str, timeout: float | None = None) -> object: ...

    def aresult(self, task_id: str, timeout: float | None = None) -> Awaitable[object]: ...

    def cancel(self, task_id: str) -> bool: ...

    def infos(self, task_ids: Sequence[str]) -> list[TaskInfo | None]: ...

    def results(self, task_ids: Sequence[str], timeout: float | None = None) -> list[Any]: ...

    def aresults(self, task_ids: Sequence[str], timeout: float | None = None) -> Awaitable[list[Any]]: ...

    def ends(self, task_ids: Sequence[str], timeout: float | None = None) -> Iterator[str]: ...

    def when_ended(self, task_ids: Sequence[str], call: Callable[[], object]) -> None: ...

    def ended(self, task_ids: Sequence[str]) -> int: ...

    def cancel_all(self, task_ids: Sequence[str]) -> int: ...

    def children(self, task_id: str) -> list[str]: ...

    def tree(self, *task_ids: str, limit: int = 1_000) -> Tree: ...

    def logs(self, task_id: str, attempt: int | None = None, limit: int = KEPT) -> list[LogLine]: ...

    def follow_logs(self, task_id: str, attempt: int | None = None) -> Arriving[LogLine]: ...


class Sent:
    """What all handles can do with the tasks in them."""

    __slots__ = ()

    _results: Results | None

    @property
    def ids(self) -> list[str]:
        """All task ids in it."""
        raise NotImplementedError

    def tree(self, limit: int = 1_000) -> Tree:
        """The workflow that it is in, as it stands: see ``KRQ.tree``."""
        if self._results is None or not self.ids:
            return Tree(id="", tasks=[])
        return self._results.tree(*self.ids[:limit], limit=limit)

    async def atree(self, limit: int = 1_000) -> Tree:
        """``tree`` for coroutines."""
        return await asyncio.to_thread(self.tree, limit)

    def to_mermaid(self) -> str:
        """The same as a Mermaid flowchart, for documents."""
        return self.tree().to_mermaid()


class Arriving(Iterator[T]):
    """What comes, as it comes: for ``for`` and for ``async for``, where a thread of the loop's executor waits."""

    def __init__(self, source: Iterator[T]) -> None:
        self._source = source

    def __next__(self) -> T:
        return next(self._source)

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        found = await asyncio.to_thread(lambda: list(itertools.islice(self._source, 1)))
        if not found:
            raise StopAsyncIteration
        return found[0]


class Completed(Arriving[T]):
    """What has ended, in that order."""
