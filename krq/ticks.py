"""When a schedule fires: pure, in Unix milliseconds. Cron lines as Debian's cron reads them, with its rules for summer time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import msgspec
from cronsim import CronSim, CronSimError

from krq.errors import OptionError

#: seconds between two ticks, at least and at most (ten years)
LEAST, MOST = 1.0, 315_360_000.0
_LONGEST_LINE = 200


class Timing(msgspec.Struct, frozen=True, omit_defaults=True):
    """A cron line in a time zone, or an interval: one of the two."""

    cron: str = ""
    tz: str = ""
    every: int = 0
    """milliseconds; ticks are its multiples since 1970-01-01 UTC"""

    def __str__(self) -> str:
        return self.cron or f"every {self.every / 1000:g} s"


def timing(cron: str | None = None, every: float | timedelta | None = None, tz: str | None = None) -> Timing:
    """Check what the user gave. Raises ``OptionError``: both or neither, a malformed line, one that never fires, no such zone."""
    if (cron is None) == (every is None):
        raise OptionError("A schedule needs either cron= or every=", cure='Such as cron="*/5 * * * *" or every=30.')
    if cron is not None:
        made = Timing(cron=_line(cron), tz="UTC" if tz is None else tz)
        _zone(made.tz)
        after(made, 0)
        return made
    if tz is not None:
        raise OptionError(f"tz={tz!r} belongs to cron=", cure="An interval is the same in all time zones: leave tz= out.")
    return Timing(every=_interval(every))


def after(timing: Timing, moment: int) -> int:
    """The first tick after a moment. Raises ``OptionError`` for a line without one."""
    if timing.every:
        return (moment // timing.every + 1) * timing.every
    for when in _iterate(timing, moment, reverse=False):
        if (tick := _ms(when)) > moment:  # in the hour that comes twice the library may step back
            return tick
    raise OptionError(f"cron={timing.cron!r} never fires", cure="No date is like that.")


def latest(timing: Timing, moment: int) -> int:
    """The last tick up to a moment, or 0."""
    if timing.every:
        return moment // timing.every * timing.every
    tick = next((tick for when in _iterate(timing, moment + 1000, reverse=True) if (tick := _ms(when)) <= moment), 0)
    while tick and (following := after(timing, tick)) <= moment:
        tick = following
    return tick


def due(timing: Timing, tick: int, now: int, catch_up: int, most: int) -> tuple[list[int], int]:
    """What to fire now, the oldest first and at most so many, and the tick after these.

    ``tick``: the one that is next. All that are younger than ``catch_up`` ms, and of the older ones the latest.
    """
    if tick < now - catch_up:
        tick = max(tick, latest(timing, now - catch_up))
    ticks: list[int] = []
    while tick <= now and len(ticks) < most:
        ticks.append(tick)
        tick = after(timing, tick)
    return ticks, tick


def _iterate(timing: Timing, moment: int, *, reverse: bool) -> CronSim:
    try:
        return CronSim(timing.cron, datetime.fromtimestamp(moment // 1000, _zone(timing.tz)), reverse=reverse)
    except (OverflowError, OSError, ValueError) as error:
        raise OptionError(f"{moment} ms is no time that a calendar knows: {error}") from error


def _ms(when: datetime) -> int:
    return int(when.timestamp()) * 1000


def _line(cron: str) -> str:
    cure = 'Five fields: minute, hour, day, month, day of the week, such as "*/5 * * * *" or "0 7 * * MON-FRI", on a day that comes.'
    if not isinstance(cron, str) or len(cron) > _LONGEST_LINE:
        raise OptionError(f"cron={str(cron)[:50]!r} is no cron line", cure=cure)
    line = " ".join(cron.split())
    try:
        CronSim(line, datetime(2026, 1, 1, tzinfo=UTC))
    except (CronSimError, AssertionError, ValueError) as error:
        raise OptionError(f"cron={cron!r} is no cron line: {error}", cure=cure) from error
    return line


def _zone(tz: str) -> tzinfo:
    if tz == "UTC":
        return UTC
    try:
        return ZoneInfo(tz)
    except (KeyError, TypeError, ValueError, OSError) as error:
        cure = "Use a name such as Europe/Berlin; where the system has no zones: pip install tzdata."
        raise OptionError(f"tz={tz!r} is no time zone", cure=cure) from error


def _interval(every: float | timedelta | None) -> int:
    seconds = every.total_seconds() if isinstance(every, timedelta) else every
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not LEAST <= seconds <= MOST:
        raise OptionError(f"every={every!r} is no interval", cure="Use 1 second to ten years, in seconds or as a timedelta.")
    return round(seconds * 1000)
