"""The log keeper: brings the outbox into the ``events`` topic, then lets go of it.

Entries that this child settled are in memory as well; those of the dead, and of the scripts themselves,
are read from Redis. While the broker is away the outbox waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from krq import events, failpoints
from krq.brokers.base import Broker, Outgoing, Position
from krq.config import Config
from krq.errors import BrokerConnectionError, KRQError, NamespaceClosed, SubmissionError, SubmissionTimeout
from krq.events import DeadLetter, Entry
from krq.failpoints import Failpoint
from krq.logfiles import LogFile, SafeFile
from krq.logs import RESULTS, Wait
from krq.outcome import ErrorInfo
from krq.store.client import Store
from krq.store.records import cut
from krq.store.records import letters as records_of
from krq.store.scripts import Script
from krq.worker.engine import Settle

log = logging.getLogger("krq.worker.log")

#: entries kept in memory for the log; more are read back from Redis
MAX_HELD = 50_000
#: most entries of one record, and its size in bytes
PAGE, PAGE_BYTES = 250, 512 * 1024
#: dead letters read back from Redis, with their messages, at a time
HEAVY = 16
#: seconds that entries wait for others to share their record
LINGER = 0.05
#: seconds until the next try after an error that nobody has foreseen
PATIENCE = 1.0
#: failures that are nothing of the task's own: no dead letters
INNOCENT = frozenset({"EXPIRED", "DEPENDENCY_FAILED"})


class _Item(msgspec.Struct, frozen=True):
    id: str
    attempt: int
    final: bool
    entry: bytes
    dead: bool = False
    settle: Settle | None = None

    @property
    def burden(self) -> int:
        """Characters of its message, which a dead letter has."""
        return len(self.settle.held.raw) if self.dead and self.settle is not None else 0


_entry = msgspec.json.Decoder(Entry)


class LogKeeper:
    """One thread per child. ``add`` from the engine's thread; all else runs in its own."""

    def __init__(self, config: Config, store: Store, broker: Broker, incarnation: str) -> None:
        self._config = config
        self._store = store
        self._broker = broker
        self._incarnation = incarnation
        self._items: deque[_Item] = deque()
        self._current: list[_Item] = []
        self._behind = False
        self._stop = threading.Event()
        self._work = threading.Event()
        self._wait = Wait(log, "ended attempts wait in the outbox")
        self._results = _results(config)
        self._fail = failpoints.armed()
        self._orphans_at = 0.0
        self._thread = threading.Thread(target=self._run, name="krq-log", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, settled: Sequence[Settle]) -> None:
        """These are settled: their entries are in the outbox and shall come into the log."""
        if len(self._items) > MAX_HELD:
            self._behind = True
            return
        self._items.extend(
            _Item(s.held.id, s.held.attempt, s.kind not in "RDW", s.entry.encode(), s.kind == "F", s) for s in settled
        )
        if not self._work.is_set():
            self._work.set()

    def look_back(self) -> None:
        """The end of an attempt was refused. The answer before may have been lost, and its entry stands in the outbox unknown to us."""
        self._behind = True

    def unlogged(self) -> list[Settle]:
        """What is settled and not seen in the log yet."""
        return [item.settle for item in [*self._current, *self._items] if item.settle is not None]

    @property
    def waiting(self) -> int:
        """How many entries in memory the log has not got yet."""
        return len(self._items) + len(self._current)

    def drain(self, timeout: float) -> bool:
        """Log what there is, within ``timeout`` seconds, and end the thread. False: something is left in the outbox."""
        self._stop.set()
        self._work.set()
        self._thread.join(timeout)
        return not self._items and not self._thread.is_alive()

    # --- the thread --------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            if self._work.wait(0.5):
                self._stop.wait(LINGER)
            self._work.clear()
            while self._items or self._current:
                if not self._log_own():
                    if self._stop.is_set() or self._stop.wait(0.5):
                        return
                elif 0 < len(self._items) < PAGE:
                    self._stop.wait(LINGER)
            if self._stop.is_set():
                return
            try:
                self._read_back()
            except KRQError as error:
                self._complain(error)
            except Exception:  # boundary: without this thread no end would be logged any more
                log.exception("the outbox could not be read; it is tried again")
                self._stop.wait(PATIENCE)

    def _log_own(self) -> bool:
        if not self._current:
            self._current = self._page()
        try:
            self._publish(self._incarnation, self._current)
        except KRQError as error:
            self._complain(error)
            return False
        except Exception:  # boundary: as above
            log.exception("%d entries could not be logged; they are tried again", len(self._current))
            self._stop.wait(PATIENCE)
            return False
        self._current = []
        return True

    def _page(self) -> list[_Item]:
        page: list[_Item] = []
        size = 0
        while self._items and len(page) < PAGE:
            size += len(self._items[0].entry) + self._items[0].burden
            if page and size > PAGE_BYTES:
                break
            page.append(self._items.popleft())
        return page

    def _publish(self, holder: str, items: Sequence[_Item]) -> None:
        """Log items of one outbox. What stands in the log twice is one entry: its id and attempt say so."""
        letters = [self._letter(item) for item in items if item.dead]
        most = self._config.max_message_bytes
        records = [Outgoing(self._config.dead_topic, events.encode_letter(cut(letter, most))) for letter in letters]
        if self._fail is not None:
            self._fail(Failpoint.LOG_BEFORE)
        records.append(Outgoing(self._config.events_topic, events.encode_page([item.entry for item in items])))
        for answer in self._broker.publish(records, self._config.send_timeout):
            if isinstance(answer, Exception):
                raise answer if isinstance(answer, KRQError) else BrokerConnectionError(str(answer))
        if self._fail is not None:
            self._fail(Failpoint.LOG_PUBLISHED)
        calls: list[tuple[Script, Sequence[Any]]] = [(Script.DEAD, (records_of(letters), []))] if letters else []
        own = items is self._current
        if own:
            self._tell(items)
        told = [(item.id, item.attempt, item.final) for item in items]
        calls.append((Script.LOGGED, (holder, told, self._results is not None and not own)))
        logged = self._store.run_all(calls)[-1]
        if not logged.ok:
            raise NamespaceClosed(f"{self._store.name} is being checked")
        if len(logged.values) > 1:  # others may log them, too: whoever takes one out of the outbox tells it
            self._tell([items[n - 1] for n in logged.values[1]])
        if self._fail is not None:
            self._fail(Failpoint.LOG_LOGGED)
        positions = [self._position(at) for at in logged.values[0]]
        if positions and not self._broker.ordered:
            self._complete(positions)
        self._wait.end()

    def _tell(self, items: Sequence[_Item]) -> None:
        """Write the ends of tasks to ``results.log``; not again what is logged again, as an answer was lost or Redis forgot it."""
        if self._results is None:
            return
        ends = [item for item in items if item.final and not (item.settle is not None and item.settle.held.told)]
        if ends:
            self._results.write(b"".join([_line(item.entry) for item in ends]))
        for item in ends:
            if item.settle is not None:
                item.settle.held.told = True

    def _complete(self, positions: Sequence[Position]) -> None:
        if self._fail is not None:
            self._fail(Failpoint.COMMIT_BEFORE)
        self._broker.complete(positions, self._config.group_id)
        if self._fail is not None:
            self._fail(Failpoint.COMMIT_AFTER)

    def _position(self, at: str) -> Position:
        queue, partition, offset = at.rsplit(":", 2)
        return Position(self._config.topic(queue), int(partition), int(offset) if self._broker.ordered else offset)

    # --- what others left --------------------------------------------------------------------

    def _read_back(self) -> None:
        """Log the outboxes of the dead and of the scripts, and our own where memory was not enough."""
        if self._behind:
            self._behind = self._drain_outbox(self._incarnation)
        now = time.monotonic()
        if now - self._orphans_at < 1.0:
            return
        self._orphans_at = now
        with self._store.plain() as redis:
            holders = redis.srandmember(self._store.keys("orphans"), 5) or []
        for holder in holders:
            self._drain_outbox(holder.decode())
        self._wait.end()

    def _drain_outbox(self, holder: str) -> bool:
        """Log one page of an outbox. True: there may be more."""
        with self._store.plain() as redis:
            fields = redis.hrandfield(self._store.keys("outbox", holder), PAGE, withvalues=True) or []
        pairs = fields if fields and isinstance(fields[0], list | tuple) else list(zip(fields[::2], fields[1::2], strict=True))
        items = []
        for field, entry in pairs:
            task_id, _, attempt = field.decode().rpartition(":")
            decoded = _entry.decode(entry)
            items.append(_Item(task_id, int(attempt), decoded.outcome not in ("retry", "died", "spawned"), entry, _is_dead(decoded)))
        dead, others = ([item for item in items if item.dead is wanted] for wanted in (True, False))
        for some in [*(dead[at : at + HEAVY] for at in range(0, len(dead), HEAVY)), *([others] if others else [])]:
            self._publish(holder, some)
        if not items and holder != self._incarnation:
            self._store.run(Script.LOGGED, holder, [])
        return len(items) == PAGE

    def _letter(self, item: _Item) -> DeadLetter:
        """What people get to see of a task that failed by its own doing."""
        entry = _entry.decode(item.entry)
        error = entry.error or ErrorInfo("")
        if item.settle is not None:
            original: dict[str, Any] = {"value": item.settle.held.raw}
        else:
            with self._store.plain() as redis:
                original = events.original(redis.get(self._store.keys("message", entry.id)) or b"")
        reason = f"{error.message[:1000]} ({entry.reason})" if entry.reason else error.message[:1000]
        return DeadLetter(
            reason=reason, code=error.type, at=entry.finished, queue=entry.queue, id=entry.id, name=entry.name, attempt=entry.attempt,
            error=error, **original,
        )

    def _complain(self, error: KRQError) -> None:
        """The outbox waits, and goes on by itself."""
        refused = isinstance(error, SubmissionError) and not isinstance(error, SubmissionTimeout)
        self._wait.begin(error, logging.ERROR if refused else logging.WARNING)


def _results(config: Config) -> SafeFile | None:
    """``results.log`` of this host, where there shall be one."""
    return SafeFile(LogFile(Path(config.log_dir) / RESULTS, config.log_bytes, config.log_files)) if config.log_dir else None


def _line(entry: bytes) -> bytes:
    """The end of a task as ``results.log`` has it: its entry, with what came out as ``status``."""
    return entry.replace(b'"outcome":', b'"status":', 1) + b"\n"


def _is_dead(entry: Entry) -> bool:
    return entry.outcome == "failed" and entry.error is not None and entry.error.type not in INNOCENT
