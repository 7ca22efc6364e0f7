"""Messages and dead letters as the scripts get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from krq import events, message
from krq.brokers.base import Position
from krq.errors import RedisConnectionError, StoreError
from krq.events import DeadLetter
from krq.message import Message
from krq.store.client import Store

#: field ``of`` of a task
_POLICIES = {"continue": "c", "cancel_rest": "r"}
#: bytes of a dead letter in Redis
AT_HAND = 64_000


def record(task_id: str, decoded: Message, raw: bytes, position: Position, queue: str, sent: int, *, ordered: bool) -> list[Any]:
    """A message as admit.lua gets it."""
    inputs = decoded.inputs if decoded.inputs != "none" else 0
    return [
        task_id, decoded.task, queue, position.partition, position.offset, raw.decode(), message.checksum(raw), decoded.priority,
        int(decoded.due * 1000), int(decoded.deadline * 1000), message.spans(decoded.after), inputs, sent, decoded.generation, ordered,
        decoded.inbox or False, _flow(decoded), decoded.key is not None and message.short_key(decoded.key),
        decoded.unique is not None and (int(decoded.unique * 1000), message.claim(decoded)),
    ]


def _flow(decoded: Message) -> list[Any] | bool:
    """What admit.lua asks of a task that waits, or is in a workflow."""
    if not decoded.after and decoded.workflow is None:
        return False
    return [_POLICIES.get(decoded.on_failure, 0), decoded.workflow or False, decoded.needs or False, decoded.parent or 0]


def standing(store: Store, messages: Sequence[Message]) -> dict[str, str]:
    """Of messages that are ``unique``, those that would be duplicates: id → the id of the other, which is in Redis or in this list.

    One round trip, two where there are some. Redis away: none; admission decides.
    """
    others: dict[str, str] = {}
    first: dict[tuple[str, str], Message] = {}
    for msg in messages:
        leader = first.setdefault((msg.task, message.claim(msg)), msg)
        if leader is not msg:
            others[msg.task_id] = leader.task_id
    keys = [store.keys("unique", f"{task}\0{claim}") for task, claim in first]
    try:
        with store.plain() as redis:
            found = {key: other for key, other in zip(keys, redis.mget(keys), strict=True) if other is not None}
            pipeline = redis.pipeline(transaction=False)
            for key, other in found.items():
                pipeline.pttl(key)
                pipeline.hget(store.keys("task", other.decode()), "s")
            told = pipeline.execute() if found else []
    except (RedisConnectionError, StoreError):
        return others
    live = {
        key: other.decode() for (key, other), ttl, state in zip(found.items(), told[::2], told[1::2], strict=True)
        if ttl > 0 or state not in (None, b"S", b"F", b"C")
    }
    leaders = {msg.task_id: live[key] for key, msg in zip(keys, first.values(), strict=True) if key in live}
    return {**{task_id: leaders.get(leader, leader) for task_id, leader in others.items()}, **leaders}


def letters(found: Sequence[DeadLetter]) -> list[list[Any]]:
    """Dead letters as dead.lua gets them."""
    return [
        [letter.ref, letter.at, events.encode_letter(cut(letter, AT_HAND)).decode(), letter.partition < 0 and letter.id, letter.attempt]
        for letter in found
    ]


def cut(letter: DeadLetter, most: int) -> DeadLetter:
    """The letter, or, where it has more than ``most`` bytes, the same with the beginning of its record."""
    if len(letter.value) + 40_000 < most or len(events.encode_letter(letter)) <= most:
        return letter
    kept = most // 32 * 4  # a character may take six bytes as JSON; whole groups of base64
    return msgspec.structs.replace(letter, value=letter.value[:kept], size=len(letter.value))
