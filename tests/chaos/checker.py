"""What a ledger proves. Knows nothing of KRQ: lines written by the tasks, deaths and pauses noted by the nemesis.

A run begins with a line ``S key attempt pid worker time`` and ends with ``F …`` of the same fields. Times are of
CLOCK_MONOTONIC, comparable between the processes of one machine.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

#: seconds between the last line of a run and the settling of its end: who dies within has interrupted it
UNSETTLED = 0.5


class Run(NamedTuple):
    """One run of a task, as its ledger lines and the deaths tell."""

    key: str
    attempt: int
    pid: int
    began: float
    ended: float | None
    """its own last line; None where there is none"""


class Faults(NamedTuple):
    """What the nemesis did to processes."""

    deaths: Mapping[int, tuple[float, float]]
    """pid → between which times it was killed"""
    stops: Mapping[int, Sequence[tuple[float, float]]] = {}
    """pid → from when to when it stood still"""
    outages: Sequence[tuple[float, float]] = ()
    """when no lease could be renewed for longer than it lasts: whoever ran then was interrupted"""


class Verdict(NamedTuple):
    """What the ledger shows against the promises. All empty: kept."""

    lost: list[str]
    thin_air: list[str]
    extra: list[str]
    """ran more often than interruptions explain"""
    overlapping: list[str]
    runs: int
    interruptions: int
    slowest: float
    """seconds between an interruption and the next run of the task"""

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.thin_air or self.extra or self.overlapping)


def read(lines: Iterable[Sequence[str]]) -> dict[str, list[Run]]:
    """The runs of each key, in the order of their beginning."""
    begun: dict[tuple[str, int, int], float] = {}
    ended: dict[tuple[str, int, int], float] = {}
    for kind, key, attempt, pid, _, time in lines:
        (begun if kind == "S" else ended)[key, int(attempt), int(pid)] = float(time)
    runs: dict[str, list[Run]] = defaultdict(list)
    for (key, attempt, pid), began in sorted(begun.items(), key=lambda item: item[1]):
        runs[key].append(Run(key, attempt, pid, began, ended.get((key, attempt, pid))))
    return runs


def check(submitted: Collection[str], runs: Mapping[str, Sequence[Run]], faults: Faults) -> Verdict:
    """Hold the runs against the promises."""
    lost = [key for key in submitted if not any(run.ended is not None for run in runs.get(key, ()))]
    known = set(submitted)
    thin_air = [key for key in runs if key not in known]
    extra, overlapping, interruptions, slowest = [], [], 0, 0.0
    for key, each in runs.items():
        cuts = [interrupted(run, faults) for run in each]
        interruptions += sum(cut is not None for cut in cuts)
        if any(cut is None for cut in cuts[:-1]):
            extra.append(key)
        for run, cut, following in zip(each, cuts, each[1:], strict=False):
            if cut is None:
                continue
            slowest = max(slowest, following.began - cut)
            if following.began < min(cut, run.ended or cut):
                overlapping.append(key)
    return Verdict(lost, thin_air, extra, overlapping, sum(map(len, runs.values())), interruptions, slowest)


def interrupted(run: Run, faults: Faults) -> float | None:
    """When a fault cut this run off, or its end before it could be settled; None where none did."""
    until = (run.ended if run.ended is not None else float("inf")) + UNSETTLED
    earliest, latest = faults.deaths.get(run.pid, (float("inf"), -1.0))
    cuts = [max(run.began, earliest)] if run.began <= latest and earliest <= until else []
    cuts += [begin for begin, end in faults.stops.get(run.pid, ()) if begin <= until and end >= run.began]
    cuts += [begin for begin, end in faults.outages if begin <= until and end >= run.began]
    return min(cuts) if cuts else None
