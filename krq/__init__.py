"""KRQ: a distributed task queue on Kafka and Redis that can prove what it did."""

from krq.backoff import Backoff
from krq.context import Context, current
from krq.core import KRQ
from krq.errors import KRQError, ResultTimeout, SubmissionError, SubmissionTimeout, TaskCancelled, TaskFailed, TaskNotFound
from krq.handle import BroadcastHandle, ChainHandle, GroupHandle, MapHandle, TaskHandle
from krq.hooks import Module
from krq.info import TaskInfo
from krq.outcome import Reject, Retry, SoftTimeout, Stop, TaskError
from krq.states import TaskStatus
from krq.task import Task
from krq.version import __version__
from krq.workflow import Signature, chain, group

__all__ = [
    "KRQ",
    "Backoff",
    "BroadcastHandle",
    "ChainHandle",
    "Context",
    "GroupHandle",
    "KRQError",
    "MapHandle",
    "Module",
    "Reject",
    "ResultTimeout",
    "Retry",
    "Signature",
    "SoftTimeout",
    "Stop",
    "SubmissionError",
    "SubmissionTimeout",
    "Task",
    "TaskCancelled",
    "TaskError",
    "TaskFailed",
    "TaskHandle",
    "TaskInfo",
    "TaskNotFound",
    "TaskStatus",
    "__version__",
    "chain",
    "current",
    "group",
]
