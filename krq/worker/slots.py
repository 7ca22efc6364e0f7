"""The slots: threads that run tasks, and one event loop that runs coroutines for them.

Short tasks are worked off by one thread after the other as long as that is enough: waking a thread
for each of them would cost more than the task. ``nudge`` wakes more while tasks wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from krq.worker.engine import Held, Load
from krq.worker.execute import within


class Loop:
    """An event loop in a thread of its own, started at its first use."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def run(self, awaitable: Awaitable[Any], timeout: float | None, started: Callable[[Callable[[], object]], None]) -> Any:
        """Run it to its end and return its result; ``started`` gets a function that cancels it, from any thread.

        Raises ``LateCoroutine`` where it was cancelled after ``timeout`` seconds. Returns only when it has really ended.
        """
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_forever, args=(self._loop,), name="krq-coroutines", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(_cancellable(awaitable, timeout, started), self._loop).result()


def _forever(loop: asyncio.AbstractEventLoop) -> None:
    """A coroutine that raises SystemExit or KeyboardInterrupt ends its attempt as any exception would; asyncio lets both through."""
    while True:
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


async def _cancellable(awaitable: Awaitable[Any], timeout: float | None, started: Callable[[Callable[[], object]], None]) -> Any:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    started(lambda: loop.call_soon_threadsafe(task.cancel))
    return await within(awaitable, timeout)


class Slots:
    """Runs what is started, at most ``size`` at a time. ``start``, ``nudge`` and ``withdraw`` from one thread."""

    def __init__(self, size: int, run: Callable[[int, Held], None]) -> None:
        self.size = size
        self._run = run
        self._queue: deque[Held] = deque()
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._lock = threading.Lock()
        self._asleep = 0
        self._threads = 0
        self._awake = 0

    @property
    def load(self) -> Load:
        """How many wait, how many run."""
        return Load(len(self._queue), self._awake)

    def start(self, tasks: list[Held], *, short: bool) -> None:
        """Run these as slots come free. ``short``: one awake slot is enough to begin with."""
        self._queue.extend(tasks)
        if short:
            if not self._awake:
                self._wake(1)
        else:
            self._wake(len(tasks))

    def nudge(self) -> None:
        """Wake one more slot when tasks wait."""
        if self._queue and self._awake < self.size:
            self._wake(1)

    def withdraw(self) -> list[Held]:
        """Take back all that have not started."""
        back = []
        while True:
            try:
                back.append(self._queue.pop())
            except IndexError:
                return back

    def _wake(self, n: int) -> None:
        with self._lock:
            for _ in range(n):
                if self._asleep:
                    self._asleep -= 1
                    self._awake += 1
                    self._tokens.put(None)
                elif self._threads < self.size:
                    threading.Thread(target=self._work, args=(self._threads,), name=f"krq-slot-{self._threads}", daemon=True).start()
                    self._threads += 1
                    self._awake += 1
                else:
                    return

    def _work(self, slot: int) -> None:
        while True:
            try:
                held = self._queue.popleft()
            except IndexError:
                if self._sleep():
                    self._tokens.get()
            else:
                self._run(slot, held)

    def _sleep(self) -> bool:
        """Lie down, unless something came meanwhile: ``start`` fills the queue before it looks who sleeps."""
        with self._lock:
            if self._queue:
                return False
            self._asleep += 1
            self._awake -= 1
            return True
