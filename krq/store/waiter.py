"""Waiting for ends: one subscription per app, however many tasks are waited for."""

from __future__ import annotations

import concurrent.futures
import itertools
import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from krq.errors import AppClosed, KRQError
from krq.store.client import Store
from krq.store.scripts import Script

log = logging.getLogger("krq.store")

#: seconds between two looks at what is waited for, in case a notice was lost
LOOK_FIRST, LOOK_MOST = 1.0, 5.0
_CHUNK = 300
#: ids that the log alone has, of which it is remembered that they are not unknown: the latest
_EXPECTED = 100_000
_unpack = msgspec.msgpack.Decoder(list[str]).decode

Future = concurrent.futures.Future[str]


class Waiter:
    """Futures of the final states of tasks. Thread-safe; one background thread, started at the first wait."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._channel = os.urandom(8).hex()
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Future]] = {}
        self._expected: dict[str, None] = {}
        self._thread: threading.Thread | None = None
        self._subscribed = threading.Event()
        self._closed = False
        self._look = LOOK_FIRST

    def futures(self, task_ids: Sequence[str]) -> list[Future]:
        """One future for each id: its final state ``S``, ``F`` or ``C``, or "" for a task that nobody knows; behind ``S`` the JSON of
        a short result.

        Done at once for those that have ended. ``drop`` those no longer wanted. While Redis is away it goes on waiting;
        only a Redis that never answered raises, as ``Store.call`` does.
        """
        known = bool(self._store.epoch.id)
        self._listen()
        made: list[Future] = [concurrent.futures.Future() for _ in task_ids]
        for future in made:
            future.set_running_or_notify_cancel()  # so that nobody can cancel it while the thread sets its result
        with self._lock:
            for task_id, future in zip(task_ids, made, strict=True):
                self._waiting.setdefault(task_id, []).append(future)
        try:
            self._watch(task_ids)
        except KRQError:
            if not known:
                for task_id, future in zip(task_ids, made, strict=True):
                    self.drop(task_id, future)
                raise
        return made

    def expect(self, task_ids: Sequence[str]) -> None:
        """The log has these, and Redis not yet: until it has, nobody who waits for them is told that they are unknown."""
        with self._lock:
            self._expected.update(dict.fromkeys(task_ids))
            for oldest in list(itertools.islice(self._expected, max(0, len(self._expected) - _EXPECTED))):
                del self._expected[oldest]

    def drop(self, task_id: str, future: Future) -> None:
        """Nobody waits for this future any more."""
        with self._lock:
            futures = self._waiting.get(task_id, [])
            if future in futures:
                futures.remove(future)
            if not futures:
                self._waiting.pop(task_id, None)

    def close(self) -> None:
        """End the thread; whoever waits gets ``AppClosed``."""
        self._closed = True
        with self._lock:
            left, self._waiting = self._waiting, {}
        for futures in left.values():
            for future in futures:
                future.set_exception(AppClosed("The app was closed while somebody waited for a result"))

    def _watch(self, task_ids: Sequence[str]) -> None:
        for start in range(0, len(task_ids), _CHUNK):
            chunk = list(task_ids[start : start + _CHUNK])
            ends = dict(zip(chunk, self._store.call(Script.WATCH, self._channel, chunk)[0], strict=True))
            with self._lock:
                for task_id in [task_id for task_id, end in ends.items() if end is not False]:
                    self._expected.pop(task_id, None)
                still = self._expected.keys() & ends.keys()
            for task_id, end in ends.items():
                if end != "" and task_id not in still:
                    self._ended(task_id, end or "")

    def _ended(self, task_id: str, end: str) -> None:
        with self._lock:
            futures = self._waiting.pop(task_id, [])
        for future in futures:
            if not future.done():
                future.set_result(end)

    # --- the thread --------------------------------------------------------------------------

    def _listen(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="krq-waiter", daemon=True)
                self._thread.start()
        self._subscribed.wait(2.0)

    def _run(self) -> None:
        while not self._closed:
            try:
                with self._store.plain() as redis, redis.pubsub() as subscription:
                    subscription.subscribe(self._store.keys("notices", self._channel))
                    self._read(subscription)
            except KRQError as error:
                log.debug("waiting for results: %s", error)
                time.sleep(0.2)
            except (TypeError, ValueError, AttributeError):  # what a connection raises that close() took away under a read
                if not self._closed:
                    raise

    def _read(self, subscription: Any) -> None:
        look_at = time.monotonic()
        while not self._closed:
            notice = subscription.get_message(timeout=max(0.0, min(0.5, look_at - time.monotonic())))
            if notice is not None and notice["type"] == "subscribe":
                self._subscribed.set()
            elif notice is not None and notice["type"] == "message":
                ends = _unpack(notice["data"])
                for task_id, end in zip(ends[::2], ends[1::2], strict=True):
                    self._ended(task_id, end)
            if time.monotonic() >= look_at:
                with self._lock:
                    open_ids = list(self._waiting)
                self._watch(open_ids)
                self._look = min(LOOK_MOST, self._look * 1.5) if open_ids else LOOK_FIRST
                look_at = time.monotonic() + self._look
