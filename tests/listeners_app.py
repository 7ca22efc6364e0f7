"""Tasks that are listened to: the app of that test's worker. Each line of the ledger: who heard what."""

from __future__ import annotations

import os
import sys

from tasks_app import app, note

from krq.info import Event

LEDGER = os.environ["LEDGER"]


@app.on("worker_started")
@app.on("worker_stopping")
@app.on("task_started")
@app.on("task_succeeded")
@app.on("task_failed")
@app.on("task_retried")
@app.on("task_cancelled")
def all_of_it(event: Event) -> None:
    error = event.error.type if event.error else "-"
    note(LEDGER, "all", event.outcome, event.name or "-", event.id or "-", event.attempt, event.worker, error, event.result)
    raise ValueError("a listener that fails")


@app.on("task_succeeded")
def too_bad(event: Event) -> None:
    note(LEDGER, "bad", event.outcome)
    sys.exit(3)


@app.on("task_succeeded")
def last(event: Event) -> None:
    note(LEDGER, "last", event.outcome, event.id)


if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1])
    app.run()
