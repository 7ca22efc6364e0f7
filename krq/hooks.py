"""The seam for modules: what one may hook into, and what it gets to see.

A module is one object with some of these methods. Policies (``submit``, ``outcome``) decide: when one
raises, what it was asked about does not happen. Observers (all others) may fail; that is logged and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from krq import containment
from krq.containment import Containment
from krq.errors import OptionError
from krq.message import Message
from krq.outcome import Outcome

if TYPE_CHECKING:
    from krq.task import Task

M = TypeVar("M", bound="Module")


class Attempt(msgspec.Struct, kw_only=True, dict=False):
    """One attempt, as modules and the running function see it."""

    message: Message
    id: str
    number: int
    """1, 2, …: the fencing token within an epoch"""
    epoch: int
    failures: int
    deaths: int
    queue: str
    worker: str
    task: Task[..., Any] | None
    """None where nobody registered the name and a catch-all function serves it"""
    sent: float
    """Unix seconds"""

    @property
    def containment(self) -> Containment:
        """The limits of its task."""
        return containment.NONE if self.task is None else self.task.containment

    @property
    def timeout(self) -> float | None:
        """Seconds it may run: as the call says, else as the task does."""
        return self.containment.timeout if self.message.timeout is None else self.message.timeout

    @property
    def fence(self) -> tuple[int, int]:
        """Rises with each attempt, also when Redis lost all it knew. Hand it to stores that compare."""
        return (self.epoch, self.number)


class Received(Protocol):
    """A task that a worker has got, and not begun."""

    @property
    def id(self) -> str:
        """Its id."""
        ...

    @property
    def attempt(self) -> int:
        """Which one this will be."""
        ...

    @property
    def message(self) -> Message | None:
        """The request; never None here."""
        ...


class Say(Protocol):
    """Hands bytes from a process that has one task to the module's ``heard`` in the worker's child. Thread-safe."""

    def __call__(self, data: bytes, *, wait: bool = False) -> bool:
        """False: the pipe is full, and nothing was said. ``wait``: wait until there is room. At most 16 KiB at a time, unless it waits."""
        ...


class Module:
    """Base of all modules: every hook does nothing."""

    #: options of ``@app.task`` and ``.options()`` that belong to this module, with their types
    options: Mapping[str, Any] = {}
    #: options of ``@app.task`` alone, which can't travel with a call; of one name, this type goes before that of ``options``
    task_options: Mapping[str, Any] = {}

    def attach(self, app: Any) -> None:
        """An app was made with this module. ``app``: the ``KRQ``; it has no connection yet."""

    def check(self, task: Task[..., Any]) -> None:
        """A task was registered: raise ``OptionError`` when the options make no sense together."""

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:
        """A message is about to be published: return it, or another, or raise a ``SubmissionError``."""
        return message

    def outcome(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """An attempt has ended: return its outcome, or another. Called in the slot that ran it."""
        return outcome

    def received(self, tasks: Sequence[Received]) -> None:
        """A worker child has got tasks; some of them may be handed back before they begin. Called in its main thread."""

    def started(self, attempt: Attempt) -> None:
        """An attempt begins. Called in its slot."""

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """An attempt has ended with what the policies made of it. Called in its slot."""

    def worker_started(self, worker_id: str) -> None:
        """A worker child is ready to take. Called in its main thread."""

    def worker_stopping(self, worker_id: str) -> None:
        """A worker child takes no more. Called in its main thread."""

    def worker_stopped(self, worker_id: str) -> None:
        """All that a worker child ran has ended, or its time is over, and it leaves. Called in its main thread; must not take long."""

    def host_started(self, say: Say) -> None:
        """A process for tasks that run alone begins. Called in it: of the hooks, it has this and the next, and no clients."""

    def host_ended(self, attempt: Attempt) -> None:
        """An attempt has run in such a process, and its outcome is told to the child next. Called in its main thread."""

    def heard(self, data: bytes) -> None:
        """What this module said in such a process. Called in the child, in the slot that waits for the attempt."""

    def tick(self, now: float) -> None:
        """About once a second in every worker child, in its main thread. ``now``: Unix seconds."""


def known_options(modules: Iterable[Module], *, of_task: bool) -> dict[str, Any]:
    """All options of tasks, or of calls, that the modules own, with their types."""
    options: dict[str, Any] = {}
    for module in modules:
        options.update(module.options)
        if of_task:
            options.update(module.task_options)
    return options


def find(modules: Iterable[Module], kind: type[M]) -> M:
    """The module of this kind. Raises ``OptionError`` where the app was made without it."""
    for each in modules:
        if isinstance(each, kind):
            return each
    raise OptionError(f"This app has no module {kind.__name__}", cure=f"Add {kind.__module__}.{kind.__name__}() to KRQ(modules=[...]).")
