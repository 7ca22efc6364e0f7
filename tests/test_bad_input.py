"""Bad input: a named error with cause and cure, or a dead letter with the reason and the original bytes; the worker goes on."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, running, until
from kafka import KafkaProducer

import krq
from krq import TaskStatus, errors, events
from krq.brokers.base import Outgoing
from krq.dev.kafka import KafkaServer
from krq.dev.process import free_port
from krq.dev.valkey import ValkeyServer

MALFORMED = [
    b"",
    b"\xff\xfe\x00\x01",
    b"not json",
    b"[1, 2]",
    b"{}",
    b'{"task": 7}',
    b'{"task": "add", "args": {"x": 1}}',
    b'{"task": "add", "args": ' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"task": "add", "task-id": "a b"}',
    b'{"task": "add", "eta": "tomorrow"}',
    b'{"task": "add", "version": 99}',
    b'{"task": "", "args": []}',
]


@pytest.fixture
def worker(servers: Servers, tmp_path: Path) -> Iterator[Worker]:
    with running(servers, tmp_path) as workers:
        yield workers[0]


def test_a_record_of_plain_kafka_python_runs(kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    servers = Servers(kafka.url, valkey.url, namespace)
    with servers.app() as app, running(servers, tmp_path):
        producer = KafkaProducer(bootstrap_servers=kafka.address, enable_idempotence=False)
        record = b'{"task-id": "d5750c0e-ed82", "task": "add", "args": [1, 2]}'
        producer.send(f"{namespace}.default", record).get(10)
        producer.send(f"{namespace}.default", b'{"task": "add", "args": [2, 2], "somebody-elses": true}').get(10)
        producer.close()
        until(lambda: len(app.tasks(status="success")) == 2, "both have run")
        assert str(app.status("d5750c0e-ed82")) == "success 3"
        (other,) = [info for info in app.tasks(status="success") if info.id != "d5750c0e-ed82"]
        assert other.result == 4


def test_malformed_records_become_dead_letters_and_the_worker_goes_on(app: krq.KRQ, worker: Worker) -> None:
    topic = app.config.topic("default")
    app._clients.broker.publish([Outgoing(topic, raw) for raw in MALFORMED], 10)
    assert app.submit("add", 1, 2).result(timeout=15) == 3
    until(lambda: len(app.dead_letters()) == len(MALFORMED), "all are buried")
    found = {base64.b64decode(d.value) if d.base64 else d.value.encode(): d for d in app.dead_letters()}
    assert set(found) == set(MALFORMED)
    assert all(letter.code == "MESSAGE_INVALID" and letter.reason and letter.queue == "default" for letter in found.values())
    until(lambda: len(app._clients.broker.read(app.config.dead_topic, 100)) == len(MALFORMED), "all are published")
    in_topic = [events.decode_letter(record.value) for _, record in app._clients.broker.read(app.config.dead_topic, 100)]
    assert {(one.ref, one.code) for one in in_topic} == {(one.ref, one.code) for one in found.values()}
    assert worker.process.poll() is None
    until(lambda: app._clients.broker.lag([topic], app.config.group_id)[topic] == 0, "nothing is left incomplete")


def test_the_same_id_with_other_content_is_a_dead_letter(app: krq.KRQ, worker: Worker) -> None:
    app.submit("add", 0, 0).result(timeout=15)
    app.pause("default")
    app.send_task("add", [1, 2], task_id="same", delay=1)
    until(lambda: app.status("same").status is TaskStatus.SCHEDULED, "the first is admitted")
    app.send_task("add", [3, 4], task_id="same")
    until(lambda: [letter.code for letter in app.dead_letters()] == ["ID_CONFLICT"], "the second is buried")
    assert json.loads(app.dead_letters()[0].value)["args"] == [3, 4]
    app.resume("default")
    assert app.result("same", timeout=15) == 3


def test_an_unknown_task_waits_for_a_worker_then_becomes_a_dead_letter(servers: Servers, tmp_path: Path) -> None:
    patient = Servers(servers.broker, servers.backend, servers.namespace, **{**servers.settings, "unknown_task_grace": 1.5})
    with patient.app() as app, running(patient, tmp_path):
        task = app.submit("nobody_knows", 1)
        until(lambda: task.status().status is TaskStatus.SCHEDULED, "it waits")
        info = task.wait(timeout=20)
        assert info.error is not None
        assert (info.status, info.error.type, info.failures) == (TaskStatus.FAILED, "TASK_UNKNOWN", 0)
        until(lambda: [letter.id for letter in app.dead_letters()] == [task.id], "it is buried")


@pytest.mark.parametrize(
    ("what", "kind", "attempts"),
    [
        ("object", "NOT_SERIALIZABLE", 1),
        ("large", "MESSAGE_TOO_LARGE", 1),
        ("deep", "MESSAGE_INVALID", 1),
        ("exit", "SystemExit", 1),
        ("interrupt", "KeyboardInterrupt", 1),
        ("unprintable", "Unprintable", 1),
    ],
)
def test_results_and_exits_that_are_none_fail_the_task_only(
    servers: Servers, app: krq.KRQ, worker: Worker, what: str, kind: str, attempts: int
) -> None:
    info = app.handle(app.send_task("gives", [what])).wait(timeout=15)
    assert info.status is TaskStatus.FAILED
    assert info.error is not None
    assert info.error.type == kind
    assert app.submit("add", 1, 1).result(timeout=15) == 2
    assert app.failures() == []


def test_arguments_that_do_not_fit_fail_without_retries(app: krq.KRQ, worker: Worker) -> None:
    info = app.submit("add", 1, 2, 3).wait(timeout=15)
    assert info.error is not None
    assert (info.status, info.error.type, info.attempt) == (TaskStatus.FAILED, "TASK_ARGUMENTS_INVALID", 1)
    assert "add(x: int, y: int)" in info.error.message.replace("'", "")


# --- at the sender, before anything is sent ------------------------------------------------------


@pytest.fixture
def sender(valkey: ValkeyServer, namespace: str) -> Iterator[krq.KRQ]:
    with krq.KRQ(valkey.url, valkey.url, namespace) as app:
        yield app


def nested(levels: int) -> Any:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda app: app.submit("add", object()), errors.NotSerializable),
        (lambda app: app.submit("add", {1, 2}.__iter__()), errors.NotSerializable),
        (lambda app: app.submit("add", "x" * 2_000_000), errors.MessageTooLarge),
        (lambda app: app.submit("add", nested(100)), errors.MessageInvalid),
        (lambda app: app.submit("has space"), errors.OptionError),
        (lambda app: app.submit(7), errors.OptionError),
        (lambda app: app.send_task("add", "12"), errors.ArgumentError),
        (lambda app: app.send_task("add", [1], delay=-1), errors.OptionError),
        (lambda app: app.send_task("add", [1], delay=1, eta=time.time()), errors.OptionError),
        (lambda app: app.send_task("add", [1], key=7), errors.OptionError),
        (lambda app: app.send_task("add", [1], queue="no/slash"), errors.OptionError),
        (lambda app: app.send_task("add", [1], priority=1000), errors.OptionError),
        (lambda app: app.send_task("add", [1], priority="high"), errors.OptionError),
        (lambda app: app.send_task("add", [1], colour="red"), errors.OptionError),
        (lambda app: app.send_task("add", [1], task_id="a b"), errors.OptionError),
        (lambda app: app.send_task("add", [1], retries="many"), errors.OptionError),
        (lambda app: app.send_task("add", [1], inputs="both"), errors.OptionError),
        (lambda app: app.submit_many([{"args": [1]}]), errors.OptionError),
        (lambda app: app.submit_many([{"task": "add", "arg": [1]}]), errors.OptionError),
        (lambda app: app.pause("no/slash"), errors.OptionError),
        (lambda app: app.status("nobody"), errors.TaskNotFound),
        (lambda app: app.result("nobody", timeout=5), errors.TaskNotFound),
        (lambda app: app.retry("nobody"), errors.TaskNotFound),
    ],
)
def test_bad_calls_are_named_errors_and_send_nothing(sender: krq.KRQ, call: Any, error: type[errors.KRQError]) -> None:
    with pytest.raises(error) as caught:
        call(sender)
    assert caught.value.code in str(caught.value)
    assert caught.value.cause
    assert sender._clients.broker.read(sender.config.topic("default"), 10) == []


def test_wrong_arguments_of_a_known_task_are_refused_at_send(sender: krq.KRQ) -> None:
    @sender.task
    def only(x: int) -> int:
        return x

    with pytest.raises(errors.ArgumentError, match=r"only\(x: 'int'\)|only\(x: int\)"):
        only.send(1, 2)  # type: ignore[call-arg]
    with pytest.raises(errors.ArgumentError):
        only.send_many([(1,), (1, 2)])
    assert only(3) == 3


def test_options_nobody_owns_are_refused_when_a_task_is_registered(sender: krq.KRQ) -> None:
    with pytest.raises(errors.OptionError, match="retries"):
        sender.task(retry=3)(len)
    with pytest.raises(errors.OptionError, match="negative"):
        sender.task(name="len", retries=-1)(len)


def test_a_closed_app_says_so(sender: krq.KRQ) -> None:
    sender.close()
    sender.close()
    with pytest.raises(errors.AppClosed):
        sender.submit("add", 1)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"broker": "http://localhost"}, "http://localhost"),
        ({"backend": "mysql://localhost"}, "mysql://localhost"),
        ({"namespace": "a b"}, "namespace"),
        ({"lease": 1.0}, "lease"),
        ({"window": 0}, "window"),
        ({"concurrency": "many"}, "concurrency"),
        ({"windw": 5}, "window"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(errors.ConfigError, match=named.replace("/", ".")):
        krq.KRQ(**given).submit("add", 1)


@pytest.mark.parametrize("kind", ["kafka", "redis"])
def test_a_server_that_is_not_there_is_a_clear_error_in_time(kind: str) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    broker = nowhere if kind == "kafka" else f"redis://{nowhere}"
    app = krq.KRQ(broker, nowhere, send_timeout=2)
    began = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        app.submit("add", 1, 2)
    assert isinstance(caught.value, krq.KRQError)
    assert caught.value.code == f"{kind.upper()}_CONNECTION_ERROR"
    with pytest.raises(errors.RedisConnectionError):
        app.status("x")
    assert time.monotonic() - began < 15
    app.close()


def test_a_forked_child_sends_with_connections_of_its_own(servers: Servers, app: krq.KRQ, worker: Worker, tmp_path: Path) -> None:
    import os

    assert app.submit("add", 1, 1).result(timeout=15) == 2
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if app.submit("add", 20, 22).result(timeout=15) == 42 else 2
        finally:
            os._exit(code)
    assert app.submit("add", 2, 2).result(timeout=15) == 4
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
