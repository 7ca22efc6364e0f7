"""``krq events``: what ends, as the log gets it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from datetime import datetime
from functools import cache, lru_cache

import click
import msgspec

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.info import Event

#: what an entry may tell, with its colour
OUTCOMES = {
    "success": "green", "failed": "red", "retry": "yellow", "spawned": "cyan", "cancelled": "yellow", "died": "red", "cancel": None,
    "control": None,
}
#: lines a second that somebody may read
READABLE = 100


@click.command(short_help="What ends: the entries of the log, one line each.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what ends from now on, until Ctrl-C.")
@click.option("--from-start", is_flag=True, help="With -f: begin with the first entry that the log still has.")
@click.option("--name", metavar="TASK", help="Only tasks of this name.")
@click.option("--outcome", "outcomes", multiple=True, type=click.Choice(list(OUTCOMES)), help="Only these; may be given more than once.")
@click.option("--most", type=click.IntRange(min=0), metavar="N",
              help=f"With -f: so many a second, and how many more there were; 0: all. {READABLE} on a terminal, else all.")
@text.limit_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON, an object a line; times are Unix seconds.")
@connected
def events(app: KRQ, follow: bool, from_start: bool, name: str | None, outcomes: tuple[str, ...], limit: int, most: int | None,
           as_json: bool) -> None:
    """What ends: an entry of the log's events topic for each attempt, and for what somebody asked for. Without -f the latest.

    \b
    Example:
      krq events -f
      krq events -f --outcome failed --outcome died
      krq events -f --from-start --name add --json | jq .worker
    """
    if from_start and not follow:
        raise click.UsageError("--from-start belongs to -f. Without it the last entries are shown: see --limit.")
    on_terminal = sys.stdout.isatty()
    found: Iterable[Event]
    if follow:
        limited = most if most is not None else READABLE if on_terminal and not as_json else 0
        found = app.events(from_start=from_start, name=name, outcomes=outcomes, most=limited)
    else:
        found = [one for one in app.recent_events(limit) if name in (None, one.name) and (not outcomes or one.outcome in outcomes)]
    with contextlib.suppress(KeyboardInterrupt):  # the way to end it
        for event in found:
            line = msgspec.json.encode(event).decode() if as_json else _line(event, coloured=on_terminal)
            print(line, flush=True)  # and not click.echo, which costs more than all the rest


@cache
def _outcome_of(name: str, coloured: bool) -> str:
    return click.style(f"{name:<9}", fg=OUTCOMES.get(name)) if coloured else f"{name:<9}"


@lru_cache(maxsize=64)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")


def _line(event: Event, *, coloured: bool) -> str:
    when = f"{_second(int(event.at))}.{int(event.at * 1000) % 1000:03}"
    if event.outcome == "skipped":
        return f"{when}  {event.data['n']:,} more (--most 0 shows all)"
    outcome = _outcome_of(event.outcome, coloured)
    if event.outcome == "control":
        return f"{when}  {outcome}  {text.cell(event.data.get('act', '')).text} {text.cell(event.id).text}"
    parts = [when, outcome, text.cell(event.name).text, text.cell(event.id).text]
    parts += [f"attempt {event.attempt}"] if event.attempt else []
    parts += [text.cell(event.worker).text] if event.worker else []
    parts += [text.between(event.started, event.at)] if event.started else []
    return "  ".join([*parts, *_outcome(event)])


def _outcome(event: Event) -> list[str]:
    if event.error is not None:
        said = f"{event.error.type}: {event.error.message}" if event.error.message else event.error.type
        again = [f"again {text.until(event.due)}"] if event.due else []
        return [_cut(said), *([_cut(event.reason)] if event.reason else []), *again]
    return [_cut(msgspec.json.encode(event.result).decode())] if event.outcome == "success" else []


def _cut(value: str, most: int = 200) -> str:
    line = text.cell(value).text
    return line if len(line) <= most else f"{line[: most - 1]}…"


COMMANDS: tuple[click.Command, ...] = (events,)
