"""Chaining: ``app.chain_tasks``, tasks by name that run one after the other, and a callback with all their results.

What ``krq.chain`` makes of signatures this makes of tuples. Without it ``chain_tasks`` raises ``OptionError``; ``krq.chain``, which is
only a way to write edges, works without any module.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from krq.call import Sender
from krq.errors import KRQError, OptionError
from krq.handle import ChainHandle
from krq.hooks import Module
from krq.workflow import Chain, Signature

log = logging.getLogger("krq.chaining")

Callback = Callable[[list[Any]], object]


class App(Sender, Protocol):
    """What these modules ask of the app."""

    def signature(self, name: str, /, *args: Any, **kwargs: Any) -> Signature[Any]: ...


class Chaining(Module):
    """Owns ``KRQ.chain_tasks``."""

    def __init__(self) -> None:
        self._callbacks = _Callbacks()

    def chain_tasks(self, app: App, tasks: Sequence[Sequence[Any]], final_callback: Callback | None = None) -> ChainHandle[Any]:
        """Send ``[(name, args), (name, args, kwargs), …]`` as one batch; each starts when the one before it has succeeded.

        Each keeps its own arguments: nothing is passed on. ``final_callback`` is called with the list of all results, in order, once
        the last has finished: in this process, in a daemon thread of the module, one callback at a time. So the process must live
        until then. A chain that fails or is cancelled calls nothing; that, and what the callback raises, is logged. Returns the
        chain's handle. Raises as ``KRQ.submit_many``, and ``OptionError`` for tasks that are no such tuples.
        """
        if final_callback is not None and not callable(final_callback):
            raise OptionError(f"final_callback={final_callback!r} can't be called")
        handle = cast("ChainHandle[Any]", Chain(signatures(app, tasks)).send())
        if final_callback is not None:
            self._callbacks.add(handle, final_callback)
        return handle


def signatures(app: App, tasks: Sequence[Sequence[Any]]) -> list[Signature[Any]]:
    """Immutable signatures of ``(name, args)`` and ``(name, args, kwargs)``. Raises ``OptionError`` for anything else."""
    made = []
    for task in tasks:
        match task:
            case [str(name), list() | tuple() as args]:
                made.append(app.signature(name, *args))
            case [str(name), list() | tuple() as args, dict(kwargs)]:
                made.append(app.signature(name, *args, **kwargs))
            case _:
                cure = 'Give (name, args) or (name, args, kwargs), such as ("add", [1, 2]).'
                raise OptionError(f"{task!r} is no task to send", cure=cure)
    return [Signature(one.sender, one.call, immutable=True) for one in made]


class _Callbacks:
    """One daemon thread for each process, started at the first callback, which waits for whatever ends next."""

    def __init__(self) -> None:
        self._due: queue.SimpleQueue[tuple[ChainHandle[Any], Callback]] = queue.SimpleQueue()
        self._pid = 0
        self._lock = threading.Lock()

    def add(self, handle: ChainHandle[Any], callback: Callback) -> None:
        """Call this when the chain has ended."""
        with self._lock:
            if self._pid != os.getpid():
                self._pid, self._due = os.getpid(), queue.SimpleQueue()
                threading.Thread(target=_serve, args=(self._due,), name="krq-callbacks", daemon=True).start()
        due = self._due
        handle.when_ended(lambda: due.put((handle, callback)))


def _serve(due: queue.SimpleQueue[tuple[ChainHandle[Any], Callback]]) -> None:
    while True:
        handle, callback = due.get()
        try:
            results = handle.results(timeout=30.0)
        except KRQError as error:
            log.error("the chain of %s did not succeed, so its callback is not called: %s", handle.id, error)
            continue
        try:
            callback(results)
        except Exception:  # boundary: the caller's own code, in a thread of ours
            log.exception("the callback of the chain of %s failed", handle.id)
