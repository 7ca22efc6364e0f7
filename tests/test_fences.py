"""Who stops whom, and who does not: fences of child and supervisor, and tasks that hold the interpreter."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Servers, ledger, running, until
from shard import Shard

import krq
from krq.dev.valkey import ValkeyServer

LEASE = 3


@pytest.fixture
def servers(valkey: ValkeyServer, namespace: str) -> Servers:
    return Servers(valkey.url, valkey.url, namespace, heartbeat=0.3, lease=LEASE)


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[ValkeyServer]:
    with ValkeyServer(tmp_path / "valkey", fsync="off") as server:
        yield server


def gone(pid: int) -> bool:
    """Ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_end_is_its_holders_own(shard: Shard) -> None:
    """Another incarnation that names the attempt is refused, and changes nothing."""
    shard.register("v")
    shard.add("a")
    assert shard.taken() == [("a", 1)]
    assert shard.settle("a", inc="v") == 0
    assert shard.state("a") == "p"
    assert shard.settle("a") == 1


def test_a_child_under_a_stopped_supervisor_ends_itself(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    """Nobody beats for it and nobody can tell it: its own fence falls before an observer gives its task away."""
    path = tmp_path / "ledger"
    with running(servers, tmp_path, ["w", "observer"]) as workers:
        task = app.submit("work", str(path), "k", 60.0)
        (_, _, _, pid, name, _) = until(lambda: ledger(path), "it runs")[0]
        worker = workers[name != "w"]
        os.kill(worker.process.pid, signal.SIGSTOP)
        try:
            until(lambda: gone(int(pid)) or len(ledger(path)) > 1, "its child has ended", LEASE + 3)
            assert len(ledger(path)) == 1, "it runs again while it still runs"
            assert "its lease was not confirmed" in worker.text
            until(lambda: len(ledger(path)) == 2, "it runs elsewhere", LEASE + 3)
        finally:
            os.kill(worker.process.pid, signal.SIGCONT)
        assert task.status().attempt == 2


def test_a_stopped_child_is_killed_when_its_lease_is_not_renewed(own_valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    """It can't fence itself, and Redis does not answer: its supervisor kills it."""
    servers = Servers(own_valkey.url, own_valkey.url, namespace, heartbeat=0.3, lease=LEASE)
    with running(servers, tmp_path) as (worker,):
        (pid,) = worker.children
        os.kill(pid, signal.SIGSTOP)
        own_valkey.stop()
        until(lambda: gone(pid), "it is killed", LEASE + 2)
        own_valkey.start()


def test_a_task_that_holds_the_interpreter_longer_than_the_lease_is_not_interrupted(
    servers: Servers, app: krq.KRQ, tmp_path: Path
) -> None:
    """Its process can't beat, nor turn: its supervisor beats for it."""
    path = tmp_path / "ledger"
    with running(servers, tmp_path, ["w", "observer"]):
        task = app.submit("hogs", str(path), LEASE + 2)
        assert task.result(timeout=LEASE + 20) == 1
        assert len(ledger(path)) == 1
        assert app.failures() == []
