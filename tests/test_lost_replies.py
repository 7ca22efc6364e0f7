"""Answers that never come, connections cut in the middle, slow and full servers: a fault proxy between KRQ and real ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, ledger, running, until
from proxy import Proxy

import krq
from krq import ids
from krq.dev.kafka import KafkaServer
from krq.dev.process import HOST, free_port
from krq.dev.valkey import ValkeyServer
from krq.store import waiter
from krq.store.scripts import Script, source


@pytest.fixture
def redis_proxy(valkey: ValkeyServer) -> Iterator[Proxy]:
    with Proxy(HOST, valkey.port) as proxy:
        yield proxy


@pytest.fixture
def far(kafka: KafkaServer, redis_proxy: Proxy, namespace: str) -> Servers:
    """Redis behind the proxy; a short lease, so that what is lost is missed soon."""
    url = f"redis://{HOST}:{redis_proxy.port}/0"
    return Servers(kafka.url, url, namespace, heartbeat=0.5, lease=5, partitions=2, concurrency=8)


@pytest.fixture(scope="module")
def kafka_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A broker that gives out the proxy's address as its own."""
    listen = free_port()
    options = {"advertised.listeners": f"PLAINTEXT://{HOST}:{listen}"}
    with KafkaServer(tmp_path_factory.mktemp("kafka"), options=options) as server, Proxy(HOST, server.port, listen) as proxy:
        yield proxy


@pytest.fixture
def slow(kafka_proxy: Proxy, valkey: ValkeyServer, namespace: str) -> Iterator[Servers]:
    """Kafka behind the proxy."""
    yield Servers(f"{HOST}:{kafka_proxy.port}", valkey.url, namespace, heartbeat=0.5, lease=5, partitions=2, send_timeout=3)
    kafka_proxy.heal()


def runs(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "S")


def sha(script: Script) -> bytes:
    """What a request to run this script contains."""
    return str(source(script).sha).encode()


def work(path: Path, n: int, seconds: float = 0.02) -> list[dict[str, Any]]:
    return [{"task": "work", "args": [str(path), f"k{i}", seconds]} for i in range(n)]


