"""Send what a task has made, before its end is settled: the log first, then the schedule."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from krq import message
from krq.brokers.base import Broker, Outgoing, Position
from krq.config import Config
from krq.errors import KRQError
from krq.outcome import Family
from krq.store.client import Store
from krq.store.records import record
from krq.store.scripts import Script

log = logging.getLogger("krq.worker")

#: messages that are published at once, and records that one script call admits
PAGE, CHUNK = 1_000, 300
#: seconds between two tries while the log is away
AGAIN = 0.2


class Brood:
    """Sends children. Called in the slots' threads."""

    def __init__(self, config: Config, store: Store, broker: Broker) -> None:
        self._config = config
        self._store = store
        self._broker = broker

    def send(self, family: Family, cancelled: Callable[[], bool]) -> KRQError | None:
        """Send all. While the log is away it waits, as its parent holds a lease; sending again is safe, the ids are the same.

        Returns an error that waiting does not help; then some may have been sent. Stops early when the parent is ``cancelled``.
        """
        left = list(family.messages)
        while left and not cancelled():
            page = left[:PAGE]
            answers = self._broker.publish([self._outgoing(queue, raw) for queue, raw in page], self._config.send_timeout)
            refused = [answer for answer in answers if not isinstance(answer, Position | ConnectionError | TimeoutError)]
            if refused:
                return refused[0] if isinstance(refused[0], KRQError) else KRQError(f"A child could not be sent: {refused[0]}")
            both = list(zip(page, answers, strict=True))
            self._admit([(queue, raw, answer) for (queue, raw), answer in both if isinstance(answer, Position)])
            late = [one for one, answer in both if not isinstance(answer, Position)]
            left = [*late, *left[PAGE:]]
            if late:
                log.debug("%d children could not be sent yet", len(late))
                time.sleep(AGAIN)
        return None

    def _outgoing(self, queue: str, raw: bytes) -> Outgoing:
        return Outgoing(self._config.topic(queue), raw, message.reread(raw).key)

    def _admit(self, accepted: Sequence[tuple[str, bytes, Position]]) -> None:
        """The short cut past intake. Not custody: where it fails intake does it."""
        config, now = self._config, time.time_ns() // 1_000_000
        records = []
        for queue, raw, position in accepted:
            msg = message.reread(raw)
            records.append(record(msg.task_id, msg, raw, position, queue, now, ordered=self._broker.ordered))
        try:
            for start in range(0, len(records), CHUNK):
                chunk = records[start : start + CHUNK]
                self._store.run(Script.ADMIT, [], config.window, config.window_bytes, int(config.result_ttl), chunk)
        except KRQError as error:
            log.debug("children are left to intake: %s", error)
