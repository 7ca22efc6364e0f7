"""Why a task is where it is: from what Redis has of it, its queue, its limits and the workers. Reads only, and boundedly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from krq import ids, message
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import KRQError
from krq.info import QueueStats, Reason, TaskInfo, WorkerInfo
from krq.inspector import Inspector
from krq.message import Message
from krq.states import TaskStatus
from krq.store.client import Store

#: dependencies that are looked at, and that are named
LOOKED, NAMED = 500, 10
#: newest records of a topic in which a task is looked for
RECORDS = 100
#: seconds of a rate that may be made up for (places.lua)
BURST = 0.05
_LIMITS = {"n": "max_concurrency", "k": "max_concurrency_per_key", "r": "rate_limit", "o": "in_order"}


class Facts(NamedTuple):
    """What Redis has of one task, at one moment."""

    info: TaskInfo
    fields: Mapping[str, str]
    """of its hash: see prelude.lua"""
    message: Message | None
    after: Sequence[str | tuple[str, int]]
    """what it waits for, or has waited for"""
    history: Sequence[Mapping[str, Any]]
    now: float
    """by the clock of Redis"""
    opened: float
    """when the namespace was opened last"""
    is_open: bool

    def time(self, field: str) -> float | None:
        """A time of its hash, as Unix seconds."""
        value = self.fields.get(field)
        return int(value) / 1000 if value else None


class Reasons:
    """Finds them. Thread-safe."""

    def __init__(self, config: Config, store: Store, broker: Broker, inspector: Inspector) -> None:
        self._config = config
        self._store = store
        self._broker = broker
        self._inspector = inspector

    def of(self, facts: Facts) -> list[Reason]:
        """The first is what it waits for now. None for a task that has ended."""
        match facts.info.status:
            case TaskStatus.WAITING:
                found = self._waiting(facts)
            case TaskStatus.SCHEDULED:
                found = [*self._scheduled(facts), *self._hindered(facts, unknown=False)]
            case TaskStatus.PROCESSING:
                found = self._processing(facts)
            case TaskStatus.QUEUED:
                found = self._queued(facts)
            case _:
                return []
        if not facts.is_open:
            text = "Redis was restarted or has lost something: nothing is taken until the workers have checked it, one lease at most"
            found.insert(0, Reason(code="closed", text=text))
        expires = facts.time("x")
        if expires is not None and facts.info.status is not TaskStatus.PROCESSING:
            found.append(Reason(code="expires", text="If it has not started by then, it fails", until=expires))
        return found

    # --- waiting -----------------------------------------------------------------------------

    def _waiting(self, facts: Facts) -> list[Reason]:
        kin, size = named(facts.after, LOOKED)
        infos = self._inspector.infos(kin)
        children = "kd" in facts.fields
        code, verb = ("children", "ends after") if children else ("dependency", "waits for")
        still = [(one, info) for one, info in zip(kin, infos, strict=True) if info is None or not info.status.final]
        found = [Reason(code=code, id=one, text=f"It {verb} {_named(one, info)}") for one, info in still[:NAMED]]
        total = facts.fields.get("w", str(len(still)))
        if int(total) > len(found):
            noun = "tasks that it has made" if children else "tasks"
            found.append(Reason(code=code, text=f"{total} of {size:,} {noun} have not ended" + ("; the first are named" if found else "")))
        return found

    # --- scheduled ---------------------------------------------------------------------------

    def _scheduled(self, facts: Facts) -> list[Reason]:
        info = facts.info
        last = facts.history[-1] if facts.history else None
        ended = (last or {}).get("finished", 0) / 1000
        since = facts.time("un")
        if since is not None and since > ended:
            return [self._unknown(facts)]
        if last is not None and last["outcome"] == "retry":
            text = f"Attempt {last['attempt']} failed{error_of(last)}, and its back-off is not over: then attempt {info.attempt + 1} is due"
            return [Reason(code="backoff", text=text, since=ended, until=info.due)]
        return [Reason(code="delay", text="It was sent to run later", since=info.sent, until=info.due)]

    # --- processing --------------------------------------------------------------------------

    def _processing(self, facts: Facts) -> list[Reason]:
        info, owner = facts.info, facts.fields.get("o", "")
        worker = next((one for one in self._inspector.workers() if one.incarnation == owner), None)
        found = []
        if "c" in facts.fields:
            found.append(Reason(code="cancel", text="It was cancelled, and its worker has been told to stop it"))
        if worker is None:
            text = f"Its worker {ids.worker_of(owner)} is dead, and its tasks are being given to others"
            return [Reason(code="worker_dead", text=text, since=info.started), *found]
        silent = facts.now - worker.beat if worker.beat else 0.0
        if silent > 3 * self._config.heartbeat:
            text = f"Its worker {worker.id} was not heard of for {silent:.1f} s; if it stays silent it loses its tasks"
            found.insert(0, Reason(code="worker_dead", text=text, since=worker.beat, until=(worker.beat or 0.0) + self._config.lease))
        progress = f", {info.progress[0]} of {info.progress[1]} done" if info.progress else ""
        text = f"Attempt {info.attempt} runs on {worker.id} ({worker.host}, process {worker.pid}){progress}"
        deadline = None
        if facts.message is not None and facts.message.timeout is not None and info.started is not None:
            deadline = info.started + facts.message.timeout
        return [*found, Reason(code="running", text=text, since=info.started, until=deadline)]

    # --- queued ------------------------------------------------------------------------------

    def _queued(self, facts: Facts) -> list[Reason]:
        found = self._hindered(facts, unknown=True)
        if facts.fields["s"] == "m":
            return [self._backlog(facts), *found]
        if facts.info.waits_for:
            found.append(self._limit(facts))
            return found
        workers = self._serving(facts.info)
        place = self._place(facts.info)
        if not found and place:
            slots, busy = sum(one.slots for one in workers), sum(one.busy for one in workers)
            free = f"all {slots} slots of its workers are busy" if busy >= slots else "a worker with a free slot is about to take it"
            place = f"{place}; {free}"
        return [*found, Reason(code="position", text=place or "It is about to be taken", since=facts.info.sent)]

    def _place(self, info: TaskInfo) -> str:
        key = self._store.keys("ready", info.queue)
        with self._store.plain() as redis:
            rank, size = redis.zrank(key, info.id), redis.zcard(key)
        return "" if rank is None else f"It is number {rank + 1:,} of {size:,} ready tasks of the queue {info.queue}"

    def _hindered(self, facts: Facts, *, unknown: bool) -> list[Reason]:
        """What would keep it from being taken, were it ready."""
        info = facts.info
        found = []
        with self._store.plain() as redis:
            paused = redis.hexists(self._store.keys("queue", info.queue), "paused")
        if paused:
            text = f"The queue {info.queue} is paused: nothing of it is taken until `krq resume {info.queue}`"
            found.append(Reason(code="paused", text=text))
        workers = self._serving(info)
        inbox = facts.message.inbox if facts.message is not None else None
        if not workers and inbox:
            found.append(Reason(code="no_worker", text=f"It is for the one worker with the inbox {inbox}, which is gone"))
        elif not workers:
            found.append(Reason(code="no_worker", text=f"No live worker serves the queue {info.queue}"))
        elif unknown and not self._knowing(info, workers):
            found.append(self._unknown(facts))
        return found

    def _serving(self, info: TaskInfo) -> list[WorkerInfo]:
        return [one for one in self._inspector.workers() if info.queue in (*one.queues, one.inbox)]

    def _knowing(self, info: TaskInfo, workers: Sequence[WorkerInfo]) -> bool:
        serving = {one.incarnation for one in workers}
        return any(one.incarnation in serving for one in self._inspector.serving(info.name))

    def _unknown(self, facts: Facts) -> Reason:
        info, since = facts.info, facts.time("un")
        began = None if since is None else max(since, facts.opened)
        workers = self._serving(info)
        if workers and self._knowing(info, workers):
            return Reason(code="unknown_task", text=f"No worker knew the task {info.name}; one does now, and takes it then", until=info.due)
        text = f"No live worker of the queue {info.queue} knows a task named {info.name}; if none comes in time, it is a dead letter"
        until = None if began is None else began + self._config.unknown_task_grace
        return Reason(code="unknown_task", text=text, since=began, until=until)

    def _limit(self, facts: Facts) -> Reason:
        info, keys, key = facts.info, self._store.keys, facts.fields.get("k", "")
        letter = facts.fields["pk"]
        group = letter + info.name + ("\0" + key if letter in "ko" else "")
        with self._store.plain() as redis:
            raw = redis.hget(keys("limits"), info.name)
            running = redis.scard(keys("busy", group))
            first = redis.zrange(keys("line", group), 0, 0)
            free = redis.hget(keys("rates"), info.name)
            rank = redis.zrank(keys("parked", f"{info.queue}:{group}"), info.id)
        limit = msgspec.json.decode(raw) if raw else {}
        place = "" if rank is None else f"; it is number {rank + 1:,} of those that wait for that"
        words = _LIMITS[letter]
        of_key = f" of the key {key}" if key else ""
        if letter == "o":
            before = first[0].decode() if first else ""
            return Reason(code="limit", id=before, text=f"{words}: {before or 'another'}{of_key} is before it and has not ended{place}")
        if letter == "r":
            interval = float(limit.get("t", 0)) / 1000
            until = max(facts.now, float(free or 0) / 1000 - max(interval, BURST)) + (rank or 0) * interval
            return Reason(code="limit", text=f"{words}: {limit.get('r', 'its rate')} is used up{place}", until=until)
        most = limit.get("c" if letter == "n" else "k", "?")
        return Reason(code="limit", text=f"{words}: {running} of {most} run{of_key}{place}")

    # --- in the log --------------------------------------------------------------------------

    def _backlog(self, facts: Facts) -> Reason:
        """It is in the log, and nobody has entered it into the schedule."""
        info = facts.info
        queue = self._config.queue if info.queue.startswith("inbox.") else info.queue
        return self.unread(queue, info.id, info.sent)

    def unread(self, queue: str, task_id: str, since: float | None) -> Reason:
        """Of a task whose record nobody has read. ``queue``: the one that it was published to."""
        stats = self._inspector.stats(backlog=False).queues.get(queue, QueueStats(queue=queue))
        backlog = self._inspector.backlog([queue]).get(queue, -1)
        where = "its backlog can't be told, as the broker does not answer"
        if backlog >= 0:
            records = "1 record" if backlog == 1 else f"{backlog:,} records"
            where = f"{records} of the queue {queue} {'has' if backlog == 1 else 'have'} not been read, its own among them"
        ahead = self._ahead(queue, task_id) if backlog > 0 else None
        if ahead is not None:
            where += f" with {ahead:,} before it in its partition"
        full = stats.ready + stats.parked >= self._config.window
        why = f"; Redis has its {self._config.window:,} ready tasks already" if full else ""
        return Reason(code="backlog", text=f"It stands in the log, and is not in the schedule yet: {where}{why}", since=since)

    def _ahead(self, queue: str, task_id: str) -> int | None:
        """How many unread records stand before it in its partition. None: not known."""
        at = self.record(queue, task_id)
        if at is None or not isinstance(at[1], int):
            return None
        with self._store.plain() as redis:
            mark = redis.hget(self._store.keys.partition("mark", queue, at[0]), "next")
        return max(0, at[1] - int(mark)) if mark is not None else at[1]

    def record(self, queue: str, task_id: str) -> tuple[int, int | str, float] | None:
        """Partition, offset and time of a task's record among the newest ``RECORDS`` of its queue."""
        wanted = task_id.encode()
        try:
            newest = self._broker.read(self._config.topic(queue), RECORDS)
        except KRQError:
            return None
        for partition, record in reversed(newest):
            if wanted in record.value and _is_of(record.value, task_id):
                return partition, record.offset, record.timestamp / 1000
        return None


