"""What tasks have logged and printed, from whatever machine they ran on: read back, and followed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import msgspec

from krq import ids, loglines
from krq.config import Config
from krq.errors import KRQError, RedisConnectionError, TaskNotFound
from krq.handle import TaskHandle
from krq.info import TaskInfo
from krq.inspector import Clients
from krq.loglines import KEPT, LogLine
from krq.logs import Wait
from krq.sent import Arriving
from krq.store import lines

log = logging.getLogger("krq.lines")

#: newest records of the ``logs`` topic that are looked at when Redis has nothing
RECORDS = 500
#: seconds of one look; for which lines of a task that has ended may still come; until a server that was away is asked again
LOOK, LATE, AGAIN = 0.5, 0.5, 0.5
#: seconds after its end at which all lines of a task are there
SETTLED = 10.0


class LogReading:
    """What ``KRQ`` offers to read what tasks have said. Works without the module that catches it."""

    config: Config

    @property
    def _clients(self) -> Clients:
        raise NotImplementedError

    def logs(self, task_id: str | TaskHandle[Any], attempt: int | None = None, limit: int = KEPT, *, log_too: bool = True) -> list[LogLine]:
        """The newest lines that a task has logged or printed, of one attempt or of all, the earliest first. Thread-safe.

        Redis keeps about the last 1,000 of a task, until ``result_ttl`` after the last. Where it has none the newest 500 records of the
        log are searched, unless ``log_too`` is false: that takes a moment, and may find a part. A line is there about 0.1 s after it
        was said. Raises ``TaskNotFound`` where neither Redis nor the log knows the task.
        """
        task = ids.check_task_id(str(task_id))
        found = lines.newest(self._clients.store, task, KEPT if attempt is not None else limit)
        if not found and log_too:
            found = self._logged(task)
        found = [line for line in loglines.unique(found) if attempt is None or line.attempt == attempt]
        return found[-limit:] if limit > 0 else []

    def follow_logs(self, task_id: str | TaskHandle[Any], attempt: int | None = None) -> Arriving[LogLine]:
        """All lines of a task from the first that is kept, then those that come, until it has ended: for ``for`` and ``async for``.

        Of a task that waits or is to be tried again it goes on waiting; while Redis is away, too. One connection, one question each
        half second. Raises ``TaskNotFound``, from here only.
        """
        task = ids.check_task_id(str(task_id))
        if self._info(task) is None:
            return Arriving(iter(self.logs(task, attempt)))
        return Arriving(line for line in self._follow(task) if attempt is None or line.attempt == attempt)

    def _info(self, task_id: str) -> TaskInfo | None:
        return self._clients.inspector.infos([task_id])[0]

    def _logged(self, task_id: str) -> list[LogLine]:
        known = self._info(task_id) is not None
        found: list[LogLine] = []
        try:
            records = self._clients.broker.read(self.config.logs_topic, RECORDS)
        except KRQError as error:
            if not known:
                raise
            log.debug("the log can't be searched: %s", error)
            records = []
        for _, record in records:
            try:
                page = loglines.decode_page(record.value)
            except (msgspec.MsgspecError, UnicodeError, RecursionError):
                continue
            found += page.lines if page.id == task_id else []
        if not found and not known:
            raise TaskNotFound(f"No task {task_id!r} is known, nor any line of it")
        return found

    def _follow(self, task_id: str) -> Iterator[LogLine]:
        place, until = lines.BEGINNING, math.inf
        seen: dict[LogLine, None] = {}
        wait = Wait(log, f"waiting for lines of {task_id}")
        while True:
            try:
                late = self._late(task_id)
                until = math.inf if late is None else min(until, time.monotonic() + late)
                place, found = lines.after(self._clients.store, task_id, place, max(0.0, min(LOOK, until - time.monotonic())))
            except RedisConnectionError as error:
                wait.begin(error)
                time.sleep(AGAIN)
                continue
            wait.end()
            for line in found:
                if line not in seen:
                    yield line
                    seen[line] = None
            for old in list(seen)[: max(0, len(seen) - KEPT)]:
                del seen[old]
            if found:
                until = math.inf
            elif time.monotonic() >= until:
                return

    def _late(self, task_id: str) -> float | None:
        """Seconds for which lines of it may still come; None: it has not ended."""
        info = self._info(task_id)
        if info is None:
            return 0.0
        if not info.status.final:
            return None
        return LATE if time.time() - (info.finished or 0.0) < SETTLED else 0.0
