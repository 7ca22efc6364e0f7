"""Schedules, delays and expiries that make no sense: each is refused where it is written."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import krq
from krq.dev.valkey import ValkeyServer
from krq.errors import OptionError
from krq.modules import Retries


@pytest.fixture
def plain(valkey: ValkeyServer, namespace: str) -> Iterator[krq.KRQ]:
    with krq.KRQ(valkey.url, valkey.url, namespace) as app:
        yield app


@pytest.mark.parametrize(("options", "says"), [
    ({"cron": "nonsense"}, "no cron line"), ({"cron": "0 0 30 2 *"}, "no cron line"), ({"cron": "0 0 */31 * MON#5"}, "never fires"),
    ({"cron": "* * * * *", "tz": "Mars/Base"}, "no time zone"), ({"every": 0}, "no interval"), ({"every": -5}, "no interval"),
    ({"every": 0.2}, "no interval"), ({"every": float("nan")}, "no interval"), ({"every": 5, "cron": "* * * * *"}, "either"),
    ({}, "either"),
    ({"tz": "UTC"}, "either"), ({"every": 5, "tz": "UTC"}, "belongs to cron"), ({"every": 5, "catch_up": -1}, "no length of time"),
    ({"every": 5, "catch_up": float("nan")}, "no length of time"),
])  # fmt: skip
def test_timings_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    app = krq.KRQ()
    if options:
        with pytest.raises(OptionError, match=says) as caught:
            app.task(**options)(lambda: None)
        assert caught.value.advice
    with pytest.raises(OptionError, match=says):
        app.schedule("s", "t", **options)


@pytest.mark.parametrize(("options", "says"), [
    ({"delay": 5}, "delay="), ({"eta": 5.0}, "eta="), ({"after": ["x"]}, "after="), ({"task_id": "x"}, "task_id="),
    ({"expires": 2e9}, "same moment"), ({"expires": timedelta(0)}, "over already"), ({"priority": 1000}, "priority"),
    ({"nonsense": 1}, "nonsense"),
    ({"retries": -1}, "retries"), ({"queue": "a b"}, "queue"), ({"paused": "yes"}, "paused"), ({"retries": "x"}, "retries"),
])  # fmt: skip
def test_calls_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        krq.KRQ().schedule("s", "t", every=5, **options)


@pytest.mark.parametrize("name", ["", "a b", "x" * 113, "a\n"])
def test_names_that_make_no_id(name: str) -> None:
    with pytest.raises(OptionError):
        krq.KRQ().schedule(name, "t", every=5)


def test_arguments_are_checked_when_it_is_written() -> None:
    app = krq.KRQ()

    def takes(x: int) -> None: ...

    with pytest.raises(krq.KRQError, match="missing"):
        app.task(every=5)(takes)
    app.task(takes)
    with pytest.raises(krq.KRQError, match="missing"):
        app.schedule("s", "takes", every=5)
    with pytest.raises(krq.KRQError, match="JSON"):
        app.schedule("s", "takes", [object()], every=5)
    with pytest.raises(krq.KRQError, match="bytes"):
        app.schedule("s", "takes", ["x" * 2_000_000], every=5)


def test_it_is_an_option_of_the_task_not_of_a_call() -> None:
    app = krq.KRQ()
    with pytest.raises(OptionError, match="belongs to the task"):
        app.task(lambda: None).options(every=5)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="Schedules"):
        krq.KRQ(modules=[Retries()]).schedules()


# --- later, and not after -------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    {"delay": -1}, {"delay": float("nan")}, {"delay": float("inf")}, {"delay": 10**400}, {"delay": 5e9}, {"delay": timedelta(seconds=-1)},
    {"delay": timedelta.max}, {"delay": "soon"}, {"eta": -1.0}, {"eta": float("nan")}, {"eta": float("inf")}, {"eta": 10**400},
    {"eta": 5e10}, {"eta": "tomorrow"}, {"delay": 1, "eta": 2e9}, {"expires": float("nan")}, {"expires": float("inf")}, {"expires": -1.0},
    {"expires": timedelta(0)}, {"expires": timedelta.max}, {"expires": "never"}, {"expires": 10**400},
])  # fmt: skip
def test_times_that_make_no_sense(plain: krq.KRQ, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        plain.send_task("add", [1, 2], **options)
    assert caught.value.advice
    assert plain.stats().queues == {}, "nothing was sent"
