"""Whether a child may go on without a lease: while all it runs said ``on_lease_lost="continue"``, and accept to overlap."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from krq.registry import Registry
from krq.worker.engine import Held
from krq.worker.page import Page


class Drift:
    """Keeps the flag on the page, which the supervisor reads. Thread-safe. Costs nothing where no task says so."""

    def __init__(self, page: Page, registry: Registry) -> None:
        self._page = page
        self._free = {task.name for task in registry if task.containment.on_lease_lost == "continue"}
        self._lock = threading.Lock()
        self._strict: set[str] = set()
        self._going: set[str] = set()

    @property
    def allowed(self) -> bool:
        """Whether it may."""
        return self._page.adrift

    def accepts(self, held: Held) -> bool:
        """Whether this task accepts to overlap with another run of itself."""
        return held.message is not None and held.message.task in self._free

    def begins(self, held: Held) -> None:
        """A run begins."""
        if self._free:
            with self._lock:
                (self._going if self.accepts(held) else self._strict).add(held.id)
                self._tell()

    def ends(self, held: Held) -> None:
        """A run has ended. Who accepts overlap is waited for until its end is settled."""
        if self._free:
            with self._lock:
                self._strict.discard(held.id)
                self._tell()

    def settled(self, ended: Iterable[Held]) -> None:
        """These are settled, or not this child's any more."""
        if self._going:
            with self._lock:
                self._going.difference_update(held.id for held in ended)
                self._tell()

    def _tell(self) -> None:
        self._page.set_adrift(bool(self._going) and not self._strict)
