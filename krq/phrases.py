"""How values are put for people: times, counts, one line of text. Without colours, and without what could steer a terminal."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from krq.info import Arguments
from krq.outcome import ErrorInfo
from krq.states import TaskStatus

COLOURS = {
    TaskStatus.SUCCESS: "green", TaskStatus.FAILED: "red", TaskStatus.CANCELLED: "yellow", TaskStatus.PROCESSING: "cyan",
}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))


class Styled(NamedTuple):
    """A piece of text in a colour of its own."""

    text: str
    colour: str | None = None
    bold: bool = False


def one_line(value: Any) -> str:
    """Any value as one line without control characters; None as ""."""
    text = "" if value is None else str(value)
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)


def printable(text: str) -> str:
    """Text from elsewhere, without what could steer a terminal; line ends stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def error(found: ErrorInfo | None) -> str:
    """``ValueError: no such user``; "" without an error."""
    return "" if found is None else f"{found.type}: {found.message}" if found.message else found.type


def arguments(given: Arguments) -> str:
    """As in a call: ``1, "a", y=2``."""
    parts = [msgspec.json.encode(value).decode() for value in given.args]
    return ", ".join([*parts, *(f"{name}={msgspec.json.encode(value).decode()}" for name, value in given.kwargs.items())])


def rate(per_second: float) -> str:
    """Tasks a second: ``0``, ``0.03``, ``2.5``, ``12,000``."""
    if per_second >= 100 or not per_second:
        return f"{per_second:,.0f}"
    return f"{per_second:.1f}" if per_second >= 1 else f"{per_second:.2f}"


def span(seconds: float) -> str:
    """A length of time: ``3 ms``, ``1.2 s``, ``5 min``, ``3 h``, ``2 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 10 else coarse(seconds)


def coarse(seconds: float) -> str:
    """The same in whole units, seconds at least."""
    for size, unit in _UNITS:
        if seconds >= size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def ago(moment: float | None) -> str:
    """A time of the past, seen from now."""
    if moment is None:
        return ""
    seconds = time.time() - moment
    return "now" if seconds < 1 else f"{coarse(seconds)} ago"


def until(moment: float | None) -> str:
    """A time of the future, seen from now."""
    if moment is None:
        return ""
    seconds = moment - time.time()
    return "now" if seconds < 1 else f"in {coarse(seconds)}"


def between(start: float | None, end: float | None) -> str:
    """The time from one moment to another, "" where one is missing."""
    return "" if start is None or end is None else span(end - start)


def date(moment: float) -> str:
    """A moment as local date and time."""
    return datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def clock(moment: float) -> str:
    """The same, and how long ago."""
    return f"{date(moment)} ({ago(moment) if moment <= time.time() else until(moment)})"


def count(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
