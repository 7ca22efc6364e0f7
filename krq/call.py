"""A call that is not sent yet, and what it asks of the app that will send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, TypedDict

from krq.handle import AnyHandle, BroadcastHandle, Results, TaskHandle
from krq.message import Inputs


class CallOptions(TypedDict, total=False):
    """Options of one call. Modules may own more."""

    queue: str
    priority: int
    """-100 to 100; the higher runs first within its queue"""
    delay: float | timedelta
    """seconds from now"""
    eta: float | datetime
    """not before: Unix seconds or an aware datetime"""
    expires: float | datetime | timedelta
    """not started after: Unix seconds, an aware datetime, or a timedelta from now"""
    key: str
    """messages of one key stand in one partition, in order"""
    after: Sequence[AnyHandle | str]
    """waits until all of these have succeeded; of a workflow: until its last tasks have"""
    inputs: Inputs
    """what it gets of them: "none", "prepend" or "list" """
    inbox: str
    """the one worker that may run it: ``WorkerInfo.inbox``"""
    task_id: str
    """an id of your own: sending it twice runs it once"""
    headers: Mapping[str, Any]
    retries: int
    backoff: Any
    timeout: float


class Definition(Protocol):
    """What a call asks of its task."""

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None: ...


class Call(NamedTuple):
    """One task to send."""

    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    task: Definition | None = None
    """None where the function is not registered here"""
    options: Mapping[str, Any] = {}


class Sender(Results, Protocol):
    """What a task or a workflow asks of the app."""

    def send_calls(self, calls: Sequence[Call]) -> list[TaskHandle[Any]]: ...

    def check_options(self, options: Mapping[str, Any]) -> None: ...

    def broadcast(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, /, **options: Any
    ) -> BroadcastHandle[Any]: ...
