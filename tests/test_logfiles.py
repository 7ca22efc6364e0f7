"""Files that many processes append to and rotate: no line is lost, and none is mixed with another."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import lines_of

from krq import logfiles
from krq.logfiles import LogFile, SafeFile

WRITER = """
import sys
from pathlib import Path
from krq.logfiles import LogFile

file = LogFile(Path(sys.argv[1]), 10_000, 10_000)
for n in range(0, 1_000, 5):
    file.write(b"".join(b"%s %d %s\\n" % (sys.argv[2].encode(), m, b"x" * (m % 90)) for m in range(n, n + 5)))
"""


def test_processes_that_write_and_rotate_lose_no_line_and_mix_none(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "x.log"), f"w{n}"]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert sorted(lines_of(tmp_path, "x.log")) == sorted(f"w{n} {m} {'x' * (m % 90)}" for n in range(3) for m in range(1_000))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    # nobody waits for one that stands still while it gives the file its next name: that one file may grow further
    assert len(sizes) > 10 and sorted(sizes)[-2] < 15_000


def test_what_is_older_than_the_kept_goes(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log", 10, 2)
    for n in range(6):
        file.write(b"line %d\n" % n)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "x.log": "line 5\n", "x.log.1": "line 4\n", "x.log.2": "line 3\n",
    }


def test_where_somebody_else_moved_the_file_all_go_to_the_new_one(tmp_path: Path) -> None:
    one, other = (LogFile(tmp_path / "x.log", 1_000, 2) for _ in range(2))
    one.write(b"one\n")
    other.write(b"two\n")
    (tmp_path / "x.log").rename(tmp_path / "moved")
    one.write(b"three\n")
    other.write(b"four\n")
    assert ((tmp_path / "moved").read_text(), (tmp_path / "x.log").read_text()) == ("one\ntwo\n", "three\nfour\n")


def test_a_writer_that_was_stopped_over_the_file_finds_it_there(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log", 10, 2)
    file.write(b"line 0\n")
    with (tmp_path / "x.log").open("ab", buffering=0) as stopped:
        fcntl.flock(stopped, fcntl.LOCK_SH)
        for n in range(1, 6):
            file.write(b"line %d\n" % n)
        stopped.write(b"late\n")
    assert lines_of(tmp_path, "x.log") == ["line 0", "late", "line 1", "line 2", "line 3", "line 4", "line 5"]
    file.write(b"line 6\n")
    assert lines_of(tmp_path, "x.log") == ["line 1", "line 2", "line 3", "line 4", "line 5", "line 6"]


def test_nobody_waits_for_a_process_that_was_stopped_while_it_renames(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "x.log", 10, 2)
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    for n in range(3):
        file.write(b"line %d\n" % n)
    assert (tmp_path / "x.log").read_text() == "line 0\nline 1\nline 2\n"
    os.close(folder)
    file.write(b"line 3\n")
    assert (tmp_path / "x.log").read_text() == "line 3\n"


def test_a_line_that_broke_off_spoils_none_after_it(tmp_path: Path) -> None:
    (tmp_path / "x.log").write_text("whole\nbroken o")
    LogFile(tmp_path / "x.log", 1_000, 2).write(b"whole again\n")
    assert lines_of(tmp_path, "x.log") == ["whole", "broken o", "whole again"]


def test_who_is_in_the_middle_of_a_write_is_not_taken_for_a_broken_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.log"
    path.write_text("the begin")

    def others_go_on(_: float) -> None:
        with path.open("a") as file:
            file.write("ning and the end\n")

    monkeypatch.setattr(logfiles.time, "sleep", others_go_on)
    LogFile(path, 1_000, 2).write(b"the next\n")
    assert lines_of(tmp_path, "x.log") == ["the beginning and the end", "the next"]


def test_a_full_disk_is_told_once_and_its_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.log"
    path.symlink_to("/dev/full")
    file = SafeFile(LogFile(path, 1_000, 2))
    for _ in range(3):
        file.write(b"one\ntwo\n")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} can't be written: No space left on device. Tasks go on; its lines are lost meanwhile",
    ]
    path.unlink()
    file.write(b"three\n")
    assert caplog.records[-1].getMessage() == f"{path} is written again; 6 lines are missing"
    assert path.read_text() == "three\n"
