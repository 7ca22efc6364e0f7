"""``krq dead``: dead letters, as a list, one by one, run again, dropped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.errors import TaskNotFound
from krq.events import DeadLetter
from krq.graveyard import KEPT, Filter
from krq.info import AttemptInfo
from krq.masking import record

ref_arguments = click.argument("refs", metavar="[ID]...", nargs=-1)
all_option = click.option("--all", "everything", is_flag=True, help="All of them.")
#: parameters that lead to an app
SERVERS = ("target", "namespace", "backend", "broker")
#: bytes of a record that are shown
_SHOWN = 4_000


def filters(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which letters are meant."""
    given = (("queue", "QUEUE", "of this queue"), ("code", "CODE", "with this error"), ("name", "TASK", "of tasks of this name"))
    for name, metavar, what in given:
        function = click.option(f"--{name}", metavar=metavar, help=f"Only those {what}.")(function)
    return function


@click.group(short_help="Dead letters: what failed for good, and why.", invoke_without_command=True)
@filters
@text.limit_option
@text.json_option
@connected
@click.pass_context
def dead(ctx: click.Context, app: KRQ, name: str | None, code: str | None, queue: str | None, limit: int, as_json: bool) -> None:
    """Dead letters: tasks that failed for good, and records that are no task; the latest first. The newest 1,000 are at hand.

    \b
    Example:
      krq dead --code ValueError
      krq dead show ID
      krq dead retry --all --name add
    """
    if ctx.invoked_subcommand is not None:  # the servers may be named before it, too
        ctx.default_map = {ctx.invoked_subcommand: {key: ctx.params[key] for key in SERVERS if ctx.params[key]}}
        return
    found = app.dead_letters(limit, code=code, name=name, queue=queue)
    if as_json:
        text.print_json([_fields(one) for one in found])
    elif not found:
        click.echo("There are no dead letters.")
    else:
        rows = [[text.ago(one.at / 1000), one.code, one.name, one.ref, one.queue, one.reason] for one in found]
        text.print_table(("WHEN", "CODE", "TASK", "ID", "QUEUE", "REASON"), rows)
        if len(found) >= limit:
            click.echo(f"There may be more than these {limit}: see --limit.", err=True)


@dead.command(short_help="One dead letter: reason, error, attempts, record.")
@click.argument("ref", metavar="ID")
@click.option("--raw", is_flag=True, help="Write the original bytes, and nothing else.")
@text.json_option
@connected
def show(app: KRQ, ref: str, raw: bool, as_json: bool) -> int:
    """One dead letter: why, the error with its traceback, the attempts before, the record; what `mask` hides is ``•••`` but with --raw.

    \b
    Example:
      krq dead show default:0:17 --raw > record.json
    """
    one = app.dead_letter(ref)
    attempts = _attempts(app, one)
    if raw:
        sys.stdout.buffer.write(one.original)
        return text.fail(f"Only the beginning is at hand: {len(one.value):,} of {one.size:,} characters.") if one.size else 0
    if as_json:
        text.print_json({**_fields(one), "history": attempts})
        return 0
    for label, value in _details(one):
        if value:
            click.echo(f"{label:<10}{value}")
    text.print_attempts(attempts)
    if one.error is not None and one.error.traceback:
        click.echo("\n" + text.printable(one.error.traceback.rstrip()))
    click.echo("\nThe record:" if not one.size else f"\nThe beginning of the record, which has {one.size:,} characters (--raw: as it is):")
    click.echo(_readable(one))
    return 0


@dead.command(short_help="Run the tasks of dead letters again.")
@ref_arguments
@all_option
@filters
@connected
def retry(app: KRQ, refs: tuple[str, ...], everything: bool, name: str | None, code: str | None, queue: str | None) -> int:
    """Run the tasks of dead letters again, under their ids and with all their retries; the letters go. Give ids, a filter, or --all.

    \b
    Example:
      krq dead retry 019a2b3c4d5e0123456789abcdef
      krq dead retry --code ConnectionError
    """
    wanted = _wanted(refs, everything, Filter(name, code, queue))
    meant = len(set(refs)) or len(app.dead_letters(KEPT, **wanted))
    sent = app.retry_dead(refs or None, **wanted)
    click.echo(f"{text.count(sent, 'task')} sent again.")
    if sent < meant:
        click.echo(f"{text.count(meant - sent, 'letter')} stayed: records that are no task, or tasks that are not failed.", err=True)
    return 0


@dead.command(short_help="Drop dead letters.")
@ref_arguments
@all_option
@filters
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connected
def purge(app: KRQ, /, refs: tuple[str, ...], everything: bool, yes: bool, **given: str | None) -> int:
    """Drop dead letters from this list. Their tasks stay failed, and the topic keeps the letters. Give ids, a filter, or --all.

    \b
    Example:
      krq dead purge --queue default --yes
    """
    wanted = _wanted(refs, everything, Filter(**given))
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("This drops dead letters, and there is no terminal to ask: give --yes.")
        number = len(set(refs)) or len(app.dead_letters(KEPT, **wanted))
        if not click.confirm(f"Drop {text.count(number, 'dead letter')}?"):
            click.echo("Nothing was dropped.")
            return 1
    click.echo(f"{text.count(app.purge_dead(refs or None, **wanted), 'dead letter')} dropped.")
    return 0


def _wanted(refs: tuple[str, ...], everything: bool, given: Filter) -> dict[str, Any]:
    """The filter as arguments; refuses to guess which letters are meant."""
    some = given != Filter()
    if not (refs or everything or some):
        raise click.UsageError("Which dead letters? Give their ids, --name, --code, --queue, or --all.")
    if refs and (everything or some):
        raise click.UsageError("Give either ids, or --all and filters.")
    return given._asdict()


def _fields(one: DeadLetter) -> dict[str, Any]:
    return {"ref": one.ref, **msgspec.structs.asdict(one), "value": _shown(one)}


def _shown(one: DeadLetter) -> str:
    return one.value if one.base64 else record(one.value, cut=bool(one.size))


def _attempts(app: KRQ, one: DeadLetter) -> list[AttemptInfo]:
    try:
        return app.history(one.id) if one.id and one.partition < 0 else []
    except TaskNotFound:  # forgotten by now
        return []


def _details(one: DeadLetter) -> list[tuple[str, str]]:
    return [
        ("ID", one.ref), ("When", text.clock(one.at / 1000)), ("Code", one.code), ("Reason", text.cell(one.reason).text),
        ("Task", text.cell(one.name).text if one.name else ""), ("Task id", one.id if one.id != one.ref else ""),
        ("Queue", text.cell(one.queue).text), ("Attempt", str(one.attempt or "")),
    ]


def _readable(one: DeadLetter) -> str:
    if one.base64:
        return _dump(one.original[:_SHOWN])
    shown = _shown(one)
    return text.printable(shown[:_SHOWN]) + ("…" if len(shown) > _SHOWN else "")


def _dump(raw: bytes) -> str:
    """Sixteen bytes a line, as numbers and as characters."""
    lines = []
    for at in range(0, len(raw), 16):
        part = raw[at : at + 16]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        lines.append(f"{at:06x}  {part.hex(' '):<47}  {shown}")
    return "\n".join(lines)


COMMANDS: tuple[click.Command, ...] = (dead,)
