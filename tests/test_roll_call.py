"""Roll calls: who has answered, who is missing; and sticky ones, which those who come later get at their start."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from harness import Servers, ledger, running, until

import krq
from krq.errors import OptionError
from krq.modules import _sticky

#: workers of flow_app.py
crew = partial(running, script="flow_app.py")


def told(path: Path, what: str) -> Counter[str]:
    """Who was told it, how often."""
    return Counter(line[1] for line in ledger(path) if line[0] == what)


# --- roll calls ----------------------------------------------------------------------------------


def test_a_stopped_worker_is_missing_within_the_timeout(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    with crew(servers, tmp_path, ["w1", "w2", "w3"]) as workers:
        pids = [workers[1].process.pid, *workers[1].children]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            roll = app.broadcast("reload", [path, "v1"])
            until(lambda: len(roll.arrived()) == 2, "the others answer")
            began = time.monotonic()
            assert roll.results(timeout=1) == {"w1": "w1 has v1", "w3": "w3 has v1"}
            assert 1 <= time.monotonic() - began < 4
            assert (sorted(roll.arrived()), roll.missing(), roll.errors()) == (["w1", "w3"], ["w2"], {})
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):  # its supervisor was the first, and its lease was over
                    os.kill(pid, signal.SIGCONT)
        until(lambda: not roll.missing(), "it answers late")
        assert roll.results(timeout=1)["w2"] == "w2 has v1"


def test_a_worker_that_dies_before_it_answers_is_missing(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    with crew(servers, tmp_path, ["w1", "w2"]) as workers:
        workers[1].process.send_signal(signal.SIGSTOP)
        for pid in workers[1].children:
            os.kill(pid, signal.SIGSTOP)
        roll = app.broadcast("reload", [path, "v1"])
        workers[1].kill_tree()
        until(lambda: roll.arrived() == ["w1"], "the other answers")
        assert list(roll.results(timeout=0.5)) == ["w1"]
        assert roll.missing() == ["w2"]
        with crew(servers, tmp_path, ["w3"]):
            second = app.broadcast("reload", [path, "v2"])
            until(lambda: {"w1", "w3"} <= set(second.arrived()), "both are called")
            assert roll.missing() == ["w2"], "who joins later is not called"
        assert told(tmp_path / "ledger", "v1") == {"w1": 1}


def test_a_child_that_died_in_its_member_answers_when_it_is_back(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    with crew(servers, tmp_path, ["w1"]):
        assert app.broadcast("die_once", [str(tmp_path / "once")]).results(timeout=20) == {"w1": "alive"}


# --- sticky --------------------------------------------------------------------------------------


def test_who_starts_later_is_told_once(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with crew(servers, tmp_path, ["w1"]):
        app.broadcast("reload", [str(path), "old"], sticky=True)
        roll = app.broadcast("reload", [str(path), "new"], sticky=True)
        assert roll.results(timeout=20) == {"w1": "w1 has new"}
        assert [(one.name, one.args[1]) for one in app.sticky()] == [("reload", "new")]
        with crew(servers, tmp_path, ["w2"]) as (second,):
            until(lambda: told(path, "new")["w2"] and not app.stats().processing, "it is told, and has answered")
            os.kill(second.children[0], signal.SIGKILL)
            until(lambda: told(path, "new")["w2"] == 2, "another life of it is told, too")
            assert roll.members.keys() == {"w1"}
            assert app.unstick("reload") is True
            assert (app.unstick("reload"), app.sticky()) == (False, [])
            with crew(servers, tmp_path, ["w3"]):
                app.broadcast("reload", [str(path), "last"]).results(timeout=20)
    assert (told(path, "new"), told(path, "old")) == ({"w1": 1, "w2": 2}, {"w1": 1})
    assert set(told(path, "last")) == {"w1", "w2", "w3"}
    lives = {line[2] for line in ledger(path) if line[:2] == ["new", "w2"]}
    assert len(lives) == 2


def test_the_caller_and_the_newcomer_send_one_task(servers: Servers, app: krq.KRQ, tmp_path: Path) -> None:
    """Both see each other where a worker registers between the note and the roll."""
    path = tmp_path / "ledger"
    with crew(servers, tmp_path, ["w1"]):
        (worker,) = app.workers()
        app.broadcast("reload", [str(path), "v1"], sticky=True).results(timeout=20)
        (kept,) = _sticky.kept(app)
        again = app.send_calls([kept.member(app, worker, 3600.0)])  # what w1 would have sent
        assert again[0].wait(timeout=10).attempt == 1
        assert app.submit("add", 1, 1).result(timeout=10) == 2
        until(lambda: app.stats().outbox == 0, "all is logged")
    assert told(path, "v1") == {"w1": 1}
    assert app.dead_letters() == [], "their bytes are the same"


def test_sticky_is_refused_where_it_means_nothing(app: krq.KRQ) -> None:
    @app.task
    def reload(path: str, what: str) -> str:
        return path + what

    with pytest.raises(OptionError, match="expires= is no option of a sticky"):
        app.broadcast("reload", ["p", "v1"], sticky=True, expires=time.time() + 9)
    with pytest.raises(OptionError, match="broadcast"):
        reload.options(sticky=True).send("p", "v1")
    with pytest.raises(OptionError, match="no option of the task"):
        app.task(name="other", sticky=True)(lambda: None)
    with pytest.raises(krq.KRQError, match="TASK_ARGUMENTS_INVALID"):
        app.broadcast("reload", ["p"], sticky=True)
    with pytest.raises(krq.KRQError, match="NOT_SERIALIZABLE"):
        app.broadcast("reload", ["p", object()], sticky=True)
    assert app.sticky() == []
    assert len(reload.options(sticky=True).broadcast("p", "v1")) == 0
    assert [one.name for one in app.sticky()] == ["reload"]
