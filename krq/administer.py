"""The write side for operators: cancel, run again, pause, purge."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from krq import events, message
from krq.brokers.base import Broker, Outgoing
from krq.config import Config
from krq.errors import BrokerConnectionError, OptionError, TaskNotFound
from krq.events import Entry
from krq.info import TaskInfo
from krq.message import Message
from krq.outcome import ErrorInfo
from krq.states import TaskStatus
from krq.store.client import Store
from krq.store.scripts import Script

#: cancellations in one record of the log, and in one script call
CHUNK, SLICE = 1_000, 200


def cancel(config: Config, store: Store, broker: Broker, task_id: str) -> bool:
    """Write the wish to the log, then end the task or tell its worker. False: it had ended."""
    with store.plain() as redis:
        if not redis.exists(store.keys("task", task_id)):
            raise TaskNotFound(f"No task {task_id!r} is known")
    entry = Entry(id=task_id, outcome="cancel", error=ErrorInfo("CANCELLED", "asked for"), finished=time.time_ns() // 1_000_000)
    answer = broker.publish([Outgoing(config.events_topic, events.encode_page([events.encode_entry(entry)]))], config.send_timeout)[0]
    if isinstance(answer, Exception):
        raise BrokerConnectionError(f"The log did not take the cancellation: {answer}") from answer
    state = store.call(Script.CANCEL, [task_id])[0][0]
    return state in ("C", "p", "m")


def cancel_all(config: Config, store: Store, broker: Broker, task_ids: Sequence[str]) -> int:
    """``cancel`` for many, the last first: what waits is cancelled before what it waits for. Returns how many had not ended."""
    backwards, at = list(reversed(task_ids)), time.time_ns() // 1_000_000
    pages = [
        events.encode_page([
            events.encode_entry(Entry(id=task_id, outcome="cancel", error=ErrorInfo("CANCELLED", "asked for"), finished=at))
            for task_id in backwards[start : start + CHUNK]
        ])
        for start in range(0, len(backwards), CHUNK)
    ]
    for answer in broker.publish([Outgoing(config.events_topic, page) for page in pages], config.send_timeout):
        if isinstance(answer, Exception):
            raise BrokerConnectionError(f"The log did not take the cancellation: {answer}") from answer
    n = 0
    for start in range(0, len(backwards), SLICE):
        states = store.call(Script.CANCEL, backwards[start : start + SLICE])[0]
        n += sum(state in ("C", "p", "m") for state in states)
    return n


def again(config: Config, info: TaskInfo, raw: bytes | None, needs: Mapping[str, int] | None = None) -> tuple[str, Message, bytes]:
    """A failed or cancelled task as a message of the next generation, with its queue. ``needs``: see ``Message.needs``."""
    if info.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
        raise OptionError(f"Task {info.id} is {info.status}", cure="Only failed and cancelled tasks can be retried.")
    if raw is None:
        raise OptionError(f"The message of task {info.id} is gone", cure="Send it anew.")
    # unknown fields are kept: only what changes is replaced
    fields = msgspec.json.decode(raw)
    fields["task-id"] = info.id
    fields["generation"] = fields.get("generation", 0) + 1
    for name in ("eta", "expires", "needs"):
        fields.pop(name, None)
    if needs:
        fields["needs"] = needs
    encoded = msgspec.json.encode(fields)
    queue = config.queue if fields.get("inbox") else info.queue
    return queue, message.decode(encoded, max_bytes=config.max_message_bytes + 4096, max_depth=config.max_depth), encoded


def note(config: Config, broker: Broker, act: str, concerns: str, data: Mapping[str, Any]) -> None:
    """Write an act into the log before it is done, so that a loss of the store does not undo it. Raises ``BrokerConnectionError``."""
    entry = Entry(id=concerns, outcome="control", finished=time.time_ns() // 1_000_000, data={"act": act, **data})
    answer = broker.publish([Outgoing(config.events_topic, events.encode_page([events.encode_entry(entry)]))], config.send_timeout)[0]
    if isinstance(answer, Exception):
        raise BrokerConnectionError(f"The log did not take this: {act} {concerns}: {answer}") from answer


def control(config: Config, store: Store, broker: Broker, queue: str, *, paused: bool) -> None:
    """Pause or resume a queue: in the log first."""
    note(config, broker, "pause" if paused else "resume", queue, {"queue": queue})
    store.call(Script.CONTROL, queue, paused)


def purge(config: Config, store: Store, broker: Broker, queue: str) -> int:
    """Drop what is scheduled, slice by slice, and let intake drop the backlog. Returns how many were scheduled."""
    note(config, broker, "purge", queue, {"queue": queue})
    total, before = 0, False
    while True:
        dropped: int
        dropped, before = store.call(Script.PURGE, queue, before)
        total += dropped
        if not dropped:
            return total
