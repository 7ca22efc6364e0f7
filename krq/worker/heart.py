"""Heartbeats: renew the leases of this worker's children, and notice who else has stopped beating.

Death is judged by an observer: who was not seen to beat for a whole lease, while Redis answered all
along, is dead. No clocks of different machines are compared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from krq import failpoints, ids
from krq.config import Config
from krq.errors import NamespaceClosed, RedisConnectionError, StoreError
from krq.failpoints import Failpoint
from krq.store.client import Store
from krq.store.scripts import Script
from krq.worker.page import boottime

log = logging.getLogger("krq.worker.heart")

#: what scripts say where the store is not what it was
CHANGED = ("EPOCH", "EMPTY", "RESTARTED")


class End(NamedTuple):
    """How a child ended. Without a cause: in order, and what it still held is handed back."""

    cause: str = ""
    ran: Sequence[str] = ()
    """ids of the tasks that ran"""
    suspects: Sequence[str] = ()
    """those of them that may have killed it: they ran in its threads, and nothing else explains its end"""
    tail: Sequence[str] = ()
    """the last lines of its log"""


class Heart:
    """The supervisor's client. One thread only; each call answers within a second or so, or raises."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._store = Store(config, timeout=1.0)
        self._seen: dict[str, tuple[int, float]] = {}
        self._fail = failpoints.armed()

    def beat(self, incarnations: Sequence[str]) -> tuple[float, list[str]]:
        """Renew leases. Returns when the beat was sent (boot time) and those that are dead to others.

        Raises ``RedisConnectionError`` or ``StoreError``: nothing was confirmed, and nobody can be judged.
        """
        sent = boottime()
        try:
            answer = self._store.run(Script.BEAT, incarnations)
            if answer.status in CHANGED:
                self._seen.clear()
                self._store.renew(os.urandom(8).hex())
                answer = self._store.run(Script.BEAT, incarnations)
        except (RedisConnectionError, StoreError):
            self._seen.clear()
            raise
        if not answer.ok:
            return sent, []
        dead, beats, _, remains = answer.values
        try:
            self._observe(dict(zip(beats[::2], map(int, beats[1::2]), strict=True)), incarnations, sent)
            for incarnation, raw in zip(remains[::2], remains[1::2], strict=True):
                # whoever reported its end died before the last slice
                said = msgspec.json.decode(raw)
                seen = said["started"] is not False
                self.recover(incarnation, None, End(said["cause"], list(said["started"] or ()), list(said["suspects"])), seen=seen)
        except NamespaceClosed:
            self._seen.clear()
        return sent, self._closed_to(dead)

    def _closed_to(self, dead: Sequence[str]) -> list[str]:
        """Under a closed epoch a child that has not asserted yet is not dead."""
        return list(dead) if self._store.epoch.open or self._is_open() else []

    def _is_open(self) -> bool:
        with self._store.plain() as redis:
            stored, is_open = redis.hmget(self._store.keys.epoch, "id", "open")
        if stored == self._store.epoch.id.encode() and is_open == b"1":
            self._store.epoch = self._store.epoch._replace(open=True)
        return self._store.epoch.open

    def _observe(self, beats: dict[str, int], own: Sequence[str], now: float) -> None:
        if not self._store.epoch.open and not self._is_open():
            self._seen.clear()
            return
        for gone in self._seen.keys() - beats.keys():
            del self._seen[gone]
        for incarnation, counter in beats.items():
            if incarnation in own:
                continue
            seen, since = self._seen.get(incarnation, (-1, now))
            if seen != counter:
                self._seen[incarnation] = (counter, now)
            elif now - since > self._config.lease:
                log.error("worker %s has not beaten for %.1f s: its tasks go to others", ids.worker_of(incarnation), now - since)
                self.recover(incarnation, counter, End(f"no heartbeat for {now - since:.1f} s"), seen=False)
                self._seen.pop(incarnation, None)

    def recover(self, incarnation: str, counter: int | None, end: End, *, seen: bool = True) -> int:
        """End an incarnation and make its tasks ready again; returns how many. Raises as ``beat``.

        ``counter``: the beat after which no more came, where an observer says so. ``seen``: somebody knows what it ran.
        ``NamespaceClosed``: not now; try again.
        """
        total = 0
        known = False if counter is None else counter
        for _ in range(10_000):
            ran = seen and list(end.ran)
            answer = self._store.run(
                Script.RECOVER, incarnation, known, ran, end.cause, self._config.max_deaths, list(end.suspects), list(end.tail)
            )
            if answer.status in CHANGED:
                self._store.renew(os.urandom(8).hex())
                continue
            if answer.status == "CLOSED":
                self._open()
                continue
            if not answer.ok:  # it has beaten since
                break
            left, recovered = answer.values
            total += recovered
            if self._fail is not None:
                self._fail(Failpoint.RECOVER_SLICE)
            if not left:
                break
        return total

    def _open(self) -> None:
        """Open the namespace when its time has come: there may be no child that would. Raises ``NamespaceClosed``."""
        answer = self._store.run(Script.OPEN, int(self._config.lease * 1000))
        if answer.ok and not answer.values[0]:
            raise NamespaceClosed(f"{self._store.name} is being checked")

    def close(self) -> None:
        """Let go of the connection."""
        self._store.close()
