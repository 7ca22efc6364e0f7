"""The core of a worker, without I/O: replies, outcomes and the clock go in; what to send comes out.

The shell around it (``child.py``) owns threads and clients. So can a simulator, which drives many
engines through any schedule against the real scripts.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgspec

from krq.message import Message, reread, spans
from krq.outcome import Family

log = logging.getLogger("krq.worker")

#: most tasks that one script call takes, and most that it ends: no call should keep the others waiting for 20 ms
MAX_BATCH = 100
#: seconds of measured run time that a worker takes ahead of its slots, at most two batches: one runs while the next is on its way
AHEAD = 0.020
#: seconds without any progress after which tasks that wait for a slot are given back
MOMENT = 0.25
#: seconds without any progress after which another slot wakes
NUDGE = 0.002


class Held(msgspec.Struct, kw_only=True, eq=False):
    """A message this incarnation has taken and not settled."""

    id: str
    attempt: int
    failures: int
    deaths: int
    raw: str
    sent: int
    queue: str
    inputs: Sequence[Any] | None
    """("prepend" or "list", JSON results of what it waited for; False where they are many: they are read before it runs)"""
    known: bool
    """False: no worker knows the name, and it has waited long enough"""
    alone: bool = False
    """in a process of its own"""
    message: Message | None = None
    started: int = 0
    """Unix milliseconds, 0 while it waits for a slot"""
    took: float = 0.0
    """seconds that it ran"""
    told: bool = False
    """its end is in the host's ``results.log``"""
    context: Any = None
    """the running context, for telling it to stop"""

    @property
    def in_workflow(self) -> bool:
        """Whether its end may make another task ready."""
        return self.message is not None and self.message.workflow is not None


def taken(tasks: Iterable[Sequence[Any]]) -> list[Held]:
    """What take.lua gave."""
    read = []
    for task_id, attempt, failures, deaths, raw, sent, queue, inputs, known, alone in tasks:
        held = Held(id=task_id, attempt=attempt, failures=failures, deaths=deaths, raw=raw, sent=sent, queue=queue,
                    inputs=inputs or None, known=known, alone=bool(alone))
        try:
            held.message = reread(raw)
        except ValueError as error:
            # only a hand in Redis can do this; the task stays where it is, and `krq task` shows it
            log.error("task %s has no message that can be read: %s", task_id, error)
            continue
        read.append(held)
    return read


class Settle(NamedTuple):
    """The end of an attempt, as the store gets it."""

    held: Held
    kind: str
    """S success, F failed, C cancelled, R retry, D its process died, W success, and it waits for what it made"""
    value: str
    """JSON of the result or the error; how it died"""
    entry: str
    """JSON for the log"""
    delay: int = 0
    """milliseconds until the next attempt; of a death, the number of them at which the task is poison"""
    history: str = ""
    """JSON for the task's history, where it did not succeed"""
    family: Family | None = None
    """what it has made and waits for"""

    def packed(self) -> tuple[Any, ...]:
        """The arguments of settle.lua."""
        item = (self.held.id, self.held.attempt, self.kind, self.value, self.entry, self.delay)
        if self.family is not None:
            after, ids = spans(self.family.awaited), spans(self.family.ids)
            return (*item, False, (after, self.family.how, ids, self.family.on_failure))
        return (*item, self.history) if self.history else item


class Turn(NamedTuple):
    """What to send in one round trip. Sent again as it is when the answer is lost."""

    settles: list[Settle]
    releases: list[tuple[str, int]]
    take: int
    """most messages wanted; 0: none"""
    number: int
    """of the take"""


class Load(NamedTuple):
    """How the slots stand."""

    queued: int
    """taken, waiting for a slot"""
    busy: int
    """slots that run something"""


