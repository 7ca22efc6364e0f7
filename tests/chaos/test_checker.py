"""The checker must see what it is there for: forged ledgers."""

from __future__ import annotations

from chaos.checker import Faults, check, read


def line(kind: str, key: str, attempt: int, pid: int, at: float) -> list[str]:
    return [kind, key, str(attempt), str(pid), "w", str(at)]


GOOD = [line("S", "a", 1, 1, 1.0), line("F", "a", 1, 1, 2.0)]


def test_a_good_ledger_is_clean() -> None:
    assert check(["a"], read(GOOD), Faults({})).clean


def test_a_lost_task_is_seen() -> None:
    assert check(["a", "b"], read(GOOD), Faults({})).lost == ["b"]
    assert check(["a"], read(GOOD[:1]), Faults({})).lost == ["a"]


def test_a_doubled_run_is_seen_unless_a_death_explains_it() -> None:
    twice = [*GOOD, line("S", "a", 2, 2, 5.0), line("F", "a", 2, 2, 6.0)]
    assert check(["a"], read(twice), Faults({})).extra == ["a"]
    assert check(["a"], read(twice), Faults({1: (4.0, 4.0)})).extra == ["a"]
    assert check(["a"], read(twice), Faults({1: (1.5, 1.5)})).clean
    assert check(["a"], read(twice), Faults({1: (2.1, 2.1)})).clean


def test_an_overlap_is_seen() -> None:
    overlap = [line("S", "a", 1, 1, 1.0), line("S", "a", 2, 2, 2.0), line("F", "a", 2, 2, 3.0), line("F", "a", 1, 1, 4.0)]
    assert check(["a"], read(overlap), Faults({1: (4.2, 4.2)})).overlapping == ["a"]
    assert check(["a"], read(overlap), Faults({})).extra == ["a"]


def test_a_run_out_of_thin_air_is_seen() -> None:
    assert check([], read(GOOD), Faults({})).thin_air == ["a"]


def test_a_stopped_worker_explains_a_second_run_and_the_wait_is_measured() -> None:
    runs = read([line("S", "a", 1, 1, 1.0), line("S", "a", 2, 2, 6.0), line("F", "a", 2, 2, 7.0)])
    verdict = check(["a"], runs, Faults({}, {1: [(1.5, 8.0)]}))
    assert verdict.clean
    assert (verdict.interruptions, verdict.slowest) == (1, 4.5)
