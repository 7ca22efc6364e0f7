"""The terminal dashboard, driven by keys, on a real server with a real worker."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import Servers, Worker, until
from terminal_house import ERROR, LARGE, NAME, SMALL, WORKER, Display, Terminal, drive

from krq import KRQ, TaskStatus
from krq.dev.valkey import ValkeyServer
from krq.info import TaskFilter
from krq.terminal.charts import bars, short
from krq.terminal.filter import Wanted
from krq.terminal.table import Column, Fitted, fit

DASHBOARD = [sys.executable, "-P", "-m", "krq", "dashboard", "--interval", "0.2"]


class World(NamedTuple):
    """A namespace with a worker whose first child was killed."""

    servers: Servers
    app: KRQ
    gate: Path
    """while it is there tasks fail, or hold"""


@pytest.fixture(scope="module")
def world(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("terminal")
    (folder / "gate").touch()
    servers = Servers(valkey.url, valkey.url, f"t{os.urandom(5).hex()}", heartbeat=0.3, lease=3, partitions=2)
    worker = Worker(servers, folder / "w.log", WORKER, script="terminal_house.py").ready()
    with servers.app() as app:
        os.kill(worker.children[0], signal.SIGKILL)
        until(lambda: app.failures() and app.workers(), "the child was killed, and another lives")
        app.submit("add", 1, 2).result(timeout=20)
        app.submit(NAME, str(folder / "gate")).wait(timeout=20)
        yield World(servers, app, folder / "gate")
    worker.close()


@pytest.fixture
def held(world: World) -> Iterator[str]:
    """A task that runs until it is cancelled."""
    handle = world.app.handle(world.app.send_task("hold", [str(world.gate)], queue="holding"))
    until(lambda: world.app.status(handle).progress, "it runs")
    yield handle.id
    handle.cancel()
    handle.wait(timeout=20)


# --- what is seen --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SMALL, LARGE], ids=["80x24", "200x50"])
def test_everything_is_seen(world: World, held: str, size: tuple[int, int]) -> None:
    async def look(display: Display) -> None:
        await display.shows("holding", "1 Queues 2", "2 Workers 1", "3 Running 1", "4 Failures 2", "BACKLOG", "ended/s", "waited", "q Quit")
        for key, texts in (
            ("2", (WORKER, "1/")), ("3", ("hold", "processing", " s ", "1/3", WORKER)),
            ("4", (NAME, "ValueError: [blink]broke[/nosuch]", "killed by SIGKILL")),
        ):
            await display.press(key)
            await display.shows(*texts)
        if size == LARGE:
            await display.shows("QUEUE", "HOST", "PROGRESS", "WHY")
        assert not set("\x1b\x9b\u202e") & set(display.text)

    drive(world.app, look, size)


def test_the_story_of_a_task_and_of_a_death(world: World) -> None:
    async def read(display: Display) -> None:
        await display.shows("4 Failures 2")
        await display.press("4", "enter")
        await display.shows("What happened", "Attempt 1 began on " + WORKER, "What comes next", f"{NAME} ")
        await display.press("pagedown", "pagedown")
        await display.shows("raise ValueError(ERROR)")
        await display.press("escape", "down", "enter")
        await display.shows("killed by SIGKILL", "Its last lines")
        await display.press("q", "question_mark")
        await display.shows("from table to table", "medians of the last 100 tasks")

    drive(world.app, read)


def test_the_filter(world: World, held: str) -> None:
    async def search(display: Display) -> None:
        await display.press("3")
        await display.shows("hold ")
        await display.press("slash", *"nothing")
        await display.shows("Nothing here fits the filter.")
        await display.press("escape")
        await display.shows("hold ")
        await display.press("slash", *"success", "enter")
        await display.shows("3 Success ", "add ")
        await display.hides("processing")
        await display.press("1", "escape", "end", "enter")
        await display.shows("queue:holding", "3 Tasks ", "hold ")
        await display.hides("success")

    drive(world.app, search)


# --- acts ----------------------------------------------------------------------------------------


def test_a_task_is_run_again_when_somebody_says_yes(world: World) -> None:
    app = world.app
    (failed,) = app.tasks(TaskStatus.FAILED)

    async def mend(display: Display) -> None:
        await display.press("4")
        await display.shows(NAME)
        await display.press("r")
        await display.shows(f"Run {NAME} again?")
        await display.press("enter")  # "No" is what enter means
        await display.hides("again?")
        assert app.status(failed.id) == failed
        await display.press("r", "y")
        await display.shows("was sent again.")
        await display.until(lambda: app.status(failed.id).finished != failed.finished, "it has run again")

    drive(app, mend)


def test_a_task_is_cancelled_when_somebody_says_yes(world: World, held: str) -> None:
    async def stop(display: Display) -> None:
        await display.press("3")
        await display.shows("hold ")
        await display.press("c")
        await display.shows("Cancel hold?")
        await display.press("n")
        await display.hides("Cancel hold?")
        assert world.app.status(held).status is TaskStatus.PROCESSING
        assert world.app.why(held).reasons[0].code != "cancel"
        await display.press("enter", "c")  # the same from its story
        await display.shows("Cancel hold?", held)
        await display.press("tab", "enter")
        await display.until(lambda: world.app.status(held).status is TaskStatus.CANCELLED, "it is cancelled")
        await display.shows("The worker of hold was told")

    drive(world.app, stop)


def test_a_queue_is_paused_and_goes_on(world: World) -> None:
    def paused() -> bool:
        return world.app.stats().queues["default"].paused

    async def act(display: Display) -> None:
        await display.shows("default")
        await display.press("p")
        await display.shows("Pause the queue default?")
        await display.press("n")
        assert not paused()
        await display.press("p", "y")
        await display.until(paused, "it is paused")
        await display.shows(" paused ")
        await display.press("p")
        await display.shows("Let the queue default go on?")
        await display.press("y")
        await display.until(lambda: not paused(), "it goes on")

    drive(world.app, act)


def test_read_only_refuses(world: World) -> None:
    async def act(display: Display) -> None:
        await display.shows("read-only", "default")
        for keys in ("1p", "4r", "4c"):
            await display.press(*keys)
            await display.shows("started with --read-only")
            assert "(y)" not in display.text

    before = world.app.stats()
    drive(world.app, act, read_only=True)
    assert world.app.stats().queues["default"].paused is before.queues["default"].paused is False


def test_a_server_that_goes_and_comes(own_valkey: ValkeyServer) -> None:
    servers = Servers(own_valkey.url, own_valkey.url, "t")

    async def watch(display: Display) -> None:
        await display.shows("There are no queues yet.")
        own_valkey.stop()
        await display.shows("does not answer", "trying again")
        own_valkey.start()
        app.send_task("add", [1, 2], queue="after")
        await display.shows("after ")
        await display.hides("does not answer")

    with servers.app() as app:
        app.stats()
        drive(app, watch)


# --- as users start it -----------------------------------------------------------------------------


@pytest.mark.parametrize("leave", ["q", "\x03", "TERM"])
def test_it_leaves_the_terminal_as_it_was(world: World, leave: str) -> None:
    with Terminal(DASHBOARD, world.servers.environ) as terminal:
        terminal.until("holding")
        assert not terminal.restored
        terminal.process.terminate() if leave == "TERM" else terminal.type(leave)
        assert terminal.ended() == 0
        assert terminal.restored


def test_a_server_that_hangs_keeps_nobody(own_valkey: ValkeyServer) -> None:
    with Terminal(DASHBOARD, Servers(own_valkey.url, own_valkey.url, "t").environ) as terminal:
        terminal.until("no queues yet")
        assert own_valkey.pid is not None
        os.kill(own_valkey.pid, signal.SIGSTOP)
        try:
            terminal.until("The servers do not answer")
            terminal.until("does not answer")  # after five seconds; and the next look hangs as long
            began = time.monotonic()
            terminal.type("q")
            assert terminal.ended() == 0
            assert time.monotonic() - began < 4
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)


def test_without_the_library_it_says_what_to_install(world: World) -> None:
    code = "import sys; sys.modules['textual'] = None; from krq.cli import main; sys.exit(main(['dashboard']))"
    with Terminal([sys.executable, "-c", code], world.servers.environ) as terminal:
        assert terminal.ended() == 1
        assert "krq dashboard needs textual, which is not installed. pip install 'krq[terminal]' [CONFIG_INVALID]" in terminal.out


# --- its parts -----------------------------------------------------------------------------------


def test_columns_fit_their_room() -> None:
    columns = [Column("NAME", 6), Column("N", right=True), Column("MORE", 8, 2), Column("WHY", 10, 1)]
    assert fit(columns, [20, 3, 0, 0], 40, 2) == [Fitted(0, 20), Fitted(1, 3)], "what is empty takes no room"
    assert [one.which for one in fit(columns, [6, 3, 8, 10], 35, 2)] == [0, 1, 2, 3]
    assert [one.which for one in fit(columns, [6, 3, 8, 10], 34, 2)] == [0, 1, 3]
    assert fit(columns, [30, 3, 8, 10], 12, 2) == [Fitted(0, 6), Fitted(1, 3)]
    for room in range(13, 90):
        assert sum(one.width + 2 for one in fit(columns, [30, 3, 8, 40], room, 2)) == min(room, 89)


def test_bars_and_numbers() -> None:
    assert bars([0, 1, 4, 8], 1, 8) == [" ▁▄█"]
    assert bars([0.001, 8], 2, 8) == [" █", "▁█"], "what is not 0 can be seen"
    assert bars([0, 0], 1, 0) == ["  "]
    shown = ["0", "0.4", "9", "12", "9,999", "99,999", "123k", "1.2M", "12M", "1.2G"]
    assert [short(number) for number in (0, 0.4, 9, 12.3, 9_999, 99_999, 123_456, 1_200_000, 12e6, 1.2e9)] == shown


def test_filters() -> None:
    assert Wanted.parse("") == Wanted()
    assert Wanted.parse("Send failed queue:mail") == Wanted(("send",), TaskStatus.FAILED, queue="mail")
    assert Wanted.parse("status:nosuch queue: a:b") == Wanted(("a:b",))
    assert Wanted.parse("x").tasks == TaskFilter(status=TaskStatus.PROCESSING)
    assert Wanted.parse("name:x").tasks == TaskFilter(name="x")
    assert Wanted.parse("a b").fits(["xA", "B"])
    assert not Wanted.parse("a b").fits(["a"])
    assert ERROR  # see terminal_house
