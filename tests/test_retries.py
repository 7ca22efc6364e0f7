"""Retries: how long to wait, what to try again, who is told, and that nothing a task raises ends more than its attempt."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from harness import Servers, Worker, ledger, until
from hypothesis import given
from hypothesis import strategies as st

import krq
from krq import Backoff, TaskStatus, errors
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer
from krq.hooks import Attempt, find
from krq.message import Message
from krq.modules.retries import HEADER, RULES, Retries
from krq.outcome import ErrorInfo, Failed, Outcome, RetryAt, Succeeded, TimedOut, describe, from_exception, lineage

CENTURY = 3_155_760_000.0
waits = st.floats(0, CENTURY, allow_nan=False)


# --- back-off ------------------------------------------------------------------------------------

policies = st.one_of(
    st.builds(lambda first, factor, jitter: Backoff.exponential(first, factor, CENTURY, jitter), waits, st.floats(1, 1e9), st.floats(0, 1)),
    st.builds(lambda first, step, jitter: Backoff.linear(first, step, CENTURY, jitter), waits, waits, st.floats(0, 1)),
    st.builds(Backoff.fixed, waits, st.floats(0, 1)),
)


@given(policies, st.integers(1, 10**6), st.floats(0, 1, exclude_max=True))
def test_every_wait_is_within_its_bounds_and_never_shorter_than_the_one_before(policy: Backoff, failures: int, chance: float) -> None:
    ceiling = policy.ceiling(failures)
    assert 0 <= policy.delay(failures, chance) <= ceiling <= policy.most
    assert policy.delay(failures, chance) >= ceiling * (1 - policy.jitter) * 0.999999
    assert ceiling <= policy.ceiling(failures + 1)


@given(policies)
def test_a_back_off_travels_as_json(policy: Backoff) -> None:
    assert msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(policy)), type=Backoff) == policy


def test_kinds_of_back_off() -> None:
    def first_five(policy: Backoff) -> list[float]:
        return [policy.delay(n, 0.0) for n in range(1, 6)]

    assert first_five(Backoff.exponential(1, 3, 50)) == [1, 3, 9, 27, 50]
    assert first_five(Backoff.linear(2, 3, 10)) == [2, 5, 8, 10, 10]
    assert first_five(Backoff.linear(2)) == [2, 4, 6, 8, 10]
    assert first_five(Backoff.fixed(4)) == [4] * 5
    assert Backoff.exponential(first=0).ceiling(10**6) == 0
    assert len({Backoff.fixed(4, jitter=0.5).delay(1) for _ in range(20)}) > 1


@pytest.mark.parametrize("wrong", [
    {"first": float("nan")}, {"most": float("inf")}, {"most": CENTURY * 2}, {"factor": float("inf")}, {"factor": float("nan")},
    {"step": -1}, {"step": float("nan")}, {"jitter": float("nan")},
])  # fmt: skip
def test_a_back_off_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.OptionError, match="makes no sense"):
        Backoff(**wrong)


# --- options -------------------------------------------------------------------------------------


async def _coroutine(attempt: object, error: object) -> None: ...


@pytest.mark.parametrize(("options", "named"), [
    ({"retries": 0, "backoff": 1}, "contradict"),
    ({"retries": 0, "on_retry": print}, "contradict"),
    ({"retries": 10**7}, "absurd"),
    ({"backoff": -1}, "backoff"),
    ({"backoff": float("nan")}, "backoff"),
    ({"backoff": float("inf")}, "backoff"),
    ({"backoff": CENTURY + 1}, "backoff"),
    ({"backoff": "5"}, "backoff"),
    ({"backoff": True}, "backoff"),
    ({"backoff": timedelta(days=-1)}, "backoff"),
    ({"backoff": lambda failures: 1}, "failures, error"),
    ({"backoff": _coroutine}, "no plain function"),
    ({"backoff": Backoff}, "no plain function"),
    ({"retry_on": ValueError, "give_up_on": (ValueError, KeyError)}, "ValueError is in retry_on and in give_up_on"),
    ({"retry_on": ValueError, "give_up_on": Exception}, "can never be"),
    ({"retry_on": "ValueError"}, "names no exceptions"),
    ({"retry_on": ()}, "names no exceptions"),
    ({"give_up_on": [int]}, "names no exceptions"),
    ({"max_age": 0}, "max_age=0"),
    ({"max_age": -5}, "max_age"),
    ({"max_age": 10 * CENTURY}, "max_age"),
    ({"on_failure": "continue"}, "group or chain"),
    ({"on_success": lambda: 1}, "attempt, result"),
    ({"on_retry": _coroutine}, "no plain function"),
    ({"on_retry": 7}, "no plain function"),
])  # fmt: skip
def test_what_contradicts_itself_is_refused_when_the_task_is_registered(options: dict[str, Any], named: str) -> None:
    with pytest.raises(errors.OptionError, match=named):
        krq.KRQ().task(**options)(_task)


def _task() -> None:
    return None


@pytest.mark.parametrize(("options", "named"), [
    ({"backoff": lambda failures, error: 1}, "can't travel"),
    ({"backoff": -1}, "backoff"),
    ({"retries": 0, "backoff": 1}, "contradict"),
    ({"retries": -1}, "negative"),
    ({"retry_on": ValueError, "give_up_on": ValueError}, "retry_on and in give_up_on"),
    ({"max_age": float("inf")}, "max_age"),
    ({"on_retry": print}, "belongs to the task"),
])  # fmt: skip
def test_what_a_call_may_not_ask_for(options: dict[str, Any], named: str) -> None:
    with pytest.raises(errors.OptionError, match=named):
        krq.KRQ().send_task("t", **options)


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), CENTURY * 2, "soon", True])
def test_a_retry_with_a_delay_that_is_none(delay: Any) -> None:
    with pytest.raises(errors.OptionError, match="delay="):
        krq.Retry(delay=delay)
    with pytest.raises(errors.OptionError, match="delay="):
        RetryAt(delay, ErrorInfo("E"))


def test_a_retry_takes_a_timedelta() -> None:
    assert krq.Retry(delay=timedelta(minutes=2)).delay == 120


# --- decisions -----------------------------------------------------------------------------------


def decide(
    options: dict[str, Any], outcome: Outcome, failures: int = 0, headers: dict[str, Any] | None = None, sent: float = 4e9
) -> Outcome:
    """What the module makes of it."""
    app = krq.KRQ()
    task = app.task(**options)(_task)
    message = Message(task="_task", headers=headers or {})
    attempt = Attempt(message=message, id="x", number=1, epoch=1, failures=failures, deaths=0, queue="q", worker="w", task=task, sent=sent)
    return find(app.modules, Retries).outcome(attempt, outcome)


def failed(error: BaseException) -> Failed:
    return from_exception(error)


@pytest.mark.parametrize(("options", "error", "again"), [
    ({}, ValueError(), True),
    ({"retry_on": ValueError}, ValueError(), True),
    ({"retry_on": ValueError}, KeyError(), False),
    ({"retry_on": (KeyError, OSError)}, ConnectionResetError(), True),
    ({"retry_on": OSError}, krq.Retry(), True),
    ({"give_up_on": OSError}, ConnectionResetError(), False),
    ({"give_up_on": OSError}, ValueError(), True),
    ({"retry_on": OSError, "give_up_on": ConnectionResetError}, ConnectionResetError(), False),
    ({"retry_on": OSError, "give_up_on": ConnectionResetError}, ConnectionAbortedError(), True),
    ({"give_up_on": krq.Retry}, krq.Retry(delay=1), False),
    ({}, krq.Reject(), False),
    ({"retry_on": ValueError}, ExceptionGroup("g", [ExceptionGroup("h", [ValueError()]), KeyError()]), True),
    ({"give_up_on": ValueError}, ExceptionGroup("g", [ExceptionGroup("h", [ValueError()]), KeyError()]), False),
    ({}, ExceptionGroup("g", [KeyError(), krq.Reject("no")]), False),
    ({"retry_on": BaseException}, SystemExit(), True),
])  # fmt: skip
def test_which_failures_are_tried_again(options: dict[str, Any], error: BaseException, again: bool) -> None:
    decided = decide(options, failed(error))
    assert isinstance(decided, RetryAt) is again
    assert isinstance(decided, RetryAt) or (isinstance(decided, Failed) and decided.why)


def test_a_time_out_is_a_timeout_error() -> None:
    late = TimedOut(1, ErrorInfo("TimedOut"))
    assert isinstance(decide({"retry_on": TimeoutError}, late), RetryAt)
    assert decide({"give_up_on": TimeoutError}, late) == TimedOut(1, ErrorInfo("TimedOut"), "give_up_on names it")


def test_a_retry_in_a_group_keeps_its_delay_and_none_goes_beyond_the_retries() -> None:
    group = failed(ExceptionGroup("g", [ValueError(), krq.Retry(delay=8)]))
    assert decide({}, group) == RetryAt(8.0, group.error)
    last = decide({"retries": 2}, group, failures=2)
    assert isinstance(last, Failed)
    assert last.why == "all of its 2 retries are used up"


def test_nothing_begins_again_after_its_max_age(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    options = {"max_age": timedelta(minutes=1), "backoff": Backoff.fixed(10)}
    assert isinstance(decide(options, failed(ValueError()), sent=950.0), RetryAt)
    old = decide(options, failed(ValueError()), sent=949.0)
    assert isinstance(old, Failed)
    assert old.why == "it would be older than max_age=60 s"


def test_a_call_goes_before_its_task() -> None:
    app = krq.KRQ()
    retries = find(app.modules, Retries)
    asked = retries.submit(Message(task="t"), {"backoff": Backoff.linear(3, jitter=0), "retry_on": KeyError, "max_age": 1e9})
    headers = json.loads(json.dumps(asked.headers))
    assert headers[RULES] == {"on": ["builtins.KeyError"], "max_age": 1e9}
    task = {"retry_on": ValueError, "give_up_on": UnicodeError, "backoff": 100}
    assert decide(task, failed(KeyError()), failures=1, headers=headers) == RetryAt(6.0, failed(KeyError()).error)
    assert isinstance(decide(task, failed(ValueError()), headers=headers), Failed)
    assert isinstance(decide(task, failed(UnicodeDecodeError("u", b"", 0, 1, "")), headers=headers), Failed), "the task's, still"


@pytest.mark.parametrize("headers", [
    {HEADER: {"first": -1}}, {HEADER: 7}, {HEADER: {"first": "x"}}, {RULES: {"on": 1}}, {RULES: "never"}, {RULES: {"max_age": "x"}},
])  # fmt: skip
def test_headers_of_others_that_make_no_sense_fail_the_task_in_sight(headers: dict[str, Any]) -> None:
    decided = decide({}, failed(ValueError("its own")), headers=headers)
    assert isinstance(decided, Failed)
    assert decided.error.type == "BACKOFF_FAILED"
    assert "ValueError: its own" in decided.error.message


def _exits(failures: int, error: ErrorInfo) -> float:
    raise SystemExit(4)


def _cancels(failures: int, error: ErrorInfo) -> float:
    raise KeyboardInterrupt


@pytest.mark.parametrize("policy", [
    lambda failures, error: 1 / 0, lambda failures, error: float("nan"), lambda failures, error: -1, lambda failures, error: None,
    lambda failures, error: "soon", lambda failures, error: 1e300, lambda failures, error: 10**400, _exits, _cancels,
])  # fmt: skip
def test_a_policy_that_raises_or_returns_nonsense_fails_the_task_in_sight(policy: Callable[..., Any]) -> None:
    decided = decide({"backoff": policy}, failed(ValueError("its own")))
    assert isinstance(decided, Failed)
    assert (decided.error.type, decided.retryable, decided.why) == ("BACKOFF_FAILED", False, "its back-off failed")
    assert "ValueError: its own" in decided.error.message
    assert "Traceback" in decided.error.traceback
    assert "When its back-off was asked" in decided.error.traceback


def test_a_policy_is_asked_with_the_failures_and_the_error() -> None:
    seen: list[Any] = []

    def policy(failures: int, error: ErrorInfo) -> timedelta:
        seen.append((failures, error.type))
        return timedelta(seconds=9)

    assert decide({"backoff": policy, "retries": 9}, failed(KeyError("k")), failures=4) == RetryAt(9.0, failed(KeyError("k")).error)
    assert seen == [(5, "KeyError")]


# --- exceptions as values ------------------------------------------------------------------------


class Strange(Exception):
    def __init__(self, raised: type[BaseException]) -> None:
        self.raised = raised

    def __str__(self) -> str:
        raise self.raised

    __repr__ = __str__


class Text(str):
    def encode(self, *args: Any) -> Any:
        raise RuntimeError

    def __getitem__(self, at: Any) -> Any:
        raise RuntimeError


class Sly(Exception):
    def __str__(self) -> str:
        return Text("sly")


@pytest.mark.parametrize("error", [
    Strange(RuntimeError), Strange(SystemExit), Strange(KeyboardInterrupt), Strange(RecursionError), Sly(), ValueError("\ud800"),
    ValueError("x" * 20_000_000), type("N" * 5000, (Exception,), {})(), ExceptionGroup("g", [Strange(SystemExit)] * 2000),
], ids=lambda error: type(error).__name__[:20])  # fmt: skip
def test_any_exception_becomes_a_value_of_bounded_size(error: BaseException) -> None:
    outcome = from_exception(error)
    raw = msgspec.msgpack.encode(outcome)
    assert msgspec.msgpack.decode(raw, type=Outcome) == outcome
    assert len(raw) < 60_000
    assert msgspec.json.encode(describe(error))


def test_outcomes_are_one_tagged_union() -> None:
    assert {Failed, TimedOut, RetryAt, Succeeded} < set(get_args(Outcome))
    assert lineage(FileNotFoundError) == (
        "builtins.FileNotFoundError", "builtins.OSError", "builtins.Exception", "builtins.BaseException",
    )


# --- in a worker ---------------------------------------------------------------------------------


class World:
    """A worker of one slot for all the tests here."""

    def __init__(self, app: krq.KRQ, worker: Worker, folder: Path) -> None:
        self.app, self.worker, self.folder = app, worker, folder

    def ledger(self) -> Path:
        return self.folder / os.urandom(4).hex()

    def ends(self, name: str, *args: Any, **options: Any) -> krq.TaskInfo:
        return self.app.handle(self.app.send_task(name, list(args), **options)).wait(timeout=20)


@contextmanager
def world_on(servers: Servers, folder: Path) -> Iterator[World]:
    worker = Worker(servers, folder / "w.log", "w", 1, "tasks_failing.py")
    try:
        with servers.app() as app:
            yield World(app, worker.ready(), folder)
    finally:
        worker.close()


@pytest.fixture(scope="module")
def world(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    servers = Servers(valkey.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, concurrency=2, window=1000)
    with world_on(servers, tmp_path_factory.mktemp("retries")) as made:
        yield made
        assert made.app.failures() == [], "nothing here ends a worker"


@pytest.mark.parametrize(("task", "what", "kind"), [
    ("raises", "exit", "SystemExit"), ("raises", "interrupt", "KeyboardInterrupt"), ("raises", "generator", "GeneratorExit"),
    ("raises", "locked", "Locked"), ("raises", "huge", "ValueError"), ("raises", "surrogate", "ValueError"),
    ("raises", "group", "ExceptionGroup"), ("raises", "circle", "ValueError"), ("raises", "deep", "RecursionError"),
    ("araises", "exit", "SystemExit"), ("araises", "interrupt", "KeyboardInterrupt"), ("araises", "generator", "GeneratorExit"),
    ("children", "exit", "SystemExit"), ("children", "interrupt", "KeyboardInterrupt"),
])  # fmt: skip
def test_whatever_a_task_raises_ends_its_attempt_only(world: World, task: str, what: str, kind: str) -> None:
    info = world.ends(task, what)
    assert info.status is TaskStatus.FAILED
    assert info.error is not None
    assert info.error.type == kind
    assert len(info.error.message) <= 8_000
    assert world.ends("araises" if task == "raises" else task, "group").error is not None, "coroutines run on"
    assert world.ends("add", 1, 2).result == 3


def test_retry_on_and_give_up_on_in_a_worker(world: World) -> None:
    paths = [world.ledger() for _ in range(3)]
    assert world.ends("away", str(paths[0])).attempt == 2
    assert world.ends("away", str(paths[1]), "other").attempt == 1
    assert world.ends("gives_up", str(paths[2])).attempt == 2
    assert [len(ledger(path)) for path in paths] == [2, 1, 2]
    assert world.ends("away", str(paths[1]), "other", retry_on=ValueError, retries=2, backoff=Backoff.fixed(0.01)).attempt == 3


def test_a_custom_back_off_in_a_worker(world: World) -> None:
    path = world.ledger()
    assert world.ends("custom", str(path), "known").result == 3
    times = [float(at) for _, at in ledger(path)]
    assert times[1] - times[0] >= 0.01
    assert times[2] - times[1] >= 0.02
    broken = world.ends("custom", str(world.ledger()), "unknown")
    assert broken.error is not None
    assert (broken.attempt, broken.error.type) == (1, "BACKOFF_FAILED")
    assert "ZeroDivisionError" in broken.error.traceback
    assert "ValueError: unknown" in broken.error.traceback
    ended = world.ends("exits_in_policy")
    assert ended.error is not None
    assert ended.error.type == "BACKOFF_FAILED"


def test_hooks_are_told_what_was_decided_and_may_fail(world: World) -> None:
    good, bad = world.ledger(), world.ledger()
    assert world.ends("hooked", str(good), 2).result == 7
    assert ledger(good) == [["retry", "1", "ValueError"], ["success", "2", "7"]]
    assert world.ends("hooked", str(bad), 99).status is TaskStatus.FAILED
    assert ledger(bad) == [["retry", "1", "ValueError"], ["failure", "2", "ValueError"]]
    assert world.worker.text.count("a hook of hooked failed") == 4


def test_what_a_task_asks_for_by_retry(world: World) -> None:
    assert world.ends("asks", "0.01").result == 2
    for wrong in ("-1", "nan", "inf", "1e30"):
        info = world.ends("asks", wrong, retries=0)
        assert info.error is not None
        assert info.error.type == "TASK_OPTION_INVALID", wrong
    beyond = world.ends("asks", "0", retries=0)
    assert beyond.error is not None
    assert (beyond.status, beyond.error.type, beyond.error.message) == (TaskStatus.FAILED, "Retry", "again")


def test_max_age_in_a_worker(world: World) -> None:
    info = world.ends("old")
    assert info.finished is not None
    assert info.sent is not None
    assert 2 <= info.attempt < 51
    assert info.finished - info.sent < 1.5
    assert "older than max_age=1 s" in until(lambda: world.app.dead_letters(name="old"), "it is buried")[0].reason


def test_a_waiting_retry_holds_no_slot(world: World) -> None:
    waiting = [world.app.submit("patient") for _ in range(20)]
    until(lambda: all(task.status().status is TaskStatus.SCHEDULED for task in waiting), "all wait for their second attempt")
    assert world.ends("add", 2, 2).result == 4
    assert world.app.workers()[0].busy == 0
    assert world.app.cancel_all([task.id for task in waiting]) == 20


# --- history -------------------------------------------------------------------------------------


def test_the_history_has_each_attempt_that_did_not_succeed(world: World) -> None:
    path = world.ledger()
    good = world.ends("custom", str(path), "known")
    told = world.app.history(good.id)
    assert [(one.attempt, one.outcome, one.worker) for one in told] == [(1, "retry", "w"), (2, "retry", "w")]
    assert told[0].error is not None
    assert "ValueError: known" in told[0].error.traceback
    assert told[0].started is not None
    assert told[0].finished is not None
    assert told[0].started <= told[0].finished
    assert world.app.history(world.ends("add", 1, 1).id) == []
    with pytest.raises(errors.TaskNotFound):
        world.app.history("nobody")


def test_the_history_is_bounded(world: World) -> None:
    info = world.ends("away", str(world.ledger()), "away", retries=14, backoff=Backoff.fixed(0))
    told = world.app.history(info.id)
    assert [(one.attempt, one.outcome) for one in told] == [(n, "retry") for n in range(6, 15)] + [(15, "failed")]
    huge = world.app.history(world.ends("raises", "huge").id)[0].error
    assert huge is not None
    assert len(huge.message) < 2_100
    assert len(huge.traceback) < 2_100
    world.app.retry(info.id)
    again = until(lambda: (one := world.app.status(info.id)).attempt > 15 and one.status is TaskStatus.FAILED and one, "it has run again")
    assert [one.attempt for one in world.app.history(info.id)][-2:] == [again.attempt - 1, again.attempt]


def test_interruptions_and_what_was_handed_back_are_in_the_history(
    kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger"
    servers = Servers(kafka.url, valkey.url, namespace, heartbeat=0.3, lease=3, partitions=2, grace=0.2)
    with world_on(servers, tmp_path) as one:
        task = one.app.submit("holds", str(path))
        until(lambda: len(ledger(path)) == 1, "it runs")
        os.kill(one.worker.children[0], signal.SIGKILL)
        until(lambda: len(ledger(path)) == 2, "it runs again")
        one.worker.stop()
        interrupted, back = one.app.history(task.id)
        assert (interrupted.attempt, interrupted.outcome, interrupted.worker) == (1, "interrupted", "w")
        assert "SIGKILL" in interrupted.cause
        assert (back.attempt, back.outcome, back.worker) == (2, "handed back", "w")
        assert task.status().status is TaskStatus.QUEUED
