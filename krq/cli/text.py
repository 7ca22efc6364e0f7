"""How values become text: tables, times, JSON. Plain when piped, coloured and cut to width on a terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from krq.info import AttemptInfo
from krq.phrases import COLOURS, Styled, ago, between, clock, coarse, count, error, one_line, printable, until
from krq.states import TaskStatus

__all__ = [
    "Styled", "ago", "between", "cell", "clock", "coarse", "count", "fail", "json_option", "limit_option", "print_attempts", "print_json",
    "print_table", "printable", "status", "until",
]

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
        [one.attempt, one.outcome, one.worker, ago(one.finished), between(one.started, one.finished), error(one.error) or one.cause]
        for one in attempts
    ]
    click.echo()
    print_table(("ATTEMPT", "OUTCOME", "WORKER", "ENDED", "TOOK", "WHY"), rows, right=("ATTEMPT", "TOOK"))


def cell(value: Any) -> Styled:
    """Any value as one line without control characters; None and "" as a dash."""
    if isinstance(value, TaskStatus):
        return Styled(value.value, COLOURS.get(value))
    text, colour, _ = value if isinstance(value, Styled) else (value, None, False)
    return Styled(one_line(text) or "-", colour)


def _fit(one: Styled, width: int, right: bool) -> str:
    text = one.text if len(one.text) <= width else f"{one.text[: width - 1]}…"
    gap = " " * (width - len(text))
    shown = click.style(text, fg=one.colour) if one.colour else text
    return gap + shown if right else shown + gap


def status(value: TaskStatus) -> str:
    """A status in its colour."""
    return click.style(value.value, fg=COLOURS[value]) if value in COLOURS else value.value
