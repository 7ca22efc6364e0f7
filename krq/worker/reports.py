"""What running tasks say of how far they are."""

from __future__ import annotations

import logging
import time

from krq.errors import KRQError
from krq.hooks import Attempt
from krq.store.client import Store
from krq.store.scripts import Script

log = logging.getLogger("krq.worker")

#: seconds between two reports of a task, and for which one is remembered
EVERY, KEPT = 1.0, 60.0


class Reports:
    """Stores them, at most one a second for each task, and the last. Called in slots."""

    def __init__(self, store: Store, incarnation: str) -> None:
        self._store = store
        self._incarnation = incarnation
        self._last: dict[str, float] = {}

    def __call__(self, attempt: Attempt, done: int, total: int) -> None:
        """A task is so far. Never raises."""
        now = time.monotonic()
        if done < total and now - self._last.get(attempt.id, 0.0) < EVERY:
            return
        self._last = {**{task: at for task, at in self._last.items() if now - at < KEPT}, attempt.id: now}
        try:
            self._store.run(Script.PROGRESS, self._incarnation, attempt.id, attempt.number, int(done), int(total))
        except KRQError as error:
            log.debug("progress of %s: %s", attempt.id, error)
