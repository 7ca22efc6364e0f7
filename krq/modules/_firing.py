"""The thread that fires schedules, one in each worker child. Whoever comes first does; the others find nothing due."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from krq import ticks
from krq.call import Call
from krq.errors import AppClosed, KRQError, NamespaceClosed, RedisConnectionError, StoreError
from krq.store.client import Store
from krq.store.scripts import Script
from krq.ticks import Timing

log = logging.getLogger("krq.schedules")

#: milliseconds for which a due schedule is left to the worker that took it up
CLAIM = 3_000
#: most schedules of one round, and most ticks of one schedule in it
PAGE, TICKS = 100, 50
#: seconds between two looks at what was added meanwhile, and between two entries of what the code defines
LOOK, ENTER = 1.0, 60.0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """A schedule as Redis keeps it, without its name."""

    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    """of its calls; ``expires`` in seconds from the tick"""
    timing: Timing
    catch_up: float

    def packed(self) -> tuple[str, str]:
        """The whole, and the timing alone, as the script compares them."""
        return _encode(self).decode(), _encode(self.timing).decode()

    @staticmethod
    def unpack(raw: str) -> Entry:
        """The reverse."""
        return _decode(raw)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode

Due = tuple[str, int, str]
Planned = tuple[str, int, int, list[Call]]


class Clock:
    """Fires what is due. ``start`` and ``stop`` from any thread; all else in its own."""

    def __init__(self, store: Store, send: Callable[[Sequence[Call]], object], call: Callable[[Entry, str, int], Call], holder: str,
                 mine: Mapping[str, Entry]) -> None:
        self._store = store
        self._send = send
        self._call = call
        self._holder = holder
        self._mine = mine
        self._stop = threading.Event()
        self._waiting = False
        self._refused: set[str] = set()
        self._entered = ""
        self._enter_at = 0.0
        self._thread = threading.Thread(target=self._run, name="krq-schedules", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            wait = LOOK
            try:
                self._enter()
                wait = self._round()
                self._waiting = False
            except AppClosed:
                return
            except KRQError as error:
                self._complain(error)
            except Exception:  # boundary: a tick that waits costs a moment, the thread's end would cost all of them
                log.exception("schedules: something went wrong; trying again")

    def _enter(self) -> None:
        """Enter what the code defines: at the start, under another epoch, and now and then, for what was lost or removed meanwhile."""
        changed = self._entered != self._store.epoch.id or not self._entered
        if not self._mine or not (changed or time.monotonic() >= self._enter_at):
            return
        now = redis_now(self._store)
        for name, entry in self._mine.items():
            self._store.call(Script.SCHEDULE, "set", name, *entry.packed(), "code", ticks.after(entry.timing, now), None, changed)
        self._entered, self._enter_at = self._store.epoch.id, time.monotonic() + ENTER

    def _round(self) -> float:
        """Fire what is due; returns the seconds until the next round."""
        now, following, found = self._store.call(Script.DUE, self._holder, list(self._mine), CLAIM, PAGE)
        planned = [plan for one in found if (plan := self._plan(one, now)) is not None]
        if planned and self._fire(planned):
            return 0.0
        return LOOK if not following else max(0.0, min(LOOK, (following - now) / 1000))

    def _plan(self, one: Due, now: int) -> Planned | None:
        """What to send of a schedule that is due: name, first tick, the tick after, calls. None: it can't be."""
        name, tick, raw = one
        try:
            entry = _decode(raw)
            fire, following = ticks.due(entry.timing, int(tick), now, int(entry.catch_up * 1000), TICKS)
            if fire[0] != tick and not self._move([(name, tick, fire[0], False, False)]):
                return None
            calls = [self._call(entry, f"{name}@{each}", each) for each in fire]
        except (KRQError, ValueError) as error:
            if _passes(error):
                raise
            self._refuse(name, error)
            return None
        return name, fire[0], following, calls

    def _fire(self, planned: Sequence[Planned]) -> bool:
        """To the log, then on to the next tick. False: none got there."""
        try:
            self._send([call for *_, calls in planned for call in calls])
            done = list(planned)
        except KRQError as error:
            if len(planned) == 1 and _passes(error):
                raise
            done = [plan for plan in planned if self._fires(plan)]
        self._refused.difference_update(name for name, *_ in done)
        last = [calls[-1].options["task_id"] for *_, calls in done]
        return self._move([(name, tick, to, int(task_id.rpartition("@")[2]), task_id)
                           for (name, tick, to, _), task_id in zip(done, last, strict=True)])

    def _fires(self, plan: Planned) -> bool:
        """One by one, so that one which can't be sent stops no other."""
        try:
            self._send(plan[3])
        except KRQError as error:
            if _passes(error):
                raise
            self._refuse(plan[0], error)
            return False
        return True

    def _move(self, moves: Sequence[tuple[Any, ...]]) -> bool:
        return bool(moves) and any(self._store.call(Script.FIRED, moves)[0])

    def _refuse(self, name: str, error: Exception) -> None:
        """Its tick stays: it fires when it has been mended."""
        if name not in self._refused:
            self._refused.add(name)
            log.error("the schedule %s can't fire: %s", name, error)

    def _complain(self, error: KRQError) -> None:
        """Once per outage: what is due waits."""
        if not self._waiting:
            self._waiting = True
            log.warning("schedules wait: %s", error)


def redis_now(store: Store) -> int:
    """Unix milliseconds by the clock of Redis, the only one that schedules know."""
    with store.plain() as redis:
        seconds, micros = redis.time()
    return int(seconds) * 1000 + int(micros) // 1000


def _passes(error: Exception) -> bool:
    """Whether waiting helps."""
    return isinstance(error, ConnectionError | TimeoutError | NamespaceClosed | RedisConnectionError | StoreError)
