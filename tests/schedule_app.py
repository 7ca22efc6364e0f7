"""An app with schedules in its code; what they are comes from the environment: SCHEDULES, a JSON object of options by name."""

from __future__ import annotations

import json
import os
import sys

from tasks_app import app, fails, note

import krq

assert fails


def beat() -> None:
    note(os.environ["LEDGER"], krq.current().id, krq.current().worker)


for name, options in json.loads(os.environ.get("SCHEDULES", "{}")).items():
    app.task(name=name, **options)(beat)

if __name__ == "__main__":
    app.config_worker(worker_id=sys.argv[1])
    app.run(processes=int(sys.argv[2]))
