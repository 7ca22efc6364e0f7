"""Reading queues from Kafka as a member of a consumer group."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import kafka.errors as kafka_errors
from kafka import TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.structs import MemberState, OffsetAndMetadata

from krq.brokers._kafka_admin import Admin
from krq.brokers._kafka_clients import CLIENT_FAILURES, HEADROOM, Clients
from krq.brokers.base import Batch, Incoming
from krq.errors import AppClosed, ConfigError, KafkaConnectionError

_log = logging.getLogger("krq.broker")
_T = TypeVar("_T")
_ASK = 5.0  # seconds for a question to the broker
_OPEN = 10.0  # seconds for connecting
_COMMIT = 2.0  # seconds for a commit
_LEAVE = 2.0  # seconds for leaving the group
_JOIN = 0.2  # seconds of a poll while joining, at least
_REFRESH = 1.0  # seconds for fresh metadata, at most

#: shared by all records without headers; read only
NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class KafkaGroupConsumer:
    """``Consumer`` of an ordered broker. One thread only; connects at its first call that needs the broker.

    A partition that was lost and came back is neither paused nor where ``seek`` put it: it starts where was committed.
    """

    def __init__(self, clients: Clients, admin: Admin, topics: Sequence[str], group: str, member: str) -> None:
        self._clients = clients
        self._admin = admin
        self._topics = list(topics)
        self._group = group
        self._member = member
        self._pid = os.getpid()
        self._closed = False
        self._client: Any = None
        self._cluster: Any = None
        self._generation: Any = None
        self._expected: dict[TopicPartition, int] = {}
        self._ids: dict[str, str] = {}

    def poll(self, timeout: float) -> list[Batch]:
        """See ``Consumer.poll``."""
        try:
            return self._batches(self._ask(lambda client: self._fetch(client, timeout), opening=timeout))
        except (KafkaConnectionError, *CLIENT_FAILURES):
            self._expected.clear()  # what the client handed out before may be lost: no batch may claim to follow it
            raise

    def _batches(self, polled: Mapping[TopicPartition, Sequence[Any]]) -> list[Batch]:
        mine = self._client.assignment()
        moved = self._follow(mine)
        self._suspect(polled, moved)
        anew = {topic for topic in {at.topic for at in mine} if self._is_anew(topic)}
        return [
            self._batch(at, records, moved)
            for at, records in polled.items()
            if records and at in mine and at.topic not in anew
        ]

    def assigned(self) -> frozenset[tuple[str, int]]:
        """See ``Consumer.assigned``."""
        if self._client is None:
            return frozenset()
        return frozenset((at.topic, at.partition) for at in self._client.assignment())

    @property
    def member_id(self) -> str:
        """See ``Consumer.member_id``."""
        return str(self._client.group_metadata().member_id or "") if self._client is not None else ""

    def topic_id(self, topic: str) -> str | None:
        """See ``Consumer.topic_id``."""
        return self._ids.get(topic)

    def position(self, topic: str, partition: int) -> int | None:
        """See ``Consumer.position``. Known without asking, once something was polled or sought."""
        at = TopicPartition(topic, partition)
        if not self._has(at):
            return None
        if at not in self._expected:
            found = self._ask(lambda client: client.position(at, timeout_ms=int(_ASK * 1000)))
            if found is None:
                return None
            self._expected[at] = found
        return self._expected[at]

    def start(self, topic: str, partition: int) -> int:
        """See ``Consumer.start``."""
        at = TopicPartition(topic, partition)
        committed = self._ask(lambda client: client.committed(at, timeout_ms=int(_ASK * 1000)))
        return committed if committed is not None and committed >= 0 else self.bounds(topic, partition)[0]

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """See ``Consumer.bounds``."""
        at = TopicPartition(topic, partition)
        first = self._ask(lambda client: client.beginning_offsets([at], timeout_ms=int(_ASK * 1000)))
        last = self._ask(lambda client: client.end_offsets([at], timeout_ms=int(_ASK * 1000)))
        return first[at], last[at]

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """See ``Consumer.seek``."""
        at = TopicPartition(topic, partition)
        if self._has(at):
            self._client.seek(at, offset)
            self._expected[at] = offset

    def pause(self, topic: str, partition: int) -> None:
        """See ``Consumer.pause``."""
        at = TopicPartition(topic, partition)
        if self._has(at):
            self._client.pause(at)

    def resume(self, topic: str, partition: int) -> None:
        """See ``Consumer.resume``."""
        at = TopicPartition(topic, partition)
        if self._has(at):
            self._client.resume(at)

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """See ``Consumer.commit``."""
        if self._client is None or self._closed:
            return
        mine = self._client.assignment()
        wanted = {
            TopicPartition(*at): OffsetAndMetadata(offset, "", -1)
            for at, offset in offsets.items()
            if TopicPartition(*at) in mine
        }
        if not wanted:
            return
        try:
            self._client.commit(wanted, timeout_ms=int(_COMMIT * 1000))
        except CLIENT_FAILURES as error:
            _log.debug("commit of %d partitions left to a later one: %s", len(wanted), error)

    def close(self) -> None:
        """See ``Consumer.close``. Takes 2 s at most where the broker does not answer."""
        if self._closed:
            return
        self._closed = True
        self._discard()

    def _has(self, at: TopicPartition) -> bool:
        return bool(self._client is not None and at in self._client.assignment())

    def _ask(self, work: Callable[[Any], _T], opening: float = _OPEN) -> _T:
        """Do something with the client; what fails is a ``KafkaConnectionError``, and a dead client is replaced."""
        if self._closed:
            raise AppClosed("This consumer was closed")
        if os.getpid() != self._pid:
            raise AppClosed("A Kafka consumer can't be used in a forked process")
        try:
            if self._client is None:
                self._open(max(opening, 0.1))
            return work(self._client)
        except KafkaConnectionError:
            raise
        except kafka_errors.KafkaError as error:
            raise self._clients.gone(error) from error
        except (OSError, RuntimeError) as error:
            self._discard()
            raise self._clients.gone(error) from error

    def _open(self, timeout: float) -> None:
        self._clients.probe(timeout)
        try:
            self._admin.ensure(self._topics, _OPEN)
        except ConfigError as error:
            _log.warning("%s", error)
        config = self._clients.config
        client, net = self._clients.consumer(
            _OPEN,
            client_id=self._member,
            group_id=self._group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            partition_assignment_strategy=[CooperativeStickyAssignor],
            max_poll_records=2000,
            max_poll_interval_ms=60_000,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=1_000,
            fetch_max_wait_ms=25,
            fetch_min_bytes=16384,
            fetch_max_bytes=32 * 1024 * 1024,
            max_partition_fetch_bytes=max(1024 * 1024, config.max_message_bytes + 2 * HEADROOM),
            request_timeout_ms=30_000,
            metadata_max_age_ms=30_000,
        )
        client.subscribe(self._topics)
        self._client, self._cluster = client, net.cluster
        self._expected.clear()
        self._refresh()  # else it joins without knowing the partitions, gets none, and joins again

    def _discard(self) -> None:
        client, self._client, self._cluster = self._client, None, None
        self._expected.clear()
        if client is None or os.getpid() != self._pid:
            return
        try:
            client.close(autocommit=False, timeout_ms=int(_LEAVE * 1000))
        except CLIENT_FAILURES as error:
            _log.debug("closing a consumer: %s", error)

    def _fetch(self, client: Any, timeout: float) -> Mapping[TopicPartition, Sequence[Any]]:
        state = client.group_metadata().state
        if state != MemberState.STABLE:
            timeout = max(timeout, _JOIN)  # a join that ends between two polls is thrown away
        if state == MemberState.REBALANCING:
            # kafka-python 3.0.12: a leader that joins again because a topic changed, and whose poll ends before that is
            # done, never looks at the outcome: it holds what it had, beats no more and is expelled without noticing
            client._coordinator.request_rejoin()
        if not client._fetcher._next_partition_records:
            # kafka-python 3.0.12: records put aside for a paused partition come back only where this is None, not
            # where it is read to its end: else a resumed partition may be read no more
            client._fetcher._next_partition_records = None
        found: Mapping[TopicPartition, Sequence[Any]] = client.poll(timeout_ms=max(0, int(timeout * 1000)))
        return found

    def _follow(self, mine: set[TopicPartition]) -> bool:
        """Drop what is known of lost partitions. True when the group was dealt anew since the last poll."""
        for at in self._expected.keys() - mine:
            del self._expected[at]
        generation = self._client.group_metadata()[1:3]
        moved, self._generation = bool(generation != self._generation), generation
        return moved

    def _suspect(self, polled: Mapping[TopicPartition, Sequence[Any]], moved: bool) -> None:
        """Ask for fresh metadata once where offsets jump: they may be another topic's."""
        for at, records in polled.items():
            expected = None if moved else self._expected.get(at)
            if records and expected is not None and records[0].offset != expected:
                self._refresh()
                return

    def _refresh(self) -> None:
        """Wait a moment for fresh metadata."""
        fresh = threading.Event()
        self._cluster.request_update().add_both(lambda _: fresh.set())
        fresh.wait(_REFRESH)

    def _is_anew(self, topic: str) -> bool:
        """Whether another topic has taken the name since the last poll; then it is read from its start.

        Asked at each poll: left alone, kafka-python would go on at the end of the new topic's log.
        """
        found = self._cluster.topic_id(topic)
        if found is None or self._ids.setdefault(topic, str(found)) == str(found):
            return False
        _log.warning("topic %s was deleted and made again: reading it from its start", topic)
        self._ids[topic] = str(found)
        for at in self._client.assignment():
            if at.topic == topic:
                self._client.seek_to_beginning(at)
                self._expected.pop(at, None)
        return True

    def _batch(self, at: TopicPartition, records: Sequence[Any], moved: bool) -> Batch:
        first = records[0].offset
        expected = self._expected.get(at)
        if expected is not None and first > expected and not moved:
            first = self._gap(at, expected, first)
        following = max(records[-1].offset + 1, self._after(at, records[-1].offset + 1))
        self._expected[at] = following
        incoming = [
            Incoming(each.offset, max(each.timestamp, 0), each.value or b"", headers_of(each.headers))
            for each in records
        ]
        return Batch(at.topic, at.partition, self._ids.get(at.topic, ""), first, following, incoming)

    def _gap(self, at: TopicPartition, expected: int, first: int) -> int:
        """The fetch position before ``first``: ``expected`` (compaction, markers) unless the log's head was cut off."""
        try:
            begin = int(self._client.beginning_offsets([at], timeout_ms=int(_ASK * 1000))[at])
        except kafka_errors.KafkaError:
            return first
        return expected if begin <= expected else min(begin, first)

    def _after(self, at: TopicPartition, following: int) -> int:
        """The fetch position, which markers of transactions may have moved on."""
        if self._client.highwater(at) == following:
            return following
        try:
            return int(self._client.position(at, timeout_ms=0) or following)
        except kafka_errors.KafkaError:
            return following


