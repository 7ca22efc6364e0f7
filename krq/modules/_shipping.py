"""Lines of tasks on their way: from a process of its own to the child, from the child to Redis and to the log. All of it is bounded.

What says a line appends it to a deque, and never waits: no lock is taken there, as a task may be stopped between any two bytecodes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue

import msgspec

from krq import loglines
from krq.errors import AppClosed, KRQError
from krq.hooks import Say
from krq.loglines import KEPT, Batch, LogLine
from krq.logs import Wait

log = logging.getLogger("krq.lines")

#: seconds in which lines are gathered, until what failed is tried again, and between two looks at the inbox meanwhile
GATHER, AGAIN, LOOK = 0.1, 2.0, 0.025
#: lines and bytes of one batch: 5,000 lines a second at most
LINES, BYTES = 500, 256 * 1024
#: lines of one task, of all, and bytes of all, that wait for a server
EACH, ALL, ALL_BYTES = KEPT, 10_000, 16 * 1024 * 1024
#: lines that may be said before a thread has looked at them
INBOX = 4_000
#: bytes of one word through a host's pipe, words a second, and how many at once
WORD, PACE, BURST = 12 * 1024, 500, 100

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


def missing(n: int, before: LogLine) -> LogLine:
    """Says that so many lines are missing before this one."""
    text = f"{n:,} {'line is' if n == 1 else 'lines are'} missing here: they came faster than they could be kept, or a server was away"
    return LogLine(at=before.at, attempt=before.attempt, worker=before.worker, text=text, stream="krq", level="WARNING", logger="krq")


class _Lot:
    """Lines of one task."""

    __slots__ = ("last", "lines", "lost", "size")

    def __init__(self, each: int, last: LogLine | None = None) -> None:
        self.lines: deque[LogLine] = deque(maxlen=each)
        self.lost = 0
        self.size = 0
        self.last = last


class Pending:
    """Lines that wait for a server. Of what is too much the oldest of the same task go; how many is told in their place. One thread."""

    def __init__(self, each: int = EACH, most: int = ALL, most_bytes: int = ALL_BYTES) -> None:
        self._each, self._most, self._most_bytes = each, most, most_bytes
        self._lots: dict[str, _Lot] = {}

    def __bool__(self) -> bool:
        return bool(self._lots)

    def add(self, batch: Iterable[tuple[str, LogLine]]) -> None:
        """The next lines."""
        before: dict[str, int] = {}
        for task_id, line in batch:
            lot = self._lots.get(task_id)
            if lot is None:
                lot = self._lots[task_id] = _Lot(self._each)
            before[task_id] = before.get(task_id, len(lot.lines)) + 1
            lot.lines.append(line)
        for task_id, n in before.items():
            lot = self._lots[task_id]
            lot.last = lot.lines[-1]
            lot.lost += n - len(lot.lines)
            lot.size = sum(map(loglines.size, lot.lines))
        self._fit(before)

    def lose(self, task_id: str, last: LogLine, n: int = 1) -> None:
        """So many are gone."""
        self._lots.setdefault(task_id, _Lot(self._each, last)).lost += n

    def take(self, most: int, most_bytes: int) -> Batch:
        """The next lines, of each task in turn a share."""
        batch: Batch = []
        room = most_bytes
        while self._lots and len(batch) < most and room > 0:
            task_id = next(iter(self._lots))
            lot = self._lots.pop(task_id)
            if lot.lost and lot.last is not None:
                batch.append((task_id, missing(lot.lost, lot.lines[0] if lot.lines else lot.last)))
                lot.lost = 0
            for _ in range(min(len(lot.lines), most - len(batch), max(1, most // 4))):
                line = lot.lines.popleft()
                lot.size -= loglines.size(line)
                batch.append((task_id, line))
                room -= loglines.size(line)
                if room <= 0:
                    break
            if lot.lines:
                self._lots[task_id] = lot  # behind the others
        return batch

    def restore(self, batch: Batch) -> None:
        """What was taken could not be sent yet."""
        lots: dict[str, list[LogLine]] = {}
        for task_id, line in batch:
            lots.setdefault(task_id, []).append(line)
        for task_id, lines in lots.items():
            lot = self._lots.setdefault(task_id, _Lot(self._each, lines[-1]))
            fit = lines[max(0, len(lines) + len(lot.lines) - self._each) :]
            lot.lost += len(lines) - len(fit)
            lot.lines.extendleft(reversed(fit))
            lot.size += sum(map(loglines.size, fit))
        self._fit(lots)

    def _fit(self, grown: Iterable[str]) -> None:
        """Keep within what all may take; who has come last makes room."""
        lines, size = sum(len(lot.lines) for lot in self._lots.values()), sum(lot.size for lot in self._lots.values())
        for task_id in grown:
            lot = self._lots[task_id]
            while lot.lines and (lines > self._most or size > self._most_bytes):
                gone = loglines.size(lot.lines.popleft())
                lot.size, lot.lost = lot.size - gone, lot.lost + 1
                lines, size = lines - 1, size - gone


class Outlet:
    """Brings lines to one server, in a thread of its own that sleeps while there are none. ``add`` from any thread; it never waits."""

    def __init__(self, name: str, send: Callable[[Batch], Batch]) -> None:
        self._send = send
        """returns what should be sent again; raises ``ConnectionError`` or ``TimeoutError`` where that is all, another where none is"""
        self._inbox: deque[tuple[str, LogLine]] = deque()
        self._lost: dict[str, tuple[int, LogLine]] = {}
        self._tokens: SimpleQueue[None] = SimpleQueue()
        self._awake = False
        self._leaving = threading.Event()
        self._empty = threading.Event()
        self._pending = Pending()
        self._wait = Wait(log, f"lines of tasks wait for {name}")
        self._thread = threading.Thread(target=self._run, name=f"krq-lines-{name}", daemon=True)
        self._thread.start()

    def add(self, task_id: str, line: LogLine) -> None:
        """Send this, soon."""
        if len(self._inbox) < INBOX:
            self._inbox.append((task_id, line))
        else:
            self._lost[task_id] = (self._lost.get(task_id, (0, line))[0] + 1, line)
        if not self._awake:
            self._awake = True
            self._tokens.put(None)

    def drain(self, timeout: float) -> bool:
        """Send what there is without gathering, and wait for it; nothing more will come. False: it took too long."""
        self._leaving.set()
        self._tokens.put(None)
        return self._empty.wait(timeout)

    def _run(self) -> None:
        while True:
            if not self._pending:
                self._tokens.get()
            self._rest(GATHER)
            self._awake = False  # before the look: what is said from now on wakes us again
            self._collect()
            try:
                while self._pending and self._ship() and self._leaving.is_set():
                    pass
            except AppClosed:
                return
            if self._leaving.is_set() and not self._pending and not self._inbox:
                self._empty.set()

    def _rest(self, seconds: float) -> None:
        """Let lines gather, and keep the inbox from being full."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._leaving.wait(min(left, LOOK)):
            self._collect()

    def _collect(self) -> None:
        self._pending.add([self._inbox.popleft() for _ in range(len(self._inbox))])
        if self._lost:
            lost, self._lost = self._lost, {}
            for task_id, (n, last) in list(lost.items()):
                self._pending.lose(task_id, last, n)

    def _ship(self) -> bool:
        """Send one batch. False: not now."""
        batch = self._pending.take(LINES, BYTES)
        try:
            again = self._send(batch)
        except AppClosed:
            raise
        except KRQError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                self._wait.begin(error, logging.DEBUG)
                self._pending.restore(batch)
            else:
                self._lose(batch, error)
            return self._failed()
        except Exception as error:  # boundary: lines are no reason to end
            self._lose(batch, error)
            return self._failed()
        self._wait.end()
        self._pending.restore(again)
        return not again

    def _lose(self, batch: Batch, error: Exception) -> None:
        log.debug("%d lines of tasks are lost: %s", len(batch), error)
        for task_id, line in batch:
            self._pending.lose(task_id, line)

    def _failed(self) -> bool:
        self._rest(AGAIN)
        if self._leaving.is_set():
            time.sleep(LOOK)
        return False


