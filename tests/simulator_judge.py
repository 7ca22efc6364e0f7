"""What the simulator knows from outside: what was sent, answered, started and logged. No word of it comes from KRQ's books."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from store_reading import dump, of, owner

from krq.store.client import Answer, Store
from krq.store.scripts import Script
from krq.worker.engine import Held

if TYPE_CHECKING:
    from simulator import Simulation
    from simulator_worker import Child

#: what may be left when all tasks are forgotten: identity, marks, counters of queues, who works, what was
LEFT = {
    "epoch", "asserted", "queue", "queues", "wake", "mark", "intake", "sequence", "beats", "worker", "names", "taken", "deaths", "expel",
    "gone", "totals", "noted",
}  # fmt: skip
FINAL = frozenset({"S", "F", "C"})


class Violation(AssertionError):
    """A promise is broken."""


class Record(NamedTuple):
    id: str
    row: list[Any]
    after: tuple[str, ...]


class Run:
    """One start of a task."""

    def __init__(self, child: Child, held: Held) -> None:
        self.child, self.held = child, held
        self.settled = ""

    @property
    def over(self) -> bool:
        """Its end is settled, or its worker is gone, or cut off for so long that it has to stop."""
        return bool(self.settled) or not self.child.alive or self.child.expired


class Judge:
    """Raises ``Violation`` at the step that breaks a promise."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.given: dict[str, tuple[int, str]] = {}
        self.ended: dict[str, tuple[str, int, str]] = {}
        self.runs: dict[str, list[Run]] = defaultdict(list)
        self.finals: dict[str, dict[int, str]] = defaultdict(dict)
        self.gone: set[str] = set()

    # --- what runs ---------------------------------------------------------------------------

    def start(self, child: Child, held: Held) -> Run:
        """P3, P4: who starts has outlived all earlier runs."""
        i, earlier = held.id, self.runs[held.id]
        run = Run(child, held)
        _check(i not in self.ended, f"{i} starts in {child.inc} and has ended: {self.ended.get(i)}")
        for other in earlier:
            _check(other.over, f"{i} starts in {child.inc} and runs in {other.child.inc}, attempt {other.held.attempt}")
            _check(other.held.attempt < held.attempt, f"{i} starts twice with attempt {held.attempt}")
        cut_off = sum(not other.settled for other in earlier)
        retries = sum(other.settled == "R" for other in earlier)
        _check(len(earlier) + 1 <= 1 + retries + cut_off, f"{i} runs once too often")
        for on in self.after(i):
            _check(self.ended.get(on, ("",))[0] == "S", f"{i} starts before {on} has succeeded: {self.ended.get(on)}")
        earlier.append(run)
        return run

    def after(self, i: str) -> tuple[str, ...]:
        return next(r.after for line in self.sim.log.values() for r in line if r.id == i)

    # --- what the server did -----------------------------------------------------------------

    def saw(self, script: Script, args: Sequence[Any], answer: Answer) -> None:
        """A script was carried out, whether or not its answer arrives."""
        if answer.ok and (look := getattr(self, f"_{script.value}", None)) is not None:
            look(args, answer.values)

    def _take(self, args: Sequence[Any], values: Sequence[Any]) -> None:
        inc = args[0]
        _check(inc not in self.gone, f"{inc} takes and is dead")
        for i, attempt, *_ in values[0]:
            before, holder = self.given.get(i, (0, ""))
            _check(attempt > before or (attempt, inc) == (before, holder), f"{i}: attempt {attempt} of {inc} after {before} of {holder}")
            _check(i not in self.ended, f"{i} is given to {inc} and has ended: {self.ended.get(i)}")
            self.given[i] = (attempt, inc)

    def _settle(self, args: Sequence[Any], values: Sequence[Any]) -> None:
        """P5: one end, by the latest holder, who is not dead."""
        inc = args[0]
        for (i, attempt, kind, *_), said in zip(args[1], values[0], strict=True):
            if said == 2:
                mine = [run.settled for run in self.runs[i] if (run.child.inc, run.held.attempt) == (inc, attempt)]
                _check(any(mine), f"{i}, attempt {attempt} of {inc}, is said to be settled: {self.ended.get(i)}")
            if said != 1:
                continue
            _check(inc not in self.gone, f"{inc} settles {i} and is dead")
            _check(self.given.get(i) == (attempt, inc), f"{i}: {inc} settles attempt {attempt}; it was given as {self.given.get(i)}")
            _check(i not in self.ended, f"{i} ends again: {kind} after {self.ended.get(i)}")
            for run in self.runs[i]:
                if run.held.attempt == attempt:
                    run.settled = kind
            if kind in FINAL:
                self.ended[i] = (kind, attempt, inc)

    def _recover(self, args: Sequence[Any], _values: Sequence[Any]) -> None:
        """P4: nobody is declared dead who may go on. Who has not registered yet holds nothing, and enters anew."""
        inc = args[0]
        for machine in self.sim.machines:
            child = machine.child
            leaving = child.engine.stopping and child.engine.idle
            over = not child.alive or not child.ready or child.expired or leaving
            _check(child.inc != inc or over, f"{inc} is declared dead and lives")
        self.gone.add(inc)

    def _register(self, args: Sequence[Any], _values: Sequence[Any]) -> None:
        self.gone.discard(args[0])

    _assert = _register

    def _cancel(self, args: Sequence[Any], values: Sequence[Any]) -> None:
        for i, said in zip(args[0], values[0], strict=True):
            if said == "C" and i not in self.ended:
                self.ended[i] = ("C", -1, "cancelled")

    # --- the log -----------------------------------------------------------------------------

    def logged(self, entries: Sequence[Any]) -> None:
        """These stand in the log now. One final entry a task, however often it stands there."""
        for raw in entries:
            entry = msgspec.json.decode(raw)
            if entry["outcome"] in ("R", "retry"):
                continue
            i, attempt, kind = entry["id"], entry["attempt"], entry["outcome"][0].upper()
            finals = self.finals[i]
            finals[attempt] = kind
            _check(len(finals) == 1, f"{i} has several ends in the log: {finals}")
            known = self.ended.setdefault(i, (kind, attempt, "the scripts"))
            _check(known[0] == kind, f"{i} ended as {known[0]}; the log says {kind}")

    def _mark(self, args: Sequence[Any], values: Sequence[Any]) -> None:
        """P2, rule 6: what lies below the low-water is over, and the log says so."""
        for (queue, number, *_), told in zip(args[0], values[0], strict=True):
            for record in self.sim.log[queue, number][: told[1] if told else 0]:
                _check(record.id in self.finals, f"{queue}:{number} is complete up to {told[1]}, and {record.id} is not in the log")

    # --- the end -----------------------------------------------------------------------------

    def at_the_end(self, found: dict[str, Any], store: Store) -> None:
        """P2: everything sent is over, and nothing is left of it but the log."""
        tasks = of(found, "task")
        for record in [r for line in self.sim.log.values() for r in line]:
            state = tasks.get(record.id, {}).get("s")
            _check(state in FINAL, f"{record.id} is {state}: {tasks.get(record.id)}; ended {self.ended.get(record.id)}")
            _check(record.id in self.finals, f"the log has no end of {record.id}")
            _check(self.ended[record.id][0] == state, f"{record.id} ended as {self.ended[record.id]}, and is {state}")
        for part, line in self.sim.log.items():
            mark = int(of(found, "mark")[f"{part[0]}:{part[1]}"]["next"])
            _check(mark == len(line), f"{part}: the mark is {mark}, the log has {len(line)}")
        for queue, fields in of(found, "queue").items():
            _check(int(fields.get("bytes", 0)) == 0, f"{queue} counts {fields.get('bytes')} bytes")
        self._nothing_left(store)

    def _nothing_left(self, store: Store) -> None:
        parts = [[*part, "tid", False, True] for part in self.sim.log]
        self.sim.execute(store, [(Script.MARK, (parts,))])
        for _ in range(3):
            self.sim.execute(store, [(Script.EXPIRE, (-(10**15),))])
        found = dump(store)
        left = {entry: of(found, entry) for entry in sorted({owner(name) for name in found} - LEFT)}
        _check(not left, f"keys are left: {left}")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise Violation(what)
