"""What the tests of the terminal dashboard share: tasks with names that would be markup, the display under a pilot, a pseudo-terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from harness import hold

import krq
from krq.terminal.app import Dashboard

#: what would be red, blink or clear the screen
NAME, WORKER, ERROR = "[red]name[/red]", "[b]w[/b]", "[blink]broke[/nosuch] \x1b[2J\x9b2J\u202e"
SMALL, LARGE = (80, 24), (200, 50)

app = krq.KRQ()


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(name=NAME, retries=0)
def hostile(path: str) -> str:
    """Fails while there is such a file."""
    if Path(path).exists():
        raise ValueError(ERROR)
    return "mended"


app.task(hold)


class Display:
    """The display, driven by keys and read as text."""

    def __init__(self, dashboard: Dashboard, press: Callable[..., Awaitable[None]]) -> None:
        self.dashboard = dashboard
        self.press = press

    @property
    def text(self) -> str:
        """The whole screen, line by line."""
        return "\n".join(strip.text for strip in self.dashboard.screen._compositor.render_strips())

    async def until(self, condition: Callable[[], object], what: str, timeout: float = 10.0) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < deadline, f"not within {timeout} s: {what}; the screen:\n{self.text}"
            await asyncio.sleep(0.05)

    async def shows(self, *texts: str) -> None:
        for text in texts:
            await self.until(lambda text=text: text in self.text, f"{text!r} is shown")

    async def hides(self, text: str) -> None:
        await self.until(lambda: text not in self.text, f"{text!r} is not shown")


def drive(app: krq.KRQ, scenario: Callable[[Display], Awaitable[None]], size: tuple[int, int] = SMALL, *, read_only: bool = False) -> None:
    """Run the display at this size, and this beside it."""

    async def run() -> None:
        dashboard = Dashboard(app, 0.2, read_only=read_only)
        async with dashboard.run_test(size=size, notifications=True) as pilot:
            await scenario(Display(dashboard, pilot.press))

    asyncio.run(run())


#: makes its standard input the terminal that it can be interrupted from, and goes on as the rest of the line
CONTROLLING = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"


class Terminal:
    """A command on a pseudo-terminal of 80 × 24."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], folder: Path | None = None) -> None:
        self._mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._theirs = theirs
        self.before = termios.tcgetattr(theirs)
        command = [sys.executable, "-c", CONTROLLING, *command]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
                                        env={**environ, "TERM": "xterm-256color"})
        self.out = ""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self._mine)
        os.close(self._theirs)

    def read(self, wait: float = 0.05) -> str:
        """What has come by now."""
        while select.select([self._mine], [], [], wait)[0]:
            self.out += os.read(self._mine, 65536).decode(errors="replace")
            wait = 0
        return self.out

    def until(self, text: str, timeout: float = 20.0) -> None:
        deadline = time.monotonic() + timeout
        while text not in self.read():
            assert time.monotonic() < deadline, f"{text!r} did not come; there is:\n{self.out[-3000:]!r}"
            assert self.process.poll() is None or text in self.read(), f"it ended with {self.process.returncode}:\n{self.out[-3000:]}"

    def type(self, keys: str) -> None:
        os.write(self._mine, keys.encode())

    def ended(self, timeout: float = 10.0) -> int:
        """Wait for the end, reading what comes; the exit code."""
        deadline = time.monotonic() + timeout
        while self.process.poll() is None:
            self.read()
            assert time.monotonic() < deadline, f"it goes on:\n{self.out[-2000:]!r}"
        self.read()
        return self.process.returncode

    @property
    def restored(self) -> bool:
        """Whether the terminal is as it was: its settings, its own screen, its cursor, no reports of the mouse."""
        last = {name: self.out.rfind(f"\x1b[?{name}h") <= self.out.rfind(f"\x1b[?{name}l") for name in ("1049", "1000", "2004")}
        cursor = self.out.rfind("\x1b[?25h") >= self.out.rfind("\x1b[?25l")
        return all(last.values()) and cursor and termios.tcgetattr(self._theirs) == self.before


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1], queues=["default", "holding"])
    app.run(processes=int(sys.argv[2]))
