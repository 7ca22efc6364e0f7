"""The bugs: each leaves one rule of the protocol out. The old text occurs exactly once in its file."""

from __future__ import annotations

from typing import NamedTuple

SIMULATOR = "tests/test_simulator.py::test_no_schedule_breaks_a_promise"
LUA = "krq/store/lua/"


class Mutant(NamedTuple):
    """One bug, and the tests that must fail with it and pass without it."""

    name: str
    rule: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = (SIMULATOR,)


MUTANTS = [
    Mutant(
        "commit-at-fetch", "commit what is complete, not what is read", "krq/worker/intake.py",
        "lows[part] = told[1]", "lows[part] = told[0]",
        ("tests/test_commit.py",),
    ),
    Mutant(
        "low-water-without-mark", "low-water = min(mark, lowest incomplete)", LUA + "mark.lua",
        "lowest and math.min(mark, tonumber(lowest)) or mark", "lowest and tonumber(lowest) or mark",
    ),
    Mutant(
        "second-position-dropped", "every position of an id stays incomplete until its end is logged", LUA + "admit.lua",
        "local p = add_position(t[2], r[3], r[4], r[5], r[15])", "local p = nil",
    ),
    Mutant(
        "gap-admitted", "a batch that would leave a gap is read again", LUA + "admit.lua",
        "if source[4] > mark then return reply('GAP', mark) end", "",
    ),
    Mutant(
        "marker-admits", "a state marker is no admission", LUA + "admit.lua",
        "if t[1] and t[1] ~= 'm' and not revived then", "if t[1] and not revived then",
    ),
    Mutant(
        "no-fence", "an end is compared with owner and attempt", LUA + "settle.lua",
        "if t[2] ~= inc or tonumber(t[3]) ~= attempt then answers[i] = 0", "if false then answers[i] = 0",
    ),
    Mutant(
        "fence-without-owner", "an end is compared with the owner", LUA + "settle.lua",
        "if t[2] ~= inc or tonumber(t[3]) ~= attempt then answers[i] = 0", "if tonumber(t[3]) ~= attempt then answers[i] = 0",
        ("tests/test_fences.py::test_an_end_is_its_holders_own",),
    ),
    Mutant(
        "late-take", "a smaller take number is refused", LUA + "take.lua",
        "if last[1] > number then return reply('STALE') end", "",
        ("tests/test_scripts.py::test_d3_p13_the_same_take_number_gives_the_same_and_a_smaller_one_nothing",),
    ),
    Mutant(
        "dead-may-take", "who was declared dead gets nothing", LUA + "take.lua",
        "if call('HEXISTS', K.beats, inc) == 0 then return reply('DEAD') end", "",
    ),
    Mutant(
        "no-self-fence", "a child ends itself before its lease can be given away", "krq/worker/child.py",
        "if age <= self._safe:", "if age <= 1e9:",
        ("tests/test_fences.py::test_a_child_under_a_stopped_supervisor_ends_itself",),
    ),
    Mutant(
        "beat-needs-the-task", "the heartbeat does not depend on the process that runs the task", "krq/worker/supervisor.py",
        ".page.engine <= WEDGED", ".page.engine <= 1.0",
        ("tests/test_fences.py::test_a_task_that_holds_the_interpreter_longer_than_the_lease_is_not_interrupted",),
    ),
    Mutant(
        "recovery-without-grace", "who is to be declared dead was seen silent for a whole lease", "krq/worker/heart.py",
        "elif now - since > self._config.lease:", "elif now > since:",
    ),
    Mutant(
        "deaths-not-counted", "a task that kills its worker three times is poison", LUA + "settle.lua",
        "call('HSET', key, 'i', deaths)", "",
        ("tests/test_faults.py::test_a_task_that_kills_its_worker_becomes_a_dead_letter_and_its_neighbours_succeed[streams]",),
    ),
    Mutant(
        "dependents-not-with-the-end", "dependents are released in the script that settles", LUA + "settle.lua",
        "tell_dependents()", "",
    ),
    Mutant(
        "run-id-not-compared", "another life of the server is another epoch", LUA + "prelude.lua",
        "if e[2] ~= run_id() then return 'RESTARTED' end", "",
        ("tests/test_scripts_limits.py::test_d8_p1_another_life_of_the_server_answers_restarted_until_it_is_opened",),
    ),
    Mutant(
        "settle-refused-when-full", "settling goes on when memory is full", LUA + "settle.lua",
        "-- flags: allow-oom", "--",
        ("tests/test_scripts_limits.py::test_d3_a_full_server_refuses_admission_and_drains_by_itself",),
    ),
]  # fmt: skip
