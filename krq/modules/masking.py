"""Masking: ``@app.task(mask=["password"])`` keeps arguments out of all that is shown.

The names travel in a header of the message, so that whoever shows it knows, wherever the function is not importable. The task
gets its arguments as they are; what it raises loses them before anything is stored. Redis and Kafka hold the message itself:
this is no encryption.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import msgspec

from krq import masking
from krq.errors import OptionError
from krq.hooks import Attempt, Module
from krq.message import Message
from krq.outcome import ErrorInfo, Failed, Outcome, RetryAt, TimedOut
from krq.task import Task


class Masking(Module):
    """``mask``: names of arguments that no command, page or error shows."""

    task_options: Mapping[str, Any] = {"mask": list[str]}

    def __init__(self) -> None:
        self._masks: dict[str, tuple[list[str], list[int]]] = {}

    def check(self, task: Task[..., Any]) -> None:
        """Find where the named arguments stand. Raises ``OptionError`` for a name that the function does not have."""
        names = task.settings.get("mask")
        if not names:
            return
        parameters = list(inspect.signature(task.function).parameters.values())
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters)
        placed = {one.name: i for i, one in enumerate(parameters) if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)}
        known = {one.name for one in parameters if one.kind is not one.VAR_POSITIONAL}
        for name in names:
            if name not in known and not takes_any:
                raise OptionError(f"mask={names!r} of {task.name!r} names {name!r}, which is no argument of it", cure="Correct the name.")
        self._masks[task.name] = (list(names), [placed[name] for name in names if name in placed])

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:  # noqa: ARG002
        """Tell whoever will show this message. Results of other tasks stand before its own arguments."""
        mask = self._masks.get(message.task)
        if mask is None:
            return message
        before = {"prepend": len(message.after), "list": 1, "concat": 1}.get(message.inputs, 0) if message.after else 0
        at = [i - before for i in mask[1] if i >= before] if message.each is None else [0]  # of a map the arguments of all calls
        wanted = {"names": mask[0], "at": at}
        return msgspec.structs.replace(message, headers={**message.headers, masking.HEADER: wanted})

    def outcome(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """An error loses what must not be shown."""
        if masking.HEADER not in attempt.message.headers or not isinstance(outcome, Failed | RetryAt | TimedOut):
            return outcome
        hidden = masking.secrets(attempt.message.args, attempt.message.kwargs, attempt.message.headers)
        error = outcome.error
        clean = ErrorInfo(error.type, masking.scrub(error.message, hidden), masking.scrub(error.traceback, hidden))
        return msgspec.structs.replace(outcome, error=clean)
