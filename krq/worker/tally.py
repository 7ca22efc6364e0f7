"""What a worker's processes count for Prometheus, in memory that its supervisor made before it forked: it outlives every child.

Each place in a worker has its own, with one writer at a time: its child. Each number is eight bytes, written in one piece, so whoever
reads may look at any moment.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from krq.worker.engine import Settle

#: kinds of an end, and what they are called
OUTCOMES = {"S": "succeeded", "F": "failed", "C": "cancelled", "R": "retried", "D": "died", "W": "spawned"}
#: upper bounds of the run times that are counted together, in seconds; there is one more without a bound
BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
#: stands for all names that are not registered
OTHERS = "*"

_KINDS = {kind: place for place, kind in enumerate(OUTCOMES)}
_SUM = len(OUTCOMES)
_BUCKET = _SUM + 1
_ROW = _BUCKET + len(BUCKETS) + 1
_LIVING, _STARTS, _HELD, _OUTBOX, _REFUSED, _HEAD = range(6)
_MICRO = 1_000_000


class Of(NamedTuple):
    """The attempts of one task that have ended."""

    name: str
    outcomes: dict[str, int]
    buckets: Sequence[int]
    """how many took up to each bound, and longer than the last"""
    seconds: float


class Tally:
    """The numbers of one place in a worker: of its child, and of those that were there before."""

    def __init__(self, names: Iterable[str]) -> None:
        self._rows = {name: _HEAD + n * _ROW for n, name in enumerate([OTHERS, *names])}
        self._numbers = memoryview(mmap.mmap(-1, 8 * (_HEAD + len(self._rows) * _ROW))).cast("Q")

    # --- written by the child, in the thread of its engine -------------------------------------

    def add(self, settles: Iterable[Settle]) -> None:
        """These are settled."""
        numbers = self._numbers
        for settle in settles:
            held = settle.held
            name = OTHERS if held.message is None else held.message.task
            row = self._rows.get(name, _HEAD)
            numbers[row + _KINDS[settle.kind]] += 1
            numbers[row + _SUM] += int(held.took * _MICRO)
            numbers[row + _BUCKET + bisect_left(BUCKETS, held.took)] += 1

    def refuse(self, n: int) -> None:
        """So many ends were refused: another attempt had taken over."""
        self._numbers[_REFUSED] += n

    def note(self, held: int, outbox: int) -> None:
        """How many it holds, and how many have ended that the log has not got."""
        self._numbers[_HELD], self._numbers[_OUTBOX] = held, outbox

    # --- written by the supervisor -----------------------------------------------------------

    def started(self) -> None:
        """A child begins."""
        self._numbers[_STARTS] += 1
        self._numbers[_LIVING] = 1

    def ended(self) -> None:
        """It is gone, and holds nothing."""
        self._numbers[_LIVING] = 0
        self.note(0, 0)

    # --- read --------------------------------------------------------------------------------

    @property
    def living(self) -> bool:
        """Whether there is a child."""
        return self._numbers[_LIVING] == 1

    @property
    def starts(self) -> int:
        """How many children there were."""
        return self._numbers[_STARTS]

    @property
    def held(self) -> int:
        """Tasks that it holds."""
        return self._numbers[_HELD]

    @property
    def outbox(self) -> int:
        """Ends that the log has not got."""
        return self._numbers[_OUTBOX]

    @property
    def refused(self) -> int:
        """Ends that were refused."""
        return self._numbers[_REFUSED]

    def tasks(self) -> Iterator[Of]:
        """Those of which an attempt has ended, by name."""
        for name, row in self._rows.items():
            numbers = self._numbers[row : row + _ROW].tolist()
            if any(numbers):
                outcomes = dict(zip(OUTCOMES.values(), numbers, strict=False))
                yield Of(name, outcomes, numbers[_BUCKET:], numbers[_SUM] / _MICRO)
