"""The read side: what is where, without scans. Every call costs a bounded number of round trips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from krq import events, ids
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import KRQError
from krq.events import DeadLetter
from krq.info import QueueStats, Stats, TaskInfo, WorkerFailure, WorkerInfo
from krq.outcome import ErrorInfo
from krq.states import TaskStatus
from krq.store.client import Store

_STATES = {
    "m": TaskStatus.QUEUED, "w": TaskStatus.WAITING, "d": TaskStatus.SCHEDULED, "q": TaskStatus.QUEUED,
    "p": TaskStatus.PROCESSING, "S": TaskStatus.SUCCESS, "F": TaskStatus.FAILED, "C": TaskStatus.CANCELLED,
}
_ENDED = (TaskStatus.SUCCESS, TaskStatus.FAILED, TaskStatus.CANCELLED)
_json = msgspec.json.Decoder().decode
_error = msgspec.json.Decoder(ErrorInfo).decode
#: ids read in one round trip
_PAGE = 200


class Inspector:
    """Reads the schedule. Thread-safe. All methods raise ``RedisConnectionError`` when Redis is away."""

    def __init__(self, config: Config, store: Store, broker: Broker) -> None:
        self._config = config
        self._store = store
        self._broker = broker

    # --- tasks -------------------------------------------------------------------------------

    def infos(self, task_ids: Sequence[str]) -> list[TaskInfo | None]:
        """Tasks as they stand, None for those that Redis does not know. Two round trips at most."""
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for task_id in task_ids:
                pipeline.hgetall(keys("task", task_id))
            hashes = [{name.decode(): value.decode() for name, value in fields.items()} for fields in pipeline.execute()]
            large = [i for i, fields in enumerate(hashes) if fields and "r" not in fields]
            if large:
                for value, i in zip(redis.mget([keys("result", task_ids[i]) for i in large]), large, strict=True):
                    if value is not None:
                        hashes[i]["r"] = value.decode()
        return [_info(task_id, fields) if fields.get("s") in _STATES else None for task_id, fields in zip(task_ids, hashes, strict=True)]

    def tasks(self, status: TaskStatus | None, name: str | None, limit: int, queue: str | None = None) -> list[TaskInfo]:
        """At most ``limit`` tasks of a status (None: any), a name, a queue; the newest or the next first.

        With a name or queue it reads at most 50 × ``limit`` tasks to find them.
        """
        found: list[TaskInfo] = []
        seen: set[str] = set()
        for page in self._pages(status, limit * (50 if name or queue else 2)):
            for info in self.infos([task_id for task_id in page if task_id not in seen]):
                if info is None or (status is not None and info.status is not status):
                    continue
                if (name is None or info.name == name) and (queue is None or info.queue == queue) and info.id not in seen:
                    seen.add(info.id)
                    found.append(info)
                    if len(found) >= limit:
                        return found
        return found

    def _pages(self, status: TaskStatus | None, budget: int) -> Iterator[list[str]]:
        keys = self._store.keys
        sources: list[tuple[str, str]] = []
        if status in (None, TaskStatus.PROCESSING):
            sources += [("set", keys("held", incarnation)) for incarnation in self._incarnations()]
        if status in (None, TaskStatus.QUEUED):
            sources += [("zset", keys("ready", queue)) for queue in self.queues()]
        if status in (None, TaskStatus.SCHEDULED):
            sources += [("zset", keys("scheduled", queue)) for queue in self.queues()]
        if status in (None, TaskStatus.WAITING):
            sources.append(("zset", keys("waiting")))
        if status is TaskStatus.FAILED:
            sources.append(("newest", keys("failed")))
        elif status is None or status in _ENDED:
            sources.append(("list", keys("done")))
        for kind, key in sources:
            yield from self._read(kind, key, budget)

    def _read(self, kind: str, key: str, budget: int) -> Iterator[list[str]]:
        with self._store.plain() as redis:
            if kind == "set":
                members = [member.decode() for member in redis.srandmember(key, min(budget, 10_000)) or []]
                yield from (members[at : at + _PAGE] for at in range(0, len(members), _PAGE))
                return
            for at in range(0, budget, _PAGE):
                match kind:
                    case "zset":
                        page = redis.zrange(key, at, at + _PAGE - 1)
                    case "newest":
                        page = redis.zrange(key, at, at + _PAGE - 1, desc=True)
                    case _:
                        page = redis.lrange(key, at, at + _PAGE - 1)
                if not page:
                    return
                yield [member.decode() for member in page]

    def message(self, task_id: str) -> bytes | None:
        """The message of a task as it was published; None once it has succeeded."""
        with self._store.plain() as redis:
            raw: bytes | None = redis.get(self._store.keys("message", task_id))
        return raw

    # --- workers -----------------------------------------------------------------------------

    def _incarnations(self) -> list[str]:
        with self._store.plain() as redis:
            return sorted(name.decode() for name in redis.hkeys(self._store.keys("beats")))

    def workers(self) -> list[WorkerInfo]:
        """The live incarnations."""
        incarnations = self._incarnations()
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for incarnation in incarnations:
                pipeline.hgetall(self._store.keys("worker", incarnation))
                pipeline.scard(self._store.keys("held", incarnation))
            answers = pipeline.execute()
        found = []
        for incarnation, raw, busy in zip(incarnations, answers[::2], answers[1::2], strict=True):
            fields = {name.decode(): value.decode() for name, value in raw.items()}
            found.append(WorkerInfo(
                id=ids.worker_of(incarnation), incarnation=incarnation, host=fields.get("host", ""), pid=int(fields.get("pid", 0)),
                queues=fields.get("queues", "").split(","), slots=int(fields.get("slots", 0)), busy=busy,
                succeeded=int(fields.get("S", 0)), failed=int(fields.get("F", 0)), retried=int(fields.get("R", 0)),
                started=_time(fields.get("started")), beat=_time(fields.get("beat")), version=fields.get("version", ""),
                inbox=fields.get("inbox", ""),
            ))
        return found

    def serving(self, name: str) -> list[WorkerInfo]:
        """The live incarnations that know a task of this name."""
        workers = self.workers()
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for worker in workers:
                pipeline.smismember(self._store.keys("names", worker.incarnation), [name, "*"])
            return [worker for worker, known in zip(workers, pipeline.execute(), strict=True) if any(known)]

    def failures(self, limit: int = 100) -> list[WorkerFailure]:
        """Deaths of workers, the latest first; the last 1,000 are kept."""
        with self._store.plain() as redis:
            raws = redis.lrange(self._store.keys("deaths"), 0, limit - 1)
        return [_failure(_json(raw)) for raw in raws]

    # --- queues ------------------------------------------------------------------------------

    def queues(self) -> list[str]:
        """The names of all queues that ever had a task or a worker."""
        with self._store.plain() as redis:
            return sorted(name.decode() for name in redis.smembers(self._store.keys("queues")))

    def stats(self) -> Stats:
        """The whole namespace as it stands. ``backlog`` is -1 where the broker does not answer."""
        queues = self.queues()
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for queue in queues:
                pipeline.zcard(keys("ready", queue))
                pipeline.zcard(keys("scheduled", queue))
                pipeline.hgetall(keys("queue", queue))
            answers = pipeline.execute()
            incarnations = self._incarnations()
            held = sum(redis.scard(keys("held", incarnation)) for incarnation in incarnations)
            holders = [*incarnations, *(name.decode() for name in redis.srandmember(keys("orphans"), 100) or [])]
            outbox = sum(redis.hlen(keys("outbox", holder)) for holder in holders)
            waiting, dead = redis.zcard(keys("waiting")), redis.llen(keys("dead"))
        backlog = self._backlog(queues)
        return Stats(
            queues={
                queue: _queue(queue, answers[3 * i], answers[3 * i + 1], answers[3 * i + 2], backlog.get(queue, -1))
                for i, queue in enumerate(queues)
            },
            workers=len(incarnations), processing=held, waiting=waiting, dead=dead, outbox=outbox,
        )

    def _backlog(self, queues: Sequence[str]) -> dict[str, int]:
        """Records of each queue that were not admitted yet."""
        try:
            unread = self._broker.unread([self._config.topic(queue) for queue in queues], self._config.group_id, self._marks(queues))
        except KRQError:
            return {}
        return {self._config.queue_of(topic): n for topic, n in unread.items()}

    def _marks(self, queues: Sequence[str]) -> dict[tuple[str, int], int]:
        """How far intake has come, where it keeps marks."""
        keys = self._store.keys
        with self._store.plain() as redis:
            parts = [name.decode().rpartition(":") for name in redis.hkeys(keys("intake"))]
            wanted = [(queue, int(number)) for queue, _, number in parts if queue in queues]
            pipeline = redis.pipeline(transaction=False)
            for queue, number in wanted:
                pipeline.hget(keys.partition("mark", queue, number), "next")
            values = pipeline.execute()
        return {(self._config.topic(q), n): int(value) for (q, n), value in zip(wanted, values, strict=True) if value is not None}

    # --- dead letters ------------------------------------------------------------------------

    def dead(self, limit: int = 100) -> list[DeadLetter]:
        """Dead letters, the latest first; 1,000 are kept at hand, the topic has all of them."""
        with self._store.plain() as redis:
            raws = redis.lrange(self._store.keys("dead"), 0, limit - 1)
        return [events.decode_letter(raw) for raw in raws]


def _info(task_id: str, fields: dict[str, str]) -> TaskInfo:
    status = _STATES[fields["s"]]
    value = fields.get("r")
    progress: Any = fields.get("pg", "").partition("/")
    return TaskInfo(
        id=task_id, status=status, name=fields.get("n", ""), queue=fields.get("q", ""),
        result=_json(value) if value is not None and status is TaskStatus.SUCCESS else None,
        error=_error(value) if value is not None and status is not TaskStatus.SUCCESS else None,
        attempt=int(fields.get("a", 0)), failures=int(fields.get("f", 0)), deaths=int(fields.get("i", 0)),
        worker=ids.worker_of(fields["o"]) if "o" in fields else "", priority=int(fields.get("pr", 0)),
        progress=(int(progress[0]), int(progress[2])) if progress[1] else None,
        sent=_time(fields.get("ts")), due=_time(fields.get("due")) if status is TaskStatus.SCHEDULED else None,
        started=_time(fields.get("tt")), finished=_time(fields.get("tf")) if status.final else None,
    )


def _failure(fields: dict[str, Any]) -> WorkerFailure:
    ran = fields.get("ran")
    return WorkerFailure(
        worker=ids.worker_of(fields["incarnation"]), incarnation=fields["incarnation"], at=fields["at"] / 1000,
        cause=fields.get("cause", ""), beat=_time(fields.get("beat")), held=int(fields.get("held", 0)),
        ran=list(ran) if isinstance(ran, list) else [], host=fields.get("host", ""),
    )


def _queue(queue: str, ready: int, scheduled: int, raw: dict[bytes, bytes], backlog: int) -> QueueStats:
    fields = {name.decode(): int(value) for name, value in raw.items()}
    return QueueStats(
        queue=queue, ready=ready, scheduled=scheduled, backlog=backlog, admitted=fields.get("N", 0), succeeded=fields.get("S", 0),
        failed=fields.get("F", 0), cancelled=fields.get("C", 0), retried=fields.get("R", 0), paused="paused" in fields,
    )


def _time(ms: str | None) -> float | None:
    return int(ms) / 1000 if ms else None
