"""Reading queues from Redis Streams as a member of a consumer group.

What a member was dealt stays on its pending list until it is complete. It is dealt out again in two cases only, so
that a long task is no traffic: its reader has not been heard of for ``max(2 × lease, 15 s)``, or a reply was lost.
"""

# ruff: noqa: ARG002 (the port names arguments that this kind of broker has no use for)

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec
import redis
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from krq.brokers.base import Batch, Incoming
from krq.config import Config, mask
from krq.errors import AppClosed, BrokerConnectionError, RedisConnectionError, StoreError

_COUNT = 1000  # entries of one stream in one poll
_CLAIM = 500  # entries taken over from a dead reader at once
_BLOCK = 5.0  # seconds that one command may block
_SOCKET = 10.0  # seconds until a connection is given up
_LOOK = 5.0  # seconds between two looks for dead readers, at most
_PAUSE = 0.1  # seconds before a failure is reported, so that a loop of polls is no storm
_END = "18446744073709551615-0"  # after every entry: reading there only says "I am here"
_CURE = "Check that Redis or Valkey runs and that broker= (KRQ_BROKER) names it."
_FORGET_AFTER = 24 * 3_600_000  # milliseconds without a word, after which an empty-handed reader is forgotten

# KEYS[1]: a stream. ARGV: group, consumer, milliseconds. Deletes the consumer if it was idle for longer than that and
# has nothing pending; atomic, as deleting one that has would lose what it was dealt. No reply. May be repeated.
_FORGET = """
for _, found in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local reader = {}
  for place = 1, #found, 2 do reader[found[place]] = found[place + 1] end
  if reader.name == ARGV[2] and reader.pending == 0 and reader.idle > tonumber(ARGV[3]) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
  end
end
"""

#: shared by all records without headers; read only
NO_HEADERS: Mapping[str, str] = MappingProxyType({})
_headers = msgspec.json.Decoder(dict[str, str])


def entry(offset: bytes, fields: Mapping[bytes, bytes]) -> Incoming:
    """The record of a stream's entry; one that KRQ did not write may lack a value or have odd headers."""
    raw = fields.get(b"h")
    headers = NO_HEADERS
    if raw:
        try:
            headers = _headers.decode(raw)
        except msgspec.DecodeError:
            headers = {"h": raw.decode(errors="replace")}
    text = offset.decode()
    return Incoming(text, int(text.partition("-")[0]), fields.get(b"v", b""), headers)


def translate(name: str, error: RedisError) -> BrokerConnectionError | StoreError:
    """What an error of redis-py means: the server is away, or it answered but can't do this."""
    if isinstance(error, AuthenticationError | NoPermissionError):
        return RedisConnectionError(
            f"{name} refused the connection: {error}",
            cure="Give user and password in broker= (KRQ_BROKER), or grant the right.",
        )
    if isinstance(error, redis.exceptions.ConnectionError | redis.exceptions.TimeoutError | BusyLoadingError):
        return RedisConnectionError(f"{name} does not answer: {error}", cure=_CURE)
    if isinstance(error, OutOfMemoryError):
        return StoreError(f"{name} is out of memory: {error}", cure="Raise maxmemory, or let the workers catch up.")
    return StoreError(
        f"{name} refused: {error}", cure="See the server's message; it must be Redis >= 7 or Valkey >= 7.2."
    )


