"""What the model of the scripts knows: records, tasks, workers. See ``store_model``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SPAN = 10**13


class Record(NamedTuple):
    """A message as admit.lua gets it, in its order."""

    id: str
    name: str
    queue: str
    partition: int
    offset: int
    raw: str
    checksum: int
    priority: int
    due: int
    expires: int
    after: tuple[str, ...]
    inputs: Any
    sent: int
    generation: int
    ordered: bool = True
    inbox: Any = False
    flow: Any = False

    @property
    def part(self) -> str:
        return f"{self.queue}:{self.partition}"


@dataclass
class Task:
    """A known task. ``places``: positions whose record is not complete; None once its end is logged."""

    record: Record
    state: str
    places: set[str] | None = field(default_factory=set)
    attempt: int = 0
    failures: int = 0
    deaths: int = 0
    orphaned: int = 0
    interrupted: int = 0
    suspect: int | None = None
    """1 of a death, 0 of lost leases: runs alone"""
    generation: int = 0
    owner: str | None = None
    holder: str | None = None
    open: int = 0
    after: tuple[str, ...] = ()
    cancelled: bool = False
    value: str | None = None
    was: str = ""
    """how the generation before ended"""
    arrival: int = 0
    message: bool = True

    @property
    def policy(self) -> Any:
        return self.record.flow[0] if self.record.flow else 0

    @property
    def needs(self) -> dict[str, int]:
        return self.record.flow[2] or {} if self.record.flow else {}

    @property
    def score(self) -> tuple[int, str]:
        return self.arrival - self.record.priority * SPAN, self.record.id


@dataclass
class Worker:
    """A live incarnation."""

    names: frozenset[str]
    taken: tuple[int, list[tuple[str, int, bool]]] | None = None
    counts: Counter[str] = field(default_factory=Counter)
