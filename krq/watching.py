"""Watching from the outside: the story of one task, and what ends, as the log gets it."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import msgspec

from krq import events, ids
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import BrokerConnectionError
from krq.events import Entry
from krq.handle import TaskHandle
from krq.info import Event, Story
from krq.inspector import Inspector
from krq.logs import Wait
from krq.store.client import Store
from krq.story import Storyteller

log = logging.getLogger("krq.events")

#: seconds of one look at the log, and until the next after it could not be reached
LOOK, PATIENCE = 1.0, 0.5


class Clients(Protocol):
    """What this asks of an app's clients."""

    @property
    def store(self) -> Store: ...
    @property
    def broker(self) -> Broker: ...
    @property
    def inspector(self) -> Inspector: ...


class Watching:
    """What ``KRQ`` offers to those who watch."""

    config: Config

    @property
    def _clients(self) -> Clients:
        raise NotImplementedError

    @property
    def served_queues(self) -> list[str]:
        """See ``KRQ``."""
        raise NotImplementedError

    def why(self, task_id: str | TaskHandle[Any]) -> Story:
        """How a task came to where it stands, why it does not go on, and what comes next. Thread-safe.

        Some ten round trips to Redis; of a task that stands in the log alone, or is forgotten, the newest records of the log
        are read as well, which may take seconds. Raises ``TaskNotFound`` and ``RedisConnectionError``.
        """
        clients = self._clients
        teller = Storyteller(self.config, clients.store, clients.broker, clients.inspector)
        return teller.tell(ids.check_task_id(str(task_id)), self.served_queues)

    def recent_events(self, limit: int = 50) -> list[Event]:
        """The last ``limit`` entries of the log's ``events`` topic, the earliest first. Raises ``BrokerConnectionError``."""
        if limit < 1:
            return []
        found: list[Event] = []
        for _, record in self._clients.broker.read(self.config.events_topic, limit):
            found += _read(record.value)
        return found[-limit:]

    def events(self, *, from_start: bool = False) -> Iterator[Event]:
        """What ends from now on, or from the log's beginning on: an endless iterator over the ``events`` topic.

        In the order of the log; across Kafka's partitions only about so. An entry may come twice, as the log may have it twice. What
        it has not read yet is kept while the broker is away. From one thread; break off, or close the iterator, to let go of it.
        """
        return follow(self._clients.broker, self.config.events_topic, from_start=from_start)


def follow(broker: Broker, topic: str, *, from_start: bool) -> Iterator[Event]:
    """The entries of a topic, for ever; where it begins is settled before this returns. Raises ``BrokerConnectionError`` from here only."""
    tail = broker.tail(topic, from_start=from_start)
    # where nobody closes it Python would when it ends, and wait for ever for a thread of the client that is frozen by then
    atexit.register(tail.close)

    def entries() -> Iterator[Event]:
        wait = Wait(log, "waiting for the log")
        with ExitStack() as stack:
            stack.callback(atexit.unregister, tail.close)
            stack.callback(tail.close)
            while True:
                try:
                    records = tail.poll(LOOK)
                    wait.end()
                except BrokerConnectionError as error:
                    wait.begin(error)
                    time.sleep(PATIENCE)
                    continue
                for record in records:
                    yield from _read(record.value)

    return entries()


def _read(raw: bytes) -> list[Event]:
    try:
        return [event_of(entry) for entry in events.decode_page(raw).entries]
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        log.warning("a record of the events topic is passed by, as it is none of KRQ's: %s", error)
        return []


def event_of(entry: Entry) -> Event:
    """An entry of the log, with times in seconds."""
    return Event(
        outcome=entry.outcome, at=entry.finished / 1000, id=entry.id, name=entry.name, queue=entry.queue, attempt=entry.attempt,
        worker=entry.worker, sent=_time(entry.sent), started=_time(entry.started), due=_time(entry.due), result=entry.result,
        error=entry.error, reason=entry.reason, data=entry.data,
    )


def _time(ms: int) -> float | None:
    return ms / 1000 if ms else None
