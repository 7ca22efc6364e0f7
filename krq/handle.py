"""What a sender holds of what it sent: a task, a chain, a group, a broadcast.

Handles are ids and nothing else: thread-safe, free to keep or to drop. Waiting for many tasks is one subscription, whatever
their number; nothing here asks task by task.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, cast

from krq.errors import ResultTimeout, TaskCancelled, TaskFailed
from krq.info import TaskInfo
from krq.loglines import KEPT, LogLine
from krq.outcome import ErrorInfo
from krq.sent import Arriving, Completed, Results, Sent
from krq.states import TaskStatus

R = TypeVar("R")

#: errors of ends that no worker reported: the task's own code had no say
_UNANSWERED = frozenset({"EXPIRED", "POISON", "PURGED", "TASK_UNKNOWN"})


class TaskHandle(Sent, Generic[R]):
    """A task that was sent. ``str(handle)`` is its id. Thread-safe; costs nothing to keep or to drop."""

    __slots__ = ("_results", "id")

    def __init__(self, task_id: str, results: Results) -> None:
        self.id = task_id
        self._results: Results = results

    @property
    def ids(self) -> list[str]:
        """All task ids in it."""
        return [self.id]

    @property
    def tails(self) -> list[str]:
        """The ids that whoever comes after it waits for."""
        return [self.id]

    @property
    def children(self) -> list[TaskHandle[Any]]:
        """The tasks that it made while it ran, once its function has returned; they are kept as long as its result. One question."""
        return [TaskHandle(task_id, self._results) for task_id in self._results.children(self.id)]

    def status(self) -> TaskInfo:
        """The task as it stands now. Raises ``TaskNotFound``."""
        return self._results.status(self.id)

    def result(self, timeout: float | None = None) -> R:
        """Wait for the end and return what the function returned (through JSON).

        ``timeout``: seconds, None for ever. Raises ``TaskFailed`` with the remote traceback, ``TaskCancelled``,
        ``ResultTimeout`` (the task goes on) or ``TaskNotFound``.
        """
        return cast(R, self._results.result(self.id, timeout))

    async def aresult(self, timeout: float | None = None) -> R:
        """The same for coroutines: waits without blocking the event loop."""
        return cast(R, await self._results.aresult(self.id, timeout))

    def wait(self, timeout: float | None = None) -> TaskInfo:
        """Wait for the end, whatever it is, and return the task. Raises ``ResultTimeout`` or ``TaskNotFound``."""
        with contextlib.suppress(TaskFailed, TaskCancelled):
            self._results.result(self.id, timeout)
        return self.status()

    def logs(self, attempt: int | None = None, limit: int = KEPT) -> list[LogLine]:
        """What it has logged and printed so far, of one attempt or of all, in order: see ``KRQ.logs``."""
        return self._results.logs(self.id, attempt, limit)

    async def alogs(self, attempt: int | None = None, limit: int = KEPT) -> list[LogLine]:
        """``logs`` for coroutines."""
        return await asyncio.to_thread(self.logs, attempt, limit)

    def follow(self, attempt: int | None = None) -> Arriving[LogLine]:
        """The same, and what comes, by ``for`` or ``async for``, until the task has ended: see ``KRQ.follow_logs``."""
        return self._results.follow_logs(self.id, attempt)

    def cancel(self) -> bool:
        """Ask that it does not run, or stops. False: it had already ended."""
        return self._results.cancel(self.id)

    async def acancel(self) -> bool:
        """``cancel`` for coroutines."""
        return await asyncio.to_thread(self.cancel)

    async def astatus(self) -> TaskInfo:
        """``status`` for coroutines."""
        return await asyncio.to_thread(self.status)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"TaskHandle({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TaskHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class GroupHandle(Sent, Generic[R]):
    """Tasks, or chains, that were sent side by side. Thread-safe."""

    __slots__ = ("_gate", "_results", "children")

    def __init__(
        self, children: Sequence[TaskHandle[R] | ChainHandle[R]], results: Results | None, gate: Sequence[str] = ()
    ) -> None:
        self.children = list(children)
        """the members' handles, in the order in which they were given"""
        self._results = results
        self._gate = list(gate)

    @property
    def ids(self) -> list[str]:
        """All task ids in it, member by member."""
        return [task_id for child in self.children for task_id in child.ids]

    @property
    def tails(self) -> list[str]:
        """The ids that whoever comes after it waits for: the last task of each member. Of an empty group: what it waits for itself."""
        return [task_id for child in self.children for task_id in child.tails] if self.children else self._gate

    def result(self, timeout: float | None = None) -> list[R]:
        """Wait for all members and return their results in the order of the members; ``[]`` for an empty group.

        ``timeout``: seconds, None for ever. Raises as ``TaskHandle.result``: ``TaskFailed`` or ``TaskCancelled`` as soon as one
        member has ended so (the others go on), ``ResultTimeout`` when not all have ended in time.
        """
        if self._results is None or not self.tails:
            return []
        found = self._results.results(self.tails, timeout)
        return found if self.children else []

    async def aresult(self, timeout: float | None = None) -> list[R]:
        """``result`` for coroutines: waits without blocking the event loop."""
        if self._results is None or not self.tails:
            return []
        found = await self._results.aresults(self.tails, timeout)
        return found if self.children else []

    def progress(self) -> tuple[int, int]:
        """How many members have ended, in whatever way, and how many there are. One question for each 300 members."""
        if self._results is None or not self.children:
            return (0, 0)
        return self._results.ended(self.tails), len(self.children)

    async def aprogress(self) -> tuple[int, int]:
        """``progress`` for coroutines."""
        return await asyncio.to_thread(self.progress)

    def as_completed(self, timeout: float | None = None) -> Completed[TaskHandle[R] | ChainHandle[R]]:
        """The members' handles in the order in which they end, by ``for`` or ``async for``; ``.result()`` of each is there at once.

        ``timeout``: seconds for all of them together. Raises ``ResultTimeout`` when some have not ended by then.
        """
        return Completed(self._as_completed(timeout))

    def _as_completed(self, timeout: float | None) -> Iterator[TaskHandle[R] | ChainHandle[R]]:
        if self._results is None:
            return
        children = {child.tails[0]: child for child in self.children}
        for task_id in self._results.ends(list(children), timeout):
            yield children[task_id]

    def cancel(self) -> int:
        """Cancel all that has not ended. Returns how many tasks were cancelled or told to stop."""
        return self._results.cancel_all(self.ids) if self._results is not None and self.children else 0

    async def acancel(self) -> int:
        """``cancel`` for coroutines."""
        return await asyncio.to_thread(self.cancel)

    def __len__(self) -> int:
        return len(self.children)

    def __repr__(self) -> str:
        return f"GroupHandle({self.children!r})"


