"""The results that a task has waited for, where they are more than a script should read at once."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec

from krq.errors import RedisConnectionError, StoreError
from krq.store.client import Store
from krq.store.scripts import Script

log = logging.getLogger("krq.store")

#: results that one script call reads, and calls in one round trip
_CHUNK, _CALLS = 500, 10
#: pages of results that one command reads: each is of one call of settle.lua
_PAGES = 50

_page = msgspec.msgpack.Decoder(list[str])


def results_of(store: Store, waiter: str, task_ids: Sequence[str]) -> list[str]:
    """JSON results of what ``waiter`` has waited for, in order: of as many as a script should not read at once.

    While Redis is away, or not open, it waits: whoever asks holds a lease, and is ended when that is over.
    """
    told = _told(store, waiter)
    others = [task_id for task_id in task_ids if task_id not in told]
    found: list[str] = []
    while len(found) < len(others):
        chunks = [others[at : at + _CHUNK] for at in range(len(found), min(len(found) + _CALLS * _CHUNK, len(others)), _CHUNK)]
        try:
            answers = store.run_all([(Script.INPUTS, (chunk,)) for chunk in chunks])
        except RedisConnectionError:
            answers = []
        if answers and all(answer.ok for answer in answers):
            found += [value for answer in answers for value in answer.values[0]]
        else:
            time.sleep(0.1)
    told.update(zip(others, found, strict=True))
    return [told[task_id] for task_id in task_ids]


def _told(store: Store, waiter: str) -> dict[str, str]:
    """What it was told of results when they came: id → JSON. Not of all, and of none where Redis has lost them."""
    told: dict[str, str] = {}
    at = 0
    try:
        with store.plain() as redis:
            while pages := redis.lrange(store.keys("told", waiter), at, at + _PAGES - 1):
                at += len(pages)
                for page in pages:
                    each = iter(_page.decode(page))
                    told.update(zip(each, each, strict=True))
    except (RedisConnectionError, StoreError):
        log.debug("what %s was told can't be read: %s asks for each", waiter, store.name)
    return told
