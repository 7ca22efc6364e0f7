"""What only Kafka promises: marks, commits, topics, and a producer that can't get stuck."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from broker_cases import Case, confirmed, gather, one_partition, poll, until, values
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.partitioner.default import murmur2

from krq.brokers._kafka_producer import Budget
from krq.brokers.base import Outgoing, Position
from krq.dev.kafka import KafkaServer
from krq.errors import ConfigError, KafkaConnectionError, SubmissionError, SubmissionTimeout


@pytest.fixture
def case(kafka: KafkaServer, namespace: str) -> Iterator[Case]:
    found = Case("kafka", kafka.url, namespace)
    yield found
    found.close()


@pytest.fixture
def broker(case: Case) -> Any:
    return case.broker()


@pytest.fixture
def admin(kafka: KafkaServer) -> Iterator[Any]:
    client = KafkaAdminClient(bootstrap_servers=kafka.address)
    yield client
    client.close()


def settings_of(admin: Any, topic: str) -> dict[str, str]:
    found = admin.describe_configs([ConfigResource("TOPIC", topic)], config_filter="all")
    return {name: entry["value"] for name, entry in found["topic"][topic].items()}


# --- topics --------------------------------------------------------------------------------------


def test_a_new_topic_never_drops_what_is_pending(case: Case, broker: Any, admin: Any) -> None:
    for _ in range(2):
        broker.ensure([case.topic], 3)
    found = settings_of(admin, case.topic)
    assert (found["retention.ms"], found["retention.bytes"], found["cleanup.policy"]) == ("-1", "-1", "delete")
    assert int(found["max.message.bytes"]) > case.config().max_message_bytes
    assert len(admin.describe_topics([case.topic])[0]["partitions"]) == 3


def test_what_tasks_log_is_kept_for_a_while(case: Case, broker: Any, admin: Any, caplog: pytest.LogCaptureFixture) -> None:
    topic = case.config().logs_topic
    broker.ensure([topic])
    found = settings_of(admin, topic)
    assert found["retention.ms"] == str(int(case.config().result_ttl) * 1000)
    assert 0 < 4 * int(found["segment.bytes"]) <= int(found["retention.bytes"])
    case.broker().ensure([topic])
    assert not caplog.records, "no warning of what it may lose"


def test_publish_creates_a_missing_topic_with_the_configured_partitions(case: Case, broker: Any, admin: Any) -> None:
    case.publish(broker, "x")
    assert len(admin.describe_topics([case.topic])[0]["partitions"]) == 4
    assert settings_of(admin, case.topic)["retention.ms"] == "-1"


def test_an_existing_topic_stays_as_it_is_with_one_warning(
    case: Case, broker: Any, admin: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"num_partitions": 2, "replication_factor": 1, "configs": {"retention.ms": "60000"}}
    admin.create_topics({case.topic: settings}, wait_for_metadata=True)
    with caplog.at_level(logging.WARNING, "krq.broker"):
        broker.ensure([case.topic], 7)
        case.publish(broker, "x")
    assert [record.levelname for record in caplog.records if "retention.ms=60000" in record.getMessage()] == ["WARNING"]
    assert settings_of(admin, case.topic)["retention.ms"] == "60000"
    assert len(admin.describe_topics([case.topic])[0]["partitions"]) == 2


def test_asking_for_metadata_of_a_missing_topic_does_not_create_it(case: Case, broker: Any) -> None:
    case.publish(broker, "x")
    client = case.consumer(broker)
    poll(client, 1)
    for cluster in (broker._publisher.open(1)[1], client._cluster):
        assert cluster.metadata_request().allow_auto_topic_creation is False


def test_a_topic_made_anew_has_another_id_and_is_read_from_its_start(case: Case, broker: Any, admin: Any) -> None:
    case.publish(broker, range(40), key="k")  # the new records go to the same partition, below its old end
    consumer = case.consumer(broker)
    poll(consumer, 40)
    (old,) = consumer._ids.values()
    admin.delete_topics([case.topic])
    until(lambda: admin.describe_topics([case.topic])[0]["error_code"])
    fresh = case.broker()
    case.publish(fresh, range(100, 104), key="k")
    batches = gather(consumer, 4)
    assert {batch.topic_id for batch in batches} == {fresh._admin.topic_id(case.topic, 5)}
    assert old not in {batch.topic_id for batch in batches}


def test_a_topic_deleted_beneath_a_producer_is_made_again(case: Case, broker: Any, admin: Any) -> None:
    case.publish(broker, range(4))
    admin.delete_topics([case.topic])
    until(lambda: admin.describe_topics([case.topic])[0]["error_code"])
    answers = broker.publish([Outgoing(case.topic, b"again")], 10)
    assert isinstance(answers[0], Position)
    assert settings_of(admin, case.topic)["retention.ms"] == "-1"


def test_a_topic_that_kafka_refuses_is_a_refused_record(case: Case, broker: Any) -> None:
    answers = broker.publish([Outgoing("not a topic", b"x"), Outgoing(case.topic, b"y")], 10)
    assert type(answers[0]) is SubmissionError
    assert isinstance(answers[1], Position)
    with pytest.raises(ConfigError, match="replication"):
        case.broker(replication=3).ensure([case.config().topic("three")])


# --- options -------------------------------------------------------------------------------------


def test_a_wrong_value_is_named_without_secrets(case: Case) -> None:
    wrong: list[dict[str, Any]] = [{"security_protocol": "TLS"}, {"ssl_cafile": "/no/such"}]
    wrong += [{"compression_type": "rar"}, {"request_timeout_ms": 10**9}]
    for options in wrong:
        with pytest.raises(ConfigError) as caught:
            case.broker(kafka=options | {"sasl_plain_password": "hush"}).connect(3)
        assert next(iter(options)) in str(caught.value)
        assert "hush" not in str(caught.value)


# --- connecting and publishing -------------------------------------------------------------------


def test_a_broker_that_takes_connections_but_never_answers_leaves_nothing_behind(namespace: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        case = Case("kafka", f"127.0.0.1:{mute.getsockname()[1]}", namespace)
        broker = case.broker()
        before = (threading.active_count(), len(os.listdir("/proc/self/fd")))
        for _ in range(3):
            begun = time.monotonic()
            with pytest.raises(KafkaConnectionError):
                broker._admin.topic_id("x", 0.6)
            with pytest.raises(KafkaConnectionError):
                broker.connect(0.6)
            assert time.monotonic() - begun < 4
        until(lambda: threading.active_count() <= before[0])
        assert len(os.listdir("/proc/self/fd")) <= before[1]


def test_a_frozen_broker_leaves_it_unknown_and_nothing_is_written_twice(case: Case, kafka: KafkaServer) -> None:
    broker = case.broker(send_timeout=4)
    case.publish(broker, ["before"])
    kafka.pause()
    try:
        begun = time.monotonic()
        (answer,) = broker.publish([Outgoing(case.topic, b"during")], 0.5)
        assert 0.4 < time.monotonic() - begun < 1.5
    finally:
        kafka.resume()
    assert isinstance(answer, SubmissionTimeout)
    case.publish(broker, ["after"])
    until(lambda: broker._publisher.budget._records == 0)
    assert sorted(values(broker.read(case.topic, 10))) == ["after", "before", "during"]


def test_a_producer_that_went_dumb_is_made_anew(case: Case, broker: Any, kafka: KafkaServer) -> None:
    case.publish(broker, ["before"])
    publisher = broker._publisher
    dumb = publisher.open(1)[0]
    dumb._sender._running = False  # its thread ends without a word, as bug 2 of 3.0.12 makes it do in effect
    dumb._sender.wakeup()
    dumb._sender.join(5)
    assert isinstance(broker.publish([Outgoing(case.topic, b"lost")], 0.3)[0], SubmissionTimeout)
    assert publisher.open(1)[0] is dumb
    publisher._late[0] = publisher._late[0]._replace(overdue=0.0)
    case.publish(broker, ["after"])
    assert publisher.open(1)[0] is not dumb
    assert publisher.budget._records == publisher.budget._bytes == 0


def test_unacked_records_are_bounded(case: Case) -> None:
    budget = Budget()
    assert budget.take(20_000, 1, 0)
    assert not budget.take(1, 1, 0)
    budget.give(20_000, 1)
    assert budget.take(1, 1 << 40, 0), "one portion always fits"
    assert not budget.take(1, 1, 0)


def test_a_call_larger_than_the_bound_passes(case: Case, broker: Any) -> None:
    records = [Outgoing(case.topic, b"%d" % n, key="k") for n in range(25_000)]
    positions = confirmed(broker.publish(records, 30))
    assert [at.offset for at in positions] == list(range(25_000))
    assert broker._publisher.budget._records == 0


def test_keys_go_where_other_producers_send_them(case: Case, broker: Any) -> None:
    keys = [f"schlüssel-{n}" for n in range(40)]
    positions = confirmed(broker.publish([Outgoing(case.topic, b"x", key) for key in keys], 10))
    assert [at.partition for at in positions] == [(murmur2(key.encode()) & 0x7FFFFFFF) % 4 for key in keys]


def test_records_without_key_use_all_partitions(case: Case, broker: Any) -> None:
    assert {at.partition for at in case.publish(broker, range(1000))} == {0, 1, 2, 3}
    assert {case.publish(broker, [n])[0].partition for n in range(8)} == {0, 1, 2, 3}


def test_closing_flushes_what_is_under_way(case: Case, broker: Any) -> None:
    case.publish(broker, ["first"])
    producer, _ = broker._publisher.open(1)
    producer.send(case.topic, b"under way", partition=0)
    broker.close()
    assert len(case.broker().read(case.topic, 10)) == 2


# --- marks and commits ---------------------------------------------------------------------------


def test_seek_goes_back_and_forth_and_position_follows(case: Case, broker: Any) -> None:
    consumer = one_partition(case, broker, 50)
    assert consumer.position(case.topic, 0) == 50
    consumer.seek(case.topic, 0, 20)
    assert consumer.position(case.topic, 0) == 20
    (batch,) = consumer.poll(5)
    assert (batch.first, batch.next, batch.records[0].offset) == (20, 50, 20)
    consumer.seek(case.topic, 0, 48)
    assert values(poll(consumer, 2)) == ["48", "49"]
    assert consumer.position(case.topic, 7) is None
    consumer.seek(case.topic, 7, 3)
    consumer.pause(case.topic, 7)
    consumer.resume(case.topic, 7)


def test_a_partition_that_was_paused_half_read_goes_on_though_others_were_read_since(case: Case, broker: Any) -> None:
    broker.ensure([case.topic], 2)
    case.publish(broker, range(8000))
    consumer = case.consumer(broker)
    seen = gather(consumer, 1)
    half, other = seen[-1].partition, 1 - seen[-1].partition
    assert consumer.position(case.topic, half) < consumer.bounds(case.topic, half)[1]
    consumer.pause(case.topic, half)
    end = consumer.bounds(case.topic, other)[1]
    until(lambda: seen.extend(consumer.poll(0.1)) or consumer.position(case.topic, other) == end)
    consumer.resume(case.topic, half)
    seen += gather(consumer, 8000 - sum(len(batch.records) for batch in seen))
    assert sorted(int(each.value) for batch in seen for each in batch.records) == list(range(8000))


def test_position_is_known_before_the_first_record(case: Case, broker: Any) -> None:
    broker.ensure([case.topic], 1)
    consumer = case.consumer(broker)
    until(lambda: not consumer.poll(0.1) and consumer.assigned())
    assert consumer.position(case.topic, 0) == 0
    case.publish(broker, "x")
    (batch,) = consumer.poll(5)
    assert (batch.first, batch.next) == (0, 1)


def test_start_is_what_was_committed_else_the_first(case: Case, broker: Any) -> None:
    consumer = one_partition(case, broker, 50)
    assert consumer.start(case.topic, 0) == 0
    consumer.commit({(case.topic, 0): 30, (case.topic, 9): 5, ("unheard of", 0): 5})
    assert consumer.start(case.topic, 0) == 30
    assert broker.lag([case.topic], case.group) == {case.topic: 20}
    consumer.close()
    second = case.consumer(broker, member="second")
    (batch,) = second.poll(10)
    assert (batch.first, batch.records[0].offset) == (30, 30)


def test_bounds_and_a_trimmed_head(case: Case, broker: Any) -> None:
    consumer = one_partition(case, broker, 50)
    assert consumer.bounds(case.topic, 0) == (0, 50)
    broker.trim(case.topic, 0, 40)
    assert consumer.bounds(case.topic, 0) == (40, 50)
    consumer.seek(case.topic, 0, 10)
    batches = gather(consumer, 10)
    assert batches[0].first == batches[0].records[0].offset == 40, "what is lost is no continuity"


def test_markers_of_transactions_are_no_gap(case: Case, broker: Any, kafka: KafkaServer) -> None:
    consumer = one_partition(case, broker, 5)
    producer = KafkaProducer(bootstrap_servers=kafka.address, transactional_id=case.namespace)
    producer.init_transactions()
    expected = 5
    for _ in range(3):
        producer.begin_transaction()
        producer.send(case.topic, b"x", partition=0)
        producer.flush(10)
        (batch,) = gather(consumer, 1)  # the marker comes behind it, and is no record
        assert batch.first == expected
        expected = batch.next
        producer.commit_transaction()
        # the broker writes the marker after it has answered: what is published next must stand behind it
        until(lambda expected=expected: consumer.bounds(case.topic, 0)[1] == expected + 1)
    producer.close()
    case.publish(broker, ["last"])
    (batch,) = gather(consumer, 1)
    assert (batch.first, batch.next) == (expected, consumer.bounds(case.topic, 0)[1])
    assert batch.records[0].offset > expected


def test_a_record_without_value_is_empty(case: Case, broker: Any, kafka: KafkaServer) -> None:
    broker.ensure([case.topic])
    producer = KafkaProducer(bootstrap_servers=kafka.address)
    producer.send(case.topic, None, key=b"k", headers=[("h", b"\xff")]).get(10)
    producer.close()
    ((_, record),) = poll(case.consumer(broker), 1)
    assert record.value == b""
    assert record.headers == {"h": "\ufffd"}


def test_a_commit_while_the_group_is_dealt_anew_does_not_raise(case: Case, broker: Any) -> None:
    case.publish(broker, range(100))
    consumer = case.consumer(broker, member="first")
    poll(consumer, 100)
    wanted = {at: consumer.position(*at) for at in consumer.assigned()}
    other = case.consumer(case.broker(), member="second")

    def both() -> bool:
        other.poll(0.05)
        consumer.commit(wanted)
        consumer.poll(0.05)
        return len(consumer.assigned()) == len(other.assigned()) == 2

    until(both, 45)  # who misses a rebalance is back after its session of 10 s
    consumer.commit(wanted)
    assert consumer.position(*next(iter(other.assigned()))) is None


def test_a_leader_gets_new_partitions_however_short_its_polls(case: Case, broker: Any, admin: Any) -> None:
    consumer = one_partition(case, broker, 5)
    for count in (2, 3, 4):
        admin.create_partitions({case.topic: count})
        deadline = time.monotonic() + 10
        while len(consumer.assigned()) < count:
            assert time.monotonic() < deadline
            consumer._cluster.request_update()  # else it would look after 30 s
            consumer.poll(0)
    case.publish(broker, ["x"])
    assert values(poll(consumer, 1)) == ["x"]


def test_a_reader_survives_a_frozen_broker(case: Case, broker: Any, kafka: KafkaServer) -> None:
    consumer = one_partition(case, broker, 5)
    kafka.pause()
    begun = time.monotonic()
    try:
        while time.monotonic() < begun + 2.5:
            try:
                assert consumer.poll(0.1) == []
            except KafkaConnectionError:
                continue
            assert time.monotonic() - begun < 10
    finally:
        kafka.resume()
    case.publish(broker, ["after"])
    assert "after" in values(poll(consumer, 1))


def test_closing_is_bounded_when_the_broker_is_frozen(case: Case, broker: Any, kafka: KafkaServer) -> None:
    consumer = one_partition(case, broker, 5)
    kafka.pause()
    try:
        begun = time.monotonic()
        consumer.commit({(case.topic, 0): 5})
        consumer.close()
        broker.close()
        assert time.monotonic() - begun < 7
    finally:
        kafka.resume()
    assert TopicPartition(case.topic, 0) in case.broker()._admin.offsets([case.topic], 10)
