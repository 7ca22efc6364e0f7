"""The worker of the benchmarks: a function that does nothing."""

from __future__ import annotations

import krq

app = krq.KRQ()


@app.task
def nothing(x: int) -> int:
    return x


if __name__ == "__main__":
    app.run()
