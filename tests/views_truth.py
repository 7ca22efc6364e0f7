"""What the ledger of ``views_app`` says must be so: worked out from the lines of tasks and of the driver alone, without asking KRQ.

The driver writes ``sent id name queue [delayed | after id …]``, ``cancel id`` and ``again id``; each run ``began id attempt worker
failures``, and ``returned``, ``failed``, ``failing`` (it may be tried again) or ``stopped id attempt``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness import ledger

FINAL = ("success", "failed", "cancelled")
STATES = ("processing", "queued", "scheduled", "waiting", *FINAL)


@dataclass
class Run:
    """An attempt that began."""

    worker: str
    failures: int
    end: str = ""


@dataclass
class Life:
    """A task from when it was sent, or sent again, to its end."""

    cancelled: bool = False
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def ends(self) -> list[str]:
        return [run.end for run in self.runs.values()]

    @property
    def retried(self) -> int:
        """How often it failed and was to run again. What a killed worker did not get settled did not happen: the next run was not told."""
        last = list(self.runs.values())[-1:]
        return sum(run.failures + (run.end == "failing") for run in last)


@dataclass
class Task:
    """A task that the driver sent."""

    id: str
    name: str = ""
    queue: str = ""
    delayed: bool = False
    after: list[str] = field(default_factory=list)
    lives: list[Life] = field(default_factory=lambda: [Life()])


class Truth:
    """The ledger as it stands."""

    def __init__(self, path: Path) -> None:
        self.tasks: dict[str, Task] = {}
        for word, task_id, *rest in ledger(path):
            task = self.tasks.setdefault(task_id, Task(task_id))
            life = task.lives[-1]
            match word:
                case "sent":
                    task.name, task.queue, *more = rest
                    task.delayed, task.after = more == ["delayed"], more[1:]
                case "cancel":
                    life.cancelled = True
                case "again":
                    task.lives.append(Life())
                    task.delayed, task.after = False, []
                case "began":
                    life.runs[rest[0]] = Run(rest[1], int(rest[2]))
                case _:
                    life.runs[rest[0]].end = word
        self.state = {task_id: self._state(task, task.lives[-1]) for task_id, task in self.tasks.items()}

    def _state(self, task: Task, life: Life) -> str:
        if "returned" in life.ends:
            return "success"
        if "stopped" in life.ends:
            return "cancelled"
        if life.runs:
            return {"failed": "failed", "failing": "scheduled", "": "processing"}[life.ends[-1]]
        if life.cancelled:
            return "cancelled"
        before = [self._state(self.tasks[one], self.tasks[one].lives[-1]) for one in task.after]
        if {"failed", "cancelled"} & set(before):
            return "failed"
        if before.count("success") < len(before):
            return "waiting"
        return "scheduled" if task.delayed else "queued"

    # --- what views tell -----------------------------------------------------------------------

    def of(self, *states: str, **fields: str) -> set[str]:
        """Ids of the tasks in one of these states, with these fields."""
        return {task.id for task in self.tasks.values() if self.state[task.id] in states
                and all(getattr(task, name) == value for name, value in fields.items())}

    @property
    def queues(self) -> list[str]:
        return sorted({task.queue for task in self.tasks.values()})

    def queue(self, queue: str) -> dict[str, int]:
        """The numbers of a queue: what is in it, and the ends of all lives."""
        tasks = [task for task in self.tasks.values() if task.queue == queue]
        ends = Counter(self._state(task, life) for task in tasks for life in task.lives)
        return {
            "ready": len(self.of("queued", queue=queue)), "scheduled": len(self.of("scheduled", queue=queue)), "backlog": 0, "parked": 0,
            "succeeded": ends["success"], "failed": ends["failed"], "cancelled": ends["cancelled"],
            "retried": sum(life.retried for task in tasks for life in task.lives),
        }

    def total(self, number: str) -> int:
        """A number of all queues."""
        return sum(self.queue(queue)[number] for queue in self.queues)

    def runs(self, worker: str) -> Iterator[Run]:
        """The attempts that began on a worker."""
        return (run for task in self.tasks.values() for life in task.lives for run in life.runs.values() if run.worker == worker)

    def worker(self, worker: str) -> dict[str, int]:
        """The totals of a worker that has lived all the time."""
        ends = Counter(run.end for run in self.runs(worker))
        return {"busy": ends[""], "succeeded": ends["returned"], "failed": ends["failed"], "retried": ends["failing"]}

    @property
    def dead(self) -> set[str]:
        """Ids of the tasks that failed by their own doing."""
        return {task_id for task_id in self.of("failed") if self.tasks[task_id].lives[-1].runs}
