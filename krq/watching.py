"""Watching from the outside: the story of one task, and what ends, as the log gets it."""

from __future__ import annotations

import atexit
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from krq import events, ids
from krq.brokers.base import Broker
from krq.config import Config
from krq.errors import BrokerConnectionError
from krq.events import Entry
from krq.handle import TaskHandle
from krq.info import Event, Story
from krq.inspector import Clients
from krq.logs import Wait
from krq.story import Storyteller

log = logging.getLogger("krq.events")

#: seconds of one look at the log, and until the next after it could not be reached
LOOK, PATIENCE = 1.0, 0.5


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
        sieve = Sieve()
        for _, record in self._clients.broker.read(self.config.events_topic, limit):
            found += sieve.through(record.value)
        return found[-limit:]

    def events(self, *, from_start: bool = False, name: str | None = None, outcomes: Sequence[str] = (), most: int = 0) -> Iterator[Event]:
        """What ends from now on, or from the log's beginning on: an endless iterator over the ``events`` topic.

        ``name``, ``outcomes``: only of this task, and only these. ``most``: of each second the first so many, and then an event
        ``skipped`` with ``data["n"]``, how many there were beyond; 0: all. To skip costs a twentieth of reading.
        In the order of the log; across Kafka's partitions only about so. An entry may come twice, as the log may have it twice. What
        it has not read yet is kept while the broker is away. From one thread; break off, or close the iterator, to let go of it.
        """
        return follow(self._clients.broker, self.config.events_topic, Sieve(name, outcomes, most), from_start=from_start)


class Sieve:
    """Lets through what somebody wants to see, at most so many a second (0: all)."""

    def __init__(self, name: str | None = None, outcomes: Sequence[str] = (), most: int = 0) -> None:
        self._name = name
        self._outcomes = frozenset(outcomes)
        self._most = most
        self._passed = self._skipped = 0
        self._until = 0.0

    def through(self, raw: bytes) -> list[Event]:
        """What is wanted of a record, and not too much."""
        try:
            if self._most and self._passed >= self._most:
                self._skipped += sum(1 for entry in events.peek(raw) if self._fits(entry))
                return []
            if (self._name is not None or self._outcomes) and not any(self._fits(entry) for entry in events.peek(raw)):
                return []
            entries = [entry for entry in events.decode_page(raw).entries if self._fits(entry)]
        except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
            log.warning("a record of the events topic is passed by, as it is none of KRQ's: %s", error)
            return []
        room = self._most - self._passed if self._most else len(entries)
        self._passed += len(entries[:room])
        self._skipped += len(entries[room:])
        return [event_of(entry) for entry in entries[:room]]

    def turn(self) -> list[Event]:
        """To be called again and again: at the end of a second, how many were skipped."""
        if not self._most or time.monotonic() < self._until:
            return []
        skipped, self._skipped, self._passed, self._until = self._skipped, 0, 0, time.monotonic() + 1.0
        return [Event(outcome="skipped", at=time.time(), data={"n": skipped})] if skipped else []

    def _fits(self, entry: Entry | events.Peek) -> bool:
        return (self._name is None or entry.name == self._name) and (not self._outcomes or entry.outcome in self._outcomes)


def follow(broker: Broker, topic: str, sieve: Sieve, *, from_start: bool) -> Iterator[Event]:
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
                yield from sieve.turn()
                for record in records:
                    yield from sieve.through(record.value)

    return entries()


def event_of(entry: Entry) -> Event:
    """An entry of the log, with times in seconds."""
    return Event(
        outcome=entry.outcome, at=entry.finished / 1000, id=entry.id, name=entry.name, queue=entry.queue, attempt=entry.attempt,
        worker=entry.worker, sent=_time(entry.sent), started=_time(entry.started), due=_time(entry.due), result=entry.result,
        error=entry.error, reason=entry.reason, data=entry.data,
    )


def _time(ms: int) -> float | None:
    return ms / 1000 if ms else None
