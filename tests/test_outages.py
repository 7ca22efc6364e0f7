"""Servers that are away for a while, on real processes: what goes on, what runs again, and how often the log speaks of it."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running, until

import krq
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer


def noted(path: Path, kind: str) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == kind)


def outcries(worker: Worker) -> Counter[str]:
    """Lines above INFO, by who spoke, but for failures of tasks; a line that is none of the log's counts as an outcry, too."""
    pattern = r"[\d-]+ [\d:.]+ (?P<level>\w+) +(?P<name>[\w.]+): (?P<rest>.*)|(?P<other>.+)"
    lines = (re.match(pattern, each) for each in worker.text.splitlines())
    told = [line for line in lines if line and line["level"] not in ("DEBUG", "INFO") and line["name"] != "krq.tasks"]
    return Counter(line["name"] or line["other"] for line in told)


def start_load(app: krq.KRQ, path: Path, longs: int, seconds: float) -> list[krq.TaskHandle[Any]]:
    """Some long tasks, which run by the end of this, and many short ones behind them."""
    tasks = [app.submit("work", str(path), f"long{i}", seconds) for i in range(longs)]
    until(lambda: len(noted(path, "S")) == longs, "the long ones run")
    tasks += app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.1]} for i in range(200)])
    until(lambda: len(noted(path, "F")) > 20, "some short ones are done")
    return tasks


@pytest.mark.parametrize("how", ["stopped", "frozen"])
def test_redis_away_for_less_than_the_lease_is_nothing_but_delay(
    how: str, own_valkey: ValkeyServer, kafka: KafkaServer, namespace: str, tmp_path: Path
) -> None:
    servers = Servers(kafka.url, own_valkey.url, namespace, heartbeat=0.5, lease=5, partitions=2, concurrency=8)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path, ["w1", "w2"]) as workers:
        tasks = start_load(app, path, 4, 4.0)
        (own_valkey.stop if how == "stopped" else own_valkey.pause)()
        time.sleep(2.5)
        (own_valkey.start if how == "stopped" else own_valkey.resume)()
        for task in tasks:
            task.result(timeout=40)
        assert app.failures() == []
        assert [task.status().deaths for task in tasks[:4]] == [0] * 4
        for worker in workers:
            assert max(outcries(worker).values(), default=0) <= 3, worker.text
    assert set(noted(path, "S").values()) == {1}


def test_redis_away_for_longer_than_the_lease_interrupts_what_ran_and_nothing_else(
    own_valkey: ValkeyServer, kafka: KafkaServer, namespace: str, tmp_path: Path
) -> None:
    servers = Servers(kafka.url, own_valkey.url, namespace, heartbeat=0.3, lease=3, partitions=2, concurrency=8)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path, ["w1", "w2"]) as workers:
        tasks = start_load(app, path, 4, 5.0)
        own_valkey.stop()
        stopped = time.monotonic()
        time.sleep(6)
        own_valkey.start()
        for task in tasks:
            task.result(timeout=40)
        assert [task.status().failures for task in tasks[:4]] == [0] * 4
        for worker in workers:
            assert max(outcries(worker).values()) <= 6, worker.text
    runs, lines = noted(path, "S"), ledger(path)
    settled = {line[1] for line in lines if line[0] == "F" and float(line[5]) < stopped - 0.5}
    ran = {line[1] for line in lines if line[0] == "S" and float(line[5]) < stopped + 3} - settled
    assert {key for key, count in runs.items() if count > 1} <= ran
    assert [runs[f"long{i}"] for i in range(4)] == [2] * 4
    assert max(runs.values()) == 2


def test_kafka_away_lets_accepted_work_go_on_and_refuses_new_work(
    own_kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> None:
    servers = Servers(own_kafka.url, valkey.url, namespace, heartbeat=0.3, lease=5, partitions=2, send_timeout=2)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path, ["w1", "w2"]) as workers:
        assert app.submit("add", 1, 1).result(timeout=20) == 2
        gate = app.submit("work", str(path), "gate", 1.5)
        waiting = app.signature("step", str(path), "0", 0.1).options(after=[gate])
        chain = krq.chain(waiting, *(app.signature("step", str(path), n, 0.1) for n in "12")).send()
        delayed = app.send_task("work", [str(path), "delayed", 0.0], delay=2.0)
        flaky = app.submit("fails", str(path), 2)
        shorts = app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.05]} for i in range(100)])
        until(lambda: noted(path, "S")["gate"] == 1, "it runs")
        own_kafka.kill()
        away = time.monotonic()
        assert gate.result(timeout=10) == "gate"
        assert flaky.result(timeout=10) == "at last"
        assert chain.result(timeout=10) == ["0", "1", "2"]
        assert app.result(delayed, timeout=10) == "delayed"
        with pytest.raises((krq.errors.KafkaConnectionError, krq.SubmissionError)) as refused:
            app.submit("add", 2, 2)
        assert refused.value.code in ("KAFKA_CONNECTION_ERROR", "TASK_SUBMISSION_TIMEOUT")
        until(lambda: any("ended attempts wait" in worker.text for worker in workers), "the log says what it waits for", 15)
        time.sleep(max(0.0, away + 6 - time.monotonic()))
        own_kafka.start()
        assert [task.result(timeout=40) for task in shorts] == [f"k{i}" for i in range(100)]
        until(lambda: app.stats().outbox == 0, "the outbox has drained", 30)
        for worker in workers:
            until(lambda worker=worker: worker.text.count("no more: going on") == outcries(worker).total(), "it goes on", 15)  # type: ignore[misc]
            assert max(outcries(worker).values(), default=0) <= 1, worker.text
        assert until(lambda: _sent(app), "sending works again", 30).result(timeout=20) == 4
    worked = [line[1] for line in ledger(path) if len(line) == 6 and line[0] == "S"]
    assert sorted(worked) == sorted(["gate", "delayed", *(f"k{i}" for i in range(100))])


def _sent(app: krq.KRQ) -> krq.TaskHandle[Any] | None:
    try:
        return app.submit("add", 2, 2)
    except krq.KRQError:
        return None