class StreamsConsumer:
    """``Consumer`` of a dealt broker. One thread only; connects at its first poll."""

    def __init__(
        self, connect: Callable[[float], redis.Redis], config: Config, topics: Sequence[str], group: str, member: str
    ) -> None:
        self._client: Any = connect(_SOCKET)
        self._name = f"Redis Streams at {mask(config.broker)}"
        self._topics = list(topics)
        self._group = group
        self._member = member
        self._pid = os.getpid()
        self._closed = False
        self._paused: set[str] = set()
        self._seen: dict[str, str] = {}
        self._again = dict.fromkeys(self._topics, "0-0")  # an earlier life of this name may have left something
        self._dead_after = max(2 * config.lease, 15.0)
        self._every = min(_LOOK, self._dead_after / 3)
        self._next_look = 0.0
        self._looking: str | None = None

    def poll(self, timeout: float) -> list[Batch]:
        """See ``Consumer.poll``. First what was dealt out and lost, then what is new."""
        deadline = time.monotonic() + timeout
        while True:
            found = self._ask(self._lost) or self._ask(lambda: self._new(deadline))
            if found or time.monotonic() >= deadline:
                return found

    def assigned(self) -> frozenset[tuple[str, int]]:
        """All topics: each reader is dealt records of each."""
        return frozenset((topic, 0) for topic in self._topics)

    @property
    def member_id(self) -> str:
        """"": nobody waits for a reader of a stream."""
        return ""

    def topic_id(self, topic: str) -> str | None:
        """The topic's name: a stream has no other identity."""
        return topic

    def position(self, topic: str, partition: int) -> None:
        """None: there is no mark."""

    def start(self, topic: str, partition: int) -> int:
        """0: there is no mark."""
        return 0

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(0, 0): there is no mark."""
        return (0, 0)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Nothing: there is no mark."""

    def pause(self, topic: str, partition: int) -> None:
        """See ``Consumer.pause``."""
        self._paused.add(topic)

    def resume(self, topic: str, partition: int) -> None:
        """See ``Consumer.resume``."""
        self._paused.discard(topic)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Nothing: progress is told by ``Broker.complete``."""

    def close(self) -> None:
        """See ``Consumer.close``. Others get what it did not complete after ``max(2 × lease, 15 s)``."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() == self._pid:
            self._client.close()

    # --- reading -----------------------------------------------------------------------------

    def _ask(self, work: Callable[[], list[Batch]]) -> list[Batch]:
        if self._closed:
            raise AppClosed("This consumer was closed")
        if os.getpid() != self._pid:
            raise AppClosed("A consumer of Redis Streams can't be used in a forked process")
        try:
            return work()
        except ResponseError as error:
            if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                raise translate(self._name, error) from error
            self._make_groups()
            return []
        except RedisError as error:
            self._reply_lost()
            threading.Event().wait(_PAUSE)
            raise translate(self._name, error) from error

    def _make_groups(self) -> None:
        """Create the groups that are missing: at the first poll, and after the server was emptied."""
        self._seen.clear()
        self._again.clear()
        for topic in self._topics:
            try:
                self._client.xgroup_create(topic, self._group, id="0", mkstream=True)
            except ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise translate(self._name, error) from error
            except RedisError as error:
                raise translate(self._name, error) from error

    def _reply_lost(self) -> None:
        """A command may have dealt records whose reply never came: read the own pending list from there on."""
        for topic in self._topics:
            known = "0-0" if self._looking == topic else self._seen.get(topic, "0-0")
            self._again[topic] = min(known, self._again.get(topic, known), key=_order)

    def _new(self, deadline: float) -> list[Batch]:
        wanted: dict[Any, Any] = {topic: ">" for topic in self._topics if topic not in self._paused}
        left = max(0.0, min(_BLOCK, deadline - time.monotonic()))
        if not wanted:
            threading.Event().wait(left)
            return []
        block = int(left * 1000) or None  # 0 would block for ever
        return self._batches(self._client.xreadgroup(self._group, self._member, wanted, count=_COUNT, block=block))

    def _batches(self, reply: Any) -> list[Batch]:
        found = []
        for name, entries in reply or ():
            topic = name.decode()
            batch = self._batch(topic, entries)
            if batch is not None:
                found.append(batch)
        return found

    def _batch(self, topic: str, entries: Sequence[tuple[bytes, Mapping[bytes, bytes] | None]]) -> Batch | None:
        records = [entry(offset, fields) for offset, fields in entries if fields]
        if not records:
            return None
        self._seen[topic] = max(str(records[-1].offset), self._seen.get(topic, "0-0"), key=_order)
        return Batch(topic, 0, topic, records[0].offset, records[-1].offset, records)

    # --- what was dealt out and lost ---------------------------------------------------------

    def _lost(self) -> list[Batch]:
        for topic in self._topics:
            if topic in self._again and topic not in self._paused:
                batch = self._read_again(topic)
                if batch is not None:
                    return [batch]
        if time.monotonic() < self._next_look:
            return []
        found = []
        full = False
        for topic in self._topics:
            self._looking = topic
            batch, more = self._take_over(topic)
            self._looking = None
            full = full or more
            if batch is not None:
                found.append(batch)
        self._next_look = time.monotonic() + (0.0 if full else self._every)
        return found

    def _read_again(self, topic: str) -> Batch | None:
        after = self._again[topic]
        reply = self._client.xreadgroup(self._group, self._member, {topic: after}, count=_COUNT)
        entries = reply[0][1] if reply else []
        if len(entries) < _COUNT:
            del self._again[topic]
        else:
            self._again[topic] = entries[-1][0].decode()
        return self._batch(topic, entries)

    def _take_over(self, topic: str) -> tuple[Batch | None, bool]:
        """Say that this member lives; claim what one dead reader was dealt. The bool: there is more."""
        self._client.xreadgroup(self._group, self._member, {topic: _END}, count=1)
        if topic in self._paused:
            return None, False
        idle = int(self._dead_after * 1000)
        for reader in self._client.xinfo_consumers(topic, self._group):
            name = reader["name"]
            if reader["idle"] <= idle or name == self._member.encode():
                continue
            if not reader["pending"]:
                if reader["idle"] > _FORGET_AFTER:
                    self._client.eval(_FORGET, 1, topic, self._group, name, _FORGET_AFTER)
                continue
            held = self._client.xpending_range(topic, self._group, "-", "+", _CLAIM, consumername=name)
            if held:
                ids = [each["message_id"] for each in held]
                entries = self._client.xclaim(topic, self._group, self._member, idle, ids)
                return self._batch(topic, entries), True
        return None, False


class StreamsTail:
    """``Tail`` of a stream. One thread only; connects at its first poll."""

    def __init__(self, connect: Callable[[float], redis.Redis], name: str, topic: str, after: str) -> None:
        self._client: Any = connect(_SOCKET)
        self._name, self._topic, self._after = name, topic, after

    def poll(self, timeout: float) -> list[Incoming]:
        """See ``Tail.poll``."""
        block = max(1, int(min(timeout, _BLOCK) * 1000))
        try:
            reply = self._client.xread({self._topic: self._after}, count=_COUNT, block=block)
        except RedisError as error:
            raise translate(self._name, error) from error
        found = [entry(offset, fields) for _, entries in reply or () for offset, fields in entries]
        if found:
            self._after = str(found[-1].offset)
        return found

    def close(self) -> None:
        """See ``Tail.close``."""
        self._client.close()


def _order(offset: str) -> tuple[int, int]:
    """Entries in the order of their ids."""
    first, _, second = offset.partition("-")
    return int(first), int(second or 0)
