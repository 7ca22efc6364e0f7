"""Children: tasks that a running task makes and ends with, and tasks that it is replaced by.

They are collected while its function runs and sent once it has returned, before its end is settled: an attempt that fails sends
none. Their ids are made of the parent's id and a counter, so that another attempt, after a worker died in between, sends the same tasks
again, which admission drops.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from krq import message
from krq.call import Parent
from krq.errors import ChildLimit, KRQError, OptionError
from krq.handle import AnyHandle
from krq.hooks import Attempt
from krq.message import OnFailure
from krq.outcome import Family
from krq.sent import Results
from krq.workflow import Chain, Group, Plan, Signature, Work, plan

#: most tasks that one attempt makes, and most generations of children below a task
MOST, MAX_DEPTH = 10_000, 32
#: most results of a group that a task is replaced by: the list is made by a script
MOST_RESULTS = 500
#: longest id of a parent that its children's ids show
_SHOWN = 100


class Children:
    """What one attempt makes. For the thread that runs it."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._n = 0
        self._messages: list[tuple[str, bytes]] = []
        self._ids: list[str] = []
        self._awaited: list[str] = []
        self._how = "own"
        self._on_failure: OnFailure | None = None

    def spawn(self, work: Any, args: Sequence[Any], kwargs: Mapping[str, Any], on_failure: OnFailure | None) -> AnyHandle:
        """Add a task with its arguments, or a signature, chain or group. Raises as ``Context.spawn``."""
        if isinstance(work, Signature | Chain | Group):
            if args or kwargs:
                raise OptionError(f"{work!r} has its arguments", cure="Give arguments to a task: spawn(add, 1, 2).")
        elif hasattr(work, "si"):
            work = work.si(*args, **kwargs)
        else:
            raise OptionError(f"{work!r} can't be a child", cure="Give a task and its arguments, or a signature, chain or group.")
        if on_failure not in (None, "fail", "continue"):
            raise OptionError(f"on_failure={on_failure!r} is no policy for children", cure='Use "fail" or "continue".')
        if on_failure is not None and self._on_failure not in (None, on_failure):
            raise OptionError("All children of a task have one on_failure", cure="Say it once, or the same each time.")
        self._on_failure = on_failure or self._on_failure
        return self._add(work)[0]

    def replace(self, work: Work[Any], max_bytes: int) -> None:
        """The task is replaced by this: its result is the work's, of a group at most so many bytes."""
        handle, made = self._add(work)
        last = made.shape
        while getattr(last, "in_order", False):
            last = cast(Any, last).parts[-1]
        if getattr(last, "flat", False):
            raise OptionError("A task can't be replaced by a map", cure="End it with a task that takes the list.")
        if getattr(last, "parts", None) is None:
            self._how = "one"
        elif len(handle.tails) > MOST_RESULTS:
            cure = "End it with a task that takes the list."
            raise ChildLimit(f"A task can't be replaced by a group of {len(handle.tails):,}, at most {MOST_RESULTS}", cure=cure)
        else:
            self._how = f"{len(cast(Any, last).parts)} {max_bytes}"

    def _add(self, work: Work[Any]) -> tuple[AnyHandle, Plan]:
        parent = self._attempt.message
        if parent.depth >= MAX_DEPTH:
            raise ChildLimit(f"Task {self._attempt.id} is a child of children, {MAX_DEPTH} deep", cure="Let a chain or a group do it.")
        made = plan(work, self._new_id)
        if len(made.calls) + len(self._ids) > MOST:
            raise ChildLimit(f"Task {self._attempt.id} would make more than {MOST:,} tasks", cure="Let children make more of them.")
        if made.sender is not None:
            above = Parent(self._attempt.id, parent.depth + 1, parent.workflow or self._attempt.id)
            self._messages += made.sender.build_children(made.calls, above)
        handle = made.handle(cast(Results, _NotHere(self._attempt.id)))
        self._ids += [call.options["task_id"] for call in made.calls]
        self._awaited += handle.tails
        return handle, made

    def _new_id(self) -> str:
        base = self._attempt.id
        if len(base) > _SHOWN:
            base = hashlib.blake2b(base.encode(), digest_size=16).hexdigest()
        if self._attempt.message.generation:
            base = f"{base}.r{self._attempt.message.generation}"
        self._n += 1
        return f"{base}.{self._n}"

    def family(self) -> Family | None:
        """All of it, for the end of the attempt; None: it has made nothing."""
        if not self._ids:
            return None
        policy = "c" if self._on_failure == "continue" else ""
        awaited, made = message.shortened(self._awaited), message.shortened(self._ids)
        return Family(tuple(self._messages), tuple(awaited), self._how, tuple(made), policy)


class _NotHere:
    """Stands where handles have the app: a child has not been sent while its parent's function runs."""

    def __init__(self, parent: str) -> None:
        self._parent = parent

    def __getattr__(self, name: str) -> NoReturn:
        cure = "Let a task behind it take its result: spawn(child.s(…) | next.s()); or return the work."
        raise KRQError(f"A child of {self._parent} is sent when its parent's function has returned: .{name}() can't wait for it", cure=cure)
