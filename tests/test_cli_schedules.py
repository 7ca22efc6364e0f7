"""``krq schedules``, run as a user runs it."""

from __future__ import annotations

import time

from cli_shell import Shell


def test_from_add_to_remove(shell: Shell) -> None:
    assert shell.ok("schedules") == "There are no schedules.\n"
    assert shell.json("schedules") == []
    arguments = ("--args", "[1]", "--kwargs", '{"y": 2}')
    said = shell.ok("schedules", "add", "sum", "add", "--cron", "30 3 * * *", "--tz", "Europe/Berlin", *arguments)
    assert said.startswith("sum: 30 3 * * * Europe/Berlin, next 20")
    shell.ok("schedules", "add", "often", "add", "--every", "90", "--queue", "mail", "--catch-up", "5", "--paused", "--args", "[7]")
    first, second = shell.json("schedules")
    assert (first["name"], first["task"], first["when"], first["tz"], first["args"], first["kwargs"]) == (
        "sum", "add", "30 3 * * *", "Europe/Berlin", [1], {"y": 2})  # fmt: skip
    assert first["next"] > time.time()
    assert (second["name"], second["when"], second["paused"], second["next"]) == ("often", "every 90 s", True, None)
    lines = shell.ok("schedules").splitlines()
    assert lines[0].split() == ["NAME", "TASK", "WHEN", "ZONE", "NEXT", "LAST", "LAST", "ID", "SOURCE"]
    assert "paused" in lines[2]
    assert shell.ok("schedules", "resume", "often") == "often goes on.\n"
    assert shell.ok("schedules", "pause", "sum") == "sum is paused.\n"
    assert [one["paused"] for one in shell.json("schedules")] == [False, True]
    task_id = shell.ok("schedules", "fire", "sum").strip()
    assert shell.json("task", task_id)["status"] == "queued"
    assert shell.ok("schedules", "remove", "sum") == "sum is removed.\n"
    assert [one["name"] for one in shell.json("schedules")] == ["often"]


def test_mistakes(shell: Shell) -> None:
    for words, code, says in (
        (("add", "x", "add"), 1, "either cron= or every="), (("add", "x", "add", "--cron", "60 * * * *"), 1, "no cron line"),
        (("add", "x", "add", "--every", "5", "--args", "{}"), 2, "no JSON list"),
        (("add", "x", "add", "--app", "tasks.py", "--every", "5"), 1, "missing"), (("remove", "x"), 1, "no schedule x"),
        (("pause", "x"), 1, "no schedule 'x'"), (("--json", "fire", "x"), 2, "behind the command"),
    ):  # fmt: skip
        found, _, err = shell.run("schedules", *words)
        assert (found, says in err) == (code, True), (words, err)
    assert shell.json("schedules") == []