def named(after: Sequence[str | tuple[str, int]], most: int) -> tuple[list[str], int]:
    """The first ids that these name, and how many there are."""
    found: list[str] = []
    size = 0
    for one in after:
        n = 1 if isinstance(one, str) else one[1]
        left = min(n, most - len(found))
        if left > 0:
            found += [one] if isinstance(one, str) else [f"{one[0]}{i}" for i in range(left)]
        size += n
    return found, size


def error_of(entry: Mapping[str, Any]) -> str:
    """What an attempt failed with, in brackets."""
    error = entry.get("error")
    text = f"{error['type']}: {error['message']}" if error and error.get("message") else error["type"] if error else entry.get("cause", "")
    return f" ({short(text)})" if text else ""


def short(text: str, most: int = 200) -> str:
    """A text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _named(task_id: str, info: TaskInfo | None) -> str:
    if info is None:
        return f"{task_id}, which nobody has published, or whose record has not been read"
    kept = f", kept back by {info.waits_for}" if info.waits_for else ""
    failed = f" after {info.failures} failures" if info.failures > 1 else " after a failure" if info.failures else ""
    return f"{task_id} ({info.name}), which is {info.status}{failed}{kept}"


def _is_of(raw: bytes, task_id: str) -> bool:
    try:
        return message.reread(raw).task_id == task_id
    except (ValueError, RecursionError):
        return False
