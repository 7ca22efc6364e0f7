"""Rates over 1, 5 and 15 minutes: what expire.lua notes, and what is read out of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from shard import Shard

from krq import rates
from krq.brokers.streams import StreamsBroker
from krq.dev.valkey import ValkeyServer
from krq.inspector import Inspector
from krq.store.scripts import Script

SECOND = 1_000
NOW = 1_800_000_000_000


def ring(*notes: tuple[int, int, int]) -> bytes:
    """Each: seconds before now, succeeded, failed."""
    return b"".join(struct.pack("<QQQ", int(NOW - before * SECOND), good, bad) for before, good, bad in notes)


@pytest.mark.parametrize(("notes", "wanted"), [
    ([], (0, 0, 0)),
    ([(-5, 0, 0)], (0, 0, 0)),  # from a clock that was ahead
    ([(10, 0, 0)], (100, 100, 100)),  # workers since ten seconds
    ([(0.1, 900, 0)], (100, 100, 100)),  # a tenth of a second is no time to judge by
    ([(900, 0, 0), (300, 400, 0), (60, 700, 0), (10, 950, 0)], (5, 2, 1.111)),
    ([(910, 0, 0), (310, 400, 0), (70, 700, 0), (55, 780, 0), (50, 950, 0)], (4, 4.286, 1.935)),
    ([(70, 400, 0)], (0, 8.571, 8.571)),  # no worker in the last minute
    ([(1000, 0, 0)], (0, 0, 0)),  # an old round of the ring
    ([(50, 2000, 0)], (0, 0, 0)),  # Redis knows less than it did
])
def test_what_a_ring_tells(notes: list[tuple[int, int, int]], wanted: tuple[float, ...]) -> None:
    """With 1,000 ended now. The order in the ring is no matter, as it goes round."""
    assert rates.ended(ring(*reversed(notes)), NOW, 1000, 0).all == wanted
    assert rates.ended(ring(*notes) + bytes(24 * 3), NOW, 1000, 0).all == wanted
    assert rates.ended(ring(*notes) + b"cut", NOW, 1000, 0).all == wanted


def test_failures_are_told_apart() -> None:
    found = rates.ended(ring((100, 10, 5), (50, 10, 15)), NOW, 60, 65)
    assert found == rates.Ended((2.0, 1.1, 1.1), (1.0, 0.6, 0.6))
    assert rates.total([found.all, found.failed]) == (3.0, 1.7, 1.7)
    assert rates.total([]) == rates.NONE


@pytest.fixture(params=["valkey", "debian_redis"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def shard(server: ValkeyServer) -> Iterator[Shard]:
    shard = Shard(server.url)
    yield shard
    shard.store.close()


class Clock:
    """Shifts what was noted into the past, as if time had passed."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.inspector = Inspector(shard.store.config, shard.store, StreamsBroker(shard.store.config))

    def passes(self, seconds: int) -> None:
        redis, keys = self.shard.redis, self.shard.keys
        redis.set(keys("noted"), int(redis.get(keys("noted"))) - seconds * SECOND)
        for queue in self.inspector.queues():
            moved = bytearray(24 * 96)
            for at, *more in struct.iter_unpack("<QQQ", redis.get(keys("totals", queue))):
                if at:
                    struct.pack_into("<QQQ", moved, (at - seconds * SECOND) // 10_000 % 96 * 24, at - seconds * SECOND, *more)
            redis.set(keys("totals", queue), bytes(moved))

    def note(self) -> None:
        assert self.shard.run(Script.EXPIRE, 10**15).ok

    def ended(self, n: int, failed: int = 0, queue: str = "default") -> None:
        self.shard.redis.sadd(self.shard.keys("queues"), queue)
        self.shard.redis.hincrby(self.shard.keys("queue", queue), "S", n)
        self.shard.redis.hincrby(self.shard.keys("queue", queue), "F", failed)

    def rates(self, queue: str = "default") -> tuple[float, ...]:
        found = self.inspector.stats(backlog=False).queues[queue]
        return tuple(round(rate, 1) for rate in (*found.rates, *found.failure_rates))


@pytest.fixture
def clock(shard: Shard) -> Clock:
    return Clock(shard)


def test_rates_are_those_of_the_notes(shard: Shard, clock: Clock) -> None:
    """Tasks that really ended, and totals that only rose."""
    clock.note()
    shard.add("a", "b")
    shard.finish("a", "b")
    clock.passes(20)
    assert clock.rates() == pytest.approx((0.1, 0.1, 0.1, 0, 0, 0))
    for _ in range(100):
        clock.passes(10)
        clock.ended(30, 10)
        clock.note()
    assert len(shard.redis.get(shard.keys("totals", "default"))) == 24 * 96
    assert clock.rates() == pytest.approx((4, 4, 4, 1, 1, 1), rel=0.25)
    whole = clock.inspector.stats(backlog=False)
    assert (whole.rates, whole.failure_rates) == (whole.queues["default"].rates, whole.queues["default"].failure_rates)
    clock.passes(400)
    assert clock.rates()[:2] == (0, 0) and clock.rates()[2] > 0


def test_notes_are_made_once_in_ten_seconds_and_bounded(shard: Shard, clock: Clock) -> None:
    clock.note()
    kept = shard.redis.get(shard.keys("totals", "default"))
    clock.ended(5)
    at = int(shard.redis.get(shard.keys("noted")))
    clock.note()
    again = int(shard.redis.get(shard.keys("noted")))
    if again // 10_000 == at // 10_000:  # else the clock has just come into the next ten seconds
        assert (again, shard.redis.get(shard.keys("totals", "default"))) == (at, kept)
    for name in (shard.keys("totals", "default"), shard.keys("noted")):
        assert 900 < shard.redis.ttl(name) <= 1000


def test_a_new_queue_begins_with_nothing_and_an_old_one_with_what_it_has(shard: Shard, clock: Clock) -> None:
    clock.ended(5_000)
    clock.note()
    assert clock.rates() == (0,) * 6
    clock.passes(10)
    clock.ended(100, queue="new")
    assert clock.rates("new") == (0,) * 6  # nobody has noted it yet
    clock.note()
    assert clock.rates("new") == pytest.approx((10, 10, 10, 0, 0, 0), rel=0.1)
    assert clock.rates() == (0,) * 6
