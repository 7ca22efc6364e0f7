"""Following a whole topic of Kafka, as a member of no group."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Any

from kafka import TopicPartition

from krq.brokers._kafka_clients import CLIENT_FAILURES, HEADROOM, Clients, partitions_of
from krq.brokers._kafka_consumer import headers_of
from krq.brokers.base import Incoming

_log = logging.getLogger("krq.broker")
_OPEN = 10.0  # seconds for connecting
_LEAVE = 2.0  # seconds for closing
_PAUSE = 0.1  # seconds before a failure is reported, so that a loop of polls is no storm


class KafkaTail:
    """``Tail`` of an ordered broker. One thread only."""

    def __init__(self, clients: Clients, topic: str, bounds: Mapping[TopicPartition, tuple[int, int]], *, from_start: bool) -> None:
        self._clients = clients
        self._topic = topic
        self._next = {at: first if from_start else last for at, (first, last) in bounds.items()}
        self._client: Any = None
        self._cluster: Any = None
        self._open()

    def poll(self, timeout: float) -> list[Incoming]:
        """See ``Tail.poll``. Partitions that are added later are read from their start."""
        try:
            if self._client is None:
                self._open()
            if any(TopicPartition(self._topic, n) not in self._next for n in partitions_of(self._cluster, self._topic)):
                self._assign()
            polled = self._client.poll(timeout_ms=max(0, int(timeout * 1000)))
        except CLIENT_FAILURES as error:
            self.close()
            threading.Event().wait(_PAUSE)
            raise self._clients.gone(error) from error
        for at, records in polled.items():
            if records:
                self._next[at] = records[-1].offset + 1
        every = [each for records in polled.values() for each in records]
        every.sort(key=lambda each: (each.timestamp, each.partition, each.offset))
        return [Incoming(each.offset, max(each.timestamp, 0), each.value or b"", headers_of(each.headers)) for each in every]

    def close(self) -> None:
        """See ``Tail.close``."""
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close(autocommit=False, timeout_ms=int(_LEAVE * 1000))
            except CLIENT_FAILURES as error:
                _log.debug("closing a tail: %s", error)

    def _open(self) -> None:
        largest = max(1024 * 1024, self._clients.config.max_message_bytes + 2 * HEADROOM)
        self._client, net = self._clients.consumer(
            _OPEN, group_id=None, auto_offset_reset="earliest", enable_auto_commit=False, fetch_max_wait_ms=100,
            max_partition_fetch_bytes=largest,
        )  # fmt: skip
        self._cluster = net.cluster
        self._assign()

    def _assign(self) -> None:
        """All partitions, each where it was; a new one from its start."""
        for n in partitions_of(self._cluster, self._topic):
            self._next.setdefault(TopicPartition(self._topic, n), 0)
        self._client.assign(list(self._next))
        for at, offset in self._next.items():
            self._client.seek(at, offset)
