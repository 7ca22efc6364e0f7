"""Messages as the scripts get them."""

from __future__ import annotations

from typing import Any

from krq import message
from krq.brokers.base import Position
from krq.message import Message


def record(task_id: str, decoded: Message, raw: bytes, position: Position, queue: str, sent: int, *, ordered: bool) -> list[Any]:
    """A message as admit.lua gets it."""
    inputs = decoded.inputs if decoded.inputs != "none" else 0
    return [
        task_id, decoded.task, queue, position.partition, position.offset, raw.decode(), message.checksum(raw), decoded.priority,
        int(decoded.due * 1000), int(decoded.deadline * 1000), decoded.after, inputs, sent, decoded.generation, ordered,
    ]
