"""Messages as the scripts get them, and dead letters as people find them."""

from __future__ import annotations

from typing import Any

import msgspec

from krq import events, message
from krq.brokers.base import Position
from krq.message import Message
from krq.store.client import Store


def record(task_id: str, decoded: Message, raw: bytes, position: Position, queue: str, sent: int, *, ordered: bool) -> list[Any]:
    """A message as admit.lua gets it."""
    inputs = decoded.inputs if decoded.inputs != "none" else 0
    return [
        task_id, decoded.task, queue, position.partition, position.offset, raw.decode(), message.checksum(raw), decoded.priority,
        int(decoded.due * 1000), int(decoded.deadline * 1000), decoded.after, inputs, sent, decoded.generation, ordered,
    ]


def remember_dead(store: Store, raw: bytes) -> None:
    """Keep a dead letter at hand for people; the topic keeps it for ever."""
    with store.plain() as redis:
        pipeline = redis.pipeline(transaction=False)
        pipeline.lpush(store.keys("dead"), raw if len(raw) <= 20_000 else _shortened(raw))
        pipeline.ltrim(store.keys("dead"), 0, 999)
        pipeline.execute()


def _shortened(raw: bytes) -> bytes:
    letter = events.decode_letter(raw)
    return events.encode_letter(msgspec.structs.replace(letter, value=letter.value[:4000]))
