"""What the line behind ``/`` means: words that a row must have, a status, and ``name:``, ``queue:``, ``worker:``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self

from krq.info import TaskFilter
from krq.states import TaskStatus

STATUSES = {status.value for status in TaskStatus}


class Wanted(NamedTuple):
    """Which rows shall be seen. The status and what has a name are asked of Redis, words are looked for in what came."""

    words: tuple[str, ...] = ()
    status: TaskStatus | None = None
    name: str | None = None
    queue: str | None = None
    worker: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """``failed queue:mail import``: tasks of the queue mail that failed, with "import" in their row. Takes any text."""
        found: dict[str, str] = {}
        words = []
        for part in text.split():
            field, colon, value = part.partition(":")
            if colon and field in ("name", "queue", "worker", "status"):
                found[field] = value
            elif part in STATUSES:
                found["status"] = part
            else:
                words.append(part.lower())
        status = found.pop("status", "")
        return cls(tuple(words), TaskStatus(status) if status in STATUSES else None, **{k: v for k, v in found.items() if v})

    @property
    def tasks(self) -> TaskFilter:
        """What to ask for: what is in progress, unless the line says more than words."""
        asked = TaskFilter(status=self.status, name=self.name, queue=self.queue, worker=self.worker)
        return asked if asked != TaskFilter() else TaskFilter(status=TaskStatus.PROCESSING)

    def fits(self, texts: Iterable[str]) -> bool:
        """Whether each word is somewhere in these."""
        row = "\n".join(texts).lower()
        return all(word in row for word in self.words)

    def of(self, *, name: str | None = None, queues: Iterable[str] | None = None, worker: str | None = None) -> bool:
        """Whether something of this name, these queues, this worker is meant. None: it has none that could differ."""
        return not (
            (self.name and name is not None and name != self.name)
            or (self.queue and queues is not None and self.queue not in queues)
            or (self.worker and worker is not None and worker != self.worker)
        )
