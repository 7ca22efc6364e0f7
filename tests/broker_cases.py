"""What the tests of the brokers share: a broker of either kind on a real server, and ways to wait for it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krq.brokers.base import Broker, Consumer, Incoming, Outgoing, Position
from krq.brokers.kafka import KafkaBroker
from krq.brokers.streams import StreamsBroker
from krq.config import Config
from krq.errors import BrokerConnectionError

#: a member of a group that died is noticed after 2.5 s
QUICK = {"session_timeout_ms": 2500, "heartbeat_interval_ms": 500}

READER = """
import sys
sys.path.insert(0, sys.argv[1])
import broker_cases
case = broker_cases.Case(*sys.argv[2:6])
consumer = case.consumer(case.broker(), member="victim")
count = 0
while count < int(sys.argv[6]):
    count += sum(len(batch.records) for batch in consumer.poll(0.2))
print("read", flush=True)
while True:
    consumer.poll(0.2)
"""


@dataclass
class Case:
    """A broker of one kind in a namespace of its own."""

    kind: str
    url: str
    namespace: str
    partitions: str = "4"
    opened: list[Any] = field(default_factory=list)

    @property
    def topic(self) -> str:
        return self.config().topic("work")

    @property
    def group(self) -> str:
        return self.config().group_id

    def config(self, **settings: Any) -> Config:
        if self.kind == "kafka":
            settings["kafka"] = QUICK | settings.get("kafka", {})
        given: dict[str, Any] = {"broker": self.url, "namespace": self.namespace, "partitions": int(self.partitions)}
        return Config(**(given | settings))

    def broker(self, **settings: Any) -> Any:
        config = self.config(**settings)
        broker = KafkaBroker(config) if self.kind == "kafka" else StreamsBroker(config)
        self.opened.append(broker)
        return broker

    def consumer(self, broker: Any, *topics: str, member: str = "reader") -> Any:
        consumer = broker.consumer(topics or [self.topic], self.group, member)
        if self.kind == "streams":
            consumer._dead_after, consumer._every = 0.8, 0.2
        self.opened.append(consumer)
        return consumer

    def publish(self, broker: Broker, values: Iterable[object], key: str | None = None) -> list[Position]:
        """Publish values, all of which must be confirmed."""
        answers = broker.publish([Outgoing(self.topic, str(value).encode(), key) for value in values], 10)
        return confirmed(answers)

    def reader(self, count: int) -> subprocess.Popen[str]:
        """A child process that has read ``count`` records and completes none."""
        own = [self.kind, self.url, self.namespace, self.partitions]
        words = [sys.executable, "-c", READER, str(Path(__file__).parent), *own, str(count)]
        child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "read\n"
        return child

    def close(self) -> None:
        for each in reversed(self.opened):
            each.close()


class Member(threading.Thread):
    """A reader as intake is one: marks for ordered brokers, the pending list for dealt ones."""

    def __init__(self, case: Case, broker: Broker, name: str, seen: list[str], marks: dict[Any, Any]) -> None:
        super().__init__(daemon=True)
        self.case = case
        self.broker = broker
        self.consumer = case.consumer(broker, member=name)
        self.seen = seen
        self.marks = marks
        self.own = 0
        self.leave = threading.Event()
        self.start()

    def run(self) -> None:
        while not self.leave.is_set():
            for batch in self.consumer.poll(0.05):
                self._admit(batch)
        self.consumer.close()

    def _admit(self, batch: Any) -> None:
        at = (batch.topic, batch.partition)
        mark = self.marks.setdefault(at, batch.first) if self.broker.ordered else None
        if mark is not None and batch.first > mark:
            self.consumer.seek(*at, mark)
            return
        fresh = [each for each in batch.records if mark is None or each.offset >= mark]
        self.seen.extend(each.value.decode() for each in fresh)
        self.own += len(fresh)
        if mark is not None:
            self.marks[at] = max(mark, batch.next)
            self.consumer.commit({at: batch.next})
        self.broker.complete([Position(*at, each.offset) for each in fresh], self.case.group)


def confirmed(answers: Iterable[Any]) -> list[Position]:
    """The positions; fails with the first answer that is none."""
    found = list(answers)
    for answer in found:
        assert isinstance(answer, Position), answer
    return found


def until(done: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come about in time"
        threading.Event().wait(0.02)


def poll(consumer: Consumer, count: int, seconds: float = 20.0) -> list[tuple[int, Incoming]]:
    """Poll until so many records came: (partition, record) in the order of their coming."""
    found: list[tuple[int, Incoming]] = []
    deadline = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < deadline, f"only {len(found)} of {count} records came"
        try:
            for batch in consumer.poll(0.1):
                found.extend((batch.partition, each) for each in batch.records)
        except BrokerConnectionError:
            continue
    return found


def none_come(consumer: Consumer, seconds: float = 0.5) -> bool:
    """Whether polling for a while gives nothing."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if consumer.poll(0.1):
            return False
    return True


def values(polled: Iterable[tuple[int, Incoming]]) -> list[str]:
    return [each.value.decode() for _, each in polled]


def gather(consumer: Any, count: int) -> list[Any]:
    """The batches of the next so many records."""
    found: list[Any] = []

    def read() -> bool:
        found.extend(consumer.poll(0.1))
        return sum(len(batch.records) for batch in found) >= count

    until(read)
    return found


def one_partition(case: Case, broker: Any, count: int) -> Any:
    """A consumer of a topic of one partition that has polled so many records."""
    broker.ensure([case.topic], 1)
    case.publish(broker, range(count))
    consumer = case.consumer(broker)
    poll(consumer, count)
    return consumer