# --- Redis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [Script.TAKE, Script.SETTLE, Script.LOGGED, Script.ADMIT, Script.BEAT, Script.SYNC])
def test_a_script_whose_answer_is_lost_is_repeated_and_does_its_work_once(
    script: Script, far: Servers, redis_proxy: Proxy, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    with far.app() as app, running(far, tmp_path):
        assert app.submit("add", 1, 1).result(timeout=20) == 2
        before = redis_proxy.lost
        redis_proxy.lose(sha(script), times=3)
        handles = []
        for start in range(0, 120, 20):
            handles += app.submit_many(work(path, 120)[start : start + 20])
            time.sleep(0.05)
        flaky = app.submit("fails", "", 1)
        for handle in handles:
            handle.result(timeout=30)
        assert flaky.result(timeout=20) == "at last"
        until(lambda: redis_proxy.lost - before == 3, "three answers were lost", 15)
        until(lambda: app.stats().outbox == 0, "the log has all of it")
        assert (app.stats().processing, app.failures()) == (0, [])
    assert set(runs(path).values()) == {1}
    assert len(runs(path)) == 120


def test_a_worker_whose_connections_are_cut_again_and_again_loses_and_doubles_nothing(
    far: Servers, redis_proxy: Proxy, valkey: ValkeyServer, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    near = Servers(far.broker, valkey.url, far.namespace, **far.settings)
    with near.app() as app, running(far, tmp_path):
        handles = app.submit_many(work(path, 200, 0.05))
        for _ in range(15):
            done = len(runs(path))
            until(lambda done=done: len(runs(path)) > done or len(runs(path)) == 200, "it goes on")  # type: ignore[misc]
            redis_proxy.cut()
        for n in (100, 1000, 5000):
            redis_proxy.down.cut_after = redis_proxy.up.cut_after = n
            until(lambda: redis_proxy.down.cut_after is None, "cut in the middle of an answer")
        for handle in handles:
            handle.result(timeout=30)
        assert app.failures() == []
    assert set(runs(path).values()) == {1}


def test_a_worker_cut_off_for_longer_than_its_lease_is_fenced_and_its_late_words_are_refused(
    far: Servers, redis_proxy: Proxy, valkey: ValkeyServer, tmp_path: Path
) -> None:
    """Nothing moves between it and Redis; then all that was held up arrives."""
    path = tmp_path / "ledger"
    settings = {**far.settings, "lease": 3, "heartbeat": 0.3}
    near = Servers(far.broker, valkey.url, far.namespace, **settings)
    far = Servers(far.broker, far.backend, far.namespace, **settings)
    with near.app() as app, running(far, tmp_path, ["far"]) as (worker,):
        task = app.submit("work", str(path), "k", 4.0)
        until(lambda: runs(path)["k"] == 1, "it runs")
        redis_proxy.hold(True)
        with running(near, tmp_path, ["near"]):
            until(lambda: runs(path)["k"] == 2, "it runs again, elsewhere", 10)
            redis_proxy.hold(False)
            assert task.result(timeout=20) == "k"
            assert (task.status().worker, task.status().attempt) == ("near", 2)
            until(lambda: worker.text.count("is ready:") == 2, "the other is back under a new incarnation")
    ends = [line for line in ledger(path) if line[0] == "F"]
    assert [line[4] for line in ends] == ["near"]


def test_a_full_redis_lets_running_tasks_end_and_goes_on_when_there_is_room(
    own_valkey: ValkeyServer, kafka: KafkaServer, namespace: str, tmp_path: Path
) -> None:
    servers = Servers(kafka.url, own_valkey.url, namespace, heartbeat=0.5, lease=5, partitions=2)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path) as (worker,):
        redis = app._clients.store.redis
        running_ones = app.submit_many(work(path, 3, 1.5))
        until(lambda: len(runs(path)) == 3, "they run")
        redis.config_set("maxmemory", 1)
        for handle in running_ones:
            assert handle.wait(timeout=10).status == krq.TaskStatus.SUCCESS
        later = [app.submit("work", str(path), f"later{i}", 0.01) for i in range(20)]
        until(lambda: "is full (maxmemory)" in worker.text, "the worker says what it waits for")
        time.sleep(1.0)
        assert not any(map(_known, later))
        with pytest.raises(krq.ResultTimeout):
            later[0].result(timeout=0.1)
        redis.config_set("maxmemory", 0)
        assert [handle.result(timeout=30) for handle in later] == [f"later{i}" for i in range(20)]
        assert app.failures() == []
        assert worker.text.count("is full (maxmemory)") <= 4, worker.text
    assert set(runs(path).values()) == {1}


def test_of_what_only_the_log_has_the_latest_are_remembered(app: krq.KRQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiter, "_EXPECTED", 2)
    made = app._clients.waiter
    made.expect(["a", "b"])
    made.expect(["c"])
    with pytest.raises(krq.TaskNotFound):
        app.result("a", timeout=5)
    for task_id in "b", "c":
        with pytest.raises(krq.ResultTimeout):
            app.result(task_id, timeout=0.1)


def _known(handle: krq.TaskHandle[Any]) -> bool:
    try:
        handle.status()
    except krq.errors.TaskNotFound:
        return False
    return True


def test_a_full_window_leaves_the_rest_in_the_log(kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    servers = Servers(kafka.url, valkey.url, namespace, heartbeat=0.5, lease=5, partitions=2, concurrency=2, window=20)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path, ["w1", "w2"]):
        handles = app.submit_many(work(path, 300, 0.02))
        seen = []
        while len(runs(path)) < 200:
            seen.append(app.stats().queues["default"])
        assert max(queue.ready for queue in seen) <= 20
        assert max(queue.backlog for queue in seen) > 50
        for handle in handles:
            handle.result(timeout=40)
    assert set(runs(path).values()) == {1}
    assert len(runs(path)) == 300


# --- Kafka ---------------------------------------------------------------------------------------


def test_a_send_whose_confirmation_is_lost_is_unknown_and_sent_again_runs_once(slow: Servers, kafka_proxy: Proxy, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with slow.app() as app, running(slow, tmp_path):
        assert app.submit("add", 1, 1).result(timeout=20) == 2
        task_id = ids.new_id()
        kafka_proxy.down.drop = True
        with pytest.raises(krq.SubmissionTimeout) as unknown:
            app.send_task("work", [str(path), "k", 0.0], task_id=task_id)
        assert (unknown.value.code, unknown.value.task_id) == ("TASK_SUBMISSION_TIMEOUT", task_id)
        kafka_proxy.heal()
        until(lambda: _sent(app, path, task_id), "it can be sent again", 20)
        assert app.result(task_id, timeout=20) == "k"
        last = app.submit("work", str(path), "last", 0.0)
        assert last.result(timeout=20) == "last"
        until(lambda: app.stats().outbox == 0, "the log has all of it", 20)
    assert runs(path) == {"k": 1, "last": 1}


def _sent(app: krq.KRQ, path: Path, task_id: str) -> bool:
    try:
        app.send_task("work", [str(path), "k", 0.0], task_id=task_id)
    except krq.KRQError:
        return False
    return True


def test_broker_connections_cut_while_sending_lose_and_double_nothing(slow: Servers, kafka_proxy: Proxy, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with slow.app() as app, running(slow, tmp_path):
        assert app.submit("add", 1, 1).result(timeout=20) == 2
        calls = [{**call, "options": {"task_id": ids.new_id()}} for call in work(path, 300, 0.0)]
        left = calls
        for n in range(100):
            if n < 6:
                kafka_proxy.up.cut_after = 500 * n
            failed: set[str] = set()
            try:
                app.submit_many(left)
            except krq.errors.BatchError as error:
                failed = set(error.failed)
            except krq.KRQError:
                continue
            left = [call for call in left if call["options"]["task_id"] in failed] or (calls[:50] if n < 6 else [])
            if not left:
                break
        assert not left
        for call in calls:
            app.result(call["options"]["task_id"], timeout=30)
        until(lambda: app.stats().outbox == 0, "the log has all of it", 20)
    assert set(runs(path).values()) == {1}
    assert len(runs(path)) == 300


def test_a_slow_broker_delays_and_interrupts_nothing(slow: Servers, kafka_proxy: Proxy, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with slow.app() as app, running(slow, tmp_path):
        assert app.submit("add", 1, 1).result(timeout=20) == 2
        kafka_proxy.down.delay = 0.3
        handles = app.submit_many(work(path, 50, 0.01))
        assert [handle.result(timeout=30) for handle in handles] == [f"k{i}" for i in range(50)]
        until(lambda: app.stats().outbox == 0, "the log has all of it", 30)
        assert app.failures() == []
    assert set(runs(path).values()) == {1}
