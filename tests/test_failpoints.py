"""Death at each step of a task's life, on real servers; a ledger outside KRQ counts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from harness import HERE, Servers, Worker, ledger, until

import krq
from krq import failpoints
from krq.errors import ConfigError
from krq.failpoints import Failpoint, FailpointHit

SUBMIT = [point for point in Failpoint if point.startswith("submit")]
#: passes before the place fires: the first ones are the start of the worker
PASSES = {Failpoint.RUN_STARTED: 5, Failpoint.RUN_ENDED: 5, Failpoint.SETTLE_ANSWERED: 2, Failpoint.COMMIT_AFTER: 2}
N, SLOTS = 30, 2


def runs(path: Path) -> Counter[str]:
    return Counter(line[1] for line in ledger(path) if line[0] == "S")


def ends(path: Path) -> set[str]:
    return {line[1] for line in ledger(path) if line[0] == "F"}


def armed(servers: Servers, *specs: str) -> Servers:
    """The same servers, for processes with these places armed."""
    settings = {"concurrency": SLOTS, **servers.settings, "failpoint": ",".join(specs)}
    return Servers(servers.broker, servers.backend, servers.namespace, **settings)


@pytest.mark.parametrize("point", [point for point in Failpoint if point not in SUBMIT and point is not Failpoint.RECOVER_SLICE])
def test_a_child_that_dies_at_any_step_loses_and_repeats_nothing(point: Failpoint, servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path, mark = tmp_path / "ledger", tmp_path / "fired"
    tasks = app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.01]} for i in range(N)])
    worker = Worker(armed(servers, f"{point}:kill:{PASSES.get(point, 1)}@{mark}"), tmp_path / "w.log")
    try:
        assert [task.result(timeout=30) for task in tasks] == [f"k{i}" for i in range(N)]
        until(mark.exists, f"{point} was passed; log:\n{worker.text}")
        until(lambda: "is ready:" in worker.text.partition("ended: killed by")[2], f"it goes on after {point}; log:\n{worker.text}")
        until(lambda: app.stats().outbox == 0, "the outbox has drained")
        (death,) = app.failures()
    finally:
        worker.close()
    assert death.cause == "killed by SIGKILL"
    again = {key for key, n in runs(path).items() if n > 1}
    # what ran in a slot at its death, or had ended there a moment before and was told to nobody
    assert len(again) <= (0 if point is Failpoint.TAKE_ANSWERED else 2 * SLOTS)
    assert max(runs(path).values()) <= 2


@pytest.mark.parametrize("point", SUBMIT)
def test_a_submitter_that_dies_leaves_a_task_or_none(point: Failpoint, servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    code = f"import krq; krq.KRQ().send_task('work', [{str(path)!r}, 'k'], task_id='sent')"
    died = subprocess.run([sys.executable, "-c", code], env=armed(servers, f"{point}:kill").environ, cwd=HERE, check=False, timeout=30)
    assert died.returncode == -signal.SIGKILL
    worker = Worker(servers, tmp_path / "w.log")
    try:
        app.submit("work", str(path), "other").result(timeout=20)
        if point is not Failpoint.SUBMIT_BEFORE:
            until(lambda: runs(path)["k"], "it runs")
        # P1: sending again with the same id is safe
        assert app.send_task("work", [str(path), "k"], task_id="sent") == "sent"
        assert app.result("sent", timeout=20) == "k"
    finally:
        worker.close()
    assert runs(path) == Counter(k=1, other=1)


def test_a_supervisor_that_dies_within_a_recovery_leaves_the_rest_to_others(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    """More tasks than one slice: the first is ready again when the reporter dies; an observer does the rest."""
    path, mark = tmp_path / "ledger", tmp_path / "fired"
    app.submit_many([{"task": "work", "args": [str(path), f"k{i}", 0.2]} for i in range(230)])
    many = Servers(servers.broker, servers.backend, servers.namespace, **servers.settings, concurrency=230)
    dying = Worker(armed(many, f"run-started:kill:2@{mark}", "recover-slice:kill"), tmp_path / "dying.log")
    try:
        until(lambda: dying.process.poll() is not None, f"it dies; log:\n{dying.text}", 15)
        assert dying.process.returncode == -signal.SIGKILL
        assert mark.exists()
        with_room = Worker(many, tmp_path / "w.log", "other").ready()
        try:
            until(lambda: len(ends(path)) == 230, "all have run", 40)
        finally:
            with_room.close()
    finally:
        dying.close()
    assert max(runs(path).values()) <= 2


# --- the variable --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "nowhere:kill", "log-before", "log-before:explode", "log-before:kill:0", "log-before:kill:x", "log-before:kill:1:2",
    "log-before:pause", "log-before:pause:x", "log-before:pause:-1", "log-before:pause:nan", "log-before:raise,",
])  # fmt: skip
def test_what_can_not_be_meant_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="KRQ_FAILPOINT=") as refused:
        failpoints.armed({"KRQ_FAILPOINT": text})
    assert refused.value.advice


def test_unset_it_is_none() -> None:
    assert failpoints.armed({}) is None
    assert failpoints.armed({"KRQ_FAILPOINT": ""}) is None


def test_the_nth_pass_fires_and_only_once_with_a_path(tmp_path: Path) -> None:
    for fires in (True, False):
        fail = failpoints.armed({"KRQ_FAILPOINT": f"log-before:raise:2@{tmp_path / 'x'}, log-logged:pause:0.05"})
        assert fail is not None
        fail(Failpoint.LOG_PUBLISHED)
        fail(Failpoint.LOG_BEFORE)
        if fires:
            with pytest.raises(FailpointHit):
                fail(Failpoint.LOG_BEFORE)
        fail(Failpoint.LOG_BEFORE)
    began = time.monotonic()
    fail(Failpoint.LOG_LOGGED)
    assert time.monotonic() - began >= 0.05
