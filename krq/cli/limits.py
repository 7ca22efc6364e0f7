"""The command of limits: what is in force, and changes at run time."""

from __future__ import annotations

from typing import Any

import click

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.info import LimitInfo


@click.command(short_help="Limits of tasks: what is in force, and changes.")
@click.argument("name", metavar="[TASK]", required=False)
@click.option("--max-concurrency", metavar="N", help='So many at once, over all workers; 0: none begins; "none": no such limit.')
@click.option("--rate-limit", metavar="RATE", help='Such as 100/m, 5/s, 2/10s; "none": no such limit.')
@click.option("--reset", is_flag=True, help="What the code says is in force again.")
@text.json_option
@connected
def limits(app: KRQ, name: str | None, max_concurrency: str | None, rate_limit: str | None, reset: bool, as_json: bool) -> None:
    """Limits of tasks over all workers. A change holds until the next one, also for workers that start later.

    \b
    Example:
      krq limits
      krq limits mail --max-concurrency 5 --rate-limit 100/m
      krq limits mail --reset
    """
    changes = max_concurrency is not None or rate_limit is not None
    if (changes or reset) and name is None:
        raise click.UsageError("Say of which task: krq limits TASK ...")
    if changes and reset:
        raise click.UsageError("--reset undoes what the other options would change: give one or the other.")
    if name is not None and (changes or reset):
        app.limit(name, max_concurrency=_number(max_concurrency), rate_limit=rate_limit)
    found = [one for one in app.limits() if name in (None, one.name)]
    if as_json:
        text.print_json(found)
    elif not found:
        click.echo(f"{name} has no limits." if name is not None else "No task has limits.")
    else:
        columns = ("TASK", "AT ONCE", "OF A KEY", "RATE", "IN ORDER", "RUNNING", "PARKED", "")
        text.print_table(columns, [_row(one) for one in found], right=("AT ONCE", "OF A KEY", "RUNNING", "PARKED"))


def _number(given: str | None) -> Any:
    return int(given) if given is not None and given.isdecimal() else given


def _row(one: LimitInfo) -> list[Any]:
    numbers = ["" if number is None else number for number in (one.max_concurrency, one.max_concurrency_per_key)]
    changed = text.Styled("changed", "yellow") if one.changed else text.Styled(" ", None)
    running = "" if one.running is None else one.running
    return [one.name, *numbers, one.rate_limit or "", "yes" if one.in_order else "", running, one.parked, changed]


COMMANDS: tuple[click.Command, ...] = (limits,)
