"""Values without I/O: messages, outcomes, back-off, settings, errors, ids."""

from __future__ import annotations

import inspect
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import krq
from krq import config, errors, events, ids, message, outcome
from krq.backoff import Backoff
from krq.message import Message

LIMITS = {"max_bytes": 1_000_000, "max_depth": 64}
plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
keys = st.text(max_size=5)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=20)
fields = st.sampled_from(["task", "args", "kwargs", "eta", "after", "priority", "task-id", "inputs", "version", "x"])
names = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30)


@given(args=st.lists(values, max_size=4), kwargs=st.dictionaries(st.text(max_size=5), values, max_size=3), task=names)
def test_messages_come_back_as_they_went(args: list[Any], kwargs: dict[str, Any], task: str) -> None:
    sent = Message(task=task, task_id=ids.new_id(), args=args, kwargs=kwargs, priority=3, after=["a"], inputs="list", key="k", retries=0)
    assert message.decode(message.encode(sent, **LIMITS), **LIMITS) == sent


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_named_error(raw: bytes) -> None:
    with_error = (errors.MessageInvalid, errors.MessageTooLarge)
    try:
        assert isinstance(message.decode(raw, **LIMITS), Message)
    except with_error as error:
        assert error.code in str(error)


@given(st.dictionaries(fields, values))
def test_any_json_object_is_a_message_or_a_named_error(record: dict[str, Any]) -> None:
    try:
        assert message.decode(json.dumps(record).encode(), **LIMITS).task
    except (errors.MessageInvalid, errors.MessageTooLarge) as error:
        assert error.cause


def test_the_wire_format_is_as_documented() -> None:
    assert message.encode(Message(task="add", task_id="x", args=[1, 2]), **LIMITS) == b'{"task":"add","task-id":"x","args":[1,2]}'
    read = message.decode(b'{"task": "add", "eta": "2030-01-01T00:00:00Z", "expires": 2000000000, "mine": 1}', **LIMITS)
    assert (read.due, read.deadline) == (datetime(2030, 1, 1, tzinfo=UTC).timestamp(), 2e9)


@pytest.mark.parametrize("levels", [62, 63, 64, 65, 100, 5_000])
def test_depth_is_limited_whatever_the_shape(levels: int) -> None:
    raw = b'{"task": "t", "args": ' + b"[" * levels + b"]" * levels + b"}"
    if levels <= 63:
        message.decode(raw, **LIMITS)
    else:
        with pytest.raises(errors.MessageInvalid):
            message.decode(raw, **LIMITS)


@given(st.integers(1, 10_000), st.floats(0, 0.999))
def test_back_off_rises_within_its_bounds(failures: int, chance: float) -> None:
    policy = Backoff(first=0.5, factor=3, most=100, jitter=0.5)
    assert 0.5 * policy.ceiling(failures) <= policy.delay(failures, chance) <= policy.ceiling(failures) <= 100
    assert policy.ceiling(failures) <= policy.ceiling(failures + 1)


@pytest.mark.parametrize("wrong", [{"first": -1}, {"factor": 0.5}, {"jitter": 2}, {"first": 10, "most": 1}])
def test_a_back_off_that_makes_no_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(errors.OptionError):
        Backoff(**wrong)


def test_constructor_goes_before_environment_before_default() -> None:
    environ = {"KRQ_BROKER": "kafka://e:1", "KRQ_LEASE": "20", "KRQ_KAFKA": '{"client_id": "x"}'}
    loaded = config.load({"broker": "kafka://c:1", "backend": None}, environ)
    assert (loaded.broker, loaded.backend, loaded.lease, loaded.kafka) == ("kafka://c:1", "localhost", 20.0, {"client_id": "x"})
    with pytest.raises(errors.ConfigError, match="KRQ_LEASE='soon'"):
        config.load({}, {"KRQ_LEASE": "soon"})
    with pytest.raises(errors.ConfigError, match="did you mean 'lease'"):
        config.load({"leese": 3}, {})


def test_passwords_are_masked() -> None:
    assert config.mask("rediss://me:secret@host:6379/0") == "rediss://me:***@host:6379/0"
    assert "secret" not in repr(krq.KRQ(backend="redis://:secret@host"))


def test_every_error_has_a_code_of_its_own_and_one_root() -> None:
    found = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, errors.KRQError)]
    codes = [each.code for each in found]
    assert len(set(codes)) == len(codes)
    assert all(each.__doc__ for each in found)


def test_an_exception_becomes_data_whatever_it_does() -> None:
    class Bad(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    try:
        raise Bad
    except Bad as error:
        info = outcome.describe(error)
    assert info.type == "Bad"
    assert "raised RuntimeError" in info.message
    huge = outcome.describe(ValueError("x" * 100_000))
    assert len(huge.message) <= outcome.MAX_TEXT
    assert outcome.describe(ValueError("\ud800")).message


def test_ids_sort_by_time_and_names_are_checked() -> None:
    made = [ids.new_id() for _ in range(1_000)]
    assert len(set(made)) == 1_000
    assert [each[:12] for each in made] == sorted(each[:12] for each in made)
    assert ids.worker_of(ids.new_incarnation("a~b")) == "a~b"
    for wrong in ("", "a b", "x" * 129, "new\nline"):
        with pytest.raises(errors.OptionError):
            ids.check_task_id(wrong)
    for wrong in ("events", "dead", "a/b", "", "x" * 201):
        with pytest.raises(errors.OptionError):
            ids.check_queue(wrong)


def test_events_and_dead_letters_come_back() -> None:
    entry = events.Entry(id="a", outcome="success", result=msgspec.Raw(b'{"x":1}'), attempt=2)
    page = events.decode_page(events.encode_page([events.encode_entry(entry)] * 2))
    assert [(each.id, each.result, each.attempt) for each in page.entries] == [("a", {"x": 1}, 2)] * 2
    letter = events.DeadLetter(reason="r", code="C", at=1, **events.original(b"\xff"))
    assert events.decode_letter(events.encode_letter(letter)) == letter
    assert letter.base64


def test_times_need_a_zone_and_delays_may_be_timedeltas() -> None:
    with pytest.raises(errors.OptionError, match="time zone"):
        message.seconds(datetime(2030, 1, 1))
    assert message.seconds(datetime(2030, 1, 1, tzinfo=UTC)) > 1.8e9
    assert timedelta(seconds=1)


def test_the_public_surface_is_what_is_promised() -> None:
    assert krq.KRQ is __import__("krq.core", fromlist=["KRQ"]).KRQ
    for name in krq.__all__:
        assert hasattr(krq, name)
    assert {str(status) for status in krq.TaskStatus} == {
        "waiting", "scheduled", "queued", "processing", "success", "failed", "cancelled",
    }  # fmt: skip
