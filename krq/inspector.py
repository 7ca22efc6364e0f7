"""The read side: what is where, without scans. Every call costs a bounded number of round trips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from krq import ids, masking, message, rates
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import KRQError, TaskNotFound
from krq.info import Arguments, AttemptInfo, Latency, QueueStats, Stats, TaskFilter, TaskInfo, TaskPage, WorkerFailure, WorkerInfo
from krq.listing import Listing
from krq.outcome import ErrorInfo
from krq.states import TaskStatus
from krq.store.client import Store
from krq.store.scripts import Script

_STATES = {
    "m": TaskStatus.QUEUED, "w": TaskStatus.WAITING, "d": TaskStatus.SCHEDULED, "q": TaskStatus.QUEUED,
    "p": TaskStatus.PROCESSING, "S": TaskStatus.SUCCESS, "F": TaskStatus.FAILED, "C": TaskStatus.CANCELLED,
}
#: field ``pk`` of a task
_LIMITS = {"n": "max_concurrency", "k": "max_concurrency_per_key", "r": "rate_limit", "o": "in_order"}
_json = msgspec.json.Decoder().decode
_error = msgspec.json.Decoder(ErrorInfo).decode
#: tasks that ended last, of which the latencies are told
_SAMPLE = 100


class Inspector:
    """Reads the schedule. Thread-safe. All methods raise ``RedisConnectionError`` when Redis is away."""

    def __init__(self, config: Config, store: Store, broker: Broker) -> None:
        self._config = config
        self._store = store
        self._broker = broker
        self._listing = Listing(store, self.infos, self._peeks)

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

    def _peeks(self, task_ids: Sequence[str]) -> list[TaskInfo | None]:
        """The same with status, name, queue, worker and end alone, in one round trip: for those who look for a few among many."""
        return [
            None if peek is False or peek[0] not in _STATES else TaskInfo(
                id=task_id, status=_STATES[peek[0]], name=peek[1] or "", queue=peek[2] or "",
                worker=ids.worker_of(peek[3]) if peek[3] else "", finished=_time(peek[4] or None),
            ) for task_id, peek in zip(task_ids, self._store.run(Script.PEEK, task_ids).values[0], strict=True)
        ]

    def children(self, task_id: str) -> list[str]:
        """Ids of the tasks that a task made while it ran, in order; none before its function has returned."""
        with self._store.plain() as redis:
            raw = redis.hget(self._store.keys("children", task_id), "ids")
        return [] if raw is None else message.named_in(msgspec.msgpack.decode(raw, type=list[str | tuple[str, int]]))

    def tasks(self, wanted: TaskFilter, limit: int) -> list[TaskInfo]:
        """At most ``limit`` tasks; the newest or the next first.

        With more than a status to look for it reads at most 50 × ``limit`` tasks to find them.
        """
        found: dict[str, TaskInfo] = {}
        looked, cursor = 0, None
        while len(found) < limit:
            page = self._listing.page(wanted, cursor, limit - len(found))
            found.update((info.id, info) for info in page.tasks)
            looked, cursor = looked + page.looked, page.cursor
            if cursor is None or looked >= 50 * limit:
                break
        return list(found.values())

    def page(self, wanted: TaskFilter, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """A page of at most ``limit`` tasks after ``cursor``: running, queued, scheduled and waiting ones, then those that have ended.

        The next come first, of the ended the latest. It looks at about 2,000 tasks at most: where a filter leaves few a page may be
        short and have a cursor all the same. A task that moves meanwhile may be seen twice. Raises ``OptionError`` for a wrong cursor.
        """
        return self._listing.page(wanted, cursor, limit)

    def latency(self) -> Latency:
        """How long the last 100 tasks that ended took. Two round trips."""
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for task_id in redis.lrange(keys("done"), 0, _SAMPLE - 1):
                pipeline.hmget(keys("task", task_id.decode()), "ts", "tt", "tf", "due")
            times = [[int(value or 0) for value in values] for values in pipeline.execute()]
        waits = sorted(started - max(sent, due) for sent, started, _, due in times if sent and started)
        runs = sorted(ended - started for _, started, ended, _ in times if started and ended)
        return Latency(n=len(times), wait=_share(waits, 0.5), wait95=_share(waits, 0.95), run=_share(runs, 0.5), run95=_share(runs, 0.95))

    def arguments(self, task_ids: Sequence[str]) -> list[Arguments | None]:
        """What these were sent with, as it may be shown, in one round trip. None: not known, or it succeeded and its message is gone."""
        if not task_ids:
            return []
        with self._store.plain() as redis:
            raws = redis.mget([self._store.keys("message", task_id) for task_id in task_ids])
        return [None if raw is None else _arguments(message.reread(raw.decode())) for raw in raws]

    def dependents(self, task_id: str, limit: int = 200) -> list[str]:
        """Ids of tasks that wait for this one, at most so many. Whoever was told of its end is in it no more."""
        with self._store.plain() as redis:
            return [one.decode().rpartition(" ")[2] for one in redis.lrange(self._store.keys("dependents", task_id), 0, limit - 1)]

    def message(self, task_id: str) -> bytes | None:
        """The message of a task as it was published; None once it has succeeded."""
        with self._store.plain() as redis:
            raw: bytes | None = redis.get(self._store.keys("message", task_id))
        return raw

    def history(self, task_id: str) -> list[AttemptInfo]:
        """The last ten attempts that did not succeed, the earliest first. Raises ``TaskNotFound``."""
        with self._store.plain() as redis:
            raws = redis.lrange(self._store.keys("history", task_id), 0, -1)
            if not raws and not redis.exists(self._store.keys("task", task_id)):
                raise TaskNotFound(f"No task {task_id!r} is known")
        return [_attempt(_json(raw)) for raw in raws]

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

    def stats(self, *, backlog: bool = True) -> Stats:
        """The whole namespace as it stands. ``backlog`` is -1 where the broker does not answer, or is not asked."""
        queues = self.queues()
        keys = self._store.keys
        with self._store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for queue in queues:
                pipeline.zcard(keys("ready", queue))
                pipeline.zcard(keys("scheduled", queue))
                pipeline.hgetall(keys("queue", queue))
                pipeline.get(keys("totals", queue))
            answers = pipeline.execute()
            seconds, micros = redis.time()
            incarnations = self._incarnations()
            held = sum(redis.scard(keys("held", incarnation)) for incarnation in incarnations)
            holders = [*incarnations, *(name.decode() for name in redis.srandmember(keys("orphans"), 100) or [])]
            outbox = sum(redis.hlen(keys("outbox", holder)) for holder in holders)
            waiting, dead = redis.zcard(keys("waiting")), redis.zcard(keys("dead"))
        unread = self.backlog(queues) if backlog else {}
        now = seconds * 1000 + micros // 1000
        found = [_queue(queue, now, answers[4 * i : 4 * i + 4], unread.get(queue, -1)) for i, queue in enumerate(queues)]
        return Stats(
            queues={one.queue: one for one in found}, workers=len(incarnations), processing=held, waiting=waiting, dead=dead,
            outbox=outbox, rates=rates.total(one.rates for one in found), failure_rates=rates.total(one.failure_rates for one in found),
        )

    def backlog(self, queues: Sequence[str]) -> dict[str, int]:
        """Records of each queue that were not admitted yet, also of one that Redis does not know. {} where the broker does not answer."""
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


class Clients(Protocol):
    """What those who read for an app ask of its clients."""

    @property
    def store(self) -> Store: ...
    @property
    def broker(self) -> Broker: ...
    @property
    def inspector(self) -> Inspector: ...


def _info(task_id: str, fields: dict[str, str]) -> TaskInfo:
    status = _STATES[fields["s"]]
    value = fields.get("r")
    progress: Any = fields.get("pg", "").partition("/")
    return TaskInfo(
        id=task_id, status=status, name=fields.get("n", ""), queue=fields.get("q", ""),
        result=_json(value) if value is not None and status is TaskStatus.SUCCESS else None,
        error=_error(value) if value is not None and status is not TaskStatus.SUCCESS else None,
        attempt=int(fields.get("a", 0)), failures=int(fields.get("f", 0)), deaths=int(fields.get("i", 0)),
        interruptions=int(fields.get("ir", 0)),
        worker=ids.worker_of(fields["o"]) if "o" in fields else "", priority=int(fields.get("pr", 0)),
        waits_for=_LIMITS.get(fields.get("pk", ""), ""),
        progress=(int(progress[0]), int(progress[2])) if progress[1] else None,
        sent=_time(fields.get("ts")), due=_time(fields.get("due")) if status is TaskStatus.SCHEDULED else None,
        started=_time(fields.get("tt")), finished=_time(fields.get("tf")) if status.final else None,
    )


def _arguments(found: message.Message) -> Arguments:
    args, kwargs = masking.masked(found.args, found.kwargs, found.headers)
    return Arguments(
        args=args, kwargs=kwargs, after=message.named(found.after), inputs=found.inputs, retries=found.retries,
        timeout=found.timeout, key=found.key,
    )


def _share(ordered: Sequence[int], share: float) -> float | None:
    """The value below which this share of them lies, in seconds."""
    return max(0, ordered[min(len(ordered) - 1, int(share * len(ordered)))]) / 1000 if ordered else None


def _attempt(fields: dict[str, Any]) -> AttemptInfo:
    error = fields.get("error")
    return AttemptInfo(
        attempt=fields["attempt"], outcome=fields["outcome"], worker=ids.worker_of(fields.get("worker", "")),
        started=_time(fields.get("started")), finished=_time(fields.get("finished")),
        error=None if error is None else msgspec.convert(error, ErrorInfo), cause=fields.get("cause", ""),
    )


def _failure(fields: dict[str, Any]) -> WorkerFailure:
    ran, tail = fields.get("ran"), fields.get("tail")
    return WorkerFailure(
        worker=ids.worker_of(fields["incarnation"]), incarnation=fields["incarnation"], at=fields["at"] / 1000,
        cause=fields.get("cause", ""), beat=_time(fields.get("beat")), held=int(fields.get("held", 0)),
        ran=ran if isinstance(ran, list) else [], tail=tail if isinstance(tail, list) else [], host=fields.get("host", ""),
    )


def _queue(queue: str, now: int, answers: Sequence[Any], backlog: int) -> QueueStats:
    ready, scheduled, raw, ring = answers
    fields = {name.decode(): int(value) for name, value in raw.items()}
    ended = rates.ended(ring, now, fields.get("S", 0), fields.get("F", 0))
    return QueueStats(
        queue=queue, ready=ready, parked=fields.get("parked", 0), scheduled=scheduled, backlog=backlog,
        admitted=fields.get("N", 0), succeeded=fields.get("S", 0),
        failed=fields.get("F", 0), cancelled=fields.get("C", 0), retried=fields.get("R", 0), handed_back=fields.get("B", 0),
        paused="paused" in fields, rates=ended.all, failure_rates=ended.failed,
    )


def _time(ms: str | None) -> float | None:
    return int(ms) / 1000 if ms else None