class Relay:
    """A host's side: hands lines to its child where the pipe has room, else later. Never waits, but for ``flush``."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._waiting: deque[tuple[str, LogLine]] = deque()
        self._lost = 0
        self._next = 0.0

    def add(self, task_id: str, line: LogLine) -> None:
        """Say this now, unless much was said just before."""
        self._waiting.append((task_id, line))
        if len(self._waiting) > EACH:
            self._waiting.popleft()
            self._lost += 1
        now = time.monotonic()
        at = max(self._next, now - BURST / PACE) + 1 / PACE
        if at <= now and self._word(wait=False):
            self._next = at

    def flush(self) -> None:
        """An attempt has ended: say the rest."""
        while self._waiting and self._word(wait=True):
            pass

    def _word(self, *, wait: bool) -> bool:
        word: Batch = []
        room = WORD
        while self._waiting and room > 0:
            word.append(self._waiting.popleft())
            line = word[-1][1]
            room -= loglines.size(line) * (1 if line.text.isascii() else 4)
        if not word:
            return False
        task_id, first = word[0]
        lost = [(task_id, missing(self._lost, first))] if self._lost else []
        said = self._say(_encode(lost + word), wait=wait)
        if said:
            self._lost = 0
        else:
            self._waiting.extendleft(reversed(word))
        return said


def heard(data: bytes) -> Batch:
    """What a relay has said."""
    return _decode(data)
