"""The broker that production runs: Apache Kafka, over kafka-python."""

# ruff: noqa: ARG002 (the port names arguments that this kind of broker has no use for)

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from krq.brokers._kafka_admin import Admin
from krq.brokers._kafka_clients import Clients
from krq.brokers._kafka_consumer import KafkaGroupConsumer, headers_of, read_newest
from krq.brokers._kafka_producer import Publisher
from krq.brokers._kafka_publish import Publication
from krq.brokers._kafka_tail import KafkaTail
from krq.brokers.base import Incoming, Offset, Outgoing, Position
from krq.config import Config
from krq.errors import AppClosed

_ASK = 10.0  # seconds for a question to the broker
_GLANCE = 2.0  # seconds for one that people wait for
_CLOSE = 4.0  # seconds for flushing at close


class KafkaBroker:
    """``Broker`` over Kafka. Thread-safe; connects at first use; not usable after a fork, nor after ``close``."""

    ordered = True

    def __init__(self, config: Config) -> None:
        self._clients = Clients(config)
        self.name = self._clients.name
        self._admin = Admin(self._clients)
        self._publisher = Publisher(self._clients, self._admin)
        self._pid = os.getpid()
        self._closed = False

    def connect(self, timeout: float) -> None:
        """Reach a broker and shake hands; ``KafkaConnectionError`` when that takes longer than ``timeout`` seconds."""
        self._check()
        self._publisher.open(timeout)
        self._clients.probe(timeout)

    def ensure(self, topics: Sequence[str], partitions: int | None = None) -> None:
        """See ``Broker.ensure``. ``ConfigError`` where Kafka refuses, ``KafkaConnectionError`` after 10 s."""
        self._check()
        self._admin.ensure(topics, _ASK, partitions)

    def publish(self, records: Sequence[Outgoing], timeout: float) -> list[Position | Exception]:
        """See ``Broker.publish``."""
        self._check()
        return Publication(self._publisher, records, timeout).run()

    def consumer(self, topics: Sequence[str], group: str, member: str) -> KafkaGroupConsumer:
        """See ``Broker.consumer``."""
        self._check()
        return KafkaGroupConsumer(self._clients, self._admin, topics, group, member)

    def complete(self, positions: Sequence[Position], group: str) -> None:
        """Nothing: progress in Kafka is told by ``Consumer.commit``."""
        self._check()

    def expel(self, members: Sequence[str], group: str) -> None:
        """See ``Broker.expel``."""
        self._check()
        self._admin.expel(members, group, _GLANCE)

    def lag(self, topics: Sequence[str], group: str) -> dict[str, int]:
        """See ``Broker.lag``. A topic that does not exist has none."""
        self._check()
        return self._admin.lag(topics, group, _ASK)

    def unread(self, topics: Sequence[str], group: str, marks: Mapping[tuple[str, int], int]) -> dict[str, int]:
        """See ``Broker.unread``."""
        self._check()
        return self._admin.lag(topics, group, _GLANCE, marks)

    def pending(self, topic: str, group: str) -> int:
        """0: Kafka deals out no single records."""
        self._check()
        return 0

    def read(self, topic: str, limit: int) -> list[tuple[int, Incoming]]:
        """See ``Broker.read``. Order across partitions is that of the records' times."""
        self._check()
        newest = read_newest(self._clients, self._admin.offsets([topic], _ASK), limit)
        return [
            (each.partition, Incoming(each.offset, max(each.timestamp, 0), each.value or b"", headers_of(each.headers)))
            for each in newest
        ]

    def tail(self, topic: str, *, from_start: bool) -> KafkaTail:
        """See ``Broker.tail``."""
        self._check()
        self._admin.ensure([topic], _ASK)
        return KafkaTail(self._clients, topic, self._admin.offsets([topic], _ASK), from_start=from_start)

    def trim(self, topic: str, partition: int, before: Offset) -> None:
        """See ``Broker.trim``. Kafka frees the space a segment at a time."""
        self._check()
        self._admin.trim(topic, partition, int(before), _ASK)

    def close(self) -> None:
        """See ``Broker.close``. Consumers are closed by who made them."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            self._publisher.abandon()
            self._admin.abandon()
            return
        self._publisher.close(_CLOSE)
        self._admin.close()

    def _check(self) -> None:
        if self._closed:
            raise AppClosed(f"The connection to {self.name} was closed")
        if os.getpid() != self._pid:
            raise AppClosed(f"The connection to {self.name} was made before this process was forked")
