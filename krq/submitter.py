"""The way in: check, encode, publish, then tell Redis so that nobody has to wait for intake."""

from __future__ import annotations

import graphlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, get_args

import msgspec

from krq import containment, durations, failpoints, ids, message
from krq.brokers.base import Broker, Outgoing, Position
from krq.call import Call, CallOptions, Parent
from krq.config import Config
from krq.errors import BatchError, KRQError, MessageInvalid, OptionError, SubmissionError
from krq.failpoints import Failpoint
from krq.handle import awaited
from krq.hooks import Module, known_options
from krq.message import Inputs, Message, OnFailure
from krq.store.client import Store
from krq.store.records import record, standing
from krq.store.scripts import Script

log = logging.getLogger("krq.submit")

#: records that one script call admits
CHUNK = 100
#: dependencies that admit.lua enters at once; it enters more slice by slice
MANY = 500

_CALL_OPTIONS = frozenset(CallOptions.__annotations__) - {"retries", "backoff", "max_age", "retry_on", "give_up_on", "unique"}
_TASK_OPTIONS = frozenset({"name", "queue", "priority", "expires", *containment.OPTIONS})


class Builder:
    """Makes messages of calls. Thread-safe; without connections."""

    def __init__(self, config: Config, modules: Sequence[Module]) -> None:
        self._config = config
        self._policies = [m for m in modules if type(m).submit is not Module.submit]

    def children(self, calls: Sequence[Call], parent: Parent) -> list[tuple[str, bytes]]:
        """Queue and bytes of each, for a worker that sends them when the parent's function has returned."""
        made = []
        for queue, msg in self._built(calls)[1]:
            mine = msgspec.structs.replace(msg, parent=parent.id, depth=parent.depth, workflow=parent.workflow)
            made.append((queue, self._encode(mine)))
        return made

    def _built(self, calls: Sequence[Call]) -> tuple[list[tuple[str, Message]], list[tuple[str, Message]]]:
        """The messages with their queues, as the calls stand, and in the order in which to send them."""
        built = [self._build(call) for call in calls]
        edges = {msg.task_id: message.named(msg.after) for _, msg in built if msg.after}
        if not edges:
            return built, built
        refuse_cycles(edges)
        # first those whose edges take a while: the others run meanwhile
        return built, sorted(built, key=lambda one: len(edges.get(one[1].task_id, ())) <= MANY)

    def _build(self, call: Call) -> tuple[str, Message]:
        if call.task is not None and call.each is None:
            call.task.bind([*_awaited(call.options), *call.args], call.kwargs)
        settings = call.task.settings if call.task is not None else {}
        options: dict[str, Any] = {name: settings[name] for name in ("queue", "priority", "expires") if name in settings}
        options.update(call.options)
        now = time.time()
        try:
            msg = Message(
                task=call.name, task_id=options.get("task_id") or ids.new_id(), args=list(call.args), kwargs=dict(call.kwargs),
                eta=_eta(options, now), expires=_moment("expires", options.get("expires"), now),
                after=message.shortened(awaited(options.get("after", ()))), inputs=options.get("inputs", "none"),
                on_failure=options.get("on_failure", "fail"), workflow=call.workflow, each=call.each,
                priority=options.get("priority", 0), key=options.get("key"), inbox=options.get("inbox"),
                headers=dict(options.get("headers", {})), timeout=options.get("timeout"),
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


class Submitter(Builder):
    """Sends calls. Thread-safe."""

    def __init__(
        self, config: Config, broker: Broker, store: Store, modules: Sequence[Module], unadmitted: Callable[[list[str]], object],
    ) -> None:
        super().__init__(config, modules)
        self._broker = broker
        self._store = store
        self._unadmitted = unadmitted
        self._complained = False
        self._fail = failpoints.armed()

    def send(self, calls: Sequence[Call]) -> list[str]:
        """Publish and admit; returns the ids once the log has all of them. All are checked before the first is sent."""
        built, ordered = self._built(calls)
        messages = [(queue, msg, self._encode(msg)) for queue, msg in ordered]
        same = self._repeats(calls, built)
        if len(same) < len(messages):
            self.publish([one for one in messages if one[1].task_id not in same])
        return [same.get(msg.task_id, msg.task_id) for _, msg in built]

    def _repeats(self, calls: Sequence[Call], built: Sequence[tuple[str, Message]]) -> dict[str, str]:
        """Which of these need not be sent, as another stands for them: id → id of that one. An id of one's own is always sent."""
        mine = [msg for call, (_, msg) in zip(calls, built, strict=True) if msg.unique is not None and "task_id" not in call.options]
        return standing(self._store, mine) if mine else {}

    def publish(self, messages: Sequence[tuple[str, Message, bytes]]) -> list[str]:
        """The same for messages that are built already, each with its queue and its bytes."""
        outgoing = [Outgoing(self._config.topic(queue), raw, msg.key) for queue, msg, raw in messages]
        if self._fail is not None:
            self._fail(Failpoint.SUBMIT_BEFORE)
        answers = self._broker.publish(outgoing, self._config.send_timeout)
        if self._fail is not None:
            self._fail(Failpoint.SUBMIT_PUBLISHED)
        accepted = [(item, answer) for item, answer in zip(messages, answers, strict=True) if isinstance(answer, Position)]
        self._admit(accepted)
        if self._fail is not None:
            self._fail(Failpoint.SUBMIT_ADMITTED)
        if len(accepted) < len(messages):
            _raise(messages, answers)
        return [msg.task_id for _, msg, _ in messages]

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
            self._unadmitted([msg.task_id for (_, msg, _), _ in accepted])
            if not self._complained:
                self._complained = True
                log.warning("the log has the tasks; workers will find them there: %s", error)


def refuse_cycles(edges: Mapping[str, Iterable[str]]) -> None:
    """Raise ``OptionError`` when tasks wait for each other in a circle. ``edges``: id → ids it waits for."""
    # a circle leads through those that wait alone
    inner = {task_id: [on for on in others if on in edges] for task_id, others in edges.items()}
    try:
        graphlib.TopologicalSorter(inner).prepare()
    except graphlib.CycleError as error:
        circle = " → ".join(error.args[1])
        raise OptionError(f"Tasks would wait for each other for ever: {circle}", cure="Take one of them out of after=.") from None


def check_options(options: Mapping[str, Any], modules: Sequence[Module], *, of_task: bool) -> None:
    """Raise ``OptionError`` for an option that nobody here owns, or that has the wrong type."""
    owned = known_options(modules, of_task=of_task)
    for name, value in options.items():
        if name in owned:
            try:
                msgspec.convert(value, owned[name], from_attributes=True)
            except msgspec.ValidationError as error:
                raise OptionError(f"{name}={value!r} can't be used: {error}") from error
        elif name not in (_TASK_OPTIONS if of_task else _CALL_OPTIONS):
            import difflib

            if name in known_options(modules, of_task=True):
                raise OptionError(f"{name}= belongs to the task: it can't be given to a call", cure="Write it at @app.task(...).")

            near = difflib.get_close_matches(name, [*owned, *(_TASK_OPTIONS if of_task else _CALL_OPTIONS)])
            hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Add the module that owns it to KRQ(modules=...)."
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
    if not isinstance(msg.priority, int) or msg.inputs not in get_args(Inputs):
        raise OptionError(f"priority={msg.priority!r}, inputs={msg.inputs!r} can't be used")
    if msg.on_failure not in get_args(OnFailure):
        raise OptionError(f"on_failure={msg.on_failure!r} is not known", cure='Use "fail", "continue" or "cancel_rest".')
    if any(not isinstance(name, str) for name in msg.kwargs):
        raise MessageInvalid("Keyword arguments need names that are strings")
    message.check_options(msg)


def _awaited(options: Mapping[str, Any]) -> Sequence[None]:
    """As many places as the results that it waits for will take in front of its own arguments."""
    match options.get("inputs", "none"):
        case "prepend":
            return [None] * len(awaited(options.get("after", ())))
        case "list" | "concat" if awaited(options.get("after", ())):
            return [None]
    return []


def _eta(options: Mapping[str, Any], now: float) -> float | None:
    if "delay" in options and "eta" in options:
        raise OptionError("delay= and eta= say the same thing", cure="Give one of them.")
    if "delay" in options:
        delay = durations.seconds("delay", options["delay"])
        return now + delay if delay else None
    return _moment("eta", options.get("eta"), now)


def _moment(name: str, when: float | datetime | timedelta | None, now: float) -> float | None:
    if when is None:
        return None
    if isinstance(when, timedelta):
        if when <= timedelta(0):
            raise OptionError(f"{name}={when} is over already", cure="Give a timedelta of more than 0: it counts from now.")
        return now + when.total_seconds()
    if not isinstance(when, int | float | datetime) or isinstance(when, bool):
        raise OptionError(f"{name}={when!r} is no time", cure="Use Unix seconds, an aware datetime, or a timedelta from now.")
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