class ChainHandle(Sent, Generic[R]):
    """Steps that were sent to run one after the other. ``str(handle)`` is the id of the last task. Thread-safe."""

    __slots__ = ("_results", "children")

    def __init__(self, children: Sequence[AnyHandle], results: Results | None) -> None:
        self.children = list(children)
        """the steps' handles in order: of tasks, and of groups"""
        self._results = results

    @property
    def last(self) -> AnyHandle:
        """The handle of the last step."""
        return self.children[-1]

    @property
    def id(self) -> str:
        """The id of the last task; of the last member's, where the last step is a group."""
        return (self.last.tails or [""])[-1]

    @property
    def ids(self) -> list[str]:
        """All task ids in it, in order."""
        return [task_id for child in self.children for task_id in child.ids]

    @property
    def tails(self) -> list[str]:
        """The ids that whoever comes after it waits for."""
        return self.last.tails

    def result(self, timeout: float | None = None) -> R:
        """Wait for the last step and return its result. Raises as ``TaskHandle.result``.

        When a step fails all behind it fail with ``DEPENDENCY_FAILED``, which names that step and its error.
        """
        return cast(R, self.last.result(timeout))

    async def aresult(self, timeout: float | None = None) -> R:
        """``result`` for coroutines: waits without blocking the event loop."""
        return cast(R, await self.last.aresult(timeout))

    def results(self, timeout: float | None = None) -> list[Any]:
        """Wait for all steps and return the result of each, in order; a group's is a list. Raises as ``TaskHandle.result``."""
        found = iter(self._results.results(self.ids, timeout) if self._results is not None else [])
        return [_shaped(child, found) for child in self.children]

    async def aresults(self, timeout: float | None = None) -> list[Any]:
        """``results`` for coroutines: waits without blocking the event loop."""
        found = iter(await self._results.aresults(self.ids, timeout) if self._results is not None else [])
        return [_shaped(child, found) for child in self.children]

    async def aprogress(self) -> tuple[int, int]:
        """``progress`` for coroutines."""
        return await asyncio.to_thread(self.progress)

    def when_ended(self, call: Callable[[], object]) -> None:
        """Call this once, in a thread of the app, when all steps have succeeded or one has not. It must be quick."""
        if self._results is None:
            call()
        else:
            self._results.when_ended(self.ids, call)

    def progress(self) -> tuple[int, int]:
        """How many tasks of all its steps have ended, in whatever way, and how many there are."""
        return (self._results.ended(self.ids) if self._results is not None else 0), len(self.ids)

    def cancel(self) -> int:
        """Cancel all that has not ended. Returns how many tasks were cancelled or told to stop."""
        return self._results.cancel_all(self.ids) if self._results is not None else 0

    async def acancel(self) -> int:
        """``cancel`` for coroutines."""
        return await asyncio.to_thread(self.cancel)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"ChainHandle({self.children!r})"