def headers_of(headers: Sequence[tuple[str, bytes | None]]) -> Mapping[str, str]:
    if not headers:
        return NO_HEADERS
    return {name: (value or b"").decode(errors="replace") for name, value in headers}


def read_newest(clients: Clients, bounds: Mapping[TopicPartition, tuple[int, int]], limit: int) -> list[Any]:
    """The newest ``limit`` records of some partitions, oldest first, by a consumer that joins no group."""
    wanted = {at: (max(first, last - limit), last) for at, (first, last) in bounds.items() if last > first}
    if not wanted or limit <= 0:
        return []
    client, _ = clients.consumer(_OPEN, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False)
    found: list[Any] = []
    try:
        client.assign(list(wanted))
        for at, (first, _last) in wanted.items():
            client.seek(at, first)
        deadline = time.monotonic() + _OPEN
        while time.monotonic() < deadline and any(
            (client.position(at, timeout_ms=100) or 0) < last for at, (_, last) in wanted.items()
        ):
            for records in client.poll(timeout_ms=200).values():
                found.extend(records)
    except CLIENT_FAILURES as error:
        raise clients.gone(error) from error
    finally:
        client.close(autocommit=False, timeout_ms=int(_LEAVE * 1000))
    found.sort(key=lambda each: (each.timestamp, each.partition, each.offset))
    return found[-limit:]