class Engine:
    """Decides what to take, what to settle and what to hand back. One thread only."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.held: dict[str, Held] = {}
        self.stopping = False
        self.next_due: float | None = None
        self._outcomes: deque[Settle] = deque()
        self._releases: list[tuple[str, int]] = []
        self._number = 0
        self._pending: Turn | None = None
        self.mean = 0.0
        self._moved = 0.0
        self._ready = True

    # --- in ----------------------------------------------------------------------------------

    def ended(self, settles: Sequence[Settle], seconds: float, now: float) -> None:
        """Attempts have ended; ``seconds`` is the time they ran, all together."""
        self._outcomes.extend(settles)
        n = len(settles)
        if n:
            self._ready = self._ready or any(settle.held.in_workflow for settle in settles)
            weight = min(0.5, 0.02 * n)
            self.mean += (seconds / n - self.mean) * (weight if self.mean else 1.0)
            self._moved = now

    def woken(self) -> None:
        """Something may be ready."""
        self._ready = True

    def given_back(self, tasks: Iterable[Held]) -> None:
        """These were taken out of the slots' queue before they started: hand them back."""
        for held in tasks:
            if self.held.pop(held.id, None) is held:
                self._releases.append((held.id, held.attempt))

    def stop(self) -> None:
        """Take no more."""
        self.stopping = True

    def tick(self, now: float) -> None:
        """Time passes: a due task may be ready."""
        if self.next_due is not None and now >= self.next_due:
            self.next_due = None
            self._ready = True

    # --- out ---------------------------------------------------------------------------------

    def turn(self, now: float, load: Load) -> Turn | None:
        """What to send now, or None. The same turn again until ``answered`` or ``lost``."""
        if self._pending is None:
            take = self._wanted(now, load)
            if not (take or self._outcomes or self._releases):
                return None
            settles = [self._outcomes.popleft() for _ in range(min(MAX_BATCH, len(self._outcomes)))]
            releases, self._releases = self._releases[:MAX_BATCH], self._releases[MAX_BATCH:]
            self._number += take > 0
            self._pending = Turn(settles, releases, take, self._number)
        return self._pending

    def _wanted(self, now: float, load: Load) -> int:
        if self.stopping or not self._ready:
            return 0
        free = self.slots - load.busy - load.queued
        if 0 < self.mean < AHEAD and (load.busy < self.slots or now - self._moved < AHEAD):
            ahead = min(2 * MAX_BATCH, int(AHEAD / max(self.mean, 1e-5)))
            if load.queued <= ahead // 2:
                free = max(free, ahead - load.queued)
        return max(0, min(free, MAX_BATCH))

    def stuck(self, now: float, load: Load) -> bool:
        """Whether tasks wait for slots that do not come free: give them back to others."""
        if not load.queued or load.busy < self.slots or now - self._moved < MOMENT:
            return False
        self.mean = max(self.mean, MOMENT)
        return True

    def slow(self, now: float, load: Load) -> bool:
        """Whether the awake slots make no headway: another one should wake."""
        return load.queued > 0 and now - self._moved > NUDGE

    def wait(self, now: float, load: Load) -> float:
        """Seconds until the next turn is worth while, if nothing comes in: at most one."""
        if self._outcomes or self._releases or self._wanted(now, load):
            return 0.0
        until = 1.0 if self.next_due is None or self.stopping else self.next_due - now
        if load.queued:
            until = min(until, NUDGE)
        return max(0.0, min(1.0, until))

    # --- answers -----------------------------------------------------------------------------

    def answered(self, settled: Sequence[int], refused: list[Settle]) -> list[Settle]:
        """The turn's settles were answered: returns those that are settled; fills ``refused``."""
        turn, self._pending = self._pending, None
        assert turn is not None
        done: list[Settle] = []
        for settle, answer in zip(turn.settles, settled, strict=True):
            if self.held.get(settle.held.id) is settle.held:
                del self.held[settle.held.id]
            (done if answer else refused).append(settle)
        return done

    def took(self, tasks: Iterable[Held], wanted: int, due: float | None, *, more: bool, now: float) -> list[Held]:
        """The turn's take was answered: returns what to start. ``due``: seconds until the next scheduled one."""
        new = [held for held in tasks if self._enter(held)]
        self._ready = more or len(new) >= wanted
        self.next_due = None if due is None else now + due
        if new:
            self._moved = now
        return new

    def _enter(self, held: Held) -> bool:
        known = self.held.get(held.id)
        if known is not None and known.attempt == held.attempt:
            return False
        self.held[held.id] = held
        return True

    def lost(self) -> None:
        """The store changed its epoch: what was sent may or may not have run; settle again what is not confirmed."""
        if self._pending is not None:
            self._outcomes.extendleft(reversed(self._pending.settles))
            self._pending = None
        self._releases.clear()
        self._ready = True

    def audit(self, held_there: Iterable[tuple[str, int]]) -> None:
        """Release the (id, attempt) that the store says this incarnation holds and it has not. Only while no turn is pending."""
        assert self._pending is None
        self._releases.extend((task_id, attempt) for task_id, attempt in held_there if task_id not in self.held)

    @property
    def idle(self) -> bool:
        """Nothing held, nothing to send."""
        return not (self.held or self._outcomes or self._releases or self._pending)

    @property
    def hungry(self) -> bool:
        """Whether it waits for something to become ready."""
        return not self._ready and not self.stopping