class BroadcastHandle(Sent, Generic[R]):
    """A task that was sent to each worker alive at the time. Thread-safe.

    A member that its worker does not start within an hour (or ``expires=``) fails with ``EXPIRED``; so nothing here waits for ever.
    """

    __slots__ = ("_results", "members")

    def __init__(self, members: Mapping[str, TaskHandle[R]], results: Results) -> None:
        self.members = dict(members)
        """worker id → handle of its task"""
        self._results: Results = results

    @property
    def ids(self) -> list[str]:
        """All task ids in it, worker by worker."""
        return [handle.id for handle in self.members.values()]

    def results(self, timeout: float | None = None) -> dict[str, R]:
        """Wait until all have answered, at most ``timeout`` seconds; return what has come, by worker id.

        Never raises for workers that did not answer or whose task failed: see ``missing`` and ``errors``.
        """
        with contextlib.suppress(ResultTimeout):
            for _ in self._results.ends([handle.id for handle in self.members.values()], timeout):
                pass
        return {worker: info.result for worker, info in self._infos().items() if info.status is TaskStatus.SUCCESS}

    async def aresults(self, timeout: float | None = None) -> dict[str, R]:
        """``results`` for coroutines; a thread of the loop's executor waits."""
        return await asyncio.to_thread(self.results, timeout)

    def arrived(self) -> list[str]:
        """Ids of the workers that have answered by now, with a result or an error."""
        return [worker for worker, info in self._infos().items() if _answered(info)]

    def missing(self) -> list[str]:
        """Ids of the workers that have not answered by now: busy, stopped, or gone."""
        arrived = set(self.arrived())
        return [worker for worker in self.members if worker not in arrived]

    def errors(self) -> dict[str, ErrorInfo]:
        """Worker id → error, of those where the task has failed for good."""
        return {
            worker: info.error for worker, info in self._infos().items()
            if info.status is TaskStatus.FAILED and info.error is not None and _answered(info)
        }

    def _infos(self) -> dict[str, TaskInfo]:
        found = self._results.infos([handle.id for handle in self.members.values()])
        return {worker: info for worker, info in zip(self.members, found, strict=True) if info is not None}

    def cancel(self) -> int:
        """Cancel all that has not ended. Returns how many tasks were cancelled or told to stop."""
        return self._results.cancel_all([handle.id for handle in self.members.values()])

    def __len__(self) -> int:
        return len(self.members)

    def __repr__(self) -> str:
        return f"BroadcastHandle({self.members!r})"


class MapHandle(GroupHandle[R]):
    """What ``task.map`` has sent. Its members are chunks: ``children``, ``progress`` and ``as_completed`` speak of them."""

    __slots__ = ()

    def result(self, timeout: float | None = None) -> list[R]:
        """Wait for all chunks and return the results of all items, in their order. Raises as ``GroupHandle.result``."""
        return _strung(super().result(timeout))

    async def aresult(self, timeout: float | None = None) -> list[R]:
        """``result`` for coroutines: waits without blocking the event loop."""
        return _strung(await super().aresult(timeout))


AnyHandle: TypeAlias = TaskHandle[Any] | GroupHandle[Any] | ChainHandle[Any]


def awaited(after: Sequence[AnyHandle | str]) -> list[str]:
    """The task ids that ``after=`` comes to."""
    return [task_id for one in after for task_id in ([one] if isinstance(one, str) else one.tails)]


def _strung(chunks: Sequence[Any]) -> list[Any]:
    return [result for chunk in chunks for result in chunk]


def _answered(info: TaskInfo) -> bool:
    if info.status is TaskStatus.FAILED:
        return info.error is not None and info.error.type not in _UNANSWERED
    return info.status is TaskStatus.SUCCESS


def _shaped(handle: AnyHandle, found: Iterator[Any]) -> Any:
    """The results of a handle's own tasks, in its shape, from the results of all of them in order."""
    match handle:
        case MapHandle():
            return _strung([_shaped(child, found) for child in handle.children])
        case GroupHandle():
            return [_shaped(child, found) for child in handle.children]
        case ChainHandle():
            return [_shaped(child, found) for child in handle.children][-1]
    return next(found)
