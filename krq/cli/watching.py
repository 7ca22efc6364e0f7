"""``--watch``: the same command again and again, in place on a terminal, one after the other elsewhere."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import click
import msgspec

from krq.cli import text

SECONDS = 2.0
#: another screen, without a cursor and without lines that go on in the next; and back
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
#: to the first line; away with the rest of the line, of the screen
_HOME, _REST, _BELOW = "\x1b[H", "\x1b[K", "\x1b[J"


def watched(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command that prints ``--watch``. Stands below ``connected``, so that the app is made once."""

    @click.option("--watch", "-w", "seconds", metavar="[SECONDS]", is_flag=False, flag_value=SECONDS, type=click.FloatRange(0.1, 3600),
                  help=f"Print again every SECONDS, or every {SECONDS:g}, until Ctrl-C; with --json a line each time.")
    @functools.wraps(function)
    def command(*args: Any, seconds: float | None, **kwargs: Any) -> None:
        once = functools.partial(function, *args, **kwargs)
        if seconds is None:
            once()
            return
        with contextlib.suppress(KeyboardInterrupt):  # the way to end it
            if kwargs.get("as_json"):
                _lines(once, seconds)
            elif sys.stdout.isatty():
                _in_place(once, seconds)
            else:
                _again(once, seconds)

    return command


def _lines(once: Callable[[], None], seconds: float) -> None:
    """One document a line."""
    for shown in _captured(once, seconds):
        if shown:
            click.echo(msgspec.json.format(shown.encode(), indent=-1))
        sys.stdout.flush()


def _again(once: Callable[[], None], seconds: float) -> None:
    """One below the other, an empty line between."""
    for n, shown in enumerate(_captured(once, seconds)):
        click.echo("\n" * (n > 0) + shown, nl=False)
        sys.stdout.flush()


def _in_place(once: Callable[[], None], seconds: float) -> None:
    """On a screen of its own. What was seen last stays when it is left."""
    title = f"Every {seconds:g} s: {click.get_current_context().command_path}"

    def headed() -> None:
        click.echo(click.style(f"{title}   {time.strftime('%H:%M:%S')}\n", dim=True))
        once()

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    looks = _captured(headed, seconds, errors=True)
    shown = next(looks)
    try:
        sys.stdout.write(_ENTER)
        while True:
            sys.stdout.write(_HOME + f"{_REST}\n".join(_cut(shown.splitlines())) + _REST + _BELOW)
            sys.stdout.flush()
            shown = next(looks)
    finally:
        sys.stdout.write(_LEAVE + shown)


def _cut(lines: list[str]) -> list[str]:
    """As many as the terminal has."""
    height = shutil.get_terminal_size().lines
    more = len(lines) - height + 1
    return lines if more <= 1 else [*lines[: height - 1], f"… {more} more lines: a taller window shows them"]


def _captured(once: Callable[[], None], seconds: float, *, errors: bool = False) -> Iterator[str]:
    """What it prints, every so many seconds; with ``errors`` what it tells on stderr, too.

    A server that is away is told, and asked again the next time; but not the first time: then the command fails as it would without us.
    """
    due, first = time.monotonic(), True
    while True:
        held = _Held(tty=sys.stdout.isatty())
        with contextlib.redirect_stdout(held), contextlib.redirect_stderr(held if errors else sys.stderr):
            try:
                once()
            except ConnectionError as error:
                if first:
                    raise
                text.fail(str(error))
        yield held.getvalue()
        first, due = False, max(due + seconds, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


class _Held(io.StringIO):
    """Says that it is a terminal where what it stands for is one: then tables have colours, and are cut to its width."""

    def __init__(self, *, tty: bool) -> None:
        super().__init__()
        self._tty = tty

    def isatty(self) -> bool:
        """See above."""
        return self._tty
