"""Lists of tasks, page by page: each page costs a bounded number of reads, however many tasks there are."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from krq.errors import OptionError
from krq.info import TaskFilter, TaskInfo, TaskPage
from krq.states import TaskStatus
from krq.store.client import Store

#: ids read in one round trip
CHUNK = 500
#: tasks looked at for one page, where a filter leaves few of them
MOST = 2_000

#: order of the list of ends among the sources
_ENDED = 4
Infos = Callable[[Sequence[str]], list[TaskInfo | None]]
_FINAL = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)


class _Place(NamedTuple):
    """Where a page ended: in which source, at what id, and where that stood (score, or distance from the list's end)."""

    order: int
    name: str
    id: str
    at: float


class _Source(NamedTuple):
    order: int
    name: str
    kind: str
    key: str


class _Walk:
    """How far a page has come in the list of ends, the latest of which stand first."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        self._last = math.inf

    def fresh(self, task_id: str) -> bool:
        """Whether this task has not been seen yet."""
        new = task_id not in self._seen
        self._seen.add(task_id)
        return new

    def late(self, info: TaskInfo) -> bool:
        """Whether its last end is later than those that stand before it, so that this is not its place."""
        if info.finished is None or info.finished > self._last:
            return info.finished is not None
        self._last = info.finished
        return False


_places = msgspec.json.Decoder(tuple[int, str, str, float])


class Listing:
    """Reads the pools, one after the other: processing, queued, scheduled, waiting, then what has ended, the newest first."""

    def __init__(self, store: Store, infos: Infos, peeks: Infos) -> None:
        self._store = store
        self._infos = infos
        self._peeks = peeks

    def page(self, wanted: TaskFilter, cursor: str | None, limit: int) -> TaskPage:
        """The next at most ``limit`` tasks after ``cursor``. See ``Inspector.page``."""
        after = None if cursor is None else _decoded(cursor)
        found: list[TaskInfo] = []
        looked = 0
        walk = _Walk()
        if after is not None and after.order == _ENDED:
            self._last_ends(self._infos([after.id]), walk)
        for source, ids, places in self._chunks(wanted.status, after, limit):
            infos = self._infos(ids) if wanted == TaskFilter() else self._read_wanted(ids, wanted, source)
            if source.kind == "list":
                infos = self._last_ends(infos, walk)
            for info, place in zip(infos, places, strict=True):
                looked += 1
                if info is not None and _fits(info, wanted, source):
                    found.append(info)
                    if len(found) >= limit:
                        return TaskPage(tasks=found, cursor=_encoded(place), looked=looked)
            if looked >= MOST:
                return TaskPage(tasks=found, cursor=_encoded(places[-1]), looked=looked)
        return TaskPage(tasks=found, cursor=None, looked=looked)

    def _read_wanted(self, ids: Sequence[str], wanted: TaskFilter, source: _Source) -> list[TaskInfo | None]:
        """Tasks as they stand; of those that are not wanted only what says so."""
        peeks = self._peeks(ids)
        some = [info.id for info in peeks if info is not None and _fits(info, wanted, source)]
        whole = dict(zip(some, self._infos(some), strict=True)) if some else {}
        return [whole.get(task_id, info) for task_id, info in zip(ids, peeks, strict=True)]

    def _last_ends(self, infos: Sequence[TaskInfo | None], walk: _Walk) -> list[TaskInfo | None]:
        """What comes next in the list of ends. None for an end after which the task was sent again and has ended once more."""
        fresh = [info if info is not None and walk.fresh(info.id) else None for info in infos]
        late = [info.id for info in fresh if info is not None and walk.late(info)]
        if not late:
            return fresh
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for task_id in late:
                pipeline.hexists(self._store.keys("task", task_id), "g")
            # of others a clock was put back
            again = {task_id for task_id, sent_again in zip(late, pipeline.execute(), strict=True) if sent_again}
        return [None if info is not None and info.id in again else info for info in fresh]

    def _chunks(self, status: TaskStatus | None, after: _Place | None, limit: int) -> Iterator[tuple[_Source, list[str], list[_Place]]]:
        for source in self._sources(status):
            place = None
            if after is not None:
                if (source.order, source.name) < (after.order, after.name):
                    continue
                place = after if (source.order, source.name) == (after.order, after.name) else None
            size = min(max(limit, 20), CHUNK)
            while pairs := self._read(source, place, size):
                places = [_Place(source.order, source.name, task_id, at) for task_id, at in pairs]
                yield source, [task_id for task_id, _ in pairs], places
                if len(pairs) < size or source.kind == "set":
                    break
                place, size = places[-1], CHUNK

    def _sources(self, status: TaskStatus | None) -> list[_Source]:
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            pipeline.hkeys(keys("beats"))
            pipeline.smembers(keys("queues"))
            incarnations, queues = (sorted(name.decode() for name in names) for names in pipeline.execute())
        found: list[_Source] = []
        if status in (None, TaskStatus.PROCESSING):
            found += [_Source(0, name, "set", keys("held", name)) for name in incarnations]
        if status in (None, TaskStatus.QUEUED):
            found += [_Source(1, name, "zset", keys("ready", name)) for name in queues]
            found += self._parked(queues)
            found.sort()
        if status in (None, TaskStatus.SCHEDULED):
            found += [_Source(2, name, "zset", keys("scheduled", name)) for name in queues]
        if status in (None, TaskStatus.WAITING):
            found.append(_Source(3, "", "zset", keys("waiting")))
        if status is TaskStatus.FAILED:
            found.append(_Source(5, "", "newest", keys("failed")))
        elif status is None or status in _FINAL:
            found.append(_Source(_ENDED, "", "list", keys("done")))
        return found

    def _parked(self, queues: Sequence[str]) -> list[_Source]:
        """What waits for a limit, of at most ``MOST`` groups of a queue."""
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for queue in queues:
                pipeline.zrange(self._store.keys("limited", queue), 0, MOST - 1)
            groups = zip(queues, pipeline.execute(), strict=True)
        lots = [(queue, group.decode()) for queue, found in groups for group in found]
        return [_Source(1, f"{queue}\0{group}", "zset", self._store.keys("parked", f"{queue}:{group}")) for queue, group in lots]

    def _read(self, source: _Source, place: _Place | None, size: int) -> list[tuple[str, float]]:
        with self._store.plain() as redis:
            match source.kind:
                case "set":
                    members = sorted(member.decode() for member in redis.smembers(source.key))
                    return [(member, 0.0) for member in members if place is None or member > place.id]
                case "list":
                    return _of_list(redis, source.key, place, size)
            return _of_zset(redis, source.key, place, size, newest=source.kind == "newest")


def _of_list(redis: Any, key: str, place: _Place | None, size: int) -> list[tuple[str, float]]:
    """Counted from the end, which moves least: what is added meanwhile shifts nothing, what expires may show a task twice."""
    length = redis.llen(key)
    start = 0 if place is None else max(0, length - int(place.at) + 1)
    return [(member.decode(), float(length - start - i)) for i, member in enumerate(redis.lrange(key, start, start + size - 1))]


def _of_zset(redis: Any, key: str, place: _Place | None, size: int, *, newest: bool) -> list[tuple[str, float]]:
    start = 0
    if place is not None:
        rank = redis.zrevrank(key, place.id) if newest else redis.zrank(key, place.id)
        if rank is not None:
            start = rank + 1
        else:  # it has left: go on where its score would stand
            start = redis.zcount(key, f"({place.at!r}", "+inf") if newest else redis.zcount(key, "-inf", f"({place.at!r}")
    return [(member.decode(), score) for member, score in redis.zrange(key, start, start + size - 1, desc=newest, withscores=True)]


def _fits(info: TaskInfo, wanted: TaskFilter, source: _Source) -> bool:
    if wanted.status is not None and info.status is not wanted.status:
        return False
    # a task that was run again stands among the ended ones, too, and is shown where it is
    if wanted.status is None and source.kind == "list" and not info.status.final:
        return False
    if wanted.worker is not None and info.worker != wanted.worker:
        return False
    return (wanted.name is None or info.name == wanted.name) and (wanted.queue is None or info.queue == wanted.queue)


def _encoded(place: _Place) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(place)).decode().rstrip("=")


def _decoded(cursor: str) -> _Place:
    try:
        return _Place(*_places.decode(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))))
    except (ValueError, UnicodeError, binascii.Error, msgspec.MsgspecError) as error:
        raise OptionError("This cursor is none", cure="Take it from the page before, or begin without one.") from error
