"""Many tasks at once: whatever has not ended and meets a filter, found in the pools, page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from krq import message
from krq.errors import OptionError
from krq.store.client import Store

#: ids looked at in one round trip
PAGE = 500
#: rounds through the pools: a task that moves meanwhile is met in the next
ROUNDS = 5


class Selection(NamedTuple):
    """Which tasks are meant: those that meet all of it. None: any."""

    name: str | None = None
    queue: str | None = None
    key: str | None = None

    def check(self) -> None:
        """Raise ``OptionError`` when it says nothing, or what can't be."""
        if all(value is None for value in self):
            raise OptionError("A filter is missing", cure="Give name=, queue= or key=; clear drops all there is.")
        for field, value in zip(self._fields, self, strict=True):
            if value is not None and not isinstance(value, str):
                raise OptionError(f"{field}={value!r} is no string")


def cancel(store: Store, wanted: Selection, cancel_all: Callable[[Sequence[str]], int]) -> int:
    """Cancel all that is meant, until a round finds no more; returns how many had not ended."""
    wanted.check()
    total = 0
    told: set[str] = set()
    for _ in range(ROUNDS):
        found = 0
        for page in _pages(store):
            meant = [task_id for task_id in _meant(store, wanted, page) if task_id not in told]
            if meant:
                told.update(meant)
                found += len(meant)
                total += cancel_all(meant)
        if not found:
            break
    return total


def _meant(store: Store, wanted: Selection, page: Sequence[str]) -> list[str]:
    key = None if wanted.key is None else message.short_key(wanted.key)
    asked = [None if value is None else value.encode() for value in (wanted.name, wanted.queue, key)]
    with store.plain() as redis:
        pipeline = redis.pipeline(transaction=False)
        for task_id in page:
            pipeline.hmget(store.keys("task", task_id), "n", "q", "k")
        answers = pipeline.execute()
    return [
        task_id for task_id, fields in zip(page, answers, strict=True)
        if all(value is None or value == field for value, field in zip(asked, fields, strict=True))
    ]


def _pages(store: Store) -> Iterator[list[str]]:
    """All ids that have not ended, pool by pool, in the direction in which tasks move."""
    keys = store.keys
    with store.plain() as redis:
        queues = sorted(name.decode() for name in redis.smembers(keys("queues")))
        yield from _scan(redis, keys("waiting"), "zset")
        for queue in queues:
            yield from _scan(redis, keys("scheduled", queue), "zset")
        for queue in queues:
            for groups in _scan(redis, keys("limited", queue), "zset"):
                for group in groups:
                    yield from _scan(redis, keys("parked", f"{queue}:{group}"), "zset")
            yield from _scan(redis, keys("ready", queue), "zset")
        for incarnation in redis.hkeys(keys("beats")):
            yield from _scan(redis, keys("held", incarnation.decode()), "set")


def _scan(redis: Any, key: str, kind: str) -> Iterator[list[str]]:
    """Members of a pool; whatever stays in it meanwhile is met."""
    cursor = 0
    while True:
        if kind == "zset":
            cursor, pairs = redis.zscan(key, cursor, count=PAGE)
            members = [member for member, _ in pairs]
        else:
            cursor, members = redis.sscan(key, cursor, count=PAGE)
        for at in range(0, len(members), PAGE):
            yield [member.decode() for member in members[at : at + PAGE]]
        if not cursor:
            return
