"""What may be done to a run that goes too far: the options by which a task is limited and isolated."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import msgspec

from krq.errors import OptionError

#: the options of ``@app.task`` that this file reads
OPTIONS = ("timeout", "soft_timeout", "memory_limit", "isolate", "on_lease_lost")
_UNITS = {"": 1, "KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}
#: an interpreter alone takes about so much
_LEAST_MEMORY = 16 << 20
_LONGEST = 1e9


class Containment(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one task."""

    timeout: float | None = None
    """seconds; whoever runs longer is stopped: a process is killed, a coroutine is cancelled"""
    soft_timeout: float | None = None
    """seconds after which ``krq.SoftTimeout`` is raised in the task"""
    memory_limit: int = 0
    """bytes of resident memory of its process; 0: none"""
    isolate: bool = False
    """runs in a process of its own, whatever it is limited to"""
    coroutine: bool = False
    on_lease_lost: Literal["stop", "continue"] = "stop"
    """``continue``: it runs on when its worker's lease may have been given away, and may overlap with another run"""

    def needs_process(self, timeout: float | None) -> bool:
        """Whether a run with this time limit needs a process of its own: a thread can't be stopped, nor measured."""
        return self.isolate or bool(self.soft_timeout or self.memory_limit) or (timeout is not None and not self.coroutine)


NONE = Containment()


def read(name: str, settings: Mapping[str, Any], *, coroutine: bool) -> Containment:
    """The limits that a task was registered with. Raises ``OptionError`` for what can't be enforced or contradicts itself."""
    given = {option: settings[option] for option in OPTIONS if settings.get(option) is not None}
    if not given and not coroutine:
        return NONE
    timeout, soft = (_seconds(name, option, given.get(option)) for option in ("timeout", "soft_timeout"))
    memory = _bytes(name, given.get("memory_limit"))
    if timeout is not None and soft is not None and soft >= timeout:
        raise OptionError(f"soft_timeout={soft} of {name!r} is not below timeout={timeout}", cure="The soft one comes first.")
    if given.get("on_lease_lost", "stop") not in ("stop", "continue"):
        raise OptionError(f"on_lease_lost={given['on_lease_lost']!r} of {name!r} can't be used", cure='Use "stop" or "continue".')
    isolate = given.get("isolate")
    if isolate is not None and not isinstance(isolate, bool):
        raise OptionError(f"isolate={isolate!r} of {name!r} is no bool")
    if isolate is False and (soft is not None or memory or (timeout is not None and not coroutine)):
        raise OptionError(f"{name!r} can't be limited so in a thread: nothing can stop one, least of all within a C call",
                          cure="Leave out isolate=False: it then runs in a process of its own, which can be killed.")
    return Containment(timeout=timeout, soft_timeout=soft, memory_limit=memory, isolate=bool(isolate), coroutine=coroutine,
                       on_lease_lost=given.get("on_lease_lost", "stop"))


def _seconds(name: str, option: str, value: Any) -> float | None:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LONGEST:
        raise OptionError(f"{option}={value!r} of {name!r} is no number of seconds above 0")
    return float(value)


def _bytes(name: str, value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)\s*(KB|MB|GB|)", value.strip().upper())):
        value = int(match[1]) * _UNITS[match[2]]
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"memory_limit={value!r} of {name!r} is no size", cure='Give bytes, or text such as "512MB".')
    if value < _LEAST_MEMORY:
        raise OptionError(f"memory_limit={value:,} bytes of {name!r} is less than an interpreter needs", cure="Use 16MB or more.")
    return value
