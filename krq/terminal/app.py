"""The display: tables and charts, keys, and what they do. All of it runs in the main thread; servers are asked in others."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.events import Resize
from textual.message import Message
from textual.widgets import DataTable, Footer, Input, Static

from krq import phrases
from krq.config import mask
from krq.core import KRQ
from krq.errors import KRQError
from krq.info import QueueStats, TaskInfo, WorkerFailure, WorkerInfo
from krq.terminal import dialogs
from krq.terminal.acts import ACTS, Making
from krq.terminal.charts import Charts, short
from krq.terminal.filter import Wanted
from krq.terminal.pane import Pane
from krq.terminal.poll import Look, Poller
from krq.terminal.rows import KINDS

#: from this size on all tables are seen at once; from this width on side by side
TALL, WIDE = 36, 130
#: seconds without an answer, beside three intervals, after which that is told
LATE = 3.0
#: seconds between two tellings of an open story
STORY = 2.0


class Line(Input):
    """Where the filter is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Keep", key_display="⏎"), Binding("escape", "app.unfilter", "Clear"),
    ]


class Dashboard(App[None]):
    """``krq dashboard``."""

    TITLE = "krq dashboard"
    CSS_PATH = "style.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(str(n), f"pane({n - 1})", show=False) for n in range(1, len(KINDS) + 1)),
        Binding("tab", "turn(1)", "Next", key_display="tab", priority=True), Binding("shift+tab", "turn(-1)", show=False, priority=True),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "unfilter", show=False),
        Binding("p", "act('pause')", "Pause"), Binding("r", "act('retry')", "Retry"), Binding("c", "act('cancel')", "Cancel"),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"), Binding("ctrl+c,ctrl+q", "quit", show=False, priority=True),
    ]

    class Looked(Message):
        """A look at the servers, or why there was none."""

        def __init__(self, found: Look | Exception) -> None:
            super().__init__()
            self.found = found

    def __init__(self, app: KRQ, interval: float = 1.0, *, read_only: bool = False) -> None:
        super().__init__()
        self.krq = app
        self.read_only = read_only
        self.wanted = Wanted()
        self.look: Look | None = None
        self._interval = interval
        self._current = 0
        self._trouble = ""
        self._answered = self._told = time.monotonic()
        self._head, self._banner, self._totals, self._tabs = (Static(id=name) for name in ("title", "banner", "totals", "tabs"))
        self._charts = Charts()
        self._panes = [Pane(kind, n) for n, kind in enumerate(KINDS, 1)]
        self._line = Line(id="filter", placeholder="words, a status, name: queue: worker:", compact=True)
        self._poller = Poller(app, interval, lambda found: self._tell(self.Looked(found)))

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield from (self._head, self._banner, self._charts, self._totals, self._tabs)
        yield Container(*self._panes, id="panes")
        yield self._line
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to look. Whoever ends the process finds the terminal as it was."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            with contextlib.suppress(RuntimeError, ValueError):  # not in the main thread: then signals are another's
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.action_pane(0)
        self.set_interval(0.5, self._tick)
        self._draw()
        self._poller.start()

    def on_unmount(self) -> None:
        """No more looks."""
        self._poller.stop()

    def on_resize(self, event: Resize) -> None:
        """One table at a time, or all."""
        everything = event.size.height >= TALL
        self.screen_stack[0].set_class(everything, "all")
        self.screen_stack[0].set_class(everything and event.size.width >= WIDE, "grid")
        self._draw()

    # --- what is seen ------------------------------------------------------------------------

    def on_dashboard_looked(self, event: Looked) -> None:
        """Show it."""
        if isinstance(event.found, KRQError):
            self._trouble = event.found.cause
        elif isinstance(event.found, Exception):
            raise event.found
        else:
            self.look, self._trouble, self._answered = event.found, "", time.monotonic()
        self._draw()

    def _tick(self) -> None:
        self._draw_banner()
        paper = self.screen
        if isinstance(paper, dialogs.TaskPaper) and time.monotonic() - self._told > STORY:
            self._tell_story(paper)

    def _draw(self) -> None:
        self._draw_banner()
        self._head.update(self._title(), layout=False)
        if self.look is None:
            return
        self._charts.show(self.look.points)
        self._totals.update(_totals(self.look), layout=False)
        for pane in self._panes:
            pane.show(self.look, self.wanted)
        self._tabs.update(self._headings(), layout=False)

    def _title(self) -> Text:
        config = self.krq.config
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("KRQ ", "bold").append(phrases.one_line(config.namespace), "bold cyan")
        text.append(f"  {phrases.one_line(mask(config.broker))}", "dim")
        if mask(config.broker) != mask(config.backend):
            text.append(f"  {phrases.one_line(mask(config.backend))}", "dim")
        text.append("  read-only", "yellow") if self.read_only else None
        if self.look is not None:
            when = time.strftime("%H:%M:%S", time.localtime(self.look.seen.at))
            state = Text(f"● {when}", "red" if self._trouble else "green")
            text.truncate(max(0, self.size.width - 4 - state.cell_len), overflow="ellipsis", pad=True)
            text.append("  ").append_text(state)
        return text

    def _draw_banner(self) -> None:
        silent = time.monotonic() - self._answered
        late = silent > LATE + 3 * self._interval
        since = f" No look since {phrases.coarse(silent)}; trying again." if self.look is not None or late else " Trying again."
        said = self._trouble or ("The servers do not answer" if late else "")
        if said or self._banner.has_class("shown"):
            self._banner.set_class(bool(said), "shown")
            self._banner.update(Text(f"{phrases.one_line(said).rstrip('.')}.{since}" if said else ""))

    def _headings(self) -> Text:
        text = Text(no_wrap=True, overflow="ellipsis")
        for n, pane in enumerate(self._panes):
            text.append(f" {n + 1} {pane.heading} ", "reverse bold" if n == self._current else "")
            text.append(" ")
        return text

    @property
    def pane(self) -> Pane:
        """The table that keys go to."""
        return self._panes[self._current]

    # --- from table to table, and the filter ---------------------------------------------------

    def action_pane(self, number: int) -> None:
        """To this table."""
        self._current = number
        for n, pane in enumerate(self._panes):
            pane.set_class(n == number, "current")
        self.pane.table.focus()
        self._draw()

    def action_turn(self, by: int) -> None:
        """To the next table; in a dialog to the next button."""
        if len(self.screen_stack) > 1:
            self.screen.focus_next() if by > 0 else self.screen.focus_previous()
        else:
            self.action_pane((self._current + by) % len(KINDS))

    def action_filter(self) -> None:
        """Type a filter."""
        self._line.add_class("shown")
        self._line.focus()

    def action_unfilter(self) -> None:
        """Everything again."""
        self._line.value = ""
        self._leave_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while it is typed."""
        self.wanted = Wanted.parse(event.value)
        self._poller.want(self.wanted.tasks)
        self._draw()

    def on_input_submitted(self) -> None:
        """Keep it."""
        self._leave_filter()

    def _leave_filter(self) -> None:
        self._line.set_class(bool(self._line.value), "shown")
        self.pane.table.focus()

    def _filter_by(self, text: str) -> None:
        self._line.value = text
        self.action_pane(2)
        self._leave_filter()

    # --- one of them ---------------------------------------------------------------------------

    def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        """Enter, or a click on the chosen row."""
        self.action_story()

    def action_story(self) -> None:
        """What is behind the row."""
        row = self.pane.table.chosen
        match row.of if row is not None else None:
            case TaskInfo() as task:
                paper = dialogs.TaskPaper(task)
                self.push_screen(paper)
                self._tell_story(paper)
            case WorkerFailure() as death:
                self.push_screen(dialogs.Paper(f"The end of {death.worker}", dialogs.evidence(death)))
            case QueueStats() as queue:
                self._filter_by(f"queue:{queue.queue}")
            case WorkerInfo() as worker:
                self._filter_by(f"worker:{worker.id}")

    def _tell_story(self, paper: dialogs.TaskPaper) -> None:
        self._told = time.monotonic()

        def ask() -> Text:
            try:
                story = self.krq.why(paper.of.id)
                given = self.krq.arguments(paper.of.id)
            except KRQError as error:
                return Text(phrases.printable(str(error)), "red")
            if story.task is not None:
                paper.of = story.task
            return dialogs.told(story, given)

        self._ask(ask, lambda text: paper.tell(text) if paper.is_attached else None)

    def action_help(self) -> None:
        """The keys."""
        self.push_screen(dialogs.Paper("Keys", Text(dialogs.HELP)))

    # --- acts ----------------------------------------------------------------------------------

    def action_act(self, name: str) -> None:
        """Do this to the row, if somebody says yes."""
        row = self.pane.table.chosen
        self._act(ACTS[name], row.of if row is not None else None)

    def on_task_paper_asked(self, event: dialogs.TaskPaper.Asked) -> None:
        """The same, of the task whose story is open."""
        self._act(ACTS[event.act], event.of)

    def _act(self, make: Making, of: Any) -> None:
        if self.read_only:
            return self._say("This display is read-only: it was started with --read-only.", "warning")
        act = make(self.krq, of, self.look.seen.stats.queues if self.look is not None else {})
        if isinstance(act, str):
            return self._say(act, "warning")

        def run() -> tuple[str, str]:
            try:
                return act.refused if act.run() is False else act.done, "information"
            except KRQError as error:
                return str(error), "error"

        def answered(yes: bool | None) -> None:
            if yes:
                self._ask(run, lambda said: self._say(*said))

        self.push_screen(dialogs.Confirm(act.question, act.note), answered)
        return None

    def _say(self, text: str, severity: Any) -> None:
        self.notify(phrases.printable(text), severity=severity, markup=False)
        self._poller.hurry()

    # --- threads -------------------------------------------------------------------------------

    class Answer(Message):
        """What a thread has found, and who wants it."""

        def __init__(self, give: Callable[[], object]) -> None:
            super().__init__()
            self.give = give

    def _ask(self, call: Callable[[], Any], then: Callable[[Any], object]) -> None:
        """Call this in a thread, then that with its result. The thread keeps nobody from leaving, even if a server never answers."""

        def run() -> None:
            found = call()
            self._tell(self.Answer(lambda: then(found)))

        threading.Thread(target=run, name="krq-dashboard-ask", daemon=True).start()

    def on_dashboard_answer(self, event: Answer) -> None:
        """Pass it on."""
        event.give()

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody wants it
            self.post_message(message)


def _totals(look: Look) -> Text:
    last, stats = look.points[-1], look.seen.stats
    backlogs = [look.backlog.get(queue, -1) for queue in stats.queues]
    parts = [
        (last.ready, "ready", ""), (last.scheduled, "scheduled", ""), (last.waiting, "waiting", ""),
        ("?" if -1 in backlogs else sum(backlogs), "backlog", ""),
        (stats.dead, "dead letters", "red"), (stats.outbox, "not logged", "yellow"),
    ]
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, name, colour in parts:
        if number or not colour:
            text.append("  " if text else "")
            text.append(short(number) if isinstance(number, int) else number, f"bold {colour}".strip()).append(f" {name}", "dim")
    return text
