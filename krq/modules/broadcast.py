"""Broadcast: one task for each worker, in the worker's own inbox, and a roll call of the answers."""

from __future__ import annotations

import time
from typing import Any, Protocol

from krq import ids
from krq.call import Call, Sender
from krq.errors import OptionError
from krq.handle import BroadcastHandle
from krq.hooks import Module
from krq.info import WorkerInfo

#: seconds within which a worker must have started its member, where the call does not say
EXPIRES = 3600.0
#: a member goes before what else may stand in the inbox
PRIORITY = 100


class App(Sender, Protocol):
    """What this module asks of the app."""

    def serving(self, name: str) -> list[WorkerInfo]: ...


class Broadcast(Module):
    """Owns ``KRQ.broadcast`` and ``Task.broadcast``."""

    def __init__(self, expires: float = EXPIRES) -> None:
        self._expires = expires

    def broadcast(self, app: App, call: Call) -> BroadcastHandle[Any]:
        """Send the call to each worker that is alive now and knows the task, as one batch; returns when the log has all of them.

        Each child of a worker with ``processes > 1`` is a worker of its own. A worker that joins later is not included. A member that
        was not started after an hour (``expires=``) fails with ``EXPIRED``. Without any worker the roll is empty. Raises as
        ``KRQ.submit_many``; ``OptionError`` for ``inbox=`` and ``task_id=``, which a broadcast chooses itself.
        """
        app.check_options(call.options)
        if taken := {"inbox", "task_id"} & set(call.options):
            cure = "It goes to the inbox of each worker, under an id of its own."
            raise OptionError(f"{min(taken)}= is no option of a broadcast", cure=cure)
        workers = {worker.id: worker.inbox for worker in app.serving(call.name) if worker.inbox}
        settings: dict[str, Any] = {"priority": PRIORITY, "expires": time.time() + self._expires, **call.options}
        calls = [call._replace(options={**settings, "inbox": inbox, "task_id": ids.new_id()}) for inbox in workers.values()]
        handles = app.send_calls(calls)
        return BroadcastHandle(dict(zip(workers, handles, strict=True)), app)
