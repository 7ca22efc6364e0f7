"""Publishing to Kafka: bounded, confirmed, and never stuck on a producer that went dumb.

``enable_idempotence=False``: the idempotent producer of kafka-python 3.0.12 can poison or hang itself. One request in
flight to a connection keeps the order within a partition through retries; batches are large, so that costs nothing.
"""

from __future__ import annotations

import functools
import itertools
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import kafka.errors as kafka_errors
from kafka.partitioner.default import murmur2

from krq.brokers._kafka_admin import Admin
from krq.brokers._kafka_clients import HEADROOM, Clients
from krq.config import Config
from krq.errors import AppClosed

_log = logging.getLogger("krq.broker")

#: seconds after its delivery time-out at which an open future means a dead producer
OVERDUE = 5.0

_MAX_RECORDS = 20_000  # un-acked records of a process
_MAX_BYTES = 64 * 1024 * 1024  # un-acked bytes of a process


class Budget:
    """The room for un-acked records. Thread-safe."""

    def __init__(self) -> None:
        self._room = threading.Condition()
        self._records = 0
        self._bytes = 0

    def take(self, records: int, size: int, timeout: float) -> bool:
        """Reserve; False when there was no room in time. One chunk always fits an empty budget."""
        with self._room:
            fits = self._room.wait_for(lambda: self._fits(records, size), timeout)
            if fits:
                self._records += records
                self._bytes += size
            return fits

    def give(self, records: int, size: int) -> None:
        with self._room:
            self._records -= records
            self._bytes -= size
            self._room.notify_all()

    def _fits(self, records: int, size: int) -> bool:
        return not self._records or (self._records + records <= _MAX_RECORDS and self._bytes + size <= _MAX_BYTES)


class _Late(NamedTuple):
    """A record that its caller stopped waiting for."""

    overdue: float
    future: Any
    producer: Any
    release: Callable[[object], None]


class Chunk(NamedTuple):
    """Records of one call that are in the producer's hands."""

    places: list[int]
    futures: list[Any]
    sizes: list[int]
    producer: Any
    sent: float


class Publisher:
    """One producer for all threads, made at first use and made anew when it went dumb."""

    def __init__(self, clients: Clients, admin: Admin) -> None:
        self.clients = clients
        self.admin = admin
        self.limit = clients.config.max_message_bytes + HEADROOM
        self.budget = Budget()
        self.hash: Callable[[bytes], int] = functools.lru_cache(4096)(murmur2)
        self.turns = itertools.count(random.randrange(1 << 16))
        self.delivery = _delivery(clients.config)
        self._lock = threading.Lock()
        self._producer: Any = None
        self._cluster: Any = None
        self._late: deque[_Late] = deque()
        self._suspect = True
        self._shut = False

    def open(self, timeout: float) -> tuple[Any, Any]:
        """The producer and its cluster. Probes the broker first while it is suspected to be away."""
        if self._late:
            self._rebuild_if_dumb()
        producer, cluster = self._producer, self._cluster
        if producer is not None and not self._suspect:
            return producer, cluster
        if producer is not None:
            self.clients.probe(timeout)
            return producer, cluster
        deadline = time.monotonic() + timeout
        if not self._lock.acquire(timeout=timeout):
            raise self.clients.gone("another thread has been waiting for it")
        try:
            if self._shut:
                raise AppClosed(f"The connection to {self.clients.name} was closed")
            if self._producer is None:
                self._producer, self._cluster = self._make(max(0.1, deadline - time.monotonic()))
            return self._producer, self._cluster
        finally:
            self._lock.release()

    def trust(self, *, answers: bool) -> None:
        """Tell whether the broker has just confirmed something, or failed to."""
        self._suspect = not answers

    def late(self, future: Any, size: int, chunk: Chunk) -> None:
        """Remember a record whose caller gave up; its room is given back when the producer is done with it."""
        owed = [size]

        def release(_: object) -> None:
            while owed:
                try:
                    self.budget.give(1, owed.pop())
                except IndexError:  # another thread was first
                    return

        self._late.append(_Late(chunk.sent + self.delivery + OVERDUE, future, chunk.producer, release))
        future.add_both(release)

    def close(self, timeout: float) -> None:
        """Flush what is under way, for ``timeout`` seconds, and stop."""
        with self._lock:
            self._shut = True
            producer, self._producer = self._producer, None
        if producer is not None:
            _close(producer, timeout)

    def abandon(self) -> None:
        """Forget the producer without touching it: it belongs to the process before a fork."""
        self._producer = None

    def _make(self, timeout: float) -> tuple[Any, Any]:
        config = self.clients.config
        request = int(_request(config) * 1000)
        producer, client = self.clients.producer(
            timeout,
            acks="all",
            enable_idempotence=False,
            linger_ms=0,
            max_in_flight_requests_per_connection=1,
            batch_size=min(256 * 1024, config.max_message_bytes),
            max_request_size=self.limit,
            request_timeout_ms=request,
            delivery_timeout_ms=int(self.delivery * 1000),
            max_block_ms=request,
            retry_backoff_ms=50,
            metadata_max_age_ms=60_000,
        )
        return producer, client.cluster

    def _rebuild_if_dumb(self) -> None:
        with self._lock:
            while self._late and self._late[0].future.is_done:
                self._late.popleft()
            if not self._late or self._late[0].overdue > time.monotonic():
                return
            dumb = self._late[0].producer
            lost = [late for late in self._late if late.producer is dumb]
            self._late = deque(late for late in self._late if late.producer is not dumb)
            if dumb is self._producer:
                self._producer = None
        _log.warning("a Kafka producer went dumb and is made anew; %d records are unknown", len(lost))
        _close(dumb, 0.0)
        for late in lost:
            late.release(None)


def _request(config: Config) -> float:
    """Seconds for one request: half of the send time-out, so that a second attempt fits."""
    return min(30.0, max(1.0, config.send_timeout / 2))


def _delivery(config: Config) -> float:
    """Seconds until the producer gives a record up."""
    return max(config.send_timeout, 2 * _request(config))


def _close(producer: Any, timeout: float) -> None:
    try:
        if timeout > 0:
            producer.close(timeout)
            return
    except kafka_errors.KafkaError:
        pass  # close() raises with batches pending and leaves its thread running
    producer._sender.force_close()
    producer._closed = True
