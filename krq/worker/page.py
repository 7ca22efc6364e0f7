"""The page of memory that a child and its supervisor share: what the child leaves behind when it is killed.

Made before the fork. The child writes what runs in which slot and that its engine still turns; the
supervisor writes when the lease was last confirmed. Each field has one writer; times are seconds of
CLOCK_BOOTTIME (which goes on while the machine sleeps).
"""

from __future__ import annotations

import mmap
import struct
import time

_HEAD = struct.Struct("<dddBB")
_RECORD = 160
_LENGTH = struct.Struct("<B")

CONFIRMED, ENGINE, STARTED = 0, 8, 16
REGISTERED, LEAVING = 24, 25


def boottime() -> float:
    """Seconds since boot, sleep included; monotonic time where the system has no such clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Page:
    """Shared memory for one child with so many slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, _HEAD.size + 6 + slots * _RECORD)
        self.reset()

    def reset(self) -> None:
        """Blank it for a new child."""
        self._memory[:] = bytes(len(self._memory))
        now = boottime()
        struct.pack_into("<ddd", self._memory, 0, now, now, now)

    # --- written by the child ----------------------------------------------------------------

    def begin(self, slot: int, task_id: str) -> None:
        """A slot starts a task."""
        raw = task_id.encode()[: _RECORD - 1]
        at = _HEAD.size + slot * _RECORD
        self._memory[at + 1 : at + 1 + len(raw)] = raw
        self._memory[at] = len(raw)

    def end(self, slot: int) -> None:
        """A slot's task has ended."""
        self._memory[_HEAD.size + slot * _RECORD] = 0

    def turned(self) -> None:
        """The engine is alive."""
        struct.pack_into("<d", self._memory, ENGINE, boottime())

    def set_registered(self) -> None:
        """The child is registered: its supervisor may beat for it."""
        self._memory[REGISTERED] = 1

    def set_leaving(self) -> None:
        """The child has left in order: its end is no failure."""
        self._memory[LEAVING] = 1

    # --- written by the supervisor -----------------------------------------------------------

    def confirm(self, sent: float) -> None:
        """A beat that was sent at ``sent`` was confirmed."""
        struct.pack_into("<d", self._memory, CONFIRMED, sent)

    # --- read by both ------------------------------------------------------------------------

    @property
    def confirmed(self) -> float:
        """When the last confirmed beat was sent."""
        return float(struct.unpack_from("<d", self._memory, CONFIRMED)[0])

    @property
    def engine(self) -> float:
        """When the engine turned last."""
        return float(struct.unpack_from("<d", self._memory, ENGINE)[0])

    @property
    def registered(self) -> bool:
        return self._memory[REGISTERED] == 1

    @property
    def leaving(self) -> bool:
        return self._memory[LEAVING] == 1

    def running(self) -> list[str]:
        """Ids of the tasks that run, or ran when the child died."""
        found = []
        for slot in range(self.slots):
            at = _HEAD.size + slot * _RECORD
            length = self._memory[at]
            if length:
                found.append(self._memory[at + 1 : at + 1 + length].decode("utf-8", "replace"))
        return found
