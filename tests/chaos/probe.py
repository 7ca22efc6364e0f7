"""Looks at Redis from outside KRQ: a server that answers nobody for a while is away, also when the nemesis has done nothing."""

from __future__ import annotations

import threading
import time
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chaos.checker import Outage
from chaos.nemesis import LEASE
from krq.dev.valkey import ValkeyServer

#: seconds between two writes, and those after which one counts as a stall
EVERY, LONG = 0.1, 0.4


class Probe(threading.Thread):
    """Writes a key all the time, and keeps the spans in which no write came through."""

    def __init__(self, server: ValkeyServer) -> None:
        super().__init__(daemon=True)
        self.stalls: list[Outage] = []
        self._client = redis.Redis(port=server.port, socket_timeout=20.0, retry=Retry(NoBackoff(), 0))
        self._over = threading.Event()

    def run(self) -> None:
        began = time.monotonic()
        while not self._over.wait(EVERY):
            try:
                self._client.set("probe", 1)
            except redis.RedisError:
                continue
            ended = time.monotonic()
            if ended - began > EVERY + LONG:
                self.stalls.append(Outage(began, ended, cutting=ended - began > LEASE / 2))
            began = ended

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join(30)
        self._client.close()
