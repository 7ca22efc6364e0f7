"""When schedules fire: pure, over random lines, zones and moments."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krq.errors import OptionError
from krq.ticks import Timing, after, due, latest, timing

ZONES = ["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Sao_Paulo", "Africa/Cairo", "Asia/Kathmandu"]
LINES = [
    "* * * * *", "*/5 * * * *", "30 2 * * *", "0 * * * *", "0,30 1-3 * * *", "15 */4 * * *", "0 0 * * MON", "0 0 1 * *", "59 23 L * *",
    "0 12 * * MON#1", "*/10 0 * * *", "0 3 29 2 *", "*/20 * * * * *", "0 30 2 * * *",
]  # fmt: skip
crons = st.builds(lambda line, tz: timing(cron=line, tz=tz), st.sampled_from(LINES), st.sampled_from(ZONES))
intervals = st.builds(lambda every: timing(every=every), st.floats(1, 1e6))
timings = st.one_of(crons, intervals)
moments = st.integers(int(datetime(2015, 1, 1, tzinfo=UTC).timestamp() * 1000), int(datetime(2035, 1, 1, tzinfo=UTC).timestamp() * 1000))
# around the ends of summer time, in ms
changes = st.builds(
    lambda when, off: int(when.timestamp() * 1000) + off,
    st.sampled_from([datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC), datetime(2026, 3, 8, 7, tzinfo=UTC),
                     datetime(2026, 11, 1, 6, tzinfo=UTC), datetime(2026, 4, 4, 15, tzinfo=UTC),
                     datetime(2026, 10, 3, 15, 30, tzinfo=UTC)]),
    st.integers(-7_200_000, 7_200_000),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(timings, st.one_of(moments, changes))
def test_the_next_tick_lies_ahead_and_the_latest_behind(when: Timing, moment: int) -> None:
    tick = after(when, moment)
    assert tick > moment
    assert after(when, tick) > tick
    last = latest(when, moment)
    assert last <= moment
    assert after(when, last) > moment


@settings(max_examples=200, deadline=None)
@given(timings, st.one_of(moments, changes), st.integers(0, 40), st.integers(0, 600_000))
def test_all_young_ticks_fire_and_of_the_older_ones_the_latest(when: Timing, moment: int, missed: int, catch_up: int) -> None:
    tick = after(when, moment)
    ticks = [tick]
    for _ in range(missed):
        ticks.append(after(when, ticks[-1]))
    now = ticks[-1]
    fired, following = due(when, tick, now, catch_up, 1000)
    old, young = [t for t in ticks if t < now - catch_up], [t for t in ticks if t >= now - catch_up]
    assert fired[-len(young) :] == young
    assert len(fired) - len(young) <= 1, "of the older ones at most one"
    assert bool(old) <= (fired[0] <= now - catch_up)
    assert following > now
    assert following == after(when, fired[-1])


@settings(max_examples=100, deadline=None)
@given(timings, moments, st.integers(1, 9))
def test_what_is_cut_off_comes_next(when: Timing, moment: int, most: int) -> None:
    tick = now = after(when, moment)
    for _ in range(12):
        now = after(when, now)
    whole, end = due(when, tick, now, 10**12, 1000)
    parts: list[int] = []
    while tick <= now:
        some, tick = due(when, tick, now, 10**12, most)
        assert 0 < len(some) <= most
        parts += some
    assert (parts, tick) == (whole, end)


def berlin(*when: int, fold: int = 0) -> int:
    return int(datetime(*when, tzinfo=ZoneInfo("Europe/Berlin"), fold=fold).timestamp() * 1000)  # type: ignore[misc,arg-type]


def chain(when: Timing, moment: int, n: int) -> list[int]:
    found = []
    for _ in range(n):
        moment = after(when, moment)
        found.append(moment)
    return found


def test_the_hour_that_is_left_out() -> None:
    daily = timing(cron="30 2 * * *", tz="Europe/Berlin")
    assert chain(daily, berlin(2026, 3, 28, 12), 2) == [berlin(2026, 3, 29, 3), berlin(2026, 3, 30, 2, 30)], "late, but not left out"
    often = timing(cron="*/30 * * * *", tz="Europe/Berlin")
    assert chain(often, berlin(2026, 3, 29, 1, 30), 2) == [berlin(2026, 3, 29, 3), berlin(2026, 3, 29, 3, 30)]


def test_the_hour_that_comes_twice() -> None:
    daily = timing(cron="30 2 * * *", tz="Europe/Berlin")
    assert chain(daily, berlin(2026, 10, 24, 12), 2) == [berlin(2026, 10, 25, 2, 30), berlin(2026, 10, 26, 2, 30)], "once"
    assert after(daily, berlin(2026, 10, 25, 2, 10, fold=1)) == berlin(2026, 10, 26, 2, 30), "never backwards"
    often = timing(cron="*/30 * * * *", tz="Europe/Berlin")
    assert chain(often, berlin(2026, 10, 25, 1, 30), 4) == [
        berlin(2026, 10, 25, 2), berlin(2026, 10, 25, 2, 30), berlin(2026, 10, 25, 2, fold=1), berlin(2026, 10, 25, 2, 30, fold=1),
    ]  # fmt: skip


def test_a_year_without_workers_costs_no_year_of_steps() -> None:
    year = 365 * 86_400_000
    for when in (timing(every=1), timing(cron="* * * * * *"), timing(cron="* * * * *", tz="Europe/Berlin")):
        now = after(when, 1_800_000_000_000)
        fired, following = due(when, after(when, now - year), now, 0, 50)
        assert (fired, following) == ([now], after(when, now))


def test_intervals_are_multiples() -> None:
    assert after(timing(every=3600), 1_800_000_000_001) % 3_600_000 == 0
    assert timing(every=1.5).every == 1500
    assert timing(every=timedelta(hours=2)) == timing(every=7200)
    assert (str(timing(every=90)), str(timing(cron=" 0  7 * * mon "))) == ("every 90 s", "0 7 * * mon")


@pytest.mark.parametrize("line", [
    "", "x", "* * * *", "@daily", "60 * * * *", "0 0 1-5/0 * *", "5,,6 * * * *", "L * * * *", "*" * 300, "0 0 30 2 *",
    "0 0 31 4,6,9 *", 5, None,
])  # fmt: skip
def test_lines_that_mean_nothing(line: Any) -> None:
    with pytest.raises(OptionError) as caught:
        timing(cron=line)
    assert caught.value.advice


def test_a_day_that_never_comes_is_told_apart_from_one_that_is_rare() -> None:
    with pytest.raises(OptionError, match="never fires"):
        timing(cron="0 0 */31 * MON#5")
    assert after(timing(cron="0 0 29 2 *"), 1_800_000_000_000)


@pytest.mark.parametrize("tz", ["Europe", "../etc/passwd", "", "Mars/Base", "Europe/Berlin\0", 5, "x" * 5000])
def test_zones_that_are_none(tz: Any) -> None:
    with pytest.raises(OptionError, match="time zone"):
        timing(cron="* * * * *", tz=tz)


@pytest.mark.parametrize("every", [0, -1, 0.5, float("nan"), float("inf"), 10**400, True, "5", timedelta.max, timedelta(seconds=-5)])
def test_intervals_that_are_none(every: Any) -> None:
    with pytest.raises(OptionError, match="interval"):
        timing(every=every)


def test_one_of_the_two() -> None:
    for given_ in ({}, {"cron": "* * * * *", "every": 5}):
        with pytest.raises(OptionError, match="either"):
            timing(**given_)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="belongs to cron"):
        timing(every=5, tz="UTC")


def test_a_clock_out_of_its_mind_is_an_error_not_a_crash() -> None:
    with pytest.raises(OptionError):
        after(timing(cron="* * * * *"), 10**18)
