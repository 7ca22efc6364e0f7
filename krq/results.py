"""Results: wait for one task or for many, in one subscription, and read what came of them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from krq.errors import ResultTimeout, TaskCancelled, TaskFailed, TaskNotFound
from krq.info import TaskInfo
from krq.inspector import Inspector
from krq.states import TaskStatus
from krq.store.waiter import Future, Waiter


class Outcomes:
    """Ends of tasks as values and exceptions. Thread-safe."""

    def __init__(self, waiter: Waiter, inspector: Inspector) -> None:
        self._waiter = waiter
        self._inspector = inspector

    def results(self, task_ids: Sequence[str], timeout: float | None = None) -> list[Any]:
        """The results of all, in order; raises as soon as one has ended in another way. ``timeout``: seconds for all together."""
        gathered = _Gathered(self._waiter, task_ids)
        try:
            gathered.future.result(timeout)
        except TimeoutError as error:
            if gathered.future.done():
                raise
            raise ResultTimeout(self._late(task_ids, gathered.left, timeout)) from error
        finally:
            gathered.drop()
        return self._values(task_ids, gathered)

    async def aresults(self, task_ids: Sequence[str], timeout: float | None = None) -> list[Any]:
        """``results`` for coroutines: waits without blocking the event loop."""
        gathered = await asyncio.to_thread(_Gathered, self._waiter, task_ids)
        try:
            await asyncio.wait_for(asyncio.wrap_future(gathered.future), timeout)
        except TimeoutError as error:
            raise ResultTimeout(await asyncio.to_thread(self._late, task_ids, gathered.left, timeout)) from error
        finally:
            gathered.drop()
        return await asyncio.to_thread(self._values, task_ids, gathered)

    def ends(self, task_ids: Sequence[str], timeout: float | None = None) -> Iterator[str]:
        """The ids in the order in which the tasks end. Raises ``ResultTimeout`` when some have not ended in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        futures = self._waiter.futures(task_ids)
        try:
            for place, future in enumerate(futures):
                future.add_done_callback(lambda _, place=place: ended.put(place))  # type: ignore[misc]
            for left in range(len(futures), 0, -1):
                try:
                    place = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    raise ResultTimeout(self._late(task_ids, left, timeout)) from None
                futures[place].result()
                yield task_ids[place]
        finally:
            self._drop(task_ids, futures)

    def when_ended(self, task_ids: Sequence[str], call: Callable[[], object]) -> None:
        """Call this once, when all have succeeded or one has ended in another way: in the waiter's thread, so it must be quick."""
        _Gathered(self._waiter, task_ids).future.add_done_callback(lambda _: call())

    def ended(self, task_ids: Sequence[str]) -> int:
        """How many have ended by now, in whatever way."""
        futures = self._waiter.futures(task_ids)
        n = sum(future.done() for future in futures)
        self._drop(task_ids, futures)
        return n

    # --- parts -------------------------------------------------------------------------------

    def _drop(self, task_ids: Sequence[str], futures: Sequence[Future]) -> None:
        for task_id, future in zip(task_ids, futures, strict=True):
            if not future.done():
                self._waiter.drop(task_id, future)

    def _late(self, task_ids: Sequence[str], left: int, timeout: float | None) -> str:
        if len(task_ids) > 1:
            return f"{left:,} of {len(task_ids):,} tasks did not end within {timeout} s"
        info = self._inspector.infos(task_ids)[0]
        return f"Task {task_ids[0]} did not end within {timeout} s; it is {info if info is not None else 'not known'}"

    def _values(self, task_ids: Sequence[str], gathered: _Gathered) -> list[Any]:
        if gathered.bad is not None:
            value(gathered.bad, self._inspector.infos([gathered.bad])[0])
        short = [future.result()[1:] if future.done() else "" for future in gathered.futures]
        rest = [task_id for task_id, raw in zip(task_ids, short, strict=True) if not raw]
        infos = iter(self._inspector.infos(rest) if rest else [])
        return [msgspec.json.decode(raw) if raw else value(task_id, next(infos)) for task_id, raw in zip(task_ids, short, strict=True)]


class _Gathered:
    """One future for many ends: done when all have succeeded, or one has not."""

    def __init__(self, waiter: Waiter, task_ids: Sequence[str]) -> None:
        self.future: concurrent.futures.Future[None] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()
        self.left = len(task_ids)
        self.bad: str | None = None
        self._waiter = waiter
        self._task_ids = task_ids
        self._lock = threading.Lock()
        self.futures = waiter.futures(task_ids)
        if not task_ids:
            self.future.set_result(None)
        for task_id, future in zip(task_ids, self.futures, strict=True):
            future.add_done_callback(lambda future, task_id=task_id: self._ended(task_id, future))  # type: ignore[misc]

    def _ended(self, task_id: str, future: Future) -> None:
        error = future.exception()
        with self._lock:
            self.left -= 1
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            elif not future.result().startswith("S"):
                self.bad = task_id
                self.future.set_result(None)
            elif not self.left:
                self.future.set_result(None)

    def drop(self) -> None:
        """Nobody waits any more."""
        for task_id, future in zip(self._task_ids, self.futures, strict=True):
            if not future.done():
                self._waiter.drop(task_id, future)


def value(task_id: str, info: TaskInfo | None) -> Any:
    """The result of a task that has ended, or the exception that says how else it did."""
    if info is None:
        raise TaskNotFound(f"No task {task_id!r} is known")
    if info.status is TaskStatus.SUCCESS:
        return info.result
    if info.status is TaskStatus.CANCELLED:
        why = f": {info.error.type}: {info.error.message}" if info.error is not None and info.error.type != "CANCELLED" else ""
        raise TaskCancelled(f"Task {task_id} was cancelled{why}")
    if info.error is None or info.status is not TaskStatus.FAILED:  # run again in the meantime: app.retry
        raise ResultTimeout(f"Task {task_id} is {info}: somebody has run it again")
    raise TaskFailed(task_id, info.error.type, info.error.message, info.error.traceback)
