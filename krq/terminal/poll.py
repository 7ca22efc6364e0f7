"""Looks at the servers again and again, in threads of its own, so that the display never waits for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from krq import looking
from krq.core import KRQ
from krq.errors import KRQError
from krq.info import TaskFilter, TaskPage
from krq.states import TaskStatus

#: looks that are remembered for the charts
HISTORY = 900
#: seconds between two questions to the broker, which cost more
BACKLOG_INTERVAL = 5.0
#: rows of a list
FAILED, DEATHS, TASKS = 100, 50, 200
#: a look takes at most this share of the time, unless that would mean more than so many intervals between two
SHARE, STRETCH = 0.2, 10
RUNNING, WAITING = TaskFilter(status=TaskStatus.PROCESSING), TaskFilter(status=TaskStatus.WAITING)
NOTHING = TaskPage(tasks=[], cursor=None, looked=0)


class Look(NamedTuple):
    """Everything that is shown."""

    seen: looking.Seen
    points: Sequence[looking.Point]
    backlog: Mapping[str, int]
    """of each queue; none is here whose number is not known"""
    asked: TaskFilter
    tasks: TaskPage
    """those that were asked for"""
    running: TaskPage
    """the first ``TASKS`` in progress"""
    waiting: TaskPage

    @property
    def processing(self) -> int:
        """How many are in progress: those that are listed, where these are all."""
        return len(self.running.tasks) if self.running.cursor is None else max(self.seen.stats.processing, len(self.running.tasks))


class Poller:
    """Calls ``tell`` after each look with what was seen, or with why nothing was. Its threads end with the process at the latest."""

    def __init__(self, app: KRQ, interval: float, tell: Callable[[Look | Exception], None]) -> None:
        self._app = app
        self._interval = interval
        self._tell = tell
        self._wanted = RUNNING
        self._points: deque[looking.Point] = deque(maxlen=HISTORY)
        self._backlog: Mapping[str, int] = {}
        self._wake = threading.Event()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin."""
        for run in (self._poll, self._ask_broker):
            threading.Thread(target=run, name=f"krq-dashboard{run.__name__}", daemon=True).start()

    def stop(self) -> None:
        """End, without waiting for a server."""
        self._stopped.set()
        self._wake.set()

    def want(self, wanted: TaskFilter) -> None:
        """Ask for these tasks from now on."""
        if wanted != self._wanted:
            self._wanted = wanted
            self.hurry()

    def hurry(self) -> None:
        """Look now."""
        self._wake.set()

    def _poll(self) -> None:
        while not self._stopped.is_set():
            self._wake.clear()
            began, wait = time.monotonic(), self._interval
            try:
                found: Look | Exception = self._look()
                wait = max(wait, min((time.monotonic() - began) / SHARE, wait * STRETCH))
            except Exception as error:  # one that is not ours ends the display, which a thread alone could not
                found = error
            if self._stopped.is_set():
                return
            self._tell(found)
            self._wake.wait(wait)

    def _look(self) -> Look:
        inspector, asked = self._app.inspector, self._wanted
        seen = looking.look(inspector, failed=FAILED, deaths=DEATHS)
        if not self._points or seen.at - self._points[-1].at > self._interval / 2:
            self._points.append(looking.point(seen, self._points[-1] if self._points else None))
        tasks = inspector.page(asked, limit=TASKS)
        running = tasks if asked == RUNNING else inspector.page(RUNNING, limit=TASKS)
        waiting = inspector.page(WAITING, limit=TASKS) if seen.stats.waiting else NOTHING
        return Look(seen, list(self._points), self._backlog, asked, tasks, running, waiting)

    def _ask_broker(self) -> None:
        while not self._stopped.is_set():
            try:
                self._backlog = self._app.inspector.backlog(self._app.inspector.queues())
            except KRQError:
                self._backlog = {}
            self._stopped.wait(BACKLOG_INTERVAL)
