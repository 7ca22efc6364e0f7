"""Random schedules of engines, hearts and scripts. ``SEED=7 pytest tests/test_simulator.py`` replays one of them."""

from __future__ import annotations

import os

import pytest
from simulate import play
from simulator import Simulation

from krq.dev.valkey import ValkeyServer

#: schedules that are played however slow the machine, and seconds that more may take; make simulate plays as many as one likes
ALWAYS, BUDGET = 25, 12.0


def test_no_schedule_breaks_a_promise(valkey: ValkeyServer) -> None:
    """P2 to P5 after each step, and nothing is left at the end. A failure names its seed."""
    if seed := os.environ.get("SEED"):
        Simulation(valkey.url, int(seed)).run()
    else:
        play(valkey.url, 0, ALWAYS)
        play(valkey.url, ALWAYS, 1_000, BUDGET)


@pytest.mark.parametrize("seed", [3, 48])
def test_a_seed_replays_exactly(valkey: ValkeyServer, seed: int) -> None:
    first, second = Simulation(valkey.url, seed), Simulation(valkey.url, seed)
    first.run()
    second.run()
    assert first.trace == second.trace
    assert len(first.trace) > 200
