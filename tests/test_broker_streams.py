"""What only Redis Streams promises: the pending list is what is unfinished, and nothing on it is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from broker_cases import Case, none_come, poll, until, values

from krq.brokers.base import Outgoing, Position
from krq.dev.valkey import ValkeyServer
from krq.errors import BrokerConnectionError, ConfigError, RedisConnectionError, SubmissionError, SubmissionTimeout


@pytest.fixture
def case(valkey: ValkeyServer, namespace: str) -> Iterator[Case]:
    found = Case("streams", valkey.url, namespace)
    yield found
    found.close()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ValkeyServer]:
    """A server that a test may empty, freeze or fill."""
    with ValkeyServer(tmp_path, fsync="off") as server:
        yield server


@pytest.fixture
def own_case(own_server: ValkeyServer, namespace: str) -> Iterator[Case]:
    found = Case("streams", own_server.url, namespace)
    yield found
    found.close()


@pytest.fixture
def broker(case: Case) -> Any:
    return case.broker()


def client_of(case: Case) -> Any:
    return redis.Redis.from_url(case.url)


def test_what_tasks_log_is_kept_for_a_while(case: Case, broker: Any) -> None:
    config = case.config()
    for topic in (config.logs_topic, config.dead_topic):
        broker.publish([Outgoing(topic, b"{}")] * 5_500, 10)
    with client_of(case) as client:
        assert 5_000 <= client.xlen(config.logs_topic) <= 5_200
        assert client.xlen(config.dead_topic) == 5_500, "all others keep all"


def test_the_pending_list_is_what_is_unfinished(case: Case, broker: Any) -> None:
    positions = case.publish(broker, range(1200))
    assert broker.pending(case.topic, case.group) == 0
    consumer = case.consumer(broker)
    poll(consumer, 1200)
    for left in (1200, 700, 0):
        broker.complete(positions[: 1200 - left], case.group)
        assert broker.pending(case.topic, case.group) == left
        assert client_of(case).xpending(case.topic, case.group)["pending"] == left
        assert broker.lag([case.topic], case.group) == {case.topic: left}
    broker.complete([Position("unheard of", 0, "1-1")], case.group)


def test_what_a_dead_reader_left_goes_to_one_other(case: Case, broker: Any) -> None:
    case.publish(broker, range(1300))
    poll(case.consumer(broker, member="dead"), 1300)
    second = case.consumer(broker, member="second")
    third = case.consumer(broker, member="third")
    found: list[str] = []

    def both() -> bool:
        for each in (second, third):
            found.extend(values((0, record) for batch in each.poll(0.02) for record in batch.records))
        return len(found) >= 1300

    until(both)
    assert sorted(map(int, found)) == list(range(1300))
    deadline = time.monotonic() + 1.2
    while time.monotonic() < deadline:
        assert second.poll(0.05) == third.poll(0.05) == []


def test_a_long_task_of_a_living_reader_is_not_read_again(case: Case, broker: Any) -> None:
    case.publish(broker, range(5))
    busy = case.consumer(broker, member="busy")
    poll(busy, 5)
    busy.pause(case.topic, 0)
    idle = case.consumer(broker, member="idle")
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert busy.poll(0.1) == idle.poll(0.1) == []


def test_what_the_same_name_left_in_an_earlier_life_comes_first(case: Case, broker: Any) -> None:
    case.publish(broker, range(5))
    first = case.consumer(broker, member="same")
    poll(first, 5)
    first.close()
    case.publish(broker, range(5, 7))
    assert values(poll(case.consumer(broker, member="same"), 7)) == [str(n) for n in range(7)]


def test_records_of_a_lost_reply_come_again_to_the_same_reader(case: Case, broker: Any) -> None:
    case.publish(broker, range(4))
    consumer = case.consumer(broker)
    assert values(poll(consumer, 4)) == ["0", "1", "2", "3"]
    case.publish(broker, range(4, 7))
    client = client_of(case)
    assert client.xreadgroup(case.group, "reader", {case.topic: ">"})  # the server dealt them, the reply went astray
    killer = threading.Timer(0.2, lambda: [client.client_kill_filter(_id=each["id"]) for each in blocked(client)])
    killer.start()
    with pytest.raises(BrokerConnectionError):
        consumer.poll(5)
    assert values(poll(consumer, 3)) == ["4", "5", "6"]
    assert none_come(consumer, 0.3)


def blocked(client: Any) -> list[dict[str, str]]:
    return [each for each in client.client_list() if each["cmd"] == "xreadgroup" and "b" in each["flags"]]


def test_the_group_is_made_again_after_a_flush(own_case: Case) -> None:
    broker = own_case.broker()
    consumer = own_case.consumer(broker)
    own_case.publish(broker, ["before"])
    poll(consumer, 1)
    client_of(own_case).flushall()
    assert broker.lag([own_case.topic], own_case.group) == {own_case.topic: 0}
    own_case.publish(broker, ["after"])
    assert values(poll(consumer, 1)) == ["after"]


def test_a_frozen_server_leaves_it_unknown_and_writes_nothing_twice(own_case: Case, own_server: ValkeyServer) -> None:
    broker = own_case.broker()
    assert isinstance(broker.publish([Outgoing(own_case.topic, b"before")], 1)[0], Position)
    own_server.pause()
    begun = time.monotonic()
    answers = broker.publish([Outgoing(own_case.topic, b"during"), Outgoing(own_case.topic, b"too")], 1)
    assert 0.9 < time.monotonic() - begun < 2.5
    own_server.resume()
    assert [type(answer) for answer in answers] == [SubmissionTimeout, SubmissionTimeout]
    own_case.publish(broker, ["after"])
    assert values(broker.read(own_case.topic, 10)) == ["before", "during", "too", "after"]


def test_a_full_server_refuses_and_reading_goes_on(own_case: Case) -> None:
    broker = own_case.broker()
    own_case.publish(broker, ["before"])
    client = client_of(own_case)
    client.config_set("maxmemory", 1)
    (answer,) = broker.publish([Outgoing(own_case.topic, b"x")], 5)
    assert type(answer) is SubmissionError
    assert "memory" in str(answer)
    client.config_set("maxmemory", 0)
    assert values(poll(own_case.consumer(broker), 1)) == ["before"]


def test_one_record_that_is_refused_spoils_no_other(case: Case, broker: Any) -> None:
    client_of(case).set(case.config().topic("no-stream"), "x")
    records = [Outgoing(case.topic, b"a"), Outgoing(case.config().topic("no-stream"), b"b"), Outgoing(case.topic, b"c")]
    first, second, third = broker.publish(records, 5)
    assert isinstance(first, Position)
    assert type(second) is SubmissionError
    assert isinstance(third, Position)


def test_entries_that_others_wrote_are_read_as_they_are(case: Case, broker: Any) -> None:
    client = client_of(case)
    client.xadd(case.topic, {"some": "thing"})
    client.xadd(case.topic, {"v": b"\x00\xff", "h": "no json"})
    found = [each for _, each in poll(case.consumer(broker), 2)]
    assert [each.value for each in found] == [b"", b"\x00\xff"]
    assert dict(found[1].headers) == {"h": "no json"}


def test_lag_is_counted_where_the_server_can_not_tell(case: Case, broker: Any) -> None:
    positions = case.publish(broker, range(2500))
    client = client_of(case)
    client.xgroup_create(case.topic, case.group, id=positions[99].offset)
    client.xdel(case.topic, positions[1500].offset)
    assert client.xinfo_groups(case.topic)[0]["lag"] is None
    assert broker.lag([case.topic], case.group) == {case.topic: 2399}


def test_a_reader_without_a_word_and_with_empty_hands_is_forgotten(
    case: Case, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krq.brokers._streams_consumer._FORGET_AFTER", 900)
    reader = case.consumer(broker, member="reader")
    case.consumer(broker, member="gone").poll(0.05)

    def names() -> set[bytes]:
        return {each["name"] for each in client_of(case).xinfo_consumers(case.topic, case.group)}

    case.publish(broker, ["x"])
    holds = case.consumer(broker, member="holds")
    poll(holds, 1)
    assert {b"gone", b"holds"} <= names()
    monkeypatch.setattr(reader, "_dead_after", 1.0)
    until(lambda: reader.poll(0.05) is not None and b"gone" not in names())
    assert b"holds" in names()


def test_a_blocked_poll_wakes_at_once_for_a_record(case: Case, broker: Any) -> None:
    consumer = case.consumer(broker)
    consumer.poll(0.05)
    sender = threading.Timer(0.3, lambda: case.publish(broker, ["x"]))
    sender.start()
    begun = time.monotonic()
    assert values((0, record) for batch in consumer.poll(5) for record in batch.records) == ["x"]
    assert time.monotonic() - begun < 1
    sender.join()


def test_dealt_brokers_have_no_marks(case: Case, broker: Any) -> None:
    consumer = case.consumer(broker)
    case.publish(broker, range(3))
    poll(consumer, 3)
    consumer.seek(case.topic, 0, 0)
    consumer.commit({(case.topic, 0): 3})
    assert consumer.position(case.topic, 0) is None
    assert none_come(consumer, 0.3)


def test_a_reader_is_dead_after_two_leases_but_not_before_fifteen_seconds(case: Case) -> None:
    for lease, seconds in ((10.0, 20.0), (3.0, 15.0)):
        broker = case.broker(lease=lease)
        consumer = broker.consumer([case.topic], "g", "m")
        assert consumer._dead_after == seconds
        consumer.close()


def test_a_wrong_url_or_password_is_named_and_kept_secret(case: Case) -> None:
    with pytest.raises(ConfigError):
        case.broker(broker="redis://localhost:abc").connect(1)
    host = case.url.removeprefix("redis://")
    begun = time.monotonic()
    with pytest.raises(RedisConnectionError) as caught:
        case.broker(broker=f"redis://user:hush@{host}").connect(5)
    assert time.monotonic() - begun < 1
    assert "hush" not in str(caught.value)
    assert "password" in str(caught.value)
