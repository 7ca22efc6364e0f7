"""Sticky broadcasts: what each worker that starts later is told, too, the latest of each task name."""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from typing import Any, Protocol, cast

import msgspec

from krq import message
from krq.call import Call, Definition
from krq.errors import AppClosed, KRQError, OptionError
from krq.hooks import known_options
from krq.info import StickyInfo, WorkerInfo
from krq.modules import _app

log = logging.getLogger("krq.broadcast")

#: most names that a sticky broadcast is kept for
MOST = 1_000
#: seconds between two tries of a worker that starts while a server is away
AGAIN = 1.0
#: options that mean one moment or one task, which a worker that starts later has not
_ONCE = ("delay", "eta", "after", "inputs", "expires")


class App(_app.App, Protocol):
    """What these ask of the app."""

    def workers(self) -> list[WorkerInfo]: ...

    def serving(self, name: str) -> list[WorkerInfo]: ...


class Sticky(msgspec.Struct, frozen=True, array_like=True):
    """A sticky broadcast as Redis keeps it, under its task's name."""

    id: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    at: int
    """Unix milliseconds"""

    def member(self, app: App, worker: WorkerInfo, expires: float) -> Call:
        """The call for one life of a worker: the same bytes under the same id, whoever sends it. ``expires``: seconds from its start."""
        owned = known_options(app.modules, of_task=False)
        options = {name: msgspec.convert(value, owned[name]) if name in owned else value for name, value in self.options.items()}
        digest = hashlib.sha256(worker.incarnation.encode()).hexdigest()[:16]
        began = max(self.at, int((worker.started or 0.0) * 1000))
        options.update(inbox=worker.inbox, task_id=f"{self.id}.{digest}", expires=round(began / 1000 + expires, 3))
        return Call(self.task, self.args, self.kwargs, cast("Definition | None", app.registry.get(self.task)), options)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Sticky).decode


def keep(app: App, sticky: Sticky) -> None:
    """Into the log, then into Redis, in the place of the one before. Raises ``OptionError``, ``MessageTooLarge``, ``NotSerializable``."""
    if once := [name for name in _ONCE if name in sticky.options]:
        raise OptionError(f"{once[0]}= is no option of a sticky broadcast", cure="Workers that start at any later time get it, too.")
    raw = message.dump([sticky.args, sticky.kwargs], sticky, max_bytes=app.config.max_message_bytes, max_depth=app.config.max_depth,
                       what=f"The sticky broadcast of {sticky.task!r}")  # fmt: skip
    key = app.store.keys("sticky")
    with app.store.plain() as redis:
        full = redis.hlen(key) >= MOST and not redis.hexists(key, sticky.task)
    if full:
        raise OptionError(f"There are {MOST:,} sticky broadcasts", cure="Remove some with app.unstick(name).")
    app.note("stick", sticky.task, {"sticky": _decode(raw)})
    with app.store.plain() as redis:
        redis.hset(key, sticky.task, raw)


def drop(app: App, name: str) -> bool:
    """Keep it no more. False: there is none."""
    app.note("unstick", name, {})
    with app.store.plain() as redis:
        return bool(redis.hdel(app.store.keys("sticky"), name))


def kept(app: App) -> list[Sticky]:
    """All that are kept, by name."""
    with app.store.plain() as redis:
        return [_decode(raw) for _, raw in sorted(redis.hgetall(app.store.keys("sticky")).items())]


def infos(app: App) -> list[StickyInfo]:
    """The same for people."""
    return [StickyInfo(one.task, one.id, one.args, one.kwargs, one.options, one.at / 1000) for one in kept(app)]


class Newcomer:
    """A worker child that has just started tells itself what is sticky: in a thread of its own, until it could."""

    def __init__(self, app: App, worker_id: str, expires: float) -> None:
        self._app = app
        self._worker_id = worker_id
        self._expires = expires
        self._stop = threading.Event()
        threading.Thread(target=self._run, name="krq-sticky", daemon=True).start()

    def stop(self) -> None:
        """Try no more."""
        self._stop.set()

    def _run(self) -> None:
        complained = False
        while not self._stop.is_set():
            try:
                if self._tell():
                    return
            except AppClosed:
                return
            except KRQError as error:
                if not complained:
                    log.warning("sticky broadcasts wait: %s", error)
                complained = True
            self._stop.wait(AGAIN)

    def _tell(self) -> bool:
        """Send them all to the own inbox. False: this worker is not to be seen yet."""
        registry = self._app.registry
        found = [one for one in kept(self._app) if registry.catch_all is not None or registry.get(one.task) is not None]
        if not found:
            return True
        me = self._me(self._app.workers())
        if me is None:
            return False
        for one in found:
            try:
                self._app.send_calls([one.member(self._app, me, self._expires)])
            except (TypeError, ValueError) as error:  # it no longer fits the task's signature
                log.error("the sticky broadcast of %s can't be sent: %s", one.task, error)
        return True

    def _me(self, workers: Sequence[WorkerInfo]) -> WorkerInfo | None:
        """This process's own life among those of its worker id."""
        mine = [worker for worker in workers if worker.id == self._worker_id and worker.pid == os.getpid()]
        return max(mine, key=lambda worker: worker.started or 0.0, default=None)
