"""What opens above the tables: a question, help, the story of a task, the end of a worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import Button, Footer, Static

from krq import phrases, telling
from krq.info import Arguments, Story, TaskInfo, WorkerFailure
from krq.outcome import ErrorInfo

HELP = """\
1 2 3 4, tab   from table to table; arrows, page keys, home, end in it
enter          the story of a task, as `krq why` tells it; the tasks of a
               queue or a worker; the evidence and last log lines of a
               worker that died
/              filter; enter keeps it, escape takes it away
p              pause the queue of the row, or let it go on
r              run a failed or cancelled task again
c              cancel a task
q, Ctrl-C      leave

p, r and c ask before they act. A filter has words that a row must have,
and may have
  failed       or waiting, scheduled, queued, processing, success,
               cancelled: table 3 has these, not those in progress
  queue:mail   or name:send, worker:w1: exactly of this one

Table 3 has the first 200 tasks, table 4 the last 100 failures. Charts: a
bar for each look; ran, waited: medians of the last 100 tasks."""


class Confirm(ModalScreen[bool]):
    """A question; "No" unless somebody says yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"), Binding("n,escape,q", "dismiss(False)", "No"),
        Binding("left,right", "app.focus_next", show=False),
    ]

    def __init__(self, question: str, note: str = "") -> None:
        super().__init__()
        self._question, self._note = question, note

    def compose(self) -> ComposeResult:
        """The question and two buttons."""
        with Vertical(id="dialog", classes="question"):
            yield Static(Text(phrases.one_line(self._question), "bold"))
            if self._note:
                yield Static(Text(phrases.one_line(self._note)))
            with Horizontal(id="buttons"):
                yield Button("No (n)", id="no", compact=True)
                yield Button("Yes (y)", id="yes", variant="warning", compact=True)

    def on_mount(self) -> None:
        """Enter alone changes nothing."""
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Answer."""
        self.dismiss(event.button.id == "yes")


class Paper(ModalScreen[None]):
    """A page of text to scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,enter,question_mark", "dismiss", "Close")]

    def __init__(self, title: str, text: Text) -> None:
        super().__init__()
        self._title, self._text = phrases.one_line(title), text

    def compose(self) -> ComposeResult:
        """The text in a frame."""
        with VerticalScroll(id="dialog", classes="paper"):
            yield Static(self._text, id="text")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        """Keys scroll."""
        page = self.query_one("#dialog")
        page.border_title = Content(self._title)
        page.focus()


class TaskPaper(Paper):
    """The story of a task, told anew while it is open."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("r", "ask('retry')", "Retry"), Binding("c", "ask('cancel')", "Cancel")]

    class Asked(Message):
        """Somebody wants to do something to this task."""

        def __init__(self, act: str, task: TaskInfo) -> None:
            super().__init__()
            self.act, self.of = act, task

    def __init__(self, task: TaskInfo) -> None:
        super().__init__(f"{task.name} {task.id}", Text("Asking …", "dim"))
        self.of = task

    def tell(self, text: Text) -> None:
        """Show this from now on."""
        self.query_one("#text", Static).update(text)

    def action_ask(self, act: str) -> None:
        """Pass it on."""
        self.post_message(self.Asked(act, self.of))


def told(story: Story, given: Arguments | None) -> Text:
    """A story with the arguments and the last error."""
    text = Text()
    for line in [telling.head(story), [], *_arguments(given), *telling.lines(story), *_traceback(story.task.error if story.task else None)]:
        for part in line:
            text.append(part.text, " ".join([*(["bold"] if part.bold else []), *([part.colour] if part.colour else [])]))
        text.append("\n")
    return text


def _arguments(given: Arguments | None) -> Iterator[telling.Line]:
    if given is not None and (given.args or given.kwargs):
        shown = phrases.one_line(phrases.arguments(given))
        yield [phrases.Styled("Arguments")]
        yield [phrases.Styled("  " + (shown if len(shown) <= 2_000 else shown[:1_999] + "…"))]
        yield []


def _traceback(error: ErrorInfo | None) -> Iterator[telling.Line]:
    if error is not None and error.traceback:
        yield []
        yield [phrases.Styled("The worker's traceback")]
        yield from ([phrases.Styled(f"  {line}")] for line in phrases.printable(error.traceback.rstrip()).splitlines())


def evidence(one: WorkerFailure) -> Text:
    """What is known of the end of a worker."""
    facts = [
        ("Died", phrases.clock(one.at)), ("Cause", one.cause), ("Last beat", phrases.clock(one.beat) if one.beat else "none was seen"),
        ("Host", one.host), ("Incarnation", one.incarnation), ("Held", f"{phrases.count(one.held, 'task')}, given to others"),
        ("Was running", ", ".join(one.ran)),
    ]
    text = Text()
    for label, value in facts:
        if value:
            text.append(f"{label:<13}", "dim").append(f"{phrases.one_line(value)}\n", "red" if label == "Cause" else "")
    text.append("\nIts last lines\n", "bold")
    for line in one.tail or ["(nobody kept its log)"]:
        text.append(f"  {phrases.one_line(line)}\n")
    return text


