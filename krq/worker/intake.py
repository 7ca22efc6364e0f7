"""Intake: reads the queues' topics and admits their records into the schedule, each exactly once.

The partition's mark moves in the same script that admits, so it does not matter who reads, or how
often. A record that is no message goes to the dead letters first. A full window pauses the partition.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from krq import events, failpoints, message
from krq.brokers.base import Batch, Broker, Consumer, Incoming, Outgoing, Position
from krq.config import Config
from krq.errors import BrokerConnectionError, KRQError, MessageInvalid, MessageTooLarge
from krq.events import DeadLetter
from krq.failpoints import Failpoint
from krq.logs import Wait
from krq.store.client import Answer, Store
from krq.store.records import cut, record
from krq.store.records import letters as records_of
from krq.store.scripts import Script

log = logging.getLogger("krq.worker.intake")

#: records that one script call admits
CHUNK = 100
#: seconds between two commits, and between two looks at the marks
TICK = 1.0
LOOK = 5.0
#: a poll that brought fewer records than this is followed by a short rest: their senders have admitted most of them
FEW, REST = 100, 0.01
#: seconds that a record without room waits before it is offered again
FULL = 0.05
#: seconds until the next try after an error that nobody has foreseen
PATIENCE = 1.0

Part = tuple[str, int]


class Refused(Exception):
    """The store did not admit: another epoch, or closed. Intake waits."""


class Intake:
    """One thread per child."""

    def __init__(self, config: Config, store: Store, broker: Broker, queues: Sequence[str], member: str) -> None:
        self._config = config
        self._store = store
        self._broker = broker
        self._topics = [config.topic(queue) for queue in queues]
        self._member = member
        self._member_id = ""
        self._consumer: Consumer | None = None
        self._connected = False
        self._waiting: dict[Part, Batch] = {}
        self._ids: dict[Part, str] = {}
        #: offsets of conflicts that are dead letters, and whose mark is not past them
        self._buried: defaultdict[Part, set[Any]] = defaultdict(set)
        self._ticked = 0.0
        self._looked = 0.0
        self._wait = Wait(log, "intake waits")
        self._fail = failpoints.armed()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="krq-intake", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Admit no more, leave the group. Returns at once; ``join`` waits."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout)

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._turn()
            except Refused:
                self._stop.wait(0.2)
            except KRQError as error:
                self._wait.begin(error)
                self._looked = 0.0
                self._stop.wait(0.5)
            except Exception:  # boundary: without intake the log's tasks would wait for ever
                log.exception("intake could not go on; it tries again")
                self._stop.wait(PATIENCE)
        try:
            self._tick(commit_only=True)
        except (KRQError, Refused) as error:
            log.debug("last commit: %s", error)
        if self._consumer is not None:
            self._consumer.close()
            log.info("disconnected from %s", self._broker.name)

    def _turn(self) -> None:
        if self._consumer is None:
            self._broker.ensure(self._topics)
            self._consumer = self._broker.consumer(self._topics, self._config.group_id, self._member)
        consumer = self._consumer
        for part, batch in list(self._waiting.items()):
            if part not in consumer.assigned() and self._broker.ordered:
                del self._waiting[part]
                self._buried.pop(part, None)
            else:
                self._offer(consumer, batch)
        batches = consumer.poll(FULL if self._waiting else 0.1)
        if not self._connected:
            self._connected = True
            log.info("connected to %s: reads %s", self._broker.name, ", ".join(self._topics))
        self._meet(consumer)
        for batch in batches:
            self._offer(consumer, batch)
        if batches and sum(len(batch.records) for batch in batches) < FEW:
            self._stop.wait(REST)
        now = time.monotonic()
        if now - self._ticked >= TICK:
            self._ticked = now
            self._tick()

    def _offer(self, consumer: Consumer, batch: Batch) -> None:
        """Admit a batch, or as much of it as there is room for; the rest waits and its partition is paused."""
        part = (batch.topic, batch.partition)
        self._ids[part] = batch.topic_id
        try:
            rest = self._admit(consumer, batch)
        except (KRQError, Refused):
            self._keep(consumer, part, batch)
            raise
        if rest is not None:
            self._keep(consumer, part, rest)
        elif self._waiting.pop(part, None) is not None:
            consumer.resume(*part)

    def _keep(self, consumer: Consumer, part: Part, batch: Batch) -> None:
        self._waiting[part] = batch
        consumer.pause(*part)

    def _admit(self, consumer: Consumer, batch: Batch) -> Batch | None:
        """Admit chunk by chunk; returns what is left."""
        part = (batch.topic, batch.partition)
        while True:
            chunk = batch.records[:CHUNK]
            last = len(chunk) == len(batch.records)
            following = batch.next if last else batch.records[CHUNK].offset
            records, unreadable = self._read(batch, chunk)
            self._bury([letter for _, letter in unreadable])
            if self._fail is not None:
                self._fail(Failpoint.INTAKE_POLLED)
            answer = self._call(batch, following, records, chunk)
            if self._fail is not None:
                self._fail(Failpoint.INTAKE_ADMITTED)
            match answer.status:
                case "OK":
                    pass
                case "NOMARK" | "TOPIC":
                    self._make_marks([(batch.topic, batch.partition)])
                    continue
                case "GAP":
                    consumer.seek(batch.topic, batch.partition, answer.values[0])
                    return None
                case _:
                    raise Refused(answer.status)
            self._finish(batch, chunk, records, answer)
            self._complete(batch, [incoming.offset for incoming, _ in unreadable])
            stop = answer.values[0]
            if stop is not False and stop is not None:
                batch = batch._replace(first=stop, records=[r for r in batch.records if not _before(r.offset, stop)])
                if stop not in self._buried[part]:
                    return batch
                continue
            if last:
                self._buried[part].clear()
                return None
            batch = batch._replace(first=following, records=batch.records[CHUNK:])

    def _call(self, batch: Batch, following: Any, records: list[list[Any]], chunk: Sequence[Incoming]) -> Answer:
        queue = self._config.queue_of(batch.topic)
        source: list[Any] = [queue, batch.partition]
        if self._broker.ordered:
            source += [batch.topic_id, batch.first, following, chunk[-1].timestamp if chunk else 0]
        config, buried = self._config, sorted(self._buried[batch.topic, batch.partition])
        return self._store.run(Script.ADMIT, source, config.window, config.window_bytes, int(config.result_ttl), records, buried)

    # --- records -----------------------------------------------------------------------------

    def _read(self, batch: Batch, chunk: Sequence[Incoming]) -> tuple[list[list[Any]], list[tuple[Incoming, DeadLetter]]]:
        """Decode records: those to admit, and those to bury."""
        records, unreadable = [], []
        queue = self._config.queue_of(batch.topic)
        for incoming in chunk:
            try:
                decoded = message.decode(incoming.value, max_bytes=self._config.max_message_bytes + 4096, max_depth=self._config.max_depth)
            except (MessageInvalid, MessageTooLarge) as error:
                unreadable.append((incoming, _letter(queue, batch.partition, incoming, error.code, error.cause)))
                continue
            task_id = decoded.task_id or made_up_id(batch, incoming)
            position = Position(batch.topic, batch.partition, incoming.offset)
            records.append(record(task_id, decoded, incoming.value, position, queue, incoming.timestamp, ordered=self._broker.ordered))
        return records, unreadable

    def _bury(self, letters: Sequence[DeadLetter]) -> None:
        """Publish dead letters before their records count as read. After a crash in between one may stand there twice."""
        if not letters:
            return
        kept = self._store.run(Script.DEAD, records_of(letters), [])
        if not kept.ok:
            raise Refused(kept.status)
        config = self._config
        outgoing = [Outgoing(config.dead_topic, events.encode_letter(cut(letter, config.max_message_bytes))) for letter in letters]
        for answer in self._broker.publish(outgoing, config.send_timeout):
            if isinstance(answer, Exception):
                raise answer if isinstance(answer, KRQError) else BrokerConnectionError(str(answer))
        for letter in letters:
            log.warning("dead letter from %s: %s", letter.ref, letter.reason)

    def _finish(self, batch: Batch, chunk: Sequence[Incoming], records: list[list[Any]], answer: Answer) -> None:
        """What needs no run: ids that stand for another message are buried, and what has ended long since is complete."""
        _, conflicts, complete = answer.values
        buried = self._buried[batch.topic, batch.partition]
        clashing = [records[i - 1] for i in conflicts if records[i - 1][4] not in buried]
        if clashing:
            by_offset = {incoming.offset: incoming for incoming in chunk}
            self._bury([
                _letter(r[2], batch.partition, by_offset[r[4]], "ID_CONFLICT", f"task id {r[0]!r} stands for another message already", r[0])
                for r in clashing
            ])
            if self._broker.ordered:
                buried.update(by_offset.keys() & {r[4] for r in clashing})
        self._complete(batch, [records[i - 1][4] for i in complete])

    def _complete(self, batch: Batch, offsets: Sequence[Any]) -> None:
        if offsets and not self._broker.ordered:
            positions = [Position(batch.topic, batch.partition, offset) for offset in offsets]
            self._broker.complete(positions, self._config.group_id)

    # --- marks -------------------------------------------------------------------------------

    def _tick(self, *, commit_only: bool = False) -> None:
        """Commit how far each partition is complete; now and then compare positions with the marks."""
        consumer = self._consumer
        if consumer is None or not self._broker.ordered:
            self._wait.end()
            return
        parts = [part for part in consumer.assigned() if part in self._ids]
        look = not commit_only and time.monotonic() - self._looked >= LOOK
        if look:
            self._looked = time.monotonic()
        caught_up = {part: look and consumer.position(*part) == consumer.bounds(*part)[1] for part in parts}
        asked = [[self._config.queue_of(t), p, self._ids[t, p], False, caught_up[t, p]] for t, p in parts]
        answer = self._store.run(Script.MARK, asked)
        if not answer.ok:
            raise Refused(answer.status)
        lows = {}
        for part, told in zip(parts, answer.values[0], strict=True):
            if not told:
                self._make_marks([part])
                continue
            lows[part] = told[1]
            if look and part not in self._waiting:
                self._compare(consumer, part, told[0])
        if self._fail is not None and lows:
            self._fail(Failpoint.COMMIT_BEFORE)
        consumer.commit(lows)
        if self._fail is not None and lows:
            self._fail(Failpoint.COMMIT_AFTER)
        self._expel()
        if look:
            self._wait.end()

    def _expel(self) -> None:
        """Take the dead off the group: it would wait for them for a whole session before partitions move."""
        with self._store.plain() as redis:
            dead = redis.lpop(self._store.keys("expel"), 100)
        if dead:
            self._broker.expel([member.decode() for member in dead], self._config.group_id)

    def _meet(self, consumer: Consumer) -> None:
        """Make the marks of partitions that are new here: without them a submitter can't take the short cut.

        And leave word who this is within the group, for the day that it dies.
        """
        if not self._broker.ordered:
            return
        if consumer.member_id != self._member_id:
            self._member_id = consumer.member_id
            self._store.run(Script.JOINED, self._member, self._member_id)
        for part in consumer.assigned() - self._ids.keys():
            topic_id = consumer.topic_id(part[0])
            if topic_id is not None:
                self._ids[part] = topic_id
                self._make_marks([part])

    def _compare(self, consumer: Consumer, part: Part, mark: int) -> None:
        """Go where the mark is: it may have moved back (Redis lost its last second) or on (another read ahead)."""
        position = consumer.position(*part)
        if position is None or position == mark:
            return
        first, end = consumer.bounds(*part)
        if mark < first or mark > end:
            log.error("%s:%d: records %d to %d are gone from the log before they were read", *part, mark, max(first, mark))
            self._store.run(Script.JUMP, self._config.queue_of(part[0]), part[1], self._ids[part], mark, first if mark < first else end)
            mark = first if mark < first else end
        consumer.seek(*part, mark)

    def _make_marks(self, parts: Sequence[Part]) -> None:
        """Begin a partition that has no mark: at the committed offset, else at its first record."""
        assert self._consumer is not None
        asked = [[self._config.queue_of(t), p, self._ids[t, p], self._consumer.start(t, p), False] for t, p in parts]
        answer = self._store.run(Script.MARK, asked)
        if not answer.ok:
            raise Refused(answer.status)
        for part, told in zip(parts, answer.values[0], strict=True):
            if part not in self._waiting and self._consumer.position(*part) != told[0]:
                self._consumer.seek(*part, told[0])


def made_up_id(batch: Batch, incoming: Incoming) -> str:
    """The id of a record that brings none: the same at each redelivery, another one when its topic is made anew."""
    return f"{batch.topic_id[:12]}.{batch.topic[-60:]}.{batch.partition}.{incoming.offset}.{incoming.timestamp:x}"


def _letter(queue: str, partition: int, incoming: Incoming, code: str, reason: str, task_id: str = "") -> DeadLetter:
    return DeadLetter(
        reason=reason, code=code, at=time.time_ns() // 1_000_000, queue=queue, partition=partition, offset=incoming.offset,
        id=task_id, **events.original(incoming.value),
    )


def _before(offset: Any, stop: Any) -> bool:
    if isinstance(offset, int):
        return bool(offset < stop)
    ms, _, n = offset.partition("-")
    stop_ms, _, stop_n = stop.partition("-")
    return (int(ms), int(n)) < (int(stop_ms), int(stop_n))
