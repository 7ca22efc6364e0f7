"""A worker in odd circumstances, named by the first argument. Servers and namespace come from the environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tasks_app import app

import krq
from krq.worker import child, supervisor


class Dies(krq.Module):
    """No child lives to take anything."""

    def worker_started(self, worker_id: str) -> None:
        os._exit(9)


def jumping(file: str) -> None:
    """The clock of this machine is off by as many seconds as a file says."""
    real, real_ns = time.time, time.time_ns

    def offset() -> float:
        return float(Path(file).read_text() or 0)

    time.time = lambda: real() + offset()
    time.time_ns = lambda: real_ns() + int(offset() * 1e9)


match sys.argv[1].split(":", 1):
    case ["dies"]:
        supervisor.MAX_RESTARTS = 2
        app.modules.append(Dies())
    case ["wedged"]:
        child.WEDGED = supervisor.WEDGED = 1.5
    case ["jumping", file]:
        jumping(file)

if __name__ == "__main__":
    app.config_worker(worker_id="odd")
    app.run()
