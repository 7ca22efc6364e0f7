"""The broker that needs no Kafka: Redis Streams with consumer groups, over redis-py.

One stream a topic, one partition 0. The pending list of the group is what is unfinished. What is promised about losing
records is as good as that Redis is durable (``appendfsync always`` for the strongest).
"""

# ruff: noqa: ARG002 (the port names arguments that this kind of broker has no use for)

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.retry import Retry

from krq.brokers._streams_consumer import StreamsConsumer, StreamsTail, entry, translate
from krq.brokers.base import Incoming, Offset, Outgoing, Position
from krq.config import Config, mask
from krq.errors import (
    AppClosed,
    ConfigError,
    MessageTooLarge,
    RedisConnectionError,
    StoreError,
    SubmissionError,
    SubmissionTimeout,
)

_T = TypeVar("_T")
_HEADROOM = 64 * 1024
_ASK = 10.0  # seconds for a question to the server
_CHUNK = 500  # entries of one pipeline
_CHUNK_BYTES = 4 * 1024 * 1024
_PAGE = 1000
_COUNTED = 100_000  # entries that are counted one by one, at most
_PAUSE = 0.1  # seconds between two attempts to connect
_LOGS = 5_000  # records of the topic of what tasks log, about


class StreamsBroker:
    """``Broker`` over Redis Streams. Thread-safe; connects at first use; not usable after a fork or ``close``."""

    ordered = False

    def __init__(self, config: Config) -> None:
        self.config = config
        self.name = f"Redis Streams at {mask(config.broker)}"
        self._limit = config.max_message_bytes + _HEADROOM
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.Lock()
        self._clients: dict[float, redis.Redis] = {}
        self._consumers: list[StreamsConsumer] = []

    def connect(self, timeout: float) -> None:
        """Reach the server; ``RedisConnectionError`` when it does not answer within ``timeout`` seconds."""
        self._reach(time.monotonic() + timeout)
        self._ask(lambda client: client.ping(), timeout)

    def ensure(self, topics: Sequence[str], partitions: int | None = None) -> None:
        """Nothing to do: a stream exists with its first record, and nothing drops records but ``trim``."""
        self._check()

    def publish(self, records: Sequence[Outgoing], timeout: float) -> list[Position | Exception]:
        """See ``Broker.publish``. A reply lost on its way is ``SubmissionTimeout``: unknown."""
        self._check()
        deadline = time.monotonic() + timeout
        answers: list[Position | Exception | None] = [None] * len(records)
        for places in self._portions(records, answers):
            found = self._append([records[place] for place in places], deadline)
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return cast("list[Position | Exception]", answers)

    def consumer(self, topics: Sequence[str], group: str, member: str) -> StreamsConsumer:
        """See ``Broker.consumer``."""
        self._check()
        return StreamsConsumer(self.reader(), self.config, topics, group, member)

    def complete(self, positions: Sequence[Position], group: str) -> None:
        """See ``Broker.complete``."""
        by_topic: dict[str, list[Offset]] = {}
        for position in positions:
            by_topic.setdefault(position.topic, []).append(position.offset)
        for topic, offsets in by_topic.items():
            for start in range(0, len(offsets), _CHUNK):
                self._command("XACK", topic, group, *offsets[start : start + _CHUNK])

    def expel(self, members: Sequence[str], group: str) -> None:
        """Nothing: what a dead reader was dealt is claimed by others."""

    def lag(self, topics: Sequence[str], group: str) -> dict[str, int]:
        """See ``Broker.lag``: records not yet dealt out, and those dealt out and not complete."""
        return {topic: self._fresh(topic, group) + self.pending(topic, group) for topic in topics}

    def unread(self, topics: Sequence[str], group: str, marks: Mapping[tuple[str, int], int]) -> dict[str, int]:
        """See ``Broker.unread``: records not yet dealt out."""
        return {topic: self._fresh(topic, group) for topic in topics}

    def pending(self, topic: str, group: str) -> int:
        """See ``Broker.pending``."""
        found = self._group(topic, group)
        return int(found["pending"]) if found else 0

    def read(self, topic: str, limit: int) -> list[tuple[int, Incoming]]:
        """See ``Broker.read``."""
        if limit <= 0:
            return []
        found = self._ask(lambda client: client.xrevrange(topic, count=limit))
        return [(0, entry(offset, fields)) for offset, fields in reversed(found)]

    def tail(self, topic: str, *, from_start: bool) -> StreamsTail:
        """See ``Broker.tail``."""
        newest = [] if from_start else self._ask(lambda client: client.xrevrange(topic, count=1))
        return StreamsTail(self.reader(), self.name, topic, newest[0][0].decode() if newest else "0-0")

    def trim(self, topic: str, partition: int, before: Offset) -> None:
        """See ``Broker.trim``."""
        self._ask(lambda client: client.xtrim(topic, minid=str(before), approximate=False))

    def close(self) -> None:
        """See ``Broker.close``. Consumers are closed by who made them."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        if os.getpid() == self._pid:
            for client in clients:
                client.close()

    def reader(self) -> Callable[[float], redis.Redis]:
        """A maker of clients for a consumer: its own connection, which may block for so many seconds."""
        return lambda seconds: self._new(seconds)

    def _check(self) -> None:
        if self._closed:
            raise AppClosed(f"The connection to {self.name} was closed")
        if os.getpid() != self._pid:
            raise AppClosed(f"The connection to {self.name} was made before this process was forked")

    def _new(self, timeout: float) -> redis.Redis:
        """A client that never repeats a command by itself: a repeated XADD is a second record."""
        try:
            return redis.Redis.from_url(
                self.config.broker,
                socket_timeout=timeout,
                socket_connect_timeout=min(timeout, 5.0),
                retry=Retry(NoBackoff(), 0),
                health_check_interval=0,
                protocol=2,
            )
        except (ValueError, RedisError) as error:
            raise ConfigError(f"broker={mask(self.config.broker)!r} can't be used: {error}") from error

    def _client(self, timeout: float) -> redis.Redis:
        """The client whose socket time-out is the next full second (quarter below one): few pools for any time-out."""
        self._check()
        step = math.ceil(timeout) if timeout > 1 else math.ceil(timeout * 4) / 4
        with self._lock:
            if step not in self._clients:
                self._clients[step] = self._new(step)
            return self._clients[step]

    def _ask(self, work: Callable[[Any], _T], timeout: float = _ASK) -> _T:
        client = self._client(timeout)
        try:
            return work(client)
        except RedisError as error:
            raise translate(self.name, error) from error

    def _command(self, *words: Any) -> Any:
        return self._ask(lambda client: client.execute_command(*words))

    def _portions(self, records: Sequence[Outgoing], answers: list[Position | Exception | None]) -> Iterable[list[int]]:
        places: list[int] = []
        total = 0
        for place, record in enumerate(records):
            size = (
                len(record.value) + 4 * len(record.key or "") + sum(len(k) + len(v) for k, v in record.headers.items())
            )
            if size > self._limit:
                answers[place] = MessageTooLarge(f"A record of {size} bytes for {record.topic} is over {self._limit}")
                continue
            if places and (len(places) >= _CHUNK or total + size > _CHUNK_BYTES):
                yield places
                places, total = [], 0
            places.append(place)
            total += size
        if places:
            yield places

    def _reach(self, deadline: float) -> redis.Redis:
        """A client with a live connection in its pool: what fails here has not left this process."""
        while True:
            client = self._client(max(0.05, deadline - time.monotonic()))
            try:
                client.connection_pool.release(client.connection_pool.get_connection())
                return client
            except RedisError as error:
                if time.monotonic() + _PAUSE >= deadline or isinstance(error, AuthenticationError):
                    raise translate(self.name, error) from error
            threading.Event().wait(_PAUSE)

    def _append(self, records: Sequence[Outgoing], deadline: float) -> Sequence[Position | Exception]:
        try:
            client = self._reach(deadline)
        except RedisConnectionError as error:
            return [error] * len(records)
        pipeline: Any = client.pipeline(transaction=False)
        for record in records:
            bound = ("MAXLEN", "~", _LOGS) if record.topic == self.config.logs_topic else ()
            pipeline.execute_command("XADD", record.topic, *bound, "*", *_fields(record))
        try:
            replies = pipeline.execute(raise_on_error=False)
        except RedisError as error:
            return [SubmissionTimeout(f"{self.name} did not confirm: {error}")] * len(records)
        return [self._judge(record, reply) for record, reply in zip(records, replies, strict=True)]

    def _judge(self, record: Outgoing, reply: Any) -> Position | Exception:
        if isinstance(reply, bytes):
            return Position(record.topic, 0, reply.decode())
        if isinstance(reply, BusyLoadingError):
            return translate(self.name, reply)
        if isinstance(reply, ResponseError):
            refusal = translate(self.name, reply)
            return SubmissionError(refusal.cause, cure=refusal.advice)
        return SubmissionTimeout(f"{self.name} did not confirm a record for {record.topic}: {reply}")

    def _group(self, topic: str, group: str) -> dict[str, Any] | None:
        """What the server says of a group; None when there is no such stream or group."""
        try:
            found = self._ask(lambda client: client.xinfo_groups(topic))
        except StoreError as error:
            if "no such key" in str(error.__cause__):
                return None
            raise
        return next((each for each in found if each["name"] == group.encode()), None)

    def _fresh(self, topic: str, group: str) -> int:
        found = self._group(topic, group)
        if found is None:
            return int(self._ask(lambda client: client.xlen(topic)))
        fresh = found.get("lag")
        if fresh is None:  # the server can't tell after some kinds of trimming
            fresh = self._count_after(topic, found["last-delivered-id"].decode())
        return int(fresh)

    def _count_after(self, topic: str, offset: str) -> int:
        count = 0
        while count < _COUNTED:
            page = self._command("XRANGE", topic, f"({offset}", "+", "COUNT", _PAGE)
            count += len(page)
            if len(page) < _PAGE:
                break
            offset = page[-1][0].decode()
        return count


def _fields(record: Outgoing) -> list[bytes | str]:
    fields: list[bytes | str] = ["v", record.value]
    if record.key is not None:
        fields += ["k", record.key]
    if record.headers:
        fields += ["h", msgspec.json.encode(dict(record.headers))]
    return fields
