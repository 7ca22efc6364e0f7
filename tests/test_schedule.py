"""Schedules through real brokers, stores and workers: one firing per tick, whoever dies, and changes while they run."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from harness import Servers, Worker, ledger, running, until

import krq
from krq import TaskStatus, events
from krq.call import Call
from krq.dev.valkey import ValkeyServer
from krq.errors import BrokerConnectionError, KafkaConnectionError, OptionError, RedisConnectionError
from krq.hooks import find
from krq.info import ScheduleInfo
from krq.modules._firing import Clock
from krq.modules.schedule import Schedules
from krq.store.scripts import Script


def fired(path: Path, name: str) -> list[int]:
    """The ticks of a schedule in a ledger, as seconds, in the order in which they ran."""
    ids = [field for line in ledger(path) for field in line if field.startswith(f"{name}@")]
    return [int(task_id.partition("@")[2]) // 1000 for task_id in ids]


def in_turn(ticks: Collection[int]) -> bool:
    """Whether each second is there once."""
    return sorted(ticks) == list(range(min(ticks), max(ticks) + 1))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@pytest.fixture
def streams(valkey: ValkeyServer, namespace: str) -> Servers:
    """One broker, where the broker makes no difference."""
    return Servers(valkey.url, valkey.url, namespace, heartbeat=0.3, lease=3, partitions=2)


@pytest.fixture
def plain(streams: Servers) -> Iterator[krq.KRQ]:
    with streams.app() as app:
        yield app


def wait_for_all(app: krq.KRQ, out: Path) -> None:
    """Wait until no second is missing; else say what became of those that are."""
    try:
        until(lambda: in_turn(set(fired(out, "each"))), "every tick", timeout=60)
    except AssertionError as error:
        ticks = fired(out, "each")
        missing = [f"each@{tick}000" for tick in range(min(ticks), max(ticks)) if tick not in ticks]
        raise AssertionError([(task_id, info) for task_id, info in zip(missing, app.infos(missing), strict=True)]) from error


# --- one firing per tick --------------------------------------------------------------------------


def test_each_tick_fires_once_whoever_dies(servers: Servers, app: krq.KRQ, tmp_path: Path, out: Path) -> None:
    app.schedule("each", "fails", [str(out), 0], every=1)
    with running(servers, tmp_path, ["a", "b", "c"]) as workers:
        until(lambda: len(fired(out, "each")) >= 2, "two ticks")
        workers[0].kill_tree()
        n = len(fired(out, "each"))
        until(lambda: len(fired(out, "each")) >= n + 2, "ticks without the first worker")
    last = max(fired(out, "each"))
    until(lambda: time.time() > last + 2.5, "ticks without any worker")
    with running(servers, tmp_path, ["d"]):
        until(lambda: max(fired(out, "each")) >= last + 3, "what was missed")
        # what the dead had taken, or published and not admitted, comes later
        wait_for_all(app, out)
    runs = [tuple(line[1:]) for line in ledger(out)]
    assert len(runs) == len(set(runs)), "no attempt twice"
    assert not app.dead_letters()


def test_of_what_is_too_old_the_latest_alone(streams: Servers, plain: krq.KRQ, tmp_path: Path, out: Path) -> None:
    plain.schedule("each", "fails", [str(out), 0], every=1, catch_up=0)
    first = int(plain.schedules()[0].next or 0)
    until(lambda: time.time() > first + 3, "some ticks without any worker")
    with running(streams, tmp_path):
        until(lambda: len(fired(out, "each")) >= 2, "the latest, and one more")
    ticks = fired(out, "each")
    assert ticks[0] >= first + 3
    assert in_turn(ticks)


def test_who_dies_between_the_log_and_the_next_tick_leaves_it_to_another(servers: Servers, app: krq.KRQ, tmp_path: Path, out: Path) -> None:
    schedules = find(app.modules, Schedules)
    app.schedule("each", "fails", [str(out), 0], every=1, expires=timedelta(hours=1), catch_up=3600)
    sent: list[str] = []

    def send(calls: Sequence[Call]) -> None:
        app.send_calls(calls)
        sent.extend(call.options["task_id"] for call in calls)

    def send_and_die(calls: Sequence[Call]) -> None:
        send(calls)
        raise RedisConnectionError("the end of it")

    first = Clock(app.store, send_and_die, schedules._call, "first", {})
    second = Clock(app.store, send, schedules._call, "second", {})

    def dies() -> bool:
        try:
            first._round()
        except RedisConnectionError:
            return True
        return False

    until(dies, "a tick that is sent and not moved on")
    until(lambda: second._round() == 0.0, "the claim is over")
    assert sent[0] in sent[1:], "sent twice"
    with running(servers, tmp_path):
        until(lambda: int(sent[0].partition("@")[2]) // 1000 in fired(out, "each"), "it ran")
        app.result(app.fire("each"), timeout=10)
    assert len(fired(out, "each")) == len(set(fired(out, "each")))
    assert not app.dead_letters(), "both had the same bytes"


def test_while_the_log_is_away_ticks_wait_and_it_is_said_once(plain: krq.KRQ, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedules = find(plain.modules, Schedules)
    plain.schedule("each", "fails", [str(out), 0], every=1)
    tries: list[float] = []
    ids: list[str] = []

    def send(calls: Sequence[Call]) -> None:
        tries.append(time.monotonic())
        if len(tries) <= 3:
            raise KafkaConnectionError("nobody there")
        ids.extend(call.options["task_id"] for call in calls)

    clock = Clock(plain.store, send, schedules._call, "w", {})
    with caplog.at_level(logging.WARNING, "krq.schedules"):
        clock.start()
        until(lambda: len(ids) >= 3, "what waited")
        clock.stop()
    assert in_turn([int(each.partition("@")[2]) // 1000 for each in ids])
    assert len(ids) >= 3
    assert [record.message.count("nobody there") for record in caplog.records] == [1]


def test_one_that_cannot_be_sent_stops_no_other(plain: krq.KRQ, out: Path, caplog: pytest.LogCaptureFixture) -> None:
    schedules = find(plain.modules, Schedules)
    for name in ("bad", "good"):
        plain.schedule(name, "fails", [str(out), 0], every=1)
    ids: list[str] = []
    tries: list[int] = []

    def send(calls: Sequence[Call]) -> None:
        tries.append(len(calls))
        if any(call.options["task_id"].startswith("bad@") for call in calls):
            raise OptionError("that is no call")
        ids.extend(call.options["task_id"] for call in calls)

    clock = Clock(plain.store, send, schedules._call, "w", {})
    clock.start()
    until(lambda: len(ids) >= 3, "the good one goes on")
    clock.stop()
    assert len(tries) < 30, "it does not try without a pause"
    assert len([record for record in caplog.records if "bad" in record.message]) == 1
    bad = next(info for info in plain.schedules() if info.name == "bad")
    assert bad.last is None
    assert bad.next is not None
    assert bad.next <= int(ids[0].partition("@")[2]) / 1000, "its tick waits"


# --- changes while they run -----------------------------------------------------------------------


def one(app: krq.KRQ, name: str) -> ScheduleInfo:
    return next(info for info in app.schedules() if info.name == name)


def test_added_listed_changed_paused_and_removed(streams: Servers, plain: krq.KRQ, tmp_path: Path, out: Path) -> None:
    with running(streams, tmp_path):
        assert plain.schedules() == []
        plain.schedule("each", "fails", [str(out)], {"times": 0}, every=1, priority=5)
        until(lambda: len(fired(out, "each")) >= 2, "it fires")
        info = one(plain, "each")
        assert (info.task, info.when, info.tz, info.paused, info.source) == ("fails", "every 1 s", "", False, "runtime")
        assert (info.args, info.kwargs, info.options) == ([str(out)], {"times": 0}, {"priority": 5, "queue": "default"})
        until(lambda: one(plain, "each").last_id, "what it fired last")
        info = one(plain, "each")
        assert info.last is not None
        assert info.last_id == f"each@{int(info.last * 1000)}"
        until(lambda: plain.status(info.last_id).status is TaskStatus.SUCCESS, "it ran")
        assert plain.status(info.last_id).priority == 5

        plain.pause_schedule("each")
        assert (one(plain, "each").paused, one(plain, "each").next) == (True, None)
        before = fired(out, "each")
        plain.fire("each").result(timeout=10)
        stood = time.time()
        until(lambda: time.time() > stood + 2.2, "two ticks that are missed")
        assert len([tick for tick in fired(out, "each") if tick > stood]) == 0
        plain.resume_schedule("each")
        begun = one(plain, "each").next
        assert begun is not None
        until(lambda: [tick for tick in fired(out, "each") if tick >= begun], "it goes on")
        assert not [tick for tick in fired(out, "each") if stood < tick < int(begun)], "what was missed does not fire"
        assert len(before) >= 2

        plain.schedule("each", "fails", [str(out), 0], cron="0 0 1 1 *", tz="Europe/Berlin")
        info = one(plain, "each")
        assert (info.when, info.tz, info.paused) == ("0 0 1 1 *", "Europe/Berlin", False)
        assert info.next is not None
        assert info.next > time.time() + 1
        assert plain.unschedule("each") is True
        assert plain.unschedule("each") is False
        assert plain.schedules() == []


@pytest.mark.parametrize("act", [krq.KRQ.pause_schedule, krq.KRQ.resume_schedule, krq.KRQ.fire])
def test_a_name_that_is_not_there(plain: krq.KRQ, act: Callable[[krq.KRQ, str], object]) -> None:
    with pytest.raises(OptionError, match="There are none yet"):
        act(plain, "nobody")
    plain.schedule("somebody", "add", every=10)
    with pytest.raises(OptionError, match="There is somebody"):
        act(plain, "nobody")


def test_each_change_is_in_the_log(servers: Servers, app: krq.KRQ) -> None:
    app.schedule("each", "add", [1], {"y": 2}, cron="0 7 * * MON", tz="Europe/Berlin", paused=True)
    app.resume_schedule("each")
    app.pause_schedule("each")
    app.unschedule("each")
    app.pause("default")
    app.resume("default")
    app.purge("default")
    records = app._clients.broker.read(app.config.events_topic, 100)
    found = [entry for _, record in records for entry in events.decode_page(record.value).entries]
    assert [(entry.outcome, entry.data["act"], entry.id) for entry in found] == [
        ("control", "schedule", "each"), ("control", "resume_schedule", "each"), ("control", "pause_schedule", "each"),
        ("control", "unschedule", "each"), ("control", "pause", "default"), ("control", "resume", "default"),
        ("control", "purge", "default"),
    ]  # fmt: skip
    assert found[0].data["paused"] is True
    assert found[0].data["definition"][0:3] == ["add", [1], {"y": 2}]


def test_what_the_log_does_not_take_is_not_done(plain: krq.KRQ, monkeypatch: pytest.MonkeyPatch) -> None:
    plain.schedule("each", "add", every=10)
    monkeypatch.setattr(plain._clients.broker, "publish", lambda records, timeout: [KafkaConnectionError("nobody there")])
    for act in (lambda: plain.schedule("other", "add", every=10), lambda: plain.unschedule("each"), lambda: plain.pause_schedule("each"),
                lambda: plain.pause("default"), lambda: plain.purge("default")):
        with pytest.raises(BrokerConnectionError):
            act()
    assert [(info.name, info.paused) for info in plain.schedules()] == [("each", False)]
    assert not plain.stats().queues or not plain.stats().queues["default"].paused


# --- in the code ----------------------------------------------------------------------------------


def starts(servers: Servers, folder: Path, name: str, **schedules: dict[str, Any]) -> Worker:
    os.environ["SCHEDULES"] = json.dumps(schedules)
    return Worker(servers, folder / f"{name}.log", name, script="schedule_app.py").ready()


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    monkeypatch.setenv("LEDGER", str(out))
    monkeypatch.setenv("SCHEDULES", "{}")


def test_what_the_code_says(streams: Servers, plain: krq.KRQ, tmp_path: Path, out: Path, code: None) -> None:
    first = starts(streams, tmp_path, "a", beat={"every": 1, "priority": 3}, yearly={"cron": "0 0 1 1 *", "tz": "Asia/Tokyo"})
    try:
        until(lambda: len(fired(out, "beat")) >= 2, "it fires")
        assert (one(plain, "beat").source, one(plain, "beat").options) == ("code", {"priority": 3, "queue": "default"})
        assert one(plain, "yearly").tz == "Asia/Tokyo"
        with pytest.raises(OptionError, match="in their code"):
            plain.unschedule("beat")
        plain.pause_schedule("beat")
        assert first.stop() == 0
    finally:
        first.close()
    second = starts(streams, tmp_path, "b", beat={"every": 1, "priority": 3}, yearly={"cron": "0 0 2 1 *", "tz": "Asia/Tokyo"})
    try:
        until(lambda: one(plain, "yearly").when == "0 0 2 1 *", "the new line")
        assert one(plain, "beat").paused, "a restart does not resume it"
        # a change at run time goes before the code
        plain.schedule("beat", "fails", [str(out), 0], every=1, paused=False)
        n = len(ledger(out))
        until(lambda: len(ledger(out)) >= n + 2, "it fires what was said at run time")
        assert ledger(out)[-1][0] == "S"
        assert plain.unschedule("beat") is True
    finally:
        second.close()
    # gone from the code: what nobody defines does not fire
    plain.pause_schedule("yearly")
    third = starts(streams, tmp_path, "c")
    third.close()
    assert one(plain, "yearly").paused


def test_missed_ticks_of_code(streams: Servers, plain: krq.KRQ, tmp_path: Path, out: Path, code: None) -> None:
    worker = starts(streams, tmp_path, "a", beat={"every": 1})
    until(lambda: fired(out, "beat"), "it fires")
    worker.close()
    last = max(fired(out, "beat"))
    until(lambda: time.time() > last + 2.2, "ticks without a worker")
    worker = starts(streams, tmp_path, "b", beat={"every": 1})
    until(lambda: max(fired(out, "beat")) >= last + 2, "what was missed")
    assert worker.stop() == 0
    assert in_turn(fired(out, "beat"))


def test_redis_is_the_clock(plain: krq.KRQ) -> None:
    plain.schedule("each", "add", every=3600)
    with plain.store.plain() as redis:
        now = redis.time()[0]
    assert one(plain, "each").next == (now // 3600 + 1) * 3600
    assert plain.store.call(Script.DUE, "w", [], 3000, 10)[1] == one(plain, "each").next * 1000
