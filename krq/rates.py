"""How many tasks end in a second: from the totals that ``expire.lua`` notes for each queue every ten seconds."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

#: seconds
WINDOWS = (60, 300, 900)
#: ms since 1970, tasks that had succeeded, tasks that had failed; a ring has 96 of these
_NOTE = struct.Struct("<QQQ")

Rates = tuple[float, float, float]
NONE: Rates = (0.0, 0.0, 0.0)


class Ended(NamedTuple):
    """Tasks a second over the last 1, 5 and 15 minutes."""

    all: Rates = NONE
    """that have succeeded or failed"""
    failed: Rates = NONE


def ended(ring: bytes | None, now: int, succeeded: int, failed: int) -> Ended:
    """The rates of a queue from its ring and its totals. ``now``: ms by the clock of Redis.

    Each is what has ended since the first note within its window, by the time since then. Where no worker lives nobody notes, and next
    to nothing ends: that time does not count, and without a note in the window the rate is 0.
    """
    if not ring:
        return Ended()
    notes = sorted(note for note in _NOTE.iter_unpack(ring[: len(ring) // _NOTE.size * _NOTE.size]) if 0 < note[0] <= now)
    found = [_since(notes, now, window * 1000, succeeded, failed) for window in WINDOWS]
    (all1, failed1), (all5, failed5), (all15, failed15) = found
    return Ended((all1, all5, all15), (failed1, failed5, failed15))


def _since(notes: list[tuple[int, ...]], now: int, window: int, succeeded: int, failed: int) -> tuple[float, float]:
    first = next((note for note in notes if note[0] >= now - window), None)
    if first is None:
        return 0.0, 0.0
    at, good, bad = first
    # less than before: Redis was brought back to an earlier state
    good, bad = max(0, succeeded - good), max(0, failed - bad)
    seconds = max(1.0, (now - at) / 1000)
    return round((good + bad) / seconds, 3), round(bad / seconds, 3)


def total(queues: Iterable[Rates]) -> Rates:
    """The sum over queues."""
    one, five, fifteen = (round(sum(rates), 3) for rates in zip(NONE, *queues, strict=True))
    return one, five, fifteen
