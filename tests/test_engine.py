"""The engine without I/O: what it takes, settles and hands back."""

from __future__ import annotations

import pytest

from krq.message import reread
from krq.worker.engine import MAX_BATCH, MOMENT, Engine, Held, Load, Settle

IDLE = Load(0, 0)


def held(number: int, attempt: int = 1) -> Held:
    return Held(
        id=f"t{number}", attempt=attempt, failures=0, deaths=0, raw="{}", sent=0, queue="q", inputs=None, known=True,
    )  # fmt: skip


def end(task: Held) -> Settle:
    return Settle(task, "S", "1", "{}")


def take(engine: Engine, tasks: list[Held], now: float = 0.0, load: Load = IDLE, *, more: bool = False) -> list[Held]:
    turn = engine.turn(now, load)
    assert turn is not None
    engine.answered([1] * len(turn.settles), [])
    return engine.took(tasks, turn.take, None, more=more, now=now)


def test_takes_as_much_as_it_has_slots_while_it_knows_nothing() -> None:
    engine = Engine(4)
    turn = engine.turn(0.0, IDLE)
    assert turn is not None
    assert (turn.take, turn.number) == (4, 1)


def test_takes_ahead_of_short_tasks_and_not_of_long_ones() -> None:
    engine = Engine(4)
    tasks = take(engine, [held(i) for i in range(4)], more=True)
    engine.ended([end(task) for task in tasks], 4 * 0.0001, 1.0)
    short = engine.turn(1.0, IDLE)
    assert short is not None
    assert 50 < short.take <= MAX_BATCH
    engine = Engine(4)
    tasks = take(engine, [held(i) for i in range(4)], more=True)
    engine.ended([end(task) for task in tasks], 4 * 0.5, 1.0)
    long = engine.turn(1.0, Load(0, 1))
    assert long is not None
    assert long.take == 3


@pytest.mark.parametrize(("raw", "takes"), [('{"task":"add","workflow":"t1"}', True), ('{"task":"add"}', False)])
def test_what_ends_in_a_workflow_brings_a_take_along(raw: str, takes: bool) -> None:
    engine = Engine(4)
    task = held(1)
    task.message = reread(raw)
    take(engine, [task])
    assert engine.hungry, "there was nothing more"
    engine.ended([end(task)], 0.0001, 0.1)
    turn = engine.turn(0.1, IDLE)
    assert turn is not None
    assert (len(turn.settles), turn.take > 0) == (1, takes)


def test_the_same_turn_goes_out_until_it_is_answered() -> None:
    engine = Engine(2)
    first = engine.turn(0.0, IDLE)
    assert engine.turn(0.1, IDLE) is first
    assert first is not None
    engine.answered([], [])
    engine.took([held(1)], first.take, None, more=False, now=0.1)
    engine.woken()
    second = engine.turn(0.2, IDLE)
    assert second is not None
    assert second.number == first.number + 1


def test_an_answer_that_is_repeated_starts_nothing_twice() -> None:
    engine = Engine(2)
    turn = engine.turn(0.0, IDLE)
    assert turn is not None
    assert len(engine.took([held(1), held(1)], turn.take, None, more=False, now=0.0)) == 1


def test_an_empty_pool_makes_it_wait_for_a_wake_or_a_due_time() -> None:
    engine = Engine(2)
    turn = engine.turn(0.0, IDLE)
    assert turn is not None
    engine.answered([], [])
    engine.took([], turn.take, 0.5, more=False, now=0.0)
    assert engine.hungry
    assert engine.turn(0.1, IDLE) is None
    assert engine.wait(0.1, IDLE) <= 0.4
    engine.tick(0.6)
    assert engine.turn(0.6, IDLE) is not None


def test_refused_ends_are_told_and_confirmed_ones_are_let_go() -> None:
    engine = Engine(4)
    tasks = take(engine, [held(1), held(2)])
    engine.ended([end(task) for task in tasks], 0.1, 0.1)
    turn = engine.turn(0.1, IDLE)
    assert turn is not None
    refused: list[Settle] = []
    done = engine.answered([1, 0], refused)
    assert [settle.held.id for settle in done] == ["t1"]
    assert [settle.held.id for settle in refused] == ["t2"]
    assert not engine.held


def test_what_waits_behind_long_tasks_is_given_back() -> None:
    engine = Engine(1)
    take(engine, [held(1), held(2)], more=True)
    full = Load(queued=1, busy=1)
    assert not engine.stuck(MOMENT / 2, full)
    assert engine.stuck(MOMENT * 2, full)
    engine.given_back([engine.held["t2"]])
    turn = engine.turn(MOMENT * 2, Load(0, 1))
    assert turn is not None
    assert turn.releases == [("t2", 1)]
    assert turn.take == 0


def test_a_lost_epoch_sends_unconfirmed_ends_again_and_forgets_releases() -> None:
    engine = Engine(4)
    tasks = take(engine, [held(1), held(2)])
    engine.ended([end(tasks[0])], 0.1, 0.1)
    engine.given_back([tasks[1]])
    before = engine.turn(0.1, IDLE)
    assert before is not None
    engine.lost()
    again = engine.turn(0.2, IDLE)
    assert again is not None
    assert [settle.held.id for settle in again.settles] == ["t1"]
    assert again.releases == []


def test_an_audit_releases_only_what_it_has_not() -> None:
    engine = Engine(4)
    take(engine, [held(1)])
    engine.audit([("t1", 1), ("stranger", 3)])
    turn = engine.turn(0.1, IDLE)
    assert turn is not None
    assert turn.releases == [("stranger", 3)]


def test_stopping_takes_nothing_more_and_ends_when_all_is_settled() -> None:
    engine = Engine(4)
    tasks = take(engine, [held(1)], more=True)
    engine.stop()
    assert engine.turn(0.1, Load(0, 1)) is None
    assert not engine.idle
    engine.ended([end(tasks[0])], 0.1, 0.2)
    turn = engine.turn(0.2, IDLE)
    assert turn is not None
    assert turn.take == 0
    engine.answered([1], [])
    assert engine.idle
