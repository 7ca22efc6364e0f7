"""A call that is not sent yet, and what it asks of the app that will send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

from krq.handle import AnyHandle, BroadcastHandle, TaskHandle
from krq.message import Inputs, OnFailure
from krq.sent import Results


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
    unique: bool | float
    """True: not beside another of this task and key that is pending; seconds: not so soon after another"""
    after: Sequence[AnyHandle | str]
    """waits until all of these have succeeded; of a workflow: until its last tasks have"""
    inputs: Inputs
    """what it gets of them: "none", "prepend", "list" or "concat" """
    on_failure: OnFailure
    """when one of them does not succeed: "fail", "continue" or "cancel_rest" """
    inbox: str
    """the one worker that may run it: ``WorkerInfo.inbox``"""
    task_id: str
    """an id of your own: sending it twice runs it once"""
    headers: Mapping[str, Any]
    retries: int
    backoff: Any
    max_age: float | timedelta
    """nothing of it begins again later than so many seconds after it was sent"""
    retry_on: Any
    """exception classes: only after these it is tried again"""
    give_up_on: Any
    """exception classes: after these it is not"""
    timeout: float
    """seconds it may run: goes before what the task says"""


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
    each: Literal["item", "args"] | None = None
    """see ``Message.each``"""
    workflow: str | None = None
    """the id of the first task of the workflow it is in"""


class Parent(NamedTuple):
    """The task that makes others while it runs."""

    id: str
    depth: int
    """of its children: how many parents are above them"""
    workflow: str


class Sender(Results, Protocol):
    """What a task or a workflow asks of the app."""

    def send_calls(self, calls: Sequence[Call]) -> list[TaskHandle[Any]]: ...

    def build_children(self, calls: Sequence[Call], parent: Parent) -> list[tuple[str, bytes]]: ...

    def check_options(self, options: Mapping[str, Any]) -> None: ...

    def broadcast(
        self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, /, **options: Any
    ) -> BroadcastHandle[Any]: ...
