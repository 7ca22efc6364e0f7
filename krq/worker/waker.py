"""Waits for something to become ready: blocks on the wake-up keys, in a thread and on a connection of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from krq.store.client import TIMEOUT, connect

log = logging.getLogger("krq.worker")

#: seconds of one wait: a wake that was lost costs no more
WAIT = 2


class Waker:
    """``listen`` and ``heard`` are for one thread; ``wake`` is called in the waker's own."""

    def __init__(self, backend: str, keys: Sequence[str], hungry: Callable[[], bool], wake: Callable[[], object]) -> None:
        self._backend = backend
        self._keys = list(keys)
        self._hungry = hungry
        self._wake = wake
        self._wanted = threading.Event()
        self._heard = False
        self._thread = threading.Thread(target=self._run, name="krq-wake", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def listen(self) -> None:
        """From now on, until something is heard."""
        self._wanted.set()

    def heard(self) -> bool:
        """Whether something may have become ready since the last call."""
        heard, self._heard = self._heard, False
        return heard

    def _run(self) -> None:
        client = connect(self._backend, TIMEOUT + 5)
        while True:
            self._wanted.wait()
            try:
                token: Any = client.blpop(self._keys, timeout=WAIT)
            except Exception as error:  # boundary: a lost wake costs a second, the thread's end would cost more
                log.debug("wake: %s", error)
                time.sleep(0.5)
                token = True
            if token or not self._hungry():
                self._wanted.clear()
                self._heard = True
                self._wake()
