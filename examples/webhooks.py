"""Webhooks: a module that posts what happens in the workers to a URL.

    WEBHOOK_URL=http://localhost:9000/ krq worker examples/webhooks.py      in one terminal
    krq submit divide 1 0                                                   in another
"""

import logging
import os
import time
import urllib.request
from queue import Full, Queue
from threading import Thread
from typing import Any

import msgspec

from krq import KRQ, Module
from krq.info import Event
from krq.modules import default
from krq.modules.listeners import EventName

log = logging.getLogger("webhooks")


class Webhooks(Module):
    """One POST for each event, from a thread of its own: no task waits for it. Best effort: a hook that stays away is left out."""

    def __init__(self, url: str, *events: EventName) -> None:
        self._url = url
        self._events = events
        self._queue: Queue[Event] = Queue(1_000)

    def attach(self, app: Any) -> None:
        """Listen: the app has its modules by now."""
        for event in self._events:
            app.on(event)(self._keep)

    def worker_started(self, worker_id: str) -> None:
        """Threads begin here, in the child that runs the tasks: none would survive the fork."""
        Thread(target=self._run, name=f"webhooks-{worker_id}", daemon=True).start()

    def _keep(self, event: Event) -> None:
        try:
            self._queue.put_nowait(event)
        except Full:
            log.warning("%s of %s is not posted: 1,000 others wait", event.outcome, event.id)

    def _run(self) -> None:
        while True:
            event = self._queue.get()
            for pause in (0.5, 2.0, 5.0, None):
                try:
                    self._post(event)
                    break
                except OSError as error:
                    log.warning("%s does not take %s of %s: %s", self._url, event.outcome, event.id, error)
                    time.sleep(pause or 0.0)

    def _post(self, event: Event) -> None:
        request = urllib.request.Request(self._url, msgspec.json.encode(event), {"Content-Type": "application/json"})
        urllib.request.urlopen(request, timeout=10).close()


url = os.environ.get("WEBHOOK_URL", "http://localhost:9000/")
app = KRQ(modules=[*default(), Webhooks(url, "task_failed", "task_died", "worker_stopping")])


@app.task(retries=0)
def divide(x: float, y: float) -> float:
    return x / y
