"""Lines of tasks on their way: what is bounded, what is lost and told, what waits. No server."""

from __future__ import annotations

from krq.errors import RedisConnectionError, StoreError
from krq.loglines import MAX_BYTES, Batch, LogLine, fitted
from krq.modules._shipping import Outlet, Pending, Relay, heard


def line(text: str, attempt: int = 1) -> LogLine:
    return LogLine(at=1.5, attempt=attempt, worker="w", text=text)


def test_a_long_text_keeps_its_ends() -> None:
    assert fitted("short") == "short"
    for text in ("x" * 9_000, "ü" * 9_000, "a" * 1_000_000 + "end", "\udcff" * 9_000):
        cut = fitted(text)
        assert len(cut.encode()) <= MAX_BYTES and cut[-1] == (text[-1] if text[-1] < "\ud800" else "f") and "cut out" in cut


def test_what_is_too_much_goes_oldest_first_and_is_told() -> None:
    pending = Pending(each=5, most=8)
    pending.add([("a", line(f"a{i}")) for i in range(9)] + [("b", line("b0"))])
    batch = pending.take(100, 10_000)
    assert [(i, one.text) for i, one in batch if one.stream == "log"] == [("a", f"a{i}") for i in range(4, 9)] + [("b", "b0")]
    assert batch[0][1].stream == "krq" and batch[0][1].text.startswith("4 lines are missing")
    assert not pending
    pending.add(("c", line(f"c{i}")) for i in range(4))
    first = pending.take(2, 10_000)
    pending.add(("d", line(f"d{i}")) for i in range(2))
    pending.restore(first)
    assert [one.text for _, one in pending.take(100, 10_000)] == ["c0", "c1", "c2", "c3", "d0", "d1"]
    pending.add([("big", line("x" * 8_000)) for _ in range(3)])
    assert len(pending.take(100, 100)) == 1, "a batch is bounded in bytes"


def outlet_after(*errors: Exception) -> tuple[Outlet, list[str]]:
    """An outlet to a server that raises these first, and the texts that it got then."""
    got: list[str] = []
    left = list(errors)

    def send(batch: Batch) -> Batch:
        if left:
            raise left.pop(0)
        got.extend(one.text for _, one in batch)
        return []

    return Outlet("nowhere", send), got


def test_a_server_that_is_away_holds_nobody_up_and_gets_all_later() -> None:
    outlet, got = outlet_after(RedisConnectionError("away"), RedisConnectionError("away"))
    for i in range(10):
        outlet.add("t", line(f"l{i}"))
    assert outlet.drain(5)
    assert got == [f"l{i}" for i in range(10)]


def test_what_a_server_refuses_is_lost_and_told() -> None:
    outlet, got = outlet_after(StoreError("full"))
    outlet.add("t", line("one"))
    assert outlet.drain(5)
    assert len(got) == 1 and got[0].startswith("1 line is missing")


def test_a_full_pipe_holds_nobody_up() -> None:
    got: list[str] = []
    full = True

    def say(data: bytes, *, wait: bool = False) -> bool:
        if full and not wait:
            return False
        got.extend(one.text for _, one in heard(data))
        return True

    relay = Relay(say)
    for i in range(1_500):
        relay.add("t", line(f"l{i}"))
    assert not got
    relay.flush()
    assert got[0].startswith("500 lines are missing") and got[1:] == [f"l{i}" for i in range(500, 1_500)]
