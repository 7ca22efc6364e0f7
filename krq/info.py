"""What KRQ tells about tasks, workers and queues, as values. All times are Unix seconds, None where they have not come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from krq.outcome import ErrorInfo
from krq.rates import NONE, Rates
from krq.states import TaskStatus


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it stands. ``str(info)`` is its status with the result or the error: ``success 3``."""

    id: str
    status: TaskStatus
    name: str = ""
    queue: str = ""
    result: Any = None
    """what the function returned, once it succeeded"""
    error: ErrorInfo | None = None
    """the last error: of the failure, or of the attempt before"""
    attempt: int = 0
    failures: int = 0
    """how often it failed and was to be tried again; a last failure, after which no attempt follows, does not count"""
    deaths: int = 0
    """deaths of its process that are its own doing"""
    interruptions: int = 0
    """workers that died, or were taken for dead, while it ran"""
    worker: str = ""
    """who runs it or ran it last"""
    priority: int = 0
    waits_for: str = ""
    """the limit that keeps a queued task back: ``max_concurrency``, ``max_concurrency_per_key``, ``rate_limit`` or ``in_order``"""
    progress: tuple[int, int] | None = None
    sent: float | None = None
    due: float | None = None
    started: float | None = None
    """of the last attempt"""
    finished: float | None = None

    def __str__(self) -> str:
        if self.status is TaskStatus.SUCCESS:
            return f"{self.status} {msgspec.json.encode(self.result).decode()}"
        if self.status is TaskStatus.FAILED and self.error is not None:
            return f"{self.status} {self.error.type}: {self.error.message}"
        return str(self.status)


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """What a task was sent with, as it may be shown: what ``mask`` names, or what is called a secret, is hidden."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    after: list[str] = []
    """ids of the tasks whose results or ends it waits for"""
    inputs: str = "none"
    retries: int | None = None
    timeout: float | None = None
    key: str | None = None


class TaskFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which tasks a list shall have. None: any."""

    status: TaskStatus | None = None
    name: str | None = None
    queue: str | None = None
    worker: str | None = None


class TaskPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of a list of tasks."""

    tasks: list[TaskInfo]
    cursor: str | None
    """leads to the next page; None: that was all"""
    looked: int
    """how many tasks were looked at to find these"""


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long the tasks that ended last took. Seconds; None where nothing has ended."""

    n: int
    wait: float | None = None
    """from sending to the start, the median"""
    wait95: float | None = None
    """the same, of the slowest 5 %"""
    run: float | None = None
    run95: float | None = None


class AttemptInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not succeed."""

    attempt: int
    outcome: str
    """``retry``, ``failed``, ``cancelled``; ``died``: its own process; ``interrupted``: its worker did; ``handed back`` by one that left"""
    worker: str = ""
    started: float | None = None
    finished: float | None = None
    error: ErrorInfo | None = None
    """text and traceback are cut to 2,000 characters"""
    cause: str = ""
    """of an interruption: exit code, signal, or the lease"""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a task."""

    at: float | None
    """None: nobody has noted when"""
    kind: str
    """``sent``, ``released``, ``due``, ``started``, ``spawned``, ``success``, or an end as in ``AttemptInfo.outcome``"""
    text: str


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why a task is where it is."""

    code: str
    """``paused``, ``limit``, ``dependency``, ``children``, ``delay``, ``backoff``, ``unknown_task``, ``no_worker``, ``backlog``,
    ``position``, ``running``, ``cancel``, ``worker_dead``, ``closed``, ``expires``, ``unpublished``, ``not_known``"""
    text: str
    id: str = ""
    """of the task that it waits for, where it is one"""
    since: float | None = None
    until: float | None = None
    """when this is over, where somebody knows"""


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """How a task came to where it stands, why it does not go on, and what comes next."""

    id: str
    task: TaskInfo | None
    """None: Redis does not know it, all this is from the log"""
    past: list[Moment]
    """the earliest first; of attempts that did not succeed the last ten"""
    reasons: list[Reason]
    """the first is what it waits for now; none once it has ended"""
    next: str


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that happened: an entry of the ``events`` topic, or what a listener is told."""

    outcome: str
    """of an attempt: ``success``, ``failed``, ``retry``, ``spawned``, ``cancelled``, ``died``; asked for: ``cancel``, ``control``; told to
    listeners alone: ``started``, ``worker_started``, ``worker_stopping``; told by ``KRQ.events`` alone: ``skipped``"""
    at: float
    id: str = ""
    """of the task; of ``control``: what it concerns, such as a queue"""
    name: str = ""
    queue: str = ""
    attempt: int = 0
    worker: str = ""
    sent: float | None = None
    started: float | None = None
    due: float | None = None
    """of the next attempt, after ``retry``"""
    result: Any = None
    error: ErrorInfo | None = None
    reason: str = ""
    """why no attempt follows, after ``failed``"""
    data: Mapping[str, Any] = {}
    """of ``control``: ``act``, such as ``pause``, and what belongs to it"""


