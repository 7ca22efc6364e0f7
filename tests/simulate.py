"""Play many schedules of the simulator: ``python simulate.py [seeds] [first seed]``."""

from __future__ import annotations

import sys
import tempfile
import time

from simulator import Simulation
from simulator_worker import FOREVER

from krq.dev.valkey import ValkeyServer


def play(url: str, first: int, n: int, seconds: float = FOREVER) -> int:
    """Play seeds from ``first`` on, ``n`` at most and as many as fit into the time; returns how many."""
    until = time.monotonic() + seconds
    for done in range(n):
        if time.monotonic() > until:
            return done
        Simulation(url, first + done).run()
    return n


if __name__ == "__main__":
    wanted, start = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder, ValkeyServer(folder, fsync="off") as server:
        began = time.monotonic()
        n = play(server.url, start, wanted)
        print(f"{n} schedules in {time.monotonic() - began:.0f} s, seeds {start} to {start + n - 1}: no promise was broken")
