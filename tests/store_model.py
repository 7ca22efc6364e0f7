"""A plain model of one shard: what the scripts must do, told by the design's text. Nothing here knows Redis.

Time does not pass by itself: a time is ``now`` or ``later``, and the machine says when later has come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from store_values import Record, Task, Worker

FINAL = frozenset("SFC")


class Model:
    """One shard. Each method is a script, and returns what it answers."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.tasks: dict[str, Task] = {}
        self.markers: dict[str, Task] = {}
        self.later: dict[str, bool] = {}
        """scheduled ids, in order of due time: whether that is still to come"""
        self.dependents: dict[str, list[str]] = {}
        self.outbox: dict[str, set[str]] = {}
        self.workers: dict[str, Worker] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.marks: dict[str, int] = {}
        self.paused: set[str] = set()
        self.purged: dict[str, int] = {}
        self._arrivals = 0
        self._ended: list[tuple[str, bool]] = []

    # --- what can be read --------------------------------------------------------------------

    def ready(self, queue: str) -> list[str]:
        found = [task for task in self.tasks.values() if task.state == "q" and task.record.queue == queue]
        return [task.record.id for task in sorted(found, key=lambda task: task.score)]

    def held(self, inc: str) -> set[str]:
        return {i for i, task in self.tasks.items() if task.state == "p" and task.owner == inc}

    def incomplete(self, part: str) -> set[int]:
        places = [place.rpartition(":") for task in self.tasks.values() for place in task.places or ()]
        return {int(offset) for at, _, offset in places if at == part}

    def low(self, part: str) -> int:
        return min([self.marks[part], *self.incomplete(part)])

    def depended(self, on: str) -> int:
        return sum(task.after.count(on) for task in self.tasks.values() if task.state not in FINAL)

    def size(self, queue: str) -> int:
        return sum(len(self.tasks[i].record.raw) for i in self.ready(queue))

    # --- parts -------------------------------------------------------------------------------

    def _count(self, queue: str, what: str) -> None:
        self.counts.setdefault(queue, Counter())[what] += 1

    def _arrive(self, task: Task) -> None:
        self._arrivals += 1
        task.state, task.arrival = "q", self._arrivals

    def _hand_back(self, task: Task) -> None:
        task.state, task.owner, task.arrival = "q", None, 0

    def _schedule(self, task: Task, later: bool) -> None:
        task.state = "d"
        self.later[task.record.id] = later

    def _end(self, task: Task, state: str, value: str) -> None:
        self.later.pop(task.record.id, None)
        task.state, task.value = state, value
        self._count(task.record.queue, state)
        for on in task.after:
            if not self.depended(on):
                self.dependents.pop(on, None)
        if self.dependents.get(task.record.id):
            self._ended.append((task.record.id, state == "S"))

    def _end_here(self, task: Task, state: str, code: str) -> None:
        task.holder = f"~{task.generation or ''}"
        self._end(task, state, code)
        self.outbox.setdefault(task.holder, set()).add(f"{task.record.id}:{task.attempt}")

    def _tell(self) -> None:
        news: Counter[str] = Counter()
        while self._ended or news:
            while self._ended:
                on, succeeded = self._ended.pop()
                for entry in self.dependents.pop(on, []):
                    task = self._waiter(entry)
                    if task is not None and (succeeded or task.policy == "c"):
                        news[entry] += 1
                    elif task is not None:
                        self._end_here(task, "F", "DEPENDENCY_FAILED")
            for entry, n in news.items():
                if (task := self._waiter(entry)) is not None:
                    self._release(task, n)
            news.clear()

    def _waiter(self, entry: str) -> Task | None:
        generation, _, dependent = entry[1:].partition(" ") if entry.startswith("\1") else (0, "", entry)
        task = self.tasks.get(dependent)
        return task if task is not None and task.state == "w" and task.generation == int(generation) else None

    def _release(self, task: Task, n: int) -> None:
        task.open -= n
        if not task.open and task.record.due:
            self._schedule(task, True)
        elif not task.open:
            self._arrive(task)

    # --- admission ---------------------------------------------------------------------------

    def admit(self, source: Sequence[Any], records: Sequence[Record]) -> Any:
        part = f"{source[0]}:{source[1]}" if source else ""
        if source and source[3] > self.marks[part]:
            return ["GAP", self.marks[part]]
        stop: int | bool = False
        conflicts, complete = [], []
        for i, record in enumerate(records, 1):
            if source and record.offset < self.marks[part]:
                if self._conflicting(record):
                    conflicts.append(i)
                continue
            verdict = self._admit(record, bool(source))
            if verdict == "full":
                stop = record.offset
                break
            conflicts += [i] * (verdict == "conflict")
            complete += [i] * (verdict in ("conflict", "complete"))
        if source:
            self.marks[part] = max(self.marks[part], source[4] if stop is False else stop)
        self._tell()
        return ["OK", stop, conflicts, complete]

    def _conflicting(self, record: Record) -> bool:
        task = self.tasks.get(record.id)
        return task is not None and task.generation == record.generation and task.record.checksum != record.checksum

    def _admit(self, record: Record, intake: bool) -> str:
        task = self.tasks.get(record.id)
        if task is not None and not (task.state in FINAL and record.generation > task.generation):
            return self._known(task, record) if intake else ""
        if record.sent <= self.purged.get(record.queue, 0):
            if intake:
                self.markers.pop(record.id, None)
            return "complete" if intake else ""
        full = not record.after and not record.due and len(self.ready(record.queue)) >= self.window
        mark = self.marks[record.part]
        if intake and full:
            return "full"
        if not intake and record.offset < mark:
            return ""
        if not intake and (full or record.offset - mark > 1000):
            if task is None:
                self.markers.setdefault(record.id, Task(record, "m"))
            return ""
        self._enter(record, task)
        return ""

    def _known(self, task: Task, record: Record) -> str:
        if self._conflicting(record):
            return "conflict"
        if task.places is None:
            return "complete"
        task.places.add(f"{record.part}:{record.offset}")
        return ""

    def _enter(self, record: Record, before: Task | None) -> None:
        places = (before.places or set()) if before else set()
        task = Task(record, "q", places | {f"{record.part}:{record.offset}"}, generation=record.generation)
        if before:
            task.attempt, task.value, task.was, task.suspect = before.attempt, before.value, before.state, before.suspect
        self.tasks[record.id] = task
        self._count(record.queue, "N")
        marker = self.markers.pop(record.id, None)
        if marker and marker.cancelled:
            task.cancelled = True
            self._end_here(task, "C", "CANCELLED")
            return
        task.after, failed = record.after, False
        for on in record.after:
            state = self.tasks[on].state if on in self.tasks else ""
            again = task.needs.get(on, 0) > (self.tasks[on].generation if on in self.tasks else 0)
            if on == record.id or (state in ("F", "C") and not again and task.policy != "c"):
                failed = True
            elif again or state not in FINAL:
                self.dependents.setdefault(on, []).append(f"\1{record.generation} {record.id}" if record.generation else record.id)
                task.open += 1
        if failed:
            self._end_here(task, "F", "DEPENDENCY_FAILED")
        elif task.open:
            task.state = "w"
        elif record.due:
            self._schedule(task, True)
        else:
            self._arrive(task)

    # --- work --------------------------------------------------------------------------------

    def register(self, inc: str, names: Iterable[str]) -> Any:
        self.workers.setdefault(inc, Worker(frozenset())).names = frozenset(names)
        return ["OK"]

    def take(self, inc: str, number: int, most: int, queues: Sequence[str], patient: bool) -> Any:
        worker = self.workers.get(inc)
        if worker is None:
            return ["DEAD"]
        last = worker.taken
        if last and last[0] > number:
            return ["STALE"]
        if last and last[0] == number:
            mine = [(i, a, known) for i, a, known in last[1] if i in self.held(inc) and self.tasks[i].attempt == a]
            return ["OK", [self._handed(*given) for given in mine]]
        given: list[tuple[str, int, bool]] = []
        for queue in queues:
            if queue in self.paused:
                continue
            due = [i for i, later in self.later.items() if not later and self.tasks[i].record.queue == queue]
            for i in due[: max(most, 1)]:
                del self.later[i]
                self._arrive(self.tasks[i])
            for i in self.ready(queue)[: most - len(given)]:
                given += self._give(self.tasks[i], inc, worker, patient)
        worker.taken = (number, given)
        answer = [self._handed(*g) for g in given]
        self._tell()
        return ["OK", answer]

    def _give(self, task: Task, inc: str, worker: Worker, patient: bool) -> list[tuple[str, int, bool]]:
        known = bool(worker.names & {"*", task.record.name})
        if task.record.expires == 1:
            self._end_here(task, "F", "EXPIRED")
        elif task.cancelled:
            self._end_here(task, "C", "CANCELLED")
        elif not known and patient:
            self._schedule(task, True)
        else:
            task.state, task.owner, task.attempt = "p", inc, task.attempt + 1
            return [(task.record.id, task.attempt, known)]
        return []

    def _handed(self, i: str, attempt: int, known: bool) -> Any:
        task = self.tasks[i]
        values = [self._given(on) for on in task.after]
        inputs = [task.record.inputs, values] if task.record.inputs else False
        alone = task.suspect is not None
        return [i, attempt, task.failures, task.deaths, task.record.raw, task.record.sent, task.record.queue, inputs, known, alone]

    def _given(self, on: str) -> str:
        task = self.tasks.get(on)
        if task is None:
            return "null"
        bad = task.state if task.state in FINAL else task.was
        return (f"!{bad}" if bad in ("F", "C") else "") + (task.value or "null")

    def settle(self, inc: str, items: Sequence[Sequence[Any]]) -> Any:
        if inc not in self.workers:
            return ["DEAD"]
        answers = []
        for i, attempt, kind, value, _, delay in items:
            task = self.tasks.get(i)
            if task is None or task.owner != inc or task.attempt != attempt:
                answers.append(0)
                continue
            answers.append(1 if task.state == "p" else 2)
            if task.state != "p":
                continue
            self.workers[inc].counts[kind] += 1
            self.outbox.setdefault(inc, set()).add(f"{i}:{attempt}")
            if kind == "R":
                task.failures, task.value = task.failures + 1, value
                self._count(task.record.queue, "R")
                self._schedule(task, bool(delay) and not task.cancelled)
            elif kind == "D":
                self._died(task, delay)
            else:
                task.message = kind != "S"
                self._end(task, kind, value)
        self._tell()
        return ["OK", answers]

    def _died(self, task: Task, most: int) -> None:
        task.deaths += 2 if not task.deaths and task.suspect == 1 else 1
        task.suspect = task.suspect or 0
        task.interrupted += 1
        self._over(task, task.deaths >= most)

    def _over(self, task: Task, poison: bool) -> None:
        if task.cancelled:
            self._end_here(task, "C", "CANCELLED")
        elif poison:
            self._end_here(task, "F", "POISON")
        else:
            self._hand_back(task)

    def release(self, inc: str, items: Sequence[tuple[str, int]]) -> Any:
        mine = [i for i, attempt in items if i in self.held(inc) and attempt == self.tasks[i].attempt]
        for i in mine:
            self._hand_back(self.tasks[i])
        return ["OK", len(mine)]

    def logged(self, holder: str, items: Sequence[tuple[str, int, bool]]) -> Any:
        complete: list[str] = []
        for i, attempt, final in items:
            self.outbox.get(holder, set()).discard(f"{i}:{attempt}")
            task = self.tasks.get(i)
            if not final or task is None or task.state not in FINAL or task.attempt != attempt:
                continue
            if (task.holder or task.owner) == holder and task.places is not None:
                complete += task.places
                task.places = None
        return ["OK", sorted(complete)]

    def recover(self, inc: str, started: Sequence[str] | None, max_deaths: int, suspects: Sequence[str] = (), orderly: bool = False) -> Any:
        self.workers.pop(inc, None)
        held = self.held(inc)
        for i in held:
            task = self.tasks[i]
            task.interrupted += started is not None and i in started
            poison = started is None and self._orphan(task, max_deaths)
            if i in suspects:
                task.suspect = 1
            if orderly:
                self._count(task.record.queue, "B")
            self._over(task, poison)
        self._tell()
        return ["OK", 0, len(held)]

    def _orphan(self, task: Task, max_deaths: int) -> bool:
        task.orphaned += 1
        if task.suspect is not None:
            task.deaths += 1
            return task.deaths >= max_deaths
        if task.orphaned >= 2:
            task.suspect = 0
        return False

    # --- administration ----------------------------------------------------------------------

    def cancel(self, ids: Sequence[str]) -> Any:
        answers: list[Any] = []
        for i in ids:
            task = self.tasks.get(i) or self.markers.get(i)
            if task and task.state in "qdw":
                self._end_here(task, "C", "CANCELLED")
            elif task and task.state in "pm":
                task.cancelled = True
            answers.append(task.state if task else False)
        self._tell()
        return ["OK", answers]

    def purge(self, queue: str, before: int) -> Any:
        self.purged[queue] = max(before, self.purged.get(queue, 0))
        ids = [i for i, task in self.tasks.items() if task.state in "qd" and task.record.queue == queue]
        for i in ids:
            self._end_here(self.tasks[i], "C", "PURGED")
        self._tell()
        return ["OK", len(ids)]

    def expire(self, past: bool) -> Any:
        gone = [i for i, task in self.tasks.items() if past and task.state in FINAL and task.places is None and not self.depended(i)]
        for i in gone:
            del self.tasks[i]
        for task in list(self.tasks.values()):
            if task.state in "qdw" and task.record.expires == 1:
                self._end_here(task, "F", "EXPIRED")
            elif past and task.state == "w" and any(on not in self.tasks for on in task.after):
                self._end_here(task, "F", "DEPENDENCY_FAILED")
        self._tell()
        return ["OK", len(gone)]

    def assertion(self, inc: str, names: Iterable[str], mine: Sequence[tuple[str, int]]) -> Any:
        """Under a closed epoch, of tasks that Redis still knows."""
        held = self.held(inc)
        kept = {i for i, attempt in mine if i in held and self.tasks[i].attempt == attempt}
        for i in held - kept:
            self._hand_back(self.tasks[i])
        worker = self.workers.setdefault(inc, Worker(frozenset()))
        worker.names |= frozenset(names)
        return ["OK", [i for i, _ in mine if i not in kept]]
