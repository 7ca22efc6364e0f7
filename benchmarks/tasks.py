"""The worker of the benchmarks: functions that do next to nothing."""

from __future__ import annotations

import os
import time

import krq

app = krq.KRQ(modules=[] if os.environ.get("KRQ_BENCH_MODULES") == "off" else None)


@app.task
def nothing(x: int) -> int:
    return x


@app.task(isolate=True)
def alone(x: int) -> int:
    return x


@app.task
def moment(*_: float) -> float:
    """Unix seconds at its start."""
    return time.time()


@app.task
def arrival(_: list[int]) -> float:
    """The final task of a group: Unix seconds at its start."""
    return time.time()


if __name__ == "__main__":
    app.run()
