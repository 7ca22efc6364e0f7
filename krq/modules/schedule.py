"""Schedules: ``@app.task(cron=…)``, ``@app.task(every=…)`` and ``KRQ.schedule``: tasks that are sent at their times.

Each firing is a plain message with the id ``<schedule>@<tick in Unix ms>``. It goes to the log first; then the tick is moved on,
by a script that moves only from the tick it names. Who dies between the two leaves the tick to another, whose message
has the same id: admission drops it. So each tick fires once, whatever dies, and with any number of workers.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NoReturn, Unpack, cast

import msgspec

from krq import durations, ids, message
from krq.call import Call, CallOptions, Definition
from krq.errors import OptionError
from krq.handle import TaskHandle
from krq.hooks import Module, find, known_options
from krq.info import ScheduleInfo
from krq.message import Message
from krq.modules._app import App
from krq.modules._firing import Clock, Entry, redis_now
from krq.registry import Registry
from krq.store.scripts import Script
from krq.task import Task
from krq.ticks import after, timing

#: seconds for which missed ticks are made up, where the schedule does not say
CATCH_UP = 300.0
#: a name, "@" and a tick make a task id
MAX_NAME = ids.MAX_ID - 16
#: a call gets these from its tick, or has them once; a schedule has many
_ONCE = ("delay", "eta", "after", "inputs", "task_id")
_TIMING = ("cron", "every", "tz", "catch_up")
_OF_TASK = ("queue", "priority", "expires")


class ScheduleOptions(CallOptions, total=False):
    """Options of ``KRQ.schedule``: when, and those of each call."""

    cron: str
    """five fields: minute, hour, day, month, day of the week; or six that begin with seconds"""
    every: float | timedelta
    """seconds, at least one; ticks are the multiples since 1970-01-01 UTC"""
    tz: str
    """time zone of ``cron``, such as "Europe/Berlin"; UTC unless given"""
    catch_up: float
    """seconds for which ticks that were missed while no worker lived are made up; of older ones the latest alone is. 300"""
    paused: bool
    """not given: as it is"""


class Schedules(Module):
    """Owns ``cron``, ``every``, ``tz`` and ``catch_up`` of tasks, and the schedules of ``KRQ``. Thread-safe.

    In each worker child a thread enters what the code defines, and fires what is due, by the clock of Redis.
    """

    task_options: Mapping[str, Any] = {"cron": str, "every": float | timedelta, "tz": str, "catch_up": float}

    def __init__(self, catch_up: float = CATCH_UP) -> None:
        self._catch_up = catch_up
        self._app: App | None = None
        self._clock: Clock | None = None

    # --- hooks -------------------------------------------------------------------------------

    def attach(self, app: Any) -> None:
        """Remember the app: it sends what is due."""
        self._app = app

    def check(self, task: Task[..., Any]) -> None:
        """Refuse what makes no sense when the task is registered."""
        if any(name in task.settings for name in _TIMING):
            self._of_task(task)

    def worker_started(self, worker_id: str) -> None:
        """Begin to fire."""
        app = self._bound
        mine = {task.name: self._of_task(task) for task in app.registry if "cron" in task.settings or "every" in task.settings}
        self._clock = Clock(app.store, lambda calls: app.send_calls(calls), self._call, f"{worker_id}~{os.urandom(4).hex()}", mine)
        self._clock.start()

    def worker_stopping(self, worker_id: str) -> None:  # noqa: ARG002
        """Fire no more."""
        if self._clock is not None:
            self._clock.stop()

    # --- for users ---------------------------------------------------------------------------

    def add(self, name: str, call: Call) -> None:
        """See ``Scheduling.schedule``; ``call`` with ``ScheduleOptions``."""
        paused = call.options.get("paused")
        if paused not in (None, True, False):
            raise OptionError(f"paused={paused!r} is neither True nor False")
        entry = self._entry(name, call)
        tick = after(entry.timing, redis_now(self._bound.store))
        self._bound.note("schedule", name, {"name": name, "definition": entry, "paused": paused})
        if self._change("set", name, *entry.packed(), "runtime", tick, paused, True) == "full":
            raise OptionError("There are 10,000 schedules", cure="Remove some, or let one task do the work of many.")

    def all(self) -> list[ScheduleInfo]:
        """At most 10,000; one round trip, and one more for each thousand."""
        store = self._bound.store
        found: list[ScheduleInfo] = []
        with store.plain() as redis:
            ticks = redis.zrange(store.keys("ticks"), 0, -1, withscores=True)
            for at in range(0, len(ticks), 1000):
                pipeline = redis.pipeline(transaction=False)
                for name, _ in ticks[at : at + 1000]:
                    pipeline.hgetall(store.keys("schedule", name.decode()))
                answers = zip(ticks[at : at + 1000], pipeline.execute(), strict=True)
                found += [_info(name.decode(), tick, fields) for (name, tick), fields in answers if b"d" in fields]
        return found

    def remove(self, name: str) -> bool:
        """See ``Scheduling.unschedule``."""
        self._bound.note("unschedule", name, {"name": name})
        what = self._change("remove", name)
        if what == "live":
            cure = "Take it out of the code, or pause it; it is forgotten when no worker has had it for three minutes."
            raise OptionError(f"Live workers have the schedule {name!r} in their code", cure=cure)
        return what == "removed"

    def pause(self, name: str) -> None:
        """Fire no more."""
        self._bound.note("pause_schedule", name, {"name": name})
        if self._change("pause", name) == "missing":
            self._missing(name)

    def resume(self, name: str) -> None:
        """Fire again, from the next tick on."""
        tick = after(self._read(name).timing, redis_now(self._bound.store))
        self._bound.note("resume_schedule", name, {"name": name})
        if self._change("resume", name, tick) == "missing":
            self._missing(name)

    def fire(self, name: str) -> TaskHandle[Any]:
        """Send it now, under an id of its own."""
        return self._bound.send_calls([self._call(self._read(name), ids.new_id(), redis_now(self._bound.store))])[0]

    # --- the rest ----------------------------------------------------------------------------

    @property
    def _bound(self) -> App:
        if self._app is None:
            raise OptionError("This module belongs to no app", cure="Give it to KRQ(modules=[...]).")
        return self._app

    def _change(self, act: str, name: str, *more: Any) -> str:
        what: str = self._bound.store.call(Script.SCHEDULE, act, name, *more)[0]
        return what

    def _read(self, name: str) -> Entry:
        store = self._bound.store
        with store.plain() as redis:
            raw = redis.hget(store.keys("schedule", name), "d")
        return self._missing(name) if raw is None else Entry.unpack(raw.decode())

    def _missing(self, name: str) -> NoReturn:
        near = [info.name for info in self.all()][:5]
        raise OptionError(f"There is no schedule {name!r}", cure=f"There is {', '.join(near)}." if near else "There are none yet.")

    def _of_task(self, task: Task[..., Any]) -> Entry:
        timed = {name: task.settings[name] for name in _TIMING if name in task.settings}
        return self._entry(task.name, Call(task.name, (), {}, task, timed))

    def _entry(self, name: str, call: Call) -> Entry:
        """Check all of it, and make it what Redis keeps."""
        app = self._bound
        if len(ids.check_task_id(name)) > MAX_NAME:
            raise OptionError(f"{name!r} is too long for the name of a schedule", cure=f"Use at most {MAX_NAME} characters.")
        given = dict(call.options)
        when = timing(given.pop("cron", None), given.pop("every", None), given.pop("tz", None))
        catch_up = _seconds("catch_up", given.pop("catch_up", self._catch_up), zero=True)
        given.pop("paused", None)
        if once := [option for option in _ONCE if option in given]:
            raise OptionError(f"{once[0]}= is no option of a schedule", cure="It fires many times; see docs/schedules.md.")
        app.check_options(given)
        if call.task is not None:
            given = {**{option: call.task.settings[option] for option in _OF_TASK if option in call.task.settings}, **given}
            call.task.bind(call.args, call.kwargs)
        given.setdefault("queue", app.config.queue)
        if "expires" in given:
            given["expires"] = _seconds("expires", given["expires"])
        made = Entry(call.name, list(call.args), dict(call.kwargs), given, when, catch_up)
        _check_call(made)
        message.dump([made.args, made.kwargs], made, max_bytes=app.config.max_message_bytes, max_depth=app.config.max_depth,
                     what=f"The schedule {name!r}")  # fmt: skip
        return made

    def _call(self, entry: Entry, task_id: str, tick: int) -> Call:
        """The call of a tick: the same bytes, whoever makes it."""
        app = self._bound
        owned = known_options(app.modules, of_task=False)
        options = {name: msgspec.convert(value, owned[name]) if name in owned else value for name, value in entry.options.items()}
        if "expires" in options:
            options["expires"] = tick / 1000 + options["expires"]
        headers = {**options.pop("headers", {}), "krq-tick": tick}
        task = cast("Definition | None", app.registry.get(entry.task))
        return Call(entry.task, entry.args, entry.kwargs, task, {**options, "headers": headers, "task_id": task_id})


def _check_call(entry: Entry) -> None:
    """Raise ``OptionError`` for what the types allow and no call may have."""
    ids.check_task_name(entry.task)
    wire = {name: entry.options[name] for name in ("priority", "retries", "timeout", "inbox") if name in entry.options}
    if any(not isinstance(name, str) for name in entry.kwargs):
        raise OptionError("Keyword arguments need names that are strings")
    try:
        message.check_options(Message(task=entry.task, **wire))
    except TypeError as error:
        raise OptionError(f"{entry.task!r} can't be called so: {error}") from error


def _seconds(name: str, given: Any, *, zero: bool = False) -> float:
    if name == "expires" and not isinstance(given, timedelta):
        raise OptionError(f"expires={given!r} would be the same moment for all ticks", cure="Give a timedelta: it counts from each tick.")
    seconds = durations.seconds(name, given)
    if not seconds and not zero:
        raise OptionError(f"{name}={given!r} is over already", cure="Give more than 0.")
    return seconds


def _info(name: str, tick: float, fields: Mapping[bytes, bytes]) -> ScheduleInfo:
    entry = Entry.unpack(fields[b"d"].decode())
    last = fields.get(b"l")
    return ScheduleInfo(
        name=name, task=entry.task, when=str(entry.timing), tz=entry.timing.tz, next=None if tick == float("inf") else tick / 1000,
        last=None if last is None else int(float(last)) / 1000, last_id=fields.get(b"i", b"").decode(),
        paused=fields.get(b"p") == b"1", source=fields.get(b"s", b"").decode(), args=entry.args, kwargs=entry.kwargs, options=entry.options,
    )


class Scheduling:
    """What ``KRQ`` offers of schedules. Thread-safe. Without the module all of it raises ``OptionError``."""

    modules: list[Module]
    registry: Registry

    def schedule(self, name: str, task: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
                 **options: Unpack[ScheduleOptions]) -> None:
        """Send a task by name at the times of ``cron=`` or ``every=``; the other options are those of each call.

        Adds a schedule, or changes the one of this name; of one that the code defines, until it is removed. The next tick stays where the
        timing is the same. Written to the log, then to Redis: after an error of Redis it may hold or not; repeat it. Raises
        ``OptionError``, and as ``KRQ.submit`` for arguments that do not fit or can't be sent.
        """
        find(self.modules, Schedules).add(name, Call(task, args, kwargs or {}, self.registry.get(task), options))

    def schedules(self) -> list[ScheduleInfo]:
        """All schedules, the next to fire first, paused ones last: those that workers have in their code, and those added here."""
        return find(self.modules, Schedules).all()

    def unschedule(self, name: str) -> bool:
        """Remove a schedule. False: there is none. Where it had replaced one of the code, that one is back within a minute.

        Raises ``OptionError`` for one that live workers have in their code.
        """
        return find(self.modules, Schedules).remove(name)

    def pause_schedule(self, name: str) -> None:
        """Fire no more until ``resume_schedule``, whoever restarts. Raises ``OptionError`` where there is none."""
        find(self.modules, Schedules).pause(name)

    def resume_schedule(self, name: str) -> None:
        """Undo ``pause_schedule``, from now on: what was missed meanwhile does not fire. Raises ``OptionError`` where there is none."""
        find(self.modules, Schedules).resume(name)

    def fire(self, name: str) -> TaskHandle[Any]:
        """Send the task of a schedule now, once more than it would, also of a paused one. Raises as ``KRQ.submit``."""
        return find(self.modules, Schedules).fire(name)
