"""A module of one's own: writes a line per ended attempt to results.log.

    krq worker examples.module:app         in one terminal
    python examples/module.py              in another
"""

import logging
import sys
from collections.abc import Mapping
from typing import Any

from krq import KRQ, Module, ResultTimeout
from krq.hooks import Attempt
from krq.modules import default
from krq.outcome import Outcome, Succeeded


class ResultsLog(Module):
    """Owns the option `quiet`, which keeps a task out of the file. An observer: it decides nothing."""

    options: Mapping[str, Any] = {"quiet": bool}

    def __init__(self, path: str) -> None:
        self._path = path
        self._log = logging.Logger("results")

    def worker_started(self, worker_id: str) -> None:
        """Files are opened here, in the child that writes them, not before the fork."""
        handler = logging.FileHandler(self._path)
        handler.setFormatter(logging.Formatter(f"%(asctime)s {worker_id} %(message)s"))
        self._log.addHandler(handler)

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt.task is not None and attempt.task.settings.get("quiet"):
            return
        text = outcome.result.decode() if isinstance(outcome, Succeeded) else repr(outcome)[:200]
        self._log.info("%s %s attempt %d: %s", attempt.id, attempt.message.task, attempt.number, text)


app = KRQ(modules=[*default(), ResultsLog("results.log")])


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(quiet=True)
def whisper(text: str) -> str:
    return text.lower()


def main() -> int:
    handles: list[Any] = [add.send(1, 2), whisper.send("NOT IN THE FILE")]
    try:
        print(*(handle.result(timeout=30) for handle in handles), sep="\n")
    except ResultTimeout:
        print("Nothing came back. Start a worker: krq worker examples.module:app", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
