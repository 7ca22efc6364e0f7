"""Messages as the scripts get them, and dead letters as people find them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from krq import events, message
from krq.brokers.base import Position
from krq.errors import RedisConnectionError
from krq.message import Message
from krq.store.client import Store
from krq.store.scripts import Script

_CHUNK = 1_000


def record(task_id: str, decoded: Message, raw: bytes, position: Position, queue: str, sent: int, *, ordered: bool) -> list[Any]:
    """A message as admit.lua gets it."""
    inputs = decoded.inputs if decoded.inputs != "none" else 0
    return [
        task_id, decoded.task, queue, position.partition, position.offset, raw.decode(), message.checksum(raw), decoded.priority,
        int(decoded.due * 1000), int(decoded.deadline * 1000), decoded.after, inputs, sent, decoded.generation, ordered,
        decoded.inbox or False,
    ]


def remember_dead(store: Store, raw: bytes) -> None:
    """Keep a dead letter at hand for people; the topic keeps it for ever."""
    with store.plain() as redis:
        pipeline = redis.pipeline(transaction=False)
        pipeline.lpush(store.keys("dead"), raw if len(raw) <= 20_000 else _shortened(raw))
        pipeline.ltrim(store.keys("dead"), 0, 999)
        pipeline.execute()


def results_of(store: Store, task_ids: Sequence[str]) -> list[str]:
    """JSON results of tasks that have succeeded, in order: of as many as a script should not read at once.

    While Redis is away, or not open, it waits: whoever asks holds a lease, and is ended when that is over.
    """
    found: list[str] = []
    while len(found) < len(task_ids):
        chunks = [task_ids[at : at + _CHUNK] for at in range(len(found), min(len(found) + 5 * _CHUNK, len(task_ids)), _CHUNK)]
        try:
            answers = store.run_all([(Script.INPUTS, (chunk,)) for chunk in chunks])
        except RedisConnectionError:
            answers = []
        if answers and all(answer.ok for answer in answers):
            found += [value for answer in answers for value in answer.values[0]]
        else:
            time.sleep(0.1)
    return found


def _shortened(raw: bytes) -> bytes:
    letter = events.decode_letter(raw)
    return events.encode_letter(msgspec.structs.replace(letter, value=letter.value[:4000]))
