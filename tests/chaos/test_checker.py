"""The checker must see what it is there for: forged ledgers."""

from __future__ import annotations

from collections.abc import Sequence

from chaos.checker import Faults, Harm, Kind, Outage, Task, Verdict, check, read


def line(kind: str, key: str, attempt: int, pid: int, at: float) -> list[str]:
    return [kind, key, str(attempt), str(pid), "w", str(at)]


def run(key: str, attempt: int, pid: int, began: float, ended: float | None, kind: str = "F") -> list[list[str]]:
    """The lines of one run; ``ended=None``: it never wrote its last."""
    return [line("S", key, attempt, pid, began), *([line(kind, key, attempt, pid, ended)] if ended is not None else [])]


def harm(kind: Kind, pid: int, began: float, ended: float | None = None) -> Harm:
    return Harm(kind, frozenset([pid]), began, began if ended is None else ended)


def judged(lines: Sequence[Sequence[str]], *harms: Harm, outages: Sequence[Outage] = (), **tasks: Task) -> Verdict:
    """The verdict on a ledger of the tasks given; of a plain task ``a`` where none is."""
    return check(tasks or {"a": Task()}, read(lines), Faults(harms, outages, lease=3.0))


GOOD = run("a", 1, 1, 1.0, 2.0)


def test_a_good_ledger_is_clean() -> None:
    verdict = judged(GOOD)
    assert verdict.clean
    assert (verdict.runs, verdict.interruptions, verdict.hits, verdict.slowest) == (1, 0, 0, None)


def test_a_lost_task_is_seen() -> None:
    assert judged(GOOD, a=Task(), b=Task()).lost == ["b"]
    assert judged(GOOD[:1]).lost == ["a"]
    assert judged(run("a", 1, 1, 1.0, 2.0, "E"), a=Task(retries=1)).lost == ["a"]
    assert judged(run("a", 1, 1, 1.0, None), harm(Kind.CHILD, 1, 1.5)).lost == ["a"]


def test_a_run_out_of_thin_air_is_seen() -> None:
    assert judged(GOOD, b=Task()).thin_air == ["a"]
    assert check({}, read(GOOD), Faults(), unknown=["a"]).clean
    assert judged([line("F", "a", 1, 1, 1.0)], b=Task()).thin_air == ["a"]


def test_a_doubled_run_is_seen_unless_a_death_explains_it() -> None:
    twice = [*GOOD, *run("a", 2, 2, 3.9, 6.0)]
    verdict = judged(twice)
    assert verdict.broken.keys() == {"doubled", "extra runs"}
    assert judged(twice, harm(Kind.CHILD, 1, 3.5)).doubled == ["a"]
    assert judged(twice, harm(Kind.CHILD, 2, 1.5)).doubled == ["a"]
    assert judged(run("a", 1, 1, 1.0, None) + twice[2:], harm(Kind.CHILD, 1, 3.5)).clean
    assert judged(twice, harm(Kind.CHILD, 1, 2.95)).clean


def test_a_doubled_run_is_explained_while_its_end_could_not_be_settled() -> None:
    twice = [*GOOD, *run("a", 2, 2, 6.0, 7.0)]
    dead = harm(Kind.CHILD, 1, 5.5)
    assert judged(twice, dead).doubled == ["a"]
    assert judged(twice, dead, outages=[Outage(2.1, 2.4)]).clean
    assert judged(twice, dead, harm(Kind.STILL, 1, 2.2, 5.4)).clean
    assert judged(twice, dead, outages=[Outage(3.1, 3.4)]).doubled == ["a"]


def test_a_run_more_than_was_declared_is_seen() -> None:
    raising = [*run("a", 1, 1, 1.0, 1.1, "E"), *run("a", 2, 1, 2.0, 2.1, "E"), *run("a", 3, 1, 3.0, 3.1)]
    assert judged(raising, a=Task(retries=2)).clean
    assert judged(raising, a=Task(retries=1)).extra == ["a"]
    assert judged([*run("a", 1, 1, 1.0, None), *run("a", 2, 1, 2.0, 3.0)]).extra == ["a"]


def test_a_fault_after_the_next_run_has_begun_explains_nothing() -> None:
    assert judged([*GOOD, *run("a", 2, 2, 2.1, 3.0)], harm(Kind.CHILD, 1, 2.3)).doubled == ["a"]


def test_an_overlap_is_seen() -> None:
    overlap = [*run("a", 1, 1, 1.0, 4.0), *run("a", 2, 2, 2.0, 3.0)]
    assert judged(overlap, harm(Kind.CHILD, 1, 4.2)).overlapping == ["a"]
    assert judged(overlap).broken.keys() == {"doubled", "extra runs", "overlapping"}
    killed_later = [*run("a", 1, 1, 1.0, None), *run("a", 2, 2, 2.0, 3.0)]
    assert judged(killed_later, harm(Kind.CHILD, 1, 2.5)).overlapping == ["a"]
    three = [*run("a", 1, 1, 1.0, 9.0), *run("a", 2, 2, 2.0, None), *run("a", 3, 3, 4.0, 5.0)]
    assert judged(three, harm(Kind.WORKER, 1, 9.1), harm(Kind.CHILD, 2, 3.0)).overlapping == ["a"]


def test_a_frozen_worker_may_write_a_last_line_as_it_thaws_and_no_later() -> None:
    frozen = harm(Kind.FROZEN, 1, 1.5, 7.0)
    thawing = judged([*run("a", 1, 1, 1.0, 7.1), *run("a", 2, 2, 5.0, 8.0)], frozen)
    assert thawing.clean
    assert (thawing.thawed, thawing.interruptions) == (1, 1)
    assert judged([*run("a", 1, 1, 1.0, 7.8), *run("a", 2, 2, 5.0, 8.0)], frozen).overlapping == ["a"]
    headless = harm(Kind.HEADLESS, 1, 1.5, 7.0)
    assert judged([*run("a", 1, 1, 1.0, 7.1), *run("a", 2, 2, 5.0, 8.0)], headless).overlapping == ["a"]


