"""Limits: how many tasks of a name run at once, how often, in which order, and whether one is run beside another of its kind.

The limits belong to the name: each worker tells Redis at its start what its code says, and the scripts keep to it over all
workers. A task that may not run yet is *parked*: it holds no slot, and others of its queue pass it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from krq.errors import OptionError
from krq.hooks import Module, find
from krq.info import LimitInfo
from krq.message import Message
from krq.modules._app import Keeper
from krq.registry import Registry
from krq.store.scripts import Script
from krq.task import Task

_RATE = re.compile(r"(\d+(?:\.\d+)?)/(\d*)(ms|s|m|h|d)")
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
#: seconds that ``unique`` may ask for
LONGEST = 366 * 86_400.0
_json = msgspec.json.Decoder().decode


class Limits(Module):
    """``max_concurrency``: so many run at once, over all workers. ``max_concurrency_per_key``: so many of each ``key=``.

    ``rate_limit``: ``"100/m"``, ``"5/s"``, ``"2/10s"``: so many begin within the time, evenly spaced. ``in_order``: tasks of one key run
    one after the other, in the order of the log; one that waits for its retry holds up those behind it. ``unique``: True: while a task of
    this name and key has not ended another is not run; seconds: none for so long after it was admitted.
    """

    options: Mapping[str, Any] = {"unique": bool | float}
    task_options: Mapping[str, Any] = {"max_concurrency": int, "max_concurrency_per_key": int, "rate_limit": str, "in_order": bool}

    def __init__(self) -> None:
        self._app: Keeper | None = None

    # --- hooks -------------------------------------------------------------------------------

    def attach(self, app: Any) -> None:
        """Remember the app: its registry says what belongs to a name."""
        self._app = app

    def check(self, task: Task[..., Any]) -> None:
        """Refuse what makes no sense when the task is registered."""
        settings = task.settings
        for name in ("max_concurrency", "max_concurrency_per_key"):
            if settings.get(name, 1) < 1:
                raise OptionError(f"{name}={settings[name]} of {task.name!r} would let none run", cure="Use at least 1.")
        if "rate_limit" in settings:
            interval(settings["rate_limit"])
        _unique(settings.get("unique"))
        if not settings.get("in_order"):
            return
        if settings.get("max_concurrency_per_key", 1) > 1:
            raise OptionError(f"{task.name!r} can't be in_order with {settings['max_concurrency_per_key']} of a key at once")
        for name in ("priority", "cron", "every"):
            if name in settings:
                raise OptionError(f"{task.name!r} can't be in_order and have {name}=", cure="Its keys and the log say the order.")

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:
        """What the call asks for goes before what the task says."""
        task = self._app.registry.get(message.task) if self._app is not None else None
        settings = task.settings if task is not None else {}
        if settings.get("in_order") and message.key is None:
            raise OptionError(f"{message.task!r} is in_order: a call needs a key", cure="Use .options(key=...).send(...).")
        if settings.get("in_order") and message.priority:
            raise OptionError(f"{message.task!r} is in_order: a call can't have a priority")
        unique = _unique(options.get("unique", settings.get("unique")))
        return message if unique is None else msgspec.structs.replace(message, unique=unique)

    # --- for workers and users ---------------------------------------------------------------

    def definitions(self, registry: Registry) -> list[tuple[str, str | bool]]:
        """The limits of each name as places.lua gets them: JSON, or False."""
        return [(task.name, _encoded(_definition(task.settings))) for task in registry]

    def change(self, name: str, said: Mapping[str, Any]) -> None:
        """See ``Limiting.limit``."""
        app = self._bound
        app.note("limit", name, {"name": name, "limits": said})
        app.store.call(Script.LIMIT, name, _encoded(said))

    def all(self) -> list[LimitInfo]:
        """See ``Limiting.limits``."""
        store = self._bound.store
        with store.plain() as redis:
            pipeline = redis.pipeline(transaction=False)
            for key in ("limits", "limits_set", "limits_defined"):
                pipeline.hgetall(store.keys(key))
            force, said, defined = ({name.decode(): _json(raw) for name, raw in found.items()} for found in pipeline.execute())
            names = sorted(force.keys() | said.keys() | defined.keys())
            for name in names:
                pipeline.scard(store.keys("busy", f"n{name}"))
                for letter in "nr":
                    pipeline.smembers(store.keys("lots", letter + name))
            answers = pipeline.execute()
            infos = []
            for name, running, *lots in zip(names, answers[::3], answers[1::3], answers[2::3], strict=True):
                for letter, queues in zip("nr", lots, strict=True):
                    for queue in queues:
                        pipeline.zcard(store.keys("parked", f"{queue.decode()}:{letter}{name}"))
                limits = force.get(name, {})
                infos.append(LimitInfo(
                    name=name, max_concurrency=limits.get("c"), max_concurrency_per_key=limits.get("k"), rate_limit=limits.get("r"),
                    in_order=limits.get("o", False), changed=name in said, running=running if "c" in limits else None,
                    parked=sum(pipeline.execute()),
                ))
        return infos

    @property
    def _bound(self) -> Keeper:
        if self._app is None:
            raise OptionError("This module belongs to no app", cure="Give it to KRQ(modules=[...]).")
        return self._app


class Limiting:
    """What ``KRQ`` offers of limits. Thread-safe. Without the module all of it raises ``OptionError``."""

    modules: list[Module]

    def limit(self, name: str, *, max_concurrency: int | Literal["none"] | None = None, rate_limit: str | None = None) -> None:
        """Change limits of a task name at run time, for all workers, until the next ``limit`` of this name.

        What is given goes before what the code says, also of workers that start later; ``"none"``: no such limit;
        ``max_concurrency=0``: none begins. ``limit(name)`` undoes it all: what the code says is in force again. What runs goes on.
        Written to the log, then to Redis: after an error of Redis it may hold or not; repeat it. Raises ``OptionError``.
        """
        said: dict[str, Any] = {}
        if max_concurrency is not None:
            number = isinstance(max_concurrency, int) and not isinstance(max_concurrency, bool)
            if max_concurrency != "none" and not (number and int(max_concurrency) >= 0):
                raise OptionError(f"max_concurrency={max_concurrency!r} is no number of tasks", cure='Use 0 or more, or "none".')
            said["c"] = max_concurrency
        if rate_limit is not None:
            said |= {"r": "none", "t": "none"} if rate_limit == "none" else {"r": rate_limit, "t": interval(rate_limit)}
        find(self.modules, Limits).change(name, said)

    def limits(self) -> list[LimitInfo]:
        """The limits in force, by task name: those of the code and those that ``limit`` has changed. Three round trips at most."""
        return find(self.modules, Limits).all()


def definitions(modules: Iterable[Module], registry: Registry) -> Sequence[tuple[str, str | bool]]:
    """What a worker tells Redis at its start; nothing where the app has no such module."""
    return [limit for module in modules if isinstance(module, Limits) for limit in module.definitions(registry)]


def interval(rate: str) -> float:
    """Milliseconds between two starts. Raises ``OptionError``."""
    match = _RATE.fullmatch(rate.strip()) if isinstance(rate, str) else None
    number = float(match[1]) if match else 0.0
    if match is None or not number or match[2].startswith("0"):
        raise OptionError(f"rate_limit={rate!r} is no rate", cure='Write it as "100/m", "5/s", "1000/h" or "2/10s".')
    ms = int(match[2] or 1) * _UNITS[match[3]] / number
    if not 0.001 <= ms <= 1e12:
        raise OptionError(f"rate_limit={rate!r} is out of range", cure="Use at most a million a second, and at least one in thirty years.")
    return ms


def _unique(given: bool | float | None) -> float | None:
    """As the wire has it."""
    if given is None or given is False:
        return None
    if given is True:
        return 0.0
    if not (math.isfinite(given) and 0.001 <= given <= LONGEST):
        raise OptionError(f"unique={given!r} is no length of time", cure="Use True, or seconds, up to those of a year.")
    return float(given)


def _definition(settings: Mapping[str, Any]) -> dict[str, Any]:
    found = {letter: settings[name] for letter, name in (("c", "max_concurrency"), ("k", "max_concurrency_per_key")) if name in settings}
    if "rate_limit" in settings:
        found |= {"r": settings["rate_limit"], "t": interval(settings["rate_limit"])}
    if settings.get("in_order"):
        found["o"] = True
    return found


def _encoded(limits: Mapping[str, Any]) -> str | bool:
    return msgspec.json.encode(limits, order="sorted").decode() if limits else False
