"""What running tasks ask of the store: their steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

from krq.errors import KRQError, RedisConnectionError
from krq.hooks import Attempt
from krq.steps import MOST, MOST_BYTES
from krq.store.client import Store
from krq.store.scripts import Script


def answer(store: Store, incarnation: str, attempt: Attempt, what: str, arguments: Sequence[str]) -> Sequence[str]:
    """What ``Ask`` is answered, from any thread of the worker that runs the attempt.

    While Redis is away, or not open, it waits: whoever asks holds a lease, and is ended when that is over.
    """
    if what not in ("steps", "step"):
        raise KRQError(f"A task can't ask for {what!r}")
    while True:
        try:
            answer = store.run(Script.STEP, incarnation, attempt.id, attempt.number, MOST, MOST_BYTES, *arguments)
        except RedisConnectionError:
            time.sleep(0.1)
            continue
        if answer.ok:
            status, *told = answer.values
            return [status, *(told[0] if told else ())]
        time.sleep(0.1)
