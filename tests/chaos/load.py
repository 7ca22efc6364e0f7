"""What the driver sends, and what the ledger says of it so far."""

from __future__ import annotations

import random
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import krq
from chaos.checker import Task
from krq import ids

#: most tasks of one call
PAGE = 1000
#: times that poison may kill its process; high enough that no innocent task is killed so often by chance
DEATHS = 6


class Sent(NamedTuple):
    """A task on its way."""

    key: str
    task_id: str
    call: dict[str, Any]
    asked: Task


class Load(threading.Thread):
    """Sends ``rate`` tasks a second, and what an outage held up afterwards; keeps the keys of those that were accepted.

    Most run for 1-20 ms, some for a few hundred, a few for seconds; some raise and run again, some are delayed, some are
    chains. Whatever is not confirmed may be in the log: it is sent again under its id until it is.
    """

    def __init__(self, app: krq.KRQ, path: Path, rate: int, seed: int, poison: int = 0) -> None:
        super().__init__(name="load", daemon=True)
        self.accepted: dict[str, Task] = {}
        self.unknown: dict[str, Sent] = {}
        self.poisons: list[str] = []
        self.ids: dict[str, str] = {}
        self.refused = 0
        self.errors: defaultdict[str, int] = defaultdict(int)
        self._app, self._path, self._rate, self._poison = app, str(path), rate, poison
        self._random = random.Random(seed)
        self._number = 0
        self._ending = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while not self._ending.wait(0.1):
            due = int((time.monotonic() - began) * self._rate) - self._number
            self._send(self._more(min(due, PAGE)))

    def finish(self, patience: float = 60.0) -> None:
        """Send no more new ones; bring the unconfirmed through."""
        self._ending.set()
        self.join(60)
        deadline = time.monotonic() + patience
        while self.unknown and time.monotonic() < deadline:
            self._send([])

    # --- what ----------------------------------------------------------------------------------

    def _more(self, count: int) -> list[Sent]:
        made: list[Sent] = []
        while len(made) < count:
            steps = self._random.randint(3, 6) if self._random.random() < 0.01 else 1
            before: Sent | None = None
            for _ in range(steps):
                before = self._one(before)
                made.append(before)
        if self._poison and self._number // 5000 > len(self.poisons) and len(self.poisons) < self._poison:
            made.append(self._toxic())
        return made

    def _one(self, before: Sent | None) -> Sent:
        dice = self._random
        key, task_id = f"k{self._number}", ids.new_id()
        self._number += 1
        seconds = dice.choices((dice.uniform(0.001, 0.02), dice.uniform(0.1, 0.5), dice.uniform(1, 3)), (90, 8, 2))[0]
        failing = dice.randint(1, 2) if dice.random() < 0.05 else 0
        options: dict[str, Any] = {"task_id": task_id}
        due = 0.0
        if before is not None:
            options["after"] = [before.task_id]
        elif dice.random() < 0.05:
            options["delay"] = dice.uniform(0.5, 5)
            due = time.monotonic() + options["delay"] - 0.05
        call = {"task": "work", "args": [self._path, key, round(seconds, 4), failing], "options": options}
        return Sent(key, task_id, call, Task(failing, before.key if before else "", due))

    def _toxic(self) -> Sent:
        key, task_id = f"p{len(self.poisons)}", ids.new_id()
        self.poisons.append(task_id)
        return Sent(key, task_id, {"task": "poison", "args": [self._path, key], "options": {"task_id": task_id}}, Task(deaths=DEATHS))

    # --- sending -------------------------------------------------------------------------------

    def _send(self, fresh: list[Sent]) -> None:
        tasks = [*self.unknown.values(), *fresh]
        for start in range(0, len(tasks), PAGE):
            page = tasks[start : start + PAGE]
            failed = self._submit(page)
            self.refused += len(failed)
            for sent in page:
                if sent.task_id in failed:
                    self.unknown[sent.key] = sent
                else:
                    self.unknown.pop(sent.key, None)
                    self.accepted[sent.key] = sent.asked
                    self.ids[sent.key] = sent.task_id

    def _submit(self, page: list[Sent]) -> set[str]:
        try:
            self._app.submit_many([sent.call for sent in page])
        except krq.errors.BatchError as error:
            for cause in error.failed.values():
                self.errors[getattr(cause, "code", type(cause).__name__)] += 1
            return set(error.failed)
        except krq.KRQError as error:
            self.errors[error.code] += 1
            return {sent.task_id for sent in page}
        return set()


class Tail:
    """Reads on in a growing ledger: what has ended, and what runs. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: set[str] = set()
        self.names: dict[int, str] = {}
        """for which worker each process has run something"""
        self._running: dict[int, set[str]] = defaultdict(set)
        self._lock = threading.Lock()
        self._at = 0
        self._rest = b""

    def look(self) -> None:
        """Take in what was written since the last look."""
        with self._lock, suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
            self._at += len(data)
            *lines, self._rest = (self._rest + data).split(b"\n")
            for text in lines:
                kind, key, _, pid, name, _ = text.decode().split(" ")
                self.names[int(pid)] = name
                running = self._running[int(pid)]
                if kind == "S":
                    running.add(key)
                    continue
                running.discard(key)
                if kind == "F":
                    self.done.add(key)

    def running(self, pid: int) -> int:
        """How many runs this process has begun and not ended."""
        self.look()
        return len(self._running.get(pid, ()))
