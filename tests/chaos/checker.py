"""What a ledger proves. Knows nothing of KRQ: lines written by the tasks, and what the nemesis notes of its deeds.

A run begins with a line ``S key attempt pid worker time`` and ends with ``F …`` of the same fields, or with ``E …`` where
it raises; ``D …`` stands before a task kills its own process. Times are of CLOCK_MONOTONIC, comparable between the
processes of one machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise, zip_longest
from typing import NamedTuple

#: seconds between the last line of a run and the settling of its end: who dies within has interrupted it
UNSETTLED = 1.0
#: seconds after its thaw in which a process that stood still past its lease may write a last line (the honest exception of P4)
THAW = 0.5
#: seconds within which a killed child's tasks run again, and within which beyond the lease a worker's do
CHILD, BEYOND_LEASE = 1.0, 2.0


class Task(NamedTuple):
    """What was asked for."""

    retries: int = 0
    """it may raise so often, and runs again"""
    after: str = ""
    """the key of the task that has to end before it begins"""
    due: float = 0.0
    """it does not begin before"""
    deaths: int = 0
    """more than 0: poison, which may kill its process so often and never ends"""


class Kind(StrEnum):
    """What befell processes."""

    CHILD = "a child killed"
    WORKER = "a worker killed"
    FROZEN = "a worker stopped"
    """supervisor and children stand still for longer than the lease"""
    HEADLESS = "a supervisor stopped"
    """or cut off: its children have to end themselves before the lease is over"""
    STILL = "a child stopped"
    """under a living supervisor: nothing but delay"""


class Harm(NamedTuple):
    """One deed of the nemesis against processes."""

    kind: Kind
    pids: frozenset[int]
    began: float
    ended: float


class Outage(NamedTuple):
    """When no lease could be renewed."""

    began: float
    ended: float
    cutting: bool = False
    """for longer than a lease: whoever ran then was interrupted"""


@dataclass
class Run:
    """One run of a task, as its ledger lines tell."""

    key: str
    attempt: int
    pid: int
    began: float
    ended: float | None = None
    """its own last line; None where there is none"""
    raised: bool = False


class Faults(NamedTuple):
    """What the nemesis did."""

    harms: Sequence[Harm] = ()
    outages: Sequence[Outage] = ()
    lease: float = 3.0
    deserted: Sequence[tuple[float, float]] = ()
    """when no worker stood ready: nobody could take over"""


class Recovery(NamedTuple):
    """From an interruption to the next run of the task."""

    key: str
    cause: str
    seconds: float
    """by the clock"""
    counted: float
    """without the time in which leases could not be renewed or judged"""


@dataclass
class Verdict:
    """What the ledger shows against the promises."""

    lost: list[str]
    """accepted and never ended"""
    thin_air: list[str]
    """ran, and nobody asked for it"""
    doubled: list[str]
    """ended more than once, and no fault explains it"""
    extra: list[str]
    """ran more often than raising and interruptions explain"""
    overlapping: list[str]
    """two runs at one time"""
    disordered: list[str]
    """ran before what it waits for had ended, before its time, or under an attempt that did not rise"""
    late: list[Recovery]
    """ran again later than promised (P6)"""
    runs: int = 0
    interruptions: int = 0
    hits: int = 0
    """deeds of killing that cut off at least one run"""
    thawed: int = 0
    """last lines of processes that stood still, written as they thawed"""
    slowest: Recovery | None = None
    """by the clock"""
    slowest_of: Mapping[str, Recovery] | None = None
    """by cause, counted, where nothing else befell a worker in between"""

    @property
    def broken(self) -> dict[str, list[str]]:
        """The promises that were broken, with the keys of tasks; all but P6, which needs a machine that is not overloaded."""
        found = {
            "lost": self.lost, "out of thin air": self.thin_air, "doubled": self.doubled, "extra runs": self.extra,
            "overlapping": self.overlapping, "disordered": self.disordered,
        }  # fmt: skip
        return {name: keys for name, keys in found.items() if keys}

    @property
    def clean(self) -> bool:
        """Whether every promise was kept, P6 included."""
        return not (self.broken or self.late)


class Ledger(NamedTuple):
    """The runs of each key in the order of their beginning, and the processes that a task has killed itself."""

    runs: Mapping[str, Sequence[Run]]
    deaths: Sequence[Harm]


def read(lines: Iterable[Sequence[str]]) -> Ledger:
    """Match the lines of a ledger."""
    runs: dict[str, list[Run]] = defaultdict(list)
    deaths = []
    for kind, key, attempt, pid, _, time in lines:
        if kind == "S":
            runs[key].append(Run(key, int(attempt), int(pid), float(time)))
        elif kind == "D":
            deaths.append(Harm(Kind.CHILD, frozenset([int(pid)]), float(time), float(time) + 0.05))
        else:
            open_ = (run for run in runs[key] if (run.attempt, run.pid, run.ended) == (int(attempt), int(pid), None))
            run = next(open_, None)
            if run is None:  # an end without a beginning
                runs[key].append(run := Run(key, int(attempt), int(pid), float(time)))
            run.ended, run.raised = float(time), kind == "E"
    for each in runs.values():
        each.sort(key=lambda run: run.began)
    return Ledger(runs, deaths)


def check(tasks: Mapping[str, Task], ledger: Ledger, faults: Faults, unknown: Collection[str] = ()) -> Verdict:
    """Hold the runs against the promises. ``unknown``: keys that may or may not have been accepted."""
    return _Check(tasks, ledger, faults, set(unknown)).verdict()


class _Check:
    def __init__(self, tasks: Mapping[str, Task], ledger: Ledger, faults: Faults, unknown: set[str]) -> None:
        self.tasks, self.ledger, self.unknown = tasks, ledger, unknown
        self.lease = faults.lease
        self.outages = sorted(faults.outages)
        self.away = sorted([*((out.began, out.ended + self.lease) for out in self.outages), *faults.deserted])
        self.harms = sorted([*faults.harms, *ledger.deaths], key=lambda harm: harm.began)
        self.harms_at = [harm.began for harm in self.harms]
        self.by_pid: dict[int, list[Harm]] = defaultdict(list)
        for harm in self.harms:
            for pid in harm.pids:
                self.by_pid[pid].append(harm)
        self.struck: set[Harm] = set()
        self.recoveries: list[tuple[Recovery, bool]] = []
        self.found = Verdict([], [], [], [], [], [], [])

    def verdict(self) -> Verdict:
        found, runs = self.found, self.ledger.runs
        for key, task in self.tasks.items():
            each = runs.get(key, ())
            if not task.deaths and not any(run.ended is not None and not run.raised for run in each):
                found.lost.append(key)
            self._order(key, task, each)
        for key, each in runs.items():
            if key not in self.tasks and key not in self.unknown:
                found.thin_air.append(key)
            self._judge(key, self.tasks.get(key, Task()), each)
        found.runs = sum(map(len, runs.values()))
        found.hits = sum(harm.kind in (Kind.CHILD, Kind.WORKER) for harm in self.struck.difference(self.ledger.deaths))
        self._sum_up()
        return found

    # --- one task ------------------------------------------------------------------------------

    def _judge(self, key: str, task: Task, runs: Sequence[Run]) -> None:
        found = self.found
        cuts = [self._cut(run, following) for run, following in zip_longest(runs, runs[1:])]
        whole = [run for run, cut in zip(runs, cuts, strict=True) if cut is None and run.ended is not None]
        if sum(not run.raised for run in whole) > 1:
            found.doubled.append(key)
        unexplained = any(cut is None and not run.raised for run, cut in zip(runs[:-1], cuts[:-1], strict=True))
        if unexplained or sum(run.raised for run in whole) > task.retries or (task.deaths and len(runs) > self._most(task, cuts)):
            found.extra.append(key)
        if any(late.attempt <= early.attempt for early, late in pairwise(runs)):
            found.disordered.append(key)
        last = -1.0
        for place, (run, cut) in enumerate(zip(runs, cuts, strict=True)):
            if run.began < last and key not in found.overlapping:
                found.overlapping.append(key)
            last = max(last, self._last(run, cut))
            following = runs[place + 1] if place + 1 < len(runs) else None
            if cut is not None and (following is not None or run.ended is None):
                found.interruptions += 1
                if isinstance(cut, Harm) and run.ended is None:
                    self.struck.add(cut)
                # a retry waits for its back-off, and an overlap is no recovery
                if following is not None and not run.raised and cut.began <= following.began:
                    self._recovered(run, cut, following)

    def _most(self, task: Task, cuts: Sequence[Harm | Outage | None]) -> int:
        """Runs that poison may have: its own deaths, and those that others have caused."""
        return task.deaths + sum(cut is not None and cut not in self.ledger.deaths for cut in cuts)

    def _order(self, key: str, task: Task, runs: Sequence[Run]) -> None:
        if not runs:
            return
        ends = [run.ended for run in self.ledger.runs.get(task.after, ()) if run.ended is not None and not run.raised]
        too_early = task.after and (not ends or runs[0].began < min(ends))
        if too_early or runs[0].began < task.due:
            self.found.disordered.append(key)

    def _cut(self, run: Run, following: Run | None) -> Harm | Outage | None:
        """The fault that cut this run off, or its end before that could be settled; no later than the next run began."""
        until = float("inf")
        if run.ended is not None:
            until = min(self._settled(run, run.ended), until if following is None else max(run.ended, following.began))
        cuts: list[Harm | Outage] = []
        for harm in self.by_pid.get(run.pid, ()):
            slack = THAW if harm.kind is Kind.FROZEN else 0.0
            if harm.kind is not Kind.STILL and harm.began <= until and harm.ended + slack >= run.began:
                cuts.append(harm)
        cuts += [out for out in self.outages if out.cutting and out.began <= until and out.ended >= run.began]
        return min(cuts, key=lambda cut: cut.began) if cuts else None

    def _settled(self, run: Run, ended: float) -> float:
        """When the end of a run is settled at the latest: not while Redis is away or checked, nor while its process stands still."""
        until = ended + UNSETTLED
        for out in self.outages:
            if out.began <= until and out.ended + self.lease >= ended:
                until = max(until, out.ended + self.lease + UNSETTLED)
        for harm in self.by_pid.get(run.pid, ()):
            if harm.kind is Kind.STILL and harm.began <= until and harm.ended >= ended:
                until = max(until, harm.ended + UNSETTLED)
        return until

    def _last(self, run: Run, cut: Harm | Outage | None) -> float:
        """Until when this run ran."""
        if run.ended is None:
            return run.began if cut is None else max(run.began, cut.began)
        if isinstance(cut, Harm) and cut.kind is Kind.FROZEN and cut.began <= run.ended and cut.ended <= run.ended <= cut.ended + THAW:
            self.found.thawed += 1
            return cut.began
        return run.ended

    # --- recovery ------------------------------------------------------------------------------

    def _bound(self, cut: Harm | Outage) -> float:
        return CHILD if isinstance(cut, Harm) and cut.kind in (Kind.CHILD, Kind.STILL) else self.lease + BEYOND_LEASE

    def _away(self, began: float, ended: float) -> float:
        """Seconds of this span in which leases could not be renewed or judged (until one lease after the return), or nobody was there."""
        away, at = 0.0, began
        for since, until in self.away:
            start, end = max(at, since), min(ended, until)
            if start < end:
                away, at = away + end - start, end
        return away

    def _recovered(self, run: Run, cut: Harm | Outage, following: Run) -> None:
        """Judge a recovery. Who has taken the task and not begun it may be struck as well: then the clock starts anew."""
        began = max(run.began, cut.began)
        counted = following.began - began - self._away(began, following.began)
        cause = str(cut.kind) if isinstance(cut, Harm) else "Redis away"
        recovery = Recovery(run.key, cause, following.began - began, counted)
        deadline, alone = began + self._bound(cut), True
        for harm in self.harms[bisect_left(self.harms_at, began - 2 * self.lease) :]:
            if harm.began > deadline + self._away(began, harm.began):
                break
            if harm is cut or harm.ended < began:
                continue
            alone = alone and harm.began > following.began
            struck = max(harm.began, began) if harm.kind is not Kind.STILL else harm.ended
            deadline = max(deadline, struck + self._bound(harm))
        self.recoveries.append((recovery, alone))
        if following.began > deadline + self._away(began, following.began):
            self.found.late.append(recovery)

    def _sum_up(self) -> None:
        slowest: dict[str, Recovery] = {}
        for each, alone in self.recoveries:
            if alone and (each.cause not in slowest or each.counted > slowest[each.cause].counted):
                slowest[each.cause] = each
        self.found.slowest_of = slowest
        self.found.slowest = max((each for each, _ in self.recoveries), key=lambda each: each.seconds, default=None)
