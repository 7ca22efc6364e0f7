"""One call of publish: what goes where, in which portions, and what the log said of each record."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import kafka.errors as kafka_errors

from krq.brokers._kafka_clients import CLIENT_FAILURES, describe, partitions_of
from krq.brokers._kafka_producer import OVERDUE, Chunk, Publisher
from krq.brokers.base import Outgoing, Position
from krq.errors import BrokerConnectionError, ConfigError, MessageTooLarge, SubmissionError, SubmissionTimeout

_CHUNK_RECORDS = 2_000
_CHUNK_BYTES = 4 * 1024 * 1024
_BLOCK = 128  # keyless records of one call that go to one partition, at least
_STALL = 1.0  # seconds without an ack until the topics are looked at again
_FRAME = 64  # bytes of a record besides value, key and headers

_TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
_REFUSED = (
    kafka_errors.AuthorizationError,
    kafka_errors.CorruptRecordError,
    kafka_errors.InvalidRecordError,
    kafka_errors.InvalidRequiredAcksError,
    kafka_errors.InvalidTimestampError,
    kafka_errors.InvalidTopicError,
    kafka_errors.PolicyViolationError,
    kafka_errors.UnsupportedCompressionTypeError,
    kafka_errors.UnsupportedForMessageFormatError,
    ValueError,
    TypeError,
)


class Publication:
    """The records of one call, their answers, and the way between. One thread, used once."""

    def __init__(self, publisher: Publisher, records: Sequence[Outgoing], timeout: float) -> None:
        self.publisher = publisher
        self.records = records
        self.timeout = timeout
        self.deadline = time.monotonic() + timeout
        self.answers: list[Any] = [None] * len(records)
        self.chunks: deque[Chunk] = deque()
        self.healed = False

    def run(self) -> list[Position | Exception]:
        """See ``Broker.publish``."""
        self._weigh()
        self._reach_topics()
        for places, sizes in self._portions():
            self._send(places, sizes)
        while self.chunks:
            self._settle(self.chunks.popleft())
        return self.answers

    def _left(self) -> float:
        return max(0.0, self.deadline - time.monotonic())

    def _weigh(self) -> None:
        limit = self.publisher.limit
        for place, record in enumerate(self.records):
            size = _size(record)
            if size > limit:
                self.answers[place] = MessageTooLarge(f"A record of {size} bytes for {record.topic} is over {limit}")

    def _reach_topics(self) -> None:
        """Make sure that all topics exist; the records of one that can't are answered."""
        publisher = self.publisher
        for topic in dict.fromkeys(record.topic for record in self.records):
            problem: Exception | None = None
            try:
                producer, cluster = publisher.open(self._left())
                publisher.admin.ensure([topic], self._left())
                if cluster.partitions_for_topic(topic) is None:
                    producer.partitions_for(topic)
            except CLIENT_FAILURES as error:
                publisher.trust(answers=False)
                problem = error if isinstance(error, BrokerConnectionError) else publisher.clients.gone(error)
            except ConfigError as error:
                problem = SubmissionError(error.cause, cure=error.advice)
            if problem is not None:
                for place, record in enumerate(self.records):
                    if record.topic == topic and self.answers[place] is None:
                        self.answers[place] = problem

    def _portions(self) -> Iterator[tuple[list[int], list[int]]]:
        places: list[int] = []
        sizes: list[int] = []
        total = 0
        for place, record in enumerate(self.records):
            if self.answers[place] is not None:
                continue
            size = _size(record)
            if places and (len(places) >= _CHUNK_RECORDS or total + size > _CHUNK_BYTES):
                yield places, sizes
                places, sizes, total = [], [], 0
            places.append(place)
            sizes.append(size)
            total += size
        if places:
            yield places, sizes

    def _send(self, places: list[int], sizes: list[int]) -> None:
        budget = self.publisher.budget
        total = sum(sizes)
        while not budget.take(len(places), total, 0.0 if self.chunks else self._left()):
            if not self.chunks:
                busy = SubmissionError(
                    "Too much is waiting for Kafka's confirmation", cure="Send again later: nothing of this was sent."
                )
                self._answer(places, busy)
                return
            self._settle(self.chunks.popleft())
        try:
            producer, cluster = self.publisher.open(self._left())
        except BrokerConnectionError as error:
            budget.give(len(places), total)
            self._answer(places, error)
            return
        chunk = Chunk([], [], [], producer, time.monotonic())
        partitions = self._deal(places, cluster)
        for place, size, partition in zip(places, sizes, partitions, strict=True):
            answer = self._hand_over(producer, self.records[place], partition)
            if isinstance(answer, Exception):
                self.answers[place] = answer
                budget.give(1, size)
            else:
                chunk.places.append(place)
                chunk.futures.append(answer)
                chunk.sizes.append(size)
        self.chunks.append(chunk)

    def _answer(self, places: Sequence[int], error: Exception) -> None:
        for place in places:
            self.answers[place] = error

    def _deal(self, places: Sequence[int], cluster: Any) -> list[int | None]:
        """The partition of each record: by key; else one for few, blocks over all of them for many."""
        keyless = Counter(self.records[place].topic for place in places if self.records[place].key is None)
        room: dict[str, Sequence[int]] = {}
        every: dict[str, list[int]] = {}
        used: dict[str, Iterator[int | None]] = {}
        found: list[int | None] = []
        for place in places:
            topic, _, key, _ = self.records[place]
            if key is not None:
                if topic not in every:
                    every[topic] = sorted(cluster.partitions_for_topic(topic) or ())
                parts = every[topic]
                found.append(parts[(self.publisher.hash(key.encode()) & 0x7FFFFFFF) % len(parts)] if parts else None)
                continue
            if topic not in used:
                room[topic] = partitions_of(cluster, topic)
                used[topic] = _blocks(room[topic], keyless[topic], next(self.publisher.turns))
            found.append(next(used[topic]))
        return found

    def _hand_over(self, producer: Any, record: Outgoing, partition: int | None) -> Any:
        """The future of the record, or the error that says why it never left."""
        key = None if record.key is None else record.key.encode()
        headers = [(name, text.encode()) for name, text in record.headers.items()] if record.headers else None
        try:
            return producer.send(record.topic, record.value, key=key, headers=headers, partition=partition)
        except _TOO_LARGE as error:
            return MessageTooLarge(describe(error))
        except (ValueError, TypeError) as error:
            return SubmissionError(f"Kafka's client refused a record for {record.topic}: {error}")
        except CLIENT_FAILURES as error:
            self.publisher.trust(answers=False)
            return self.publisher.clients.gone(error)

    def _settle(self, chunk: Chunk) -> None:
        """Wait for a chunk's confirmations and write down the answers."""
        publisher = self.publisher
        answers = self.answers
        done = size_done = 0
        for place, future, size in zip(chunk.places, chunk.futures, chunk.sizes, strict=True):
            if not future.is_done:
                self._wait(future, chunk)
            if not future.is_done:
                answers[place] = SubmissionTimeout(f"{publisher.clients.name} did not confirm within {self.timeout} s")
                publisher.late(future, size, chunk)
                continue
            done += 1
            size_done += size
            if future.exception is None:
                value = future.value
                answers[place] = Position(value.topic, value.partition, value.offset)
            else:
                answers[place] = self._judge(future.exception)
        publisher.budget.give(done, size_done)
        if chunk.futures:
            publisher.trust(answers=not isinstance(answers[chunk.places[-1]], SubmissionTimeout))

    def _wait(self, future: Any, chunk: Chunk) -> None:
        left = min(self._left(), max(0.0, chunk.sent + self.publisher.delivery + OVERDUE - time.monotonic()))
        if not self.healed and left > _STALL:
            if _done_within(future, _STALL):
                return
            self.healed = True
            self._heal()
            left = self._left()
        _done_within(future, left)

    def _heal(self) -> None:
        """Nothing was confirmed for a second: is a topic gone? Then make it again: the producer waits for it."""
        left = min(self._left() / 2, _STALL)
        try:
            self.publisher.clients.probe(left)
            self.publisher.admin.look_again(list({record.topic for record in self.records}), left)
        except (BrokerConnectionError, ConfigError):
            self.publisher.trust(answers=False)

    def _judge(self, error: Exception) -> Exception:
        name = self.publisher.clients.name
        if isinstance(error, _TOO_LARGE):
            return MessageTooLarge(f"{name} refused a record: {describe(error)}")
        if isinstance(error, _REFUSED):
            return SubmissionError(f"{name} refused a record: {describe(error)}")
        return SubmissionTimeout(f"{name} did not confirm a record: {describe(error)}")


def _size(record: Outgoing) -> int:
    """Bytes that a record takes, roughly and not too few."""
    size = len(record.value) + _FRAME
    if record.key is not None:
        size += 4 * len(record.key)
    for name, text in record.headers.items():
        size += 4 * (len(name) + len(text)) + 8
    return size


def _blocks(partitions: Sequence[int], count: int, turn: int) -> Iterator[int | None]:
    """``count`` partitions in runs: long ones, so that batches are large."""
    if not partitions:
        yield from itertools.repeat(None)
    spread = min(len(partitions), -(-count // _BLOCK))
    run = -(-count // spread)
    for place in itertools.count():
        yield partitions[(turn + place // run) % len(partitions)]


def _done_within(future: Any, seconds: float) -> bool:
    with contextlib.suppress(kafka_errors.KafkaError):
        future.get(seconds)
    return bool(future.is_done)
