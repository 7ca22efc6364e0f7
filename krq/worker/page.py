"""The page of memory that a child and its supervisor share: what the child leaves behind when it is killed.

Made before the fork. The child writes what runs in which slot and that its engine still turns; the
supervisor writes when the lease was last confirmed. Each field has one writer; times are seconds of
CLOCK_BOOTTIME (which goes on while the machine sleeps). They are written in one piece: ``pack_into``
would blank the field first, and the other process may look in between.
"""

from __future__ import annotations

import mmap
import struct
import time

_TIME = struct.Struct("<d")
CONFIRMED, ENGINE, REGISTERED, LEAVING = 0, 8, 16, 17
_SLOTS, _RECORD = 32, 160


def boottime() -> float:
    """Seconds since boot, sleep included; monotonic time where the system has no such clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Page:
    """Shared memory for one child with so many slots."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._memory = mmap.mmap(-1, _SLOTS + slots * _RECORD)
        self.reset()

    def reset(self) -> None:
        """Blank it for a new child."""
        self._memory[:] = bytes(len(self._memory))
        self.confirm(boottime())
        self.turned()

    # --- written by the child ----------------------------------------------------------------

    def begin(self, slot: int, task_id: str) -> None:
        """A slot starts a task."""
        raw = task_id.encode()[: _RECORD - 1]
        at = _SLOTS + slot * _RECORD
        self._memory[at + 1 : at + 1 + len(raw)] = raw
        self._memory[at] = len(raw)

    def end(self, slot: int) -> None:
        """A slot's task has ended."""
        self._memory[_SLOTS + slot * _RECORD] = 0

    def turned(self) -> None:
        """The engine is alive."""
        self._memory[ENGINE : ENGINE + 8] = _TIME.pack(boottime())

    def set_registered(self) -> None:
        """The child is registered: its supervisor may beat for it."""
        self._memory[REGISTERED] = 1

    def set_leaving(self) -> None:
        """The child has left in order: its end is no failure."""
        self._memory[LEAVING] = 1

    # --- written by the supervisor -----------------------------------------------------------

    def confirm(self, sent: float) -> None:
        """A beat that was sent at ``sent`` was confirmed."""
        self._memory[CONFIRMED : CONFIRMED + 8] = _TIME.pack(sent)

    # --- read by both ------------------------------------------------------------------------

    @property
    def confirmed(self) -> float:
        """When the last confirmed beat was sent."""
        return float(_TIME.unpack_from(self._memory, CONFIRMED)[0])

    @property
    def engine(self) -> float:
        """When the engine turned last."""
        return float(_TIME.unpack_from(self._memory, ENGINE)[0])

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
            at = _SLOTS + slot * _RECORD
            length = self._memory[at]
            if length:
                found.append(self._memory[at + 1 : at + 1 + length].decode("utf-8", "replace"))
        return found