def test_a_child_that_stood_still_under_its_supervisor_explains_nothing() -> None:
    assert judged([*run("a", 1, 1, 1.0, None), *run("a", 2, 2, 5.0, 8.0)], harm(Kind.STILL, 1, 1.5, 4.0)).extra == ["a"]


def test_only_an_outage_longer_than_the_lease_interrupts() -> None:
    runs = [*run("a", 1, 1, 1.0, None), *run("a", 2, 2, 9.0, 10.0)]
    assert judged(runs, outages=[Outage(2.0, 2.5)]).extra == ["a"]
    verdict = judged(runs, outages=[Outage(2.0, 6.5, cutting=True)])
    assert verdict.clean
    assert verdict.slowest is not None
    assert (verdict.slowest.cause, verdict.slowest.seconds, verdict.slowest.counted) == ("Redis away", 7.0, 0.0)


def test_a_chain_runs_in_order() -> None:
    tasks = {"a": Task(), "b": Task(after="a")}
    assert judged([*GOOD, *run("b", 1, 1, 2.0, 3.0)], **tasks).clean
    assert judged([*GOOD, *run("b", 1, 1, 1.5, 3.0)], **tasks).disordered == ["b"]
    raised = [*run("a", 1, 1, 1.0, 2.0, "E"), *run("b", 1, 1, 2.5, 3.0), *run("a", 2, 1, 4.0, 5.0)]
    assert judged(raised, a=Task(retries=1), b=Task(after="a")).disordered == ["b"]


def test_nothing_runs_before_its_time_nor_under_an_old_attempt() -> None:
    assert judged(GOOD, a=Task(due=1.5)).disordered == ["a"]
    again = [*run("a", 2, 1, 1.0, None), *run("a", 2, 2, 2.0, 3.0)]
    assert judged(again, harm(Kind.CHILD, 1, 1.5)).disordered == ["a"]


def test_recovery_is_judged_by_what_happened() -> None:
    child = [*run("a", 1, 1, 1.0, None), *run("a", 2, 2, 3.0, 4.0)]
    assert judged(child, harm(Kind.CHILD, 1, 2.5)).clean
    (late,) = judged(child, harm(Kind.CHILD, 1, 1.5)).late
    assert (late.cause, late.seconds) == ("a child killed", 1.5)
    worker = judged(child, harm(Kind.WORKER, 1, 1.5))
    assert worker.clean
    assert worker.slowest_of is not None
    assert worker.slowest_of["a worker killed"].counted == 1.5
    slow = [*run("a", 1, 1, 1.0, None), *run("a", 2, 2, 7.0, 8.0)]
    assert [each.key for each in judged(slow, harm(Kind.WORKER, 1, 1.5)).late] == ["a"]
    alone = Faults([harm(Kind.WORKER, 1, 1.5)], deserted=[(2.0, 3.0)])
    assert check({"a": Task()}, read(slow), alone).clean
    raised = [*run("a", 1, 1, 1.0, 1.4, "E"), *run("a", 2, 2, 7.0, 8.0)]
    assert judged(raised, harm(Kind.CHILD, 1, 1.5), a=Task(retries=1)).clean


def test_recovery_does_not_count_an_outage_and_the_lease_after_it() -> None:
    slow = [*run("a", 1, 1, 1.0, None), *run("a", 2, 2, 5.5, 8.0)]
    dead = harm(Kind.CHILD, 1, 1.5)
    assert judged(slow, dead, outages=[Outage(1.6, 2.0)]).clean
    assert judged(slow, dead, outages=[Outage(7.0, 8.0)]).late
    assert judged(slow, dead, outages=[Outage(1.6, 1.7)]).clean
    assert judged([*slow[:1], *run("a", 2, 2, 6.0, 8.0)], dead, outages=[Outage(1.6, 1.7)]).late


def test_who_took_it_over_may_be_struck_too_but_not_long_after() -> None:
    runs = [*run("a", 1, 1, 1.0, None), *run("a", 3, 3, 6.5, 8.0)]
    dead = harm(Kind.CHILD, 1, 1.5)
    assert judged(runs, dead).late
    assert judged(runs, dead, harm(Kind.WORKER, 2, 2.0)).clean
    assert judged(runs, dead, harm(Kind.WORKER, 2, 3.0)).late


def test_a_kill_that_met_nothing_is_no_hit() -> None:
    lines = [*GOOD, *run("b", 1, 2, 1.0, None), *run("b", 2, 3, 2.2, 3.0)]
    kills = [harm(Kind.CHILD, 1, 2.1), harm(Kind.CHILD, 2, 2.0), harm(Kind.WORKER, 4, 2.0)]
    assert judged(lines, *kills, a=Task(), b=Task()).hits == 1


def test_poison_may_kill_so_often_and_its_neighbours_are_interrupted() -> None:
    deaths = [each for n in (1, 2, 3) for each in (line("S", "p", n, n, n), line("D", "p", n, n, n + 0.1))]
    neighbour = [*run("a", 1, 1, 0.5, None), *run("a", 2, 9, 1.5, 2.0)]
    tasks = {"p": Task(deaths=3), "a": Task()}
    verdict = judged([*deaths, *neighbour], **tasks)
    assert verdict.clean
    assert verdict.hits == 0
    fourth = [line("S", "p", 4, 4, 4.0), line("D", "p", 4, 4, 4.1)]
    assert judged([*deaths, *fourth, *neighbour], **tasks).extra == ["p"]
