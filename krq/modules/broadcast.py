"""Broadcast: one task for each worker, in the worker's own inbox, and a roll call of the answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from krq import ids
from krq.call import Call
from krq.errors import OptionError
from krq.handle import BroadcastHandle
from krq.hooks import Module, find
from krq.info import StickyInfo
from krq.message import Message
from krq.modules import _sticky
from krq.modules._sticky import App, Newcomer, Sticky
from krq.registry import Registry
from krq.task import Task

#: seconds within which a worker must have started its member, where the call does not say
EXPIRES = 3600.0
#: a member goes before what else may stand in the inbox
PRIORITY = 100


class Broadcast(Module):
    """Owns ``KRQ.broadcast``, ``Task.broadcast`` and their option ``sticky``."""

    options: Mapping[str, Any] = {"sticky": bool}

    def __init__(self, expires: float = EXPIRES) -> None:
        self._expires = expires
        self._app: App | None = None
        self._newcomer: Newcomer | None = None

    # --- hooks -------------------------------------------------------------------------------

    def attach(self, app: Any) -> None:
        """Remember the app: a worker of it tells itself what is sticky."""
        self._app = app

    def check(self, task: Task[..., Any]) -> None:
        """Refuse ``sticky=`` at a task."""
        if "sticky" in task.settings:
            raise OptionError(f"sticky= is no option of the task {task.name!r}", cure="Give it to broadcast().")

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:
        """Refuse ``sticky=`` at a plain call."""
        if "sticky" in options:
            raise OptionError("sticky= is an option of broadcast() alone")
        return message

    def worker_started(self, worker_id: str) -> None:
        """Begin to tell it."""
        if self._app is not None:
            self._newcomer = Newcomer(self._app, worker_id, self._expires)

    def worker_stopping(self, worker_id: str) -> None:  # noqa: ARG002
        """It is too late for it."""
        if self._newcomer is not None:
            self._newcomer.stop()

    # --- for users ---------------------------------------------------------------------------

    def broadcast(self, app: App, call: Call) -> BroadcastHandle[Any]:
        """Send the call to each worker that is alive now and knows the task: see ``RollCalls.broadcast``."""
        app.check_options(call.options)
        if taken := {"inbox", "task_id"} & set(call.options):
            cure = "It goes to the inbox of each worker, under an id of its own."
            raise OptionError(f"{min(taken)}= is no option of a broadcast", cure=cure)
        options = {"priority": PRIORITY, **call.options}
        if options.pop("sticky", False):
            return self._stick(app, call._replace(options=options))
        options.setdefault("expires", time.time() + self._expires)
        workers = {worker.id: worker.inbox for worker in app.serving(call.name) if worker.inbox}
        calls = [call._replace(options={**options, "inbox": inbox, "task_id": ids.new_id()}) for inbox in workers.values()]
        handles = app.send_calls(calls)
        return BroadcastHandle(dict(zip(workers, handles, strict=True)), app)

    def _stick(self, app: App, call: Call) -> BroadcastHandle[Any]:
        """Keep it first: a worker that starts meanwhile tells itself what we send it, too, and that is one task."""
        if call.task is not None:
            call.task.bind(call.args, call.kwargs)
        sticky = Sticky(ids.new_id(), ids.check_task_name(call.name), list(call.args), dict(call.kwargs), dict(call.options),
                        time.time_ns() // 1_000_000)
        _sticky.keep(app, sticky)
        workers = {worker.id: worker for worker in app.serving(call.name) if worker.inbox}
        handles = app.send_calls([sticky.member(app, worker, self._expires) for worker in workers.values()])
        return BroadcastHandle(dict(zip(workers, handles, strict=True)), app)


class RollCalls:
    """What ``KRQ`` offers of broadcasts. Thread-safe. Without the module all of it raises ``OptionError``."""

    modules: list[Module]
    registry: Registry

    def broadcast(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, /, **options: Any,
    ) -> BroadcastHandle[Any]:
        """Send a task to each worker that is alive now and knows it, as one batch; returns when the log has all of them.

        Each child of a worker with ``processes > 1`` is a worker of its own. A worker that joins later is not included, unless
        ``sticky=True``: then each that starts later gets it once at its start, until another sticky broadcast of the same name, or
        ``unstick``. A member that was not started after an hour (``expires=``) fails with ``EXPIRED``. Without any worker the roll is
        empty. Raises as ``KRQ.submit_many``; ``OptionError`` for ``inbox=`` and ``task_id=``, which a broadcast chooses itself, and for
        options of a single moment (``delay=``, ``expires=``, …) where it is sticky.
        """
        return find(self.modules, Broadcast).broadcast(cast(App, self), Call(name, args, kwargs or {}, self.registry.get(name), options))

    def sticky(self) -> list[StickyInfo]:
        """The sticky broadcasts that workers get at their start, by name: at most 1,000."""
        find(self.modules, Broadcast)
        return _sticky.infos(cast(App, self))

    def unstick(self, name: str) -> bool:
        """Workers that start from now on no longer get the sticky broadcast of this task. False: there was none."""
        find(self.modules, Broadcast)
        return _sticky.drop(cast(App, self), name)
