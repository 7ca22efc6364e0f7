"""Steps inside a long task: what is done stays done when its attempt does not."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from krq import message
from krq.errors import AttemptLost, KRQError, OptionError, StepLimit
from krq.hooks import Attempt

#: most steps of a task, and their names and results all together, in bytes
MOST, MOST_BYTES = 1_000, 4_000_000
#: longest name of a step, in characters
MAX_NAME = 200
_MAX_DEPTH = 64

_decode = msgspec.json.Decoder().decode


class Ask(Protocol):
    """What a running task asks of its worker: plain values in and out, so that it can be asked from another process, too.

    ``steps``, no arguments: ``["KEPT", name, JSON, name, JSON, …]``. ``step``, a name and JSON: ``["KEPT"]``, stored by now; ``["MANY"]``
    or ``["LARGE"]``, a limit. Either: ``["LOST"]``, the attempt is another's by now. It waits while the store is away.
    """

    def __call__(self, attempt: Attempt, what: str, arguments: Sequence[str], /) -> Sequence[str]: ...


class Found(NamedTuple):
    """A step's own name, numbered where the name was there before, and what an earlier attempt kept of it."""

    name: str
    kept: str | None


class Steps:
    """The steps of one attempt. Thread-safe."""

    def __init__(self, attempt: Attempt, ask: Ask | None) -> None:
        self._attempt = attempt
        self._ask = ask
        self._lock = threading.Lock()
        self._seen: dict[str, int] = {}
        # the first attempt of all finds nothing
        self._kept: dict[str, str] | None = {} if attempt.number == 1 else None

    def find(self, name: str) -> Found:
        """What is known of the next step of this name. Raises ``OptionError``, ``AttemptLost``."""
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME or "#" in name:
            raise OptionError(f"{name!r} is no name of a step", cure=f"Use 1 to {MAX_NAME} characters, no '#'.")
        with self._lock:
            if self._kept is None:
                told = self._told("steps", [])
                self._kept = dict(zip(told[::2], told[1::2], strict=True))
            nth = self._seen[name] = self._seen.get(name, 0) + 1
            own = name if nth == 1 else f"{name}#{nth}"
            return Found(own, self._kept.get(own))

    def keep(self, name: str, result: Any) -> Any:
        """Store what a step came to, under its own name; returns it as a later attempt will get it."""
        what = f"The result of step {name!r}"
        raw = message.encode_value(result, max_bytes=MOST_BYTES, max_depth=_MAX_DEPTH, what=what).decode()
        self._told("step", [name, raw])
        return _decode(raw)

    def _told(self, what: str, arguments: Sequence[str]) -> Sequence[str]:
        if self._ask is None:
            raise KRQError("Nobody keeps steps here", cure="Steps are kept for a task that a worker runs.")
        status, *told = self._ask(self._attempt, what, arguments)
        match status:
            case "KEPT":
                return told
            case "MANY":
                raise StepLimit(f"Task {self._attempt.id} has {MOST:,} steps already")
            case "LARGE":
                raise StepLimit(f"The steps of task {self._attempt.id} would be larger than {MOST_BYTES:,} bytes")
        raise AttemptLost(f"Attempt {self._attempt.number} of task {self._attempt.id} is another worker's by now, or over")


def value(kept: str) -> Any:
    """What was kept, as a value."""
    return _decode(kept)
