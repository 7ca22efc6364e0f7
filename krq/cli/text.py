"""How values become text: tables, times, JSON. Plain when piped, coloured and cut to width on a terminal."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import click
import msgspec

from krq.info import AttemptInfo
from krq.states import TaskStatus

COLOURS = {
    TaskStatus.SUCCESS: "green", TaskStatus.FAILED: "red", TaskStatus.CANCELLED: "yellow", TaskStatus.PROCESSING: "cyan",
}
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"))
#: the last column keeps at least so many characters, however narrow the terminal
_LEAST = 20

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; times are Unix seconds.")
limit_option = click.option("--limit", "-n", default=50, show_default=True, type=click.IntRange(1, 10_000), help="At most so many.")


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def fail(message: str) -> int:
    """Tell an error on stderr; returns the exit code for it."""
    click.echo(f"{click.style('Error:', fg='red')} {printable(message)}", err=True)
    return 1


class Styled(NamedTuple):
    """A cell in a colour of its own."""

    text: str
    colour: str | None


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str] = ()) -> None:
    """An aligned table; columns named in ``right`` are numbers. On a terminal the last column is cut to its width."""
    cells = [[cell(value) for value in row] for row in rows]
    widths = [max(len(name), *(len(one.text) for one in column)) for name, column in zip(columns, zip(*cells, strict=True), strict=True)]
    if columns[-1] not in right:
        taken = sum(widths[:-1]) + 2 * (len(widths) - 1)
        widths[-1] = max(_LEAST, shutil.get_terminal_size().columns - taken) if sys.stdout.isatty() else widths[-1]
    for row in ([Styled(name, None) for name in columns], *cells):
        parts = [_fit(one, width, name in right) for one, width, name in zip(row, widths, columns, strict=True)]
        click.echo("  ".join(parts).rstrip())


def print_attempts(attempts: Sequence[AttemptInfo]) -> None:
    """The attempts of a task that did not succeed, if there were any."""
    if not attempts:
        return
    rows = [
        [one.attempt, one.outcome, one.worker, ago(one.finished), between(one.started, one.finished),
         f"{one.error.type}: {one.error.message}" if one.error else one.cause]
        for one in attempts
    ]
    click.echo()
    print_table(("ATTEMPT", "OUTCOME", "WORKER", "ENDED", "TOOK", "WHY"), rows, right=("ATTEMPT", "TOOK"))


def cell(value: Any) -> Styled:
    """Any value as one line without control characters; None and "" as a dash."""
    if isinstance(value, TaskStatus):
        return Styled(value.value, COLOURS.get(value))
    text, colour = value if isinstance(value, Styled) else (value, None)
    plain = "" if text is None else "".join(char if char.isprintable() else " " for char in str(text))
    return Styled(plain or "-", colour)


def _fit(one: Styled, width: int, right: bool) -> str:
    text = one.text if len(one.text) <= width else f"{one.text[: width - 1]}…"
    gap = " " * (width - len(text))
    shown = click.style(text, fg=one.colour) if one.colour else text
    return gap + shown if right else shown + gap


def printable(text: str) -> str:
    """Text from elsewhere, without what could steer a terminal; line ends stay."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def status(value: TaskStatus) -> str:
    """A status in its colour."""
    return click.style(value.value, fg=COLOURS[value]) if value in COLOURS else value.value


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


def clock(moment: float) -> str:
    """A moment as local date and time, and how long ago."""
    shown = datetime.fromtimestamp(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{shown} ({ago(moment) if moment <= time.time() else until(moment)})"


def count(number: int, noun: str) -> str:
    """``1 task``, ``2 tasks``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
