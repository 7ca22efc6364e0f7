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

from krq.worker.tally import Tally

_TIME = struct.Struct("<d")
CONFIRMED, ENGINE, REGISTERED, LEAVING, ADRIFT, _NOTED = 0, 8, 16, 17, 18, 24
#: the last lines of the log: how many, and the bytes of each with its length
_TAIL, _LINES, _LINE = 32, 10, 256
#: what a slot runs: bytes of the id, whether it runs alone, the id
_SLOTS, _HEAD, _RECORD = _TAIL + _LINES * _LINE, struct.Struct("<HB"), 520


def boottime() -> float:
    """Seconds since boot, sleep included; monotonic time where the system has no such clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Page:
    """Shared memory for one child with so many slots. ``tally``: where it counts for Prometheus, None where nobody asks."""

    def __init__(self, slots: int, tally: Tally | None = None) -> None:
        self.slots = slots
        self.tally = tally
        self._memory = mmap.mmap(-1, _SLOTS + slots * _RECORD)
        self.reset()

    def reset(self) -> None:
        """Blank it for a new child."""
        self._memory[:] = bytes(len(self._memory))
        self.confirm(boottime())
        self.turned()

    # --- written by the child ----------------------------------------------------------------

    def begin(self, slot: int, task_id: str, *, alone: bool) -> None:
        """A slot starts a task; ``alone``: in a process of its own."""
        raw = task_id.encode()
        at = _SLOTS + slot * _RECORD
        self._memory[at + 3 : at + 3 + len(raw)] = raw
        self._memory[at : at + 3] = _HEAD.pack(len(raw), alone)

    def end(self, slot: int) -> None:
        """A slot's task has ended."""
        at = _SLOTS + slot * _RECORD
        self._memory[at : at + 3] = b"\0\0\0"

    def note(self, line: str) -> None:
        """A line of the log, to be kept among the last. One thread at a time."""
        raw = line.encode("utf-8", "replace")[: _LINE - 2]
        noted = self._memory[_NOTED]
        at = _TAIL + noted % _LINES * _LINE
        self._memory[at : at + 2 + len(raw)] = len(raw).to_bytes(2, "little") + raw
        self._memory[_NOTED] = noted + 1 if noted + 1 < 10 * _LINES else _LINES

    def turned(self) -> None:
        """The engine is alive."""
        self._memory[ENGINE : ENGINE + 8] = _TIME.pack(boottime())

    def set_registered(self) -> None:
        """The child is registered: its supervisor may beat for it."""
        self._memory[REGISTERED] = 1

    def set_leaving(self) -> None:
        """The child has nothing left and unregisters."""
        self._memory[LEAVING] = 1

    def set_adrift(self, adrift: bool) -> None:
        """Without a lease, but all that runs may go on: the supervisor shall not kill it."""
        self._memory[ADRIFT] = adrift

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

    @property
    def adrift(self) -> bool:
        return self._memory[ADRIFT] == 1

    def running(self) -> dict[str, bool]:
        """Ids of the tasks that run, or ran when the child died, and whether each ran alone."""
        found = {}
        for slot in range(self.slots):
            at = _SLOTS + slot * _RECORD
            length, alone = _HEAD.unpack_from(self._memory, at)
            if length:
                found[self._memory[at + 3 : at + 3 + length].decode("utf-8", "replace")] = bool(alone)
        return found

    def tail(self) -> list[str]:
        """The last lines of its log."""
        noted = self._memory[_NOTED]
        lines = []
        for number in range(max(0, noted - _LINES), noted):
            at = _TAIL + number % _LINES * _LINE
            length = int.from_bytes(self._memory[at : at + 2], "little")
            lines.append(self._memory[at + 2 : at + 2 + length].decode("utf-8", "replace"))
        return lines
