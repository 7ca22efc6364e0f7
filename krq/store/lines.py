"""The newest lines of each task, in a stream of its own."""

from __future__ import annotations

from typing import Any

import msgspec

from krq import loglines
from krq.loglines import KEPT, Batch, LogLine
from krq.store.client import Store

#: before the first
BEGINNING = "0-0"
#: lines of one look while following
_COUNT = 500


def keep(store: Store, batch: Batch, ttl: float) -> None:
    """Add lines, in one round trip; a task's are kept for ``ttl`` seconds after its last. Repeated, they stand there twice."""
    with store.plain() as redis:
        pipeline = redis.pipeline(transaction=False)
        for task_id, line in batch:
            pipeline.xadd(store.keys("log", task_id), {"l": loglines.encode(line)}, maxlen=KEPT, approximate=True)
        for task_id in dict(batch):
            pipeline.expire(store.keys("log", task_id), int(ttl) + 1)
        pipeline.execute()


def newest(store: Store, task_id: str, limit: int) -> list[LogLine]:
    """The last ``limit`` lines, the earliest first."""
    with store.plain() as redis:
        entries = redis.xrevrange(store.keys("log", task_id), count=limit)
    return _lines(reversed(entries))


def after(store: Store, task_id: str, place: str, block: float) -> tuple[str, list[LogLine]]:
    """Lines behind a place, and the place of the last of them; waits for so many seconds where there are none, less than 5."""
    with store.plain() as redis:
        found = redis.xread({store.keys("log", task_id): place}, count=_COUNT, block=max(1, int(block * 1000)))
    entries = [entry for _, entries in found or () for entry in entries]
    return (entries[-1][0].decode(), _lines(entries)) if entries else (place, [])


def _lines(entries: Any) -> list[LogLine]:
    found = []
    for _, fields in entries:
        try:
            found.append(loglines.decode(fields[b"l"]))
        except (KeyError, msgspec.MsgspecError, UnicodeError):
            continue  # of another version, or by another hand
    return found
