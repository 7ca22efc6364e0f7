"""The way in: check, encode, publish, then tell Redis so that nobody has to wait for intake."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from krq import ids, message
from krq.brokers.base import Broker, Outgoing, Position
from krq.call import Call, CallOptions
from krq.config import Config
from krq.errors import BatchError, KRQError, MessageInvalid, OptionError, SubmissionError
from krq.handle import awaited
from krq.hooks import Module, known_options
from krq.message import Message
from krq.store.client import Store
from krq.store.records import record
from krq.store.scripts import Script
from krq.workflow import refuse_cycles

log = logging.getLogger("krq.submit")

#: records that one script call admits
CHUNK = 300
#: dependencies that admit.lua enters at once; it enters more slice by slice
MANY = 500

_CALL_OPTIONS = frozenset(CallOptions.__annotations__) - {"retries", "backoff", "timeout"}
_TASK_OPTIONS = frozenset({"name", "queue", "priority", "expires"})


class Submitter:
    """Sends calls. Thread-safe."""

    def __init__(self, config: Config, broker: Broker, store: Store, modules: Sequence[Module]) -> None:
        self._config = config
        self._broker = broker
        self._store = store
        self._modules = modules
        self._policies = [m for m in modules if type(m).submit is not Module.submit]
        self._complained = False

    def send(self, calls: Sequence[Call]) -> list[str]:
        """Publish and admit; returns the ids once the log has all of them. All are checked before the first is sent."""
        built = [self._build(call) for call in calls]
        edges = {msg.task_id: msg.after for _, msg in built if msg.after}
        if edges:
            refuse_cycles(edges)
        # first those whose edges take a while: the others run meanwhile
        ordered = sorted(built, key=lambda one: len(one[1].after) <= MANY) if edges else built
        self.publish([(queue, msg, self._encode(msg)) for queue, msg in ordered])
        return [msg.task_id for _, msg in built]

    def publish(self, messages: Sequence[tuple[str, Message, bytes]]) -> list[str]:
        """The same for messages that are built already, each with its queue and its bytes."""
        outgoing = [Outgoing(self._config.topic(queue), raw, msg.key) for queue, msg, raw in messages]
        answers = self._broker.publish(outgoing, self._config.send_timeout)
        accepted = [(item, answer) for item, answer in zip(messages, answers, strict=True) if isinstance(answer, Position)]
        self._admit(accepted)
        if len(accepted) < len(messages):
            _raise(messages, answers)
        return [msg.task_id for _, msg, _ in messages]

    # --- messages ----------------------------------------------------------------------------

    def _build(self, call: Call) -> tuple[str, Message]:
        if call.task is not None:
            call.task.bind([*_awaited(call.options), *call.args], call.kwargs)
        settings = call.task.settings if call.task is not None else {}
        options: dict[str, Any] = {name: settings[name] for name in ("queue", "priority", "expires") if name in settings}
        options.update(call.options)
        now = time.time()
        try:
            msg = Message(
                task=call.name, task_id=options.get("task_id") or ids.new_id(), args=list(call.args), kwargs=dict(call.kwargs),
                eta=_eta(options, now), expires=_moment("expires", options.get("expires"), now),
                after=awaited(options.get("after", ())), inputs=options.get("inputs", "none"),
                priority=options.get("priority", 0), key=options.get("key"), inbox=options.get("inbox"),
                headers=dict(options.get("headers", {})),
            )
            for module in self._policies:
                msg = module.submit(msg, options)
            _check(msg)
        except KRQError:
            raise
        except (TypeError, ValueError, msgspec.ValidationError) as error:
            raise OptionError(f"{call.name!r} can't be sent so: {error}") from error
        return ids.check_queue(options.get("queue") or self._config.queue), msg

    def _encode(self, msg: Message) -> bytes:
        return message.encode(msg, max_bytes=self._config.max_message_bytes, max_depth=self._config.max_depth)

    # --- the short cut -----------------------------------------------------------------------

    def _admit(self, accepted: Sequence[tuple[tuple[str, Message, bytes], Position]]) -> None:
        """Enter the messages into the schedule at once. Not custody: where it fails intake does it."""
        now = time.time_ns() // 1_000_000
        records = [
            record(msg.task_id, msg, raw, position, queue, now, ordered=self._broker.ordered)
            for (queue, msg, raw), position in accepted
        ]
        config = self._config
        try:
            for start in range(0, len(records), CHUNK):
                chunk = records[start : start + CHUNK]
                self._store.call(Script.ADMIT, [], config.window, config.window_bytes, int(config.result_ttl), chunk)
            self._complained = False
        except KRQError as error:
            if not self._complained:
                self._complained = True
                log.warning("the log has the tasks; workers will find them there: %s", error)


def check_options(options: Mapping[str, Any], modules: Sequence[Module], *, of_task: bool) -> None:
    """Raise ``OptionError`` for an option that nobody here owns, or that has the wrong type."""
    owned = known_options(modules)
    for name, value in options.items():
        if name in owned:
            try:
                msgspec.convert(value, owned[name], from_attributes=True)
            except msgspec.ValidationError as error:
                raise OptionError(f"{name}={value!r} can't be used: {error}") from error
        elif name not in (_TASK_OPTIONS if of_task else _CALL_OPTIONS):
            import difflib

            near = difflib.get_close_matches(name, [*owned, *(_TASK_OPTIONS if of_task else _CALL_OPTIONS)], 1)
            hint = f"Did you mean {near[0]!r}?" if near else "Add the module that owns it to KRQ(modules=...)."
            raise OptionError(f"No module here knows the option {name!r}", cure=hint)
    if "queue" in options:
        ids.check_queue(options["queue"])
    if "key" in options and not isinstance(options["key"], str):
        raise OptionError(f"key={options['key']!r} is no string")


def _check(msg: Message) -> None:
    ids.check_task_id(msg.task_id)
    ids.check_task_name(msg.task)
    if msg.key is not None and not isinstance(msg.key, str):
        raise OptionError(f"key={msg.key!r} is no string")
    if not isinstance(msg.priority, int) or msg.inputs not in ("none", "prepend", "list"):
        raise OptionError(f"priority={msg.priority!r}, inputs={msg.inputs!r} can't be used")
    if any(not isinstance(name, str) for name in msg.kwargs):
        raise MessageInvalid("Keyword arguments need names that are strings")
    message.check_options(msg)


def _awaited(options: Mapping[str, Any]) -> Sequence[None]:
    """As many places as the results that it waits for will take in front of its own arguments."""
    match options.get("inputs", "none"):
        case "prepend":
            return [None] * len(awaited(options.get("after", ())))
        case "list" if awaited(options.get("after", ())):
            return [None]
    return []


def _eta(options: Mapping[str, Any], now: float) -> float | None:
    if "delay" in options and "eta" in options:
        raise OptionError("delay= and eta= say the same thing", cure="Give one of them.")
    if "delay" in options:
        delay = options["delay"]
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        if not 0 <= seconds < 4e9:
            raise OptionError(f"delay={delay} must not be negative")
        return now + seconds if seconds else None
    return _moment("eta", options.get("eta"), now)


def _moment(name: str, when: float | datetime | timedelta | None, now: float) -> float | None:
    if when is None:
        return None
    if isinstance(when, timedelta):
        if when <= timedelta(0):
            raise OptionError(f"{name}={when} is over already")
        return now + when.total_seconds()
    return message.seconds(when)


def _raise(messages: Sequence[tuple[str, Message, bytes]], answers: Sequence[Position | Exception]) -> None:
    answered = zip(messages, answers, strict=True)
    failed = {msg.task_id: answer for (_, msg, _), answer in answered if not isinstance(answer, Position)}
    for task_id, error in failed.items():
        if isinstance(error, SubmissionError):
            error.task_id = task_id
    first = next(iter(failed.values()))
    if len(messages) == 1:
        assert isinstance(first, Exception)
        raise first
    accepted = [msg.task_id for _, msg, _ in messages if msg.task_id not in failed]
    cause = f"{len(failed)} of {len(messages)} messages were not confirmed, the first because: {first}"
    raise BatchError(cause, accepted, failed) from first
