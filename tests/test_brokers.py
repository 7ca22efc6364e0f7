"""What every broker promises (krq/brokers/base.py), tried on real servers."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from broker_cases import Case, Member, confirmed, none_come, poll, until, values

from krq.brokers.base import Outgoing, Position
from krq.dev.valkey import ValkeyServer
from krq.errors import AppClosed, BrokerConnectionError, MessageTooLarge, SubmissionError

KINDS = ["kafka", "streams"]


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, namespace: str) -> Iterator[Case]:
    """A broker of each kind."""
    kind = request.param
    server = request.getfixturevalue("kafka" if kind == "kafka" else "valkey")
    found = Case(kind, server.url, namespace)
    yield found
    found.close()


@pytest.fixture
def broker(case: Case) -> Any:
    return case.broker()


# --- connecting ----------------------------------------------------------------------------------


def test_connect_reaches_the_broker_and_may_be_repeated(broker: Any) -> None:
    for _ in range(2):
        broker.connect(10)
    assert "127.0.0.1" in broker.name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["connect", "publish", "poll", "lag"])
def test_an_unreachable_broker_is_an_error_in_time_with_cause_and_cure(kind: str, act: str, namespace: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    case = Case(kind, f"redis://127.0.0.1:{port}/0" if kind == "streams" else f"127.0.0.1:{port}", namespace)
    broker = case.broker()
    threads = threading.active_count()
    begun = time.monotonic()
    if act == "publish":
        answers = broker.publish([Outgoing(case.topic, b"x")] * 2, 0.6)
        error = answers[1]
    else:
        lag = broker._admin.lag if kind == "kafka" else lambda topics, group, _: broker.lag(topics, group)
        acts = {
            "connect": lambda: broker.connect(0.6),
            "poll": lambda: case.consumer(broker).poll(0.6),
            "lag": lambda: lag([case.topic], case.group, 0.6),
        }
        with pytest.raises(BrokerConnectionError) as caught:
            acts[act]()
        error = caught.value
    assert time.monotonic() - begun < 1.5
    assert isinstance(error, BrokerConnectionError)
    assert str(port) in str(error)
    assert "KRQ_BROKER" in str(error)
    assert error.code in {"KAFKA_CONNECTION_ERROR", "REDIS_CONNECTION_ERROR"}
    assert threading.active_count() == threads
    case.close()


def test_a_forked_process_gets_a_clear_error(case: Case, broker: Any) -> None:
    consumer = case.consumer(broker)
    case.publish(broker, "x")
    poll(consumer, 1)
    child = os.fork()
    if child == 0:
        refused = 0
        tries = (lambda: case.publish(broker, "x"), lambda: broker.lag([case.topic], "g"), lambda: consumer.poll(0.1))
        for act in tries:
            try:
                act()
            except AppClosed:
                refused += 1
        broker.close()
        consumer.close()
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    case.publish(broker, "y")
    assert values(poll(consumer, 1)) == ["y"]


def test_close_may_be_repeated_and_is_quick_and_final(case: Case, broker: Any) -> None:
    case.publish(broker, range(3))
    consumer = case.consumer(broker)
    poll(consumer, 3)
    begun = time.monotonic()
    for each in (consumer, consumer, broker, broker):
        each.close()
    assert time.monotonic() - begun < 5
    with pytest.raises(AppClosed):
        broker.publish([Outgoing(case.topic, b"x")], 1)
    with pytest.raises(AppClosed):
        consumer.poll(0.1)


# --- publishing ----------------------------------------------------------------------------------


def test_publish_confirms_with_positions_that_others_read(case: Case, broker: Any) -> None:
    assert broker.publish([], 1) == []
    positions = case.publish(broker, range(10))
    assert {at.topic for at in positions} == {case.topic}
    assert len(set(positions)) == 10
    found = {(partition, each.offset): each.value for partition, each in case.broker().read(case.topic, 100)}
    assert found == {(at.partition, at.offset): str(n).encode() for n, at in enumerate(positions)}


def test_records_of_a_key_stand_in_one_partition_in_order(case: Case, broker: Any) -> None:
    records = [Outgoing(case.topic, str(n).encode(), key=f"k{n % 20}") for n in range(2000)]
    positions = confirmed(broker.publish(records[:1000], 10) + broker.publish(records[1000:], 10))
    where = defaultdict(set)
    for record, at in zip(records, positions, strict=True):
        where[record.key].add(at.partition)
    assert all(len(partitions) == 1 for partitions in where.values())
    read: dict[int, list[int]] = defaultdict(list)
    for text in values(poll(case.consumer(broker), 2000)):
        read[int(text) % 20].append(int(text))
    assert all(order == sorted(order) for order in read.values())
    assert sum(map(len, read.values())) == 2000


def test_a_bulk_keeps_its_order_within_each_partition(case: Case, broker: Any) -> None:
    case.publish(broker, range(5000))
    read: dict[int, list[int]] = defaultdict(list)
    for partition, each in poll(case.consumer(broker), 5000):
        read[partition].append(int(each.value))
    assert all(order == sorted(order) for order in read.values())
    assert sorted(itertools.chain(*read.values())) == list(range(5000))


def test_a_record_too_large_is_refused_and_its_neighbours_are_not(case: Case) -> None:
    broker = case.broker(max_message_bytes=50_000)
    big = Outgoing(case.topic, b"x" * 200_000)
    answers = broker.publish([Outgoing(case.topic, b"a"), big, Outgoing(case.topic, b"b"), big], 10)
    assert isinstance(answers[1], MessageTooLarge)
    assert isinstance(answers[3], SubmissionError)
    confirmed([answers[0], answers[2]])
    assert sorted(values(poll(case.consumer(broker), 2))) == ["a", "b"]


def test_the_largest_message_passes(case: Case, broker: Any) -> None:
    confirmed(broker.publish([Outgoing(case.topic, b"x" * 1_000_000, "key", {"h": "y" * 1000})] * 3, 10))
    assert [len(each.value) for _, each in poll(case.consumer(broker), 3)] == [1_000_000] * 3


def test_headers_travel_and_may_be_missing(case: Case, broker: Any) -> None:
    headers = {"krq-attempt": "3", "grüße": "…"}
    confirmed(broker.publish([Outgoing(case.topic, b"with", "k", headers), Outgoing(case.topic, b"without", "k")], 10))
    found = {each.value: dict(each.headers) for _, each in poll(case.consumer(broker), 2)}
    assert found == {b"with": headers, b"without": {}}


def test_records_carry_the_time_of_their_appending(case: Case, broker: Any) -> None:
    before = time.time() * 1000
    case.publish(broker, "x")
    ((_, record),) = poll(case.consumer(broker), 1)
    assert before - 1000 <= record.timestamp <= time.time() * 1000 + 1000


def test_many_threads_publish_at_once(case: Case, broker: Any) -> None:
    def work(name: int) -> list[Position]:
        return [case.publish(broker, [f"{name}-{turn}"])[0] for turn in range(50)]

    with ThreadPoolExecutor(8) as pool:
        assert len(set(itertools.chain(*pool.map(work, range(8))))) == 400
    assert Counter(values(poll(case.consumer(broker), 400))) == Counter(f"{n}-{t}" for n in range(8) for t in range(50))


def test_publish_spreads_over_topics(case: Case, broker: Any) -> None:
    topics = [case.config().topic(name) for name in ("a", "b", "c")]
    records = [Outgoing(topics[n % 3], str(n).encode()) for n in range(300)]
    positions = confirmed(broker.publish(records, 10))
    assert [at.topic for at in positions] == [record.topic for record in records]
    assert len(poll(case.consumer(broker, *topics), 300)) == 300


# --- reading -------------------------------------------------------------------------------------


def test_poll_gives_at_most_one_batch_a_partition_with_its_bounds(case: Case, broker: Any) -> None:
    case.publish(broker, range(3000))
    consumer = case.consumer(broker)
    count = 0
    left: dict[int, Any] = {}
    while count < 3000:
        batches = consumer.poll(1)
        assert len({(batch.topic, batch.partition) for batch in batches}) == len(batches)
        for batch in batches:
            assert batch.topic_id == consumer.topic_id(batch.topic) != ""
            assert batch.first == left.get(batch.partition, batch.records[0].offset) or not broker.ordered
            left[batch.partition] = batch.next
            count += len(batch.records)
    assert consumer.assigned() == {(case.topic, n) for n in range(4 if broker.ordered else 1)}


def test_poll_without_records_waits_and_gives_nothing(case: Case, broker: Any) -> None:
    consumer = case.consumer(broker)
    case.publish(broker, "x")
    poll(consumer, 1)
    begun = time.monotonic()
    assert consumer.poll(0.3) == []
    assert 0.25 <= time.monotonic() - begun < 1


def test_what_a_closed_reader_did_not_complete_is_read_again(case: Case, broker: Any) -> None:
    case.publish(broker, range(20))
    first = case.consumer(broker, member="first")
    poll(first, 20)
    first.close()
    again = poll(case.consumer(broker, member="second"), 20)
    assert sorted(map(int, values(again))) == list(range(20))


def test_what_a_killed_reader_did_not_complete_is_read_again(case: Case, broker: Any) -> None:
    case.publish(broker, range(20))
    child = case.reader(20)
    child.send_signal(signal.SIGKILL)
    child.wait()
    again = poll(case.consumer(broker, member="second"), 20)
    assert sorted(map(int, values(again))) == list(range(20))


def test_what_is_complete_is_not_read_again(case: Case, broker: Any) -> None:
    case.publish(broker, range(20))
    seen: list[str] = []
    member = Member(case, broker, "first", seen, {})
    until(lambda: len(seen) == 20)
    member.leave.set()
    member.join()
    case.publish(broker, ["fresh"])
    second = case.consumer(broker, member="second")
    assert values(poll(second, 1)) == ["fresh"]
    assert none_come(second, 1.2)


def test_members_that_come_and_go_read_every_record_exactly_once(case: Case, broker: Any) -> None:
    sent, seen = 0, list[str]()
    marks = dict[Any, Any]()
    first = Member(case, broker, "first", seen, marks)

    def send() -> bool:
        nonlocal sent
        case.publish(broker, range(sent, sent + 200))
        sent += 200
        return True

    until(lambda: send() and first.own > 200)
    second = Member(case, case.broker(), "second", seen, marks)
    until(lambda: send() and second.own > 200)
    first.leave.set()
    first.join(10)
    until(lambda: send() and second.own > 2000)
    until(lambda: len(set(seen)) == sent)
    second.leave.set()
    second.join(10)
    assert Counter(seen) == Counter(map(str, range(sent)))


def test_a_paused_topic_gives_nothing_while_others_go_on(case: Case, broker: Any) -> None:
    other = case.config().topic("other")
    consumer = case.consumer(broker, case.topic, other)
    confirmed(broker.publish([Outgoing(case.topic, b"x"), Outgoing(other, b"y")], 10))
    poll(consumer, 2)
    paused = [at for at in consumer.assigned() if at[0] == case.topic]
    for at in paused * 2:
        consumer.pause(*at)
    case.publish(broker, range(50))
    confirmed(broker.publish([Outgoing(other, b"z")], 10))
    assert values(poll(consumer, 1)) == ["z"]
    assert none_come(consumer)
    for at in paused * 2:
        consumer.resume(*at)
    assert sorted(map(int, values(poll(consumer, 50)))) == list(range(50))


def test_polling_goes_on_when_all_is_paused(case: Case, broker: Any) -> None:
    consumer = case.consumer(broker)
    case.publish(broker, "x")
    poll(consumer, 1)
    for at in consumer.assigned():
        consumer.pause(*at)
    case.publish(broker, "y")
    begun = time.process_time()
    assert none_come(consumer, 1)
    assert time.process_time() - begun < 0.5


# --- looking and trimming ------------------------------------------------------------------------


def test_lag_counts_what_is_not_complete(case: Case, broker: Any) -> None:
    missing = case.config().topic("missing")
    assert broker.lag([case.topic, missing], case.group) == {case.topic: 0, missing: 0}
    case.publish(broker, range(30))
    assert broker.lag([case.topic], case.group) == {case.topic: 30}
    consumer = case.consumer(broker)
    polled = poll(consumer, 30)
    assert broker.lag([case.topic], case.group) == {case.topic: 30}
    assert broker.pending(case.topic, case.group) == (0 if broker.ordered else 30)
    done = [Position(case.topic, partition, each.offset) for partition, each in polled]
    for _ in range(2):
        broker.complete(done, case.group)
        consumer.commit({at: consumer.position(*at) for at in consumer.assigned() if broker.ordered})
    assert broker.lag([case.topic], case.group) == {case.topic: 0}
    assert broker.pending(case.topic, case.group) == 0


def test_unread_counts_what_nobody_has_polled(case: Case, broker: Any) -> None:
    case.publish(broker, range(30))
    assert broker.unread([case.topic], case.group, {}) == {case.topic: 30}
    consumer = case.consumer(broker)
    poll(consumer, 30)
    marks = {at: consumer.position(*at) for at in consumer.assigned()} if broker.ordered else {}
    assert broker.unread([case.topic], case.group, marks) == {case.topic: 0}
    case.publish(broker, range(7))
    assert broker.unread([case.topic], case.group, marks) == {case.topic: 7}
    assert broker.lag([case.topic], case.group) == {case.topic: 37}


def test_read_gives_the_newest_records_oldest_first(case: Case, broker: Any) -> None:
    assert broker.read(case.topic, 5) == []
    for turn in range(4):
        case.publish(broker, range(turn * 10, turn * 10 + 10), key="k")
    assert values(broker.read(case.topic, 5)) == ["35", "36", "37", "38", "39"]
    assert len(broker.read(case.topic, 1000)) == 40
    assert broker.read(case.topic, 0) == []


def test_trim_deletes_what_stands_before_and_may_be_repeated(case: Case, broker: Any) -> None:
    positions = case.publish(broker, range(20), key="k")
    for _ in range(2):
        broker.trim(case.topic, positions[12].partition, positions[12].offset)
    assert values(broker.read(case.topic, 100)) == [str(n) for n in range(12, 20)]


# --- outages -------------------------------------------------------------------------------------


def test_publishing_and_polling_go_on_after_a_restart_of_the_broker(
    case: Case, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if case.kind == "kafka":
        server = request.getfixturevalue("kafka")
    else:
        server = ValkeyServer(tmp_path, fsync="always")
        server.start()
        request.addfinalizer(server.stop)
        case.url = server.url
    broker = case.broker()
    sent: set[str] = set()
    unsure: set[str] = set()
    stop = threading.Event()

    def send() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            (answer,) = broker.publish([Outgoing(case.topic, str(turn).encode())], 5)
            (sent if isinstance(answer, Position) else unsure).add(str(turn))

    sender = threading.Thread(target=send)
    sender.start()
    consumer = case.consumer(broker)
    seen = set(values(poll(consumer, 20)))
    server.kill()
    restart = threading.Thread(target=server.start)
    restart.start()
    while restart.is_alive():
        try:
            seen.update(each.value.decode() for batch in consumer.poll(0.1) for each in batch.records)
        except BrokerConnectionError:
            continue
    before = len(sent)
    until(lambda: len(sent) > before + 20)
    stop.set()
    sender.join()
    while not sent <= seen:
        seen.update(values(poll(consumer, 1)))
    assert seen <= sent | unsure