class StickyInfo(msgspec.Struct, frozen=True):
    """A broadcast that each worker gets at its start."""

    name: str
    """of the task"""
    id: str
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    sent: float


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A live incarnation of a worker."""

    id: str
    incarnation: str
    host: str = ""
    pid: int = 0
    queues: list[str] = []
    slots: int = 0
    busy: int = 0
    """tasks it holds now"""
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    started: float | None = None
    beat: float | None = None
    """its last heartbeat"""
    version: str = ""
    inbox: str = ""
    """the queue that it alone serves"""


class WorkerFailure(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an incarnation that nobody asked for."""

    worker: str
    incarnation: str
    at: float
    cause: str
    """exit code, signal, or the lease"""
    beat: float | None = None
    held: int = 0
    ran: list[str] = []
    """ids of the tasks that were running, where its supervisor could tell"""
    tail: list[str] = []
    """the last lines of its log, where its supervisor could tell"""
    host: str = ""


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it stands."""

    name: str
    task: str
    when: str
    """the cron line, or ``every 30 s``"""
    tz: str = ""
    """of the cron line"""
    next: float | None = None
    """when it fires next; None while it is paused"""
    last: float | None = None
    """the tick that it fired last"""
    last_id: str = ""
    """the task of that tick"""
    paused: bool = False
    source: str = "code"
    """``code``, or ``runtime``: added or changed by ``KRQ.schedule``"""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: dict[str, Any] = {}
    """of its calls"""


class LimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The limits in force for the tasks of a name. None: no such limit."""

    name: str
    max_concurrency: int | None = None
    max_concurrency_per_key: int | None = None
    rate_limit: str | None = None
    in_order: bool = False
    changed: bool = False
    """by ``KRQ.limit``: the code may say otherwise"""
    running: int | None = None
    """how many hold one of its ``max_concurrency`` places"""
    parked: int = 0
    """ready ones that wait for ``max_concurrency`` or ``rate_limit``"""


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """A queue as it stands."""

    queue: str
    ready: int = 0
    parked: int = 0
    """ready, but for a limit of their task (``TaskInfo.waits_for``)"""
    scheduled: int = 0
    backlog: int = 0
    """records in the log that were not admitted yet"""
    admitted: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    handed_back: int = 0
    """attempts that had not ended when their worker's grace time was over"""
    paused: bool = False
    rates: Rates = NONE
    """tasks a second that succeeded or failed, over the last 1, 5 and 15 minutes, or as long as workers have lived in them"""
    failure_rates: Rates = NONE
    """the same of those that failed"""


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The whole namespace as it stands."""

    queues: dict[str, QueueStats]
    workers: int = 0
    processing: int = 0
    waiting: int = 0
    dead: int = 0
    """dead letters remembered, at most 1,000"""
    outbox: int = 0
    """ended attempts that the log has not got yet"""
    rates: Rates = NONE
    """of all queues"""
    failure_rates: Rates = NONE
