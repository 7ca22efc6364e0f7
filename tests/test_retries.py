"""Retries: how long to wait, what to try again, who is told, and that nothing a task raises ends more than its attempt."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import krq
from krq import Backoff, errors
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
