"""The port to the log: what KRQ asks of a broker, and nothing of how it is done.

A *topic* is named ``<namespace>.<queue>``. It has one or more *partitions*, each an ordered run of
records; a record's *offset* says where it stands. Two kinds of broker fit behind this port:

- **ordered** (Kafka): offsets are integers and a partition has one reader at a time. Intake keeps a
  *mark* per partition, the next offset to admit, and ``seek`` goes back to it. ``complete`` of single
  records does nothing; progress is told by ``commit``.
- **dealt** (Redis Streams): records are dealt out among the readers, so there is no mark. The pending
  list of the consumer group is what is unfinished; ``complete`` takes a record off it.

All times are Unix milliseconds. All timeouts are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

#: int for ordered brokers, "milliseconds-sequence" for dealt ones
Offset = int | str


class Position(NamedTuple):
    """Where a record stands in the log."""

    topic: str
    partition: int
    offset: Offset


class Outgoing(NamedTuple):
    """A record to publish."""

    topic: str
    value: bytes
    key: str | None = None
    """records of one key of one topic stand in one partition, in the order of their publishing"""
    headers: Mapping[str, str] = {}


class Incoming(NamedTuple):
    """A record as polled."""

    offset: Offset
    timestamp: int
    """when it was appended, Unix milliseconds; 0 where the broker does not say"""
    value: bytes
    """b"" for a record without a value"""
    headers: Mapping[str, str] = {}


class Batch(NamedTuple):
    """Records of one partition in order, from one poll."""

    topic: str
    partition: int
    topic_id: str
    """identity of the topic: another one after it was deleted and made again"""
    first: Offset
    """the fetch position before these records (ordered brokers): nothing between it and ``records[0]``"""
    next: Offset
    """the fetch position after them"""
    records: Sequence[Incoming]


class Consumer(Protocol):
    """One member of the group that reads the queues. All calls from one thread, except where said."""

    def poll(self, timeout: float) -> list[Batch]:
        """The next batches, at most one per partition; [] when none came within ``timeout``.

        Must be called at least every 30 s, also when all is paused. A record is polled again after
        its reader died, or after ``seek``. Raises ``BrokerConnectionError`` when the broker is gone for
        longer than the client hides; calling again is right.
        """
        ...

    def assigned(self) -> frozenset[tuple[str, int]]:
        """The (topic, partition) pairs this member reads now."""
        ...

    @property
    def member_id(self) -> str:
        """What the group knows this member by, for ``Broker.expel``; "" before it has joined, or where nobody must wait for it."""
        ...

    def topic_id(self, topic: str) -> str | None:
        """Identity of a topic as of the last poll; None while it is not known."""
        ...

    def position(self, topic: str, partition: int) -> Offset | None:
        """The offset that poll would give next (ordered); None when not assigned, or dealt."""
        ...

    def start(self, topic: str, partition: int) -> int:
        """Ordered: where a reader without a mark starts: the committed offset, else the log's first."""
        ...

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Ordered: (first offset still in the log, offset after the last)."""
        ...

    def seek(self, topic: str, partition: int, offset: int) -> None:
        """Ordered: poll goes on at ``offset``. No-op when not assigned, or dealt."""
        ...

    def pause(self, topic: str, partition: int) -> None:
        """poll gives nothing of this partition until ``resume``. May be repeated."""
        ...

    def resume(self, topic: str, partition: int) -> None:
        """Undo ``pause``. May be repeated."""
        ...

    def commit(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Ordered: note how far each partition is complete. Best effort: a later commit covers a lost one.

        Partitions that are not assigned any more are left out. Never raises for a rebalance.
        """
        ...

    def close(self) -> None:
        """Leave the group at once, so that others go on. May be repeated."""
        ...


class Tail(Protocol):
    """A reader of one whole topic that is in no group: it takes nothing from others. One thread."""

    def poll(self, timeout: float) -> list[Incoming]:
        """The records that have come, of several partitions by their times; [] when none came within ``timeout``.

        Raises ``BrokerConnectionError``; calling again is right, and goes on where it was.
        """
        ...

    def close(self) -> None:
        """Let go of the connection. May be repeated."""
        ...


class Broker(Protocol):
    """A client of the log. Thread-safe, except the consumers it makes. Not usable after a fork."""

    ordered: bool
    name: str
    """for people: "Kafka at host:port" """

    def connect(self, timeout: float) -> None:
        """Reach the broker, or raise ``KafkaConnectionError``/``RedisConnectionError`` with cause and cure."""
        ...

    def ensure(self, topics: Sequence[str], partitions: int | None = None) -> None:
        """Create the missing topics, with retention that cannot drop what is pending. May be repeated.

        ``partitions``: for new topics of ordered brokers; None: the configured number.
        """
        ...

    def publish(self, records: Sequence[Outgoing], timeout: float) -> list[Position | Exception]:
        """Append records; returns when each is confirmed by the log (acks=all) or has failed.

        One answer per record, in order: its position, or an exception: ``MessageTooLarge`` or
        ``SubmissionError`` (refused: not in the log), ``SubmissionTimeout`` (unknown: may be in the log)
        or ``BrokerConnectionError`` (never left this process). One bad record spoils no other. Topics are
        created when missing. Order within a partition is kept within one call.
        """
        ...

    def consumer(self, topics: Sequence[str], group: str, member: str) -> Consumer:
        """A new member of ``group`` reading ``topics``; it joins at its first poll."""
        ...

    def complete(self, positions: Sequence[Position], group: str) -> None:
        """Dealt: take records off the pending list. Ordered: nothing. May be repeated."""
        ...

    def expel(self, members: Sequence[str], group: str) -> None:
        """Take members that are dead off the group, so that it does not wait for them. Best effort; may be repeated."""
        ...

    def lag(self, topics: Sequence[str], group: str) -> dict[str, int]:
        """Records of each topic that the group has not completed (ordered: committed)."""
        ...

    def unread(self, topics: Sequence[str], group: str, marks: Mapping[tuple[str, int], int]) -> dict[str, int]:
        """Records of each topic that nobody has polled: ordered: behind ``marks``, else behind what is committed."""
        ...

    def pending(self, topic: str, group: str) -> int:
        """Dealt: how many records were polled and are not complete. Ordered: 0."""
        ...

    def read(self, topic: str, limit: int) -> list[tuple[int, Incoming]]:
        """The newest ``limit`` records of a topic as (partition, record), oldest first; for people and tests."""
        ...

    def tail(self, topic: str, *, from_start: bool) -> Tail:
        """Follow a topic, which is created when missing: from the first record still there, or from now on.

        "Now" is before this returns. Raises ``BrokerConnectionError``.
        """
        ...

    def trim(self, topic: str, partition: int, before: Offset) -> None:
        """Delete the records before an offset. May be repeated."""
        ...

    def close(self) -> None:
        """Flush and let go of the connections, within 5 s. May be repeated."""
        ...
