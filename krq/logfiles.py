"""Files that many processes of one host append to at once: whole lines, rotated by size, none lost.

Each write is one ``write`` of the system on a file opened for appending, so lines do not mix. Who sees that the file would grow too
large renames it; the others notice that the name leads to another file by now, and follow. What one of them writes meanwhile is in the
file of before; a lock on the file that it writes to keeps that from being removed. Nobody waits for anybody.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("krq.logs")

#: seconds between two complaints about one file
QUIET = 60.0
#: looks at a file that does not end with a line, and seconds between them: somebody may be in the middle of a write
LOOKS, LOOK = 5, 0.002


class LogFile:
    """One process's hand on a file. One thread at a time; after a fork it opens the file anew."""

    def __init__(self, path: Path, most: int, kept: int) -> None:
        """``most``: bytes at which it becomes ``path.1``, which becomes ``path.2`` … up to ``kept``; what was that is removed."""
        self.path = path
        self._most = most
        self._kept = kept
        self._fd = -1
        self._pid = 0
        self._whole = False

    def write(self, lines: bytes) -> None:
        """Append whole lines. Raises ``OSError``; then some of them may be there, and the last of these in part."""
        while True:
            fd = self._open()
            with _locked(fd, fcntl.LOCK_SH) as locked:
                size = self._size(fd) if locked else None
                if size is not None and (size == 0 or size + len(lines) <= self._most or not self._rotate(fd)):
                    return self._append(fd, lines)
            self.close()

    def check(self) -> None:
        """Make it when missing. Raises ``OSError`` when it can't be written."""
        self._open()
        self.close()

    def close(self) -> None:
        """Let go of it. The next write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> int:
        if self._pid != os.getpid():
            self.close()  # a lock would be the parent's, too
            self._pid = os.getpid()
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            self._whole = False
        return self._fd

    def _size(self, fd: int) -> int | None:
        """Its bytes; None when the name leads elsewhere by now."""
        mine = os.fstat(fd)
        with suppress(FileNotFoundError):
            there = os.stat(self.path)
            if (mine.st_ino, mine.st_dev) == (there.st_ino, there.st_dev):
                return mine.st_size
        return None

    def _append(self, fd: int, lines: bytes) -> None:
        if not self._whole and not _ends_with_a_line(fd):
            lines = b"\n" + lines  # somebody's disk was full in the middle of a line
        self._whole = False
        while lines:
            lines = lines[os.write(fd, lines) :]
        self._whole = True

    def _rotate(self, fd: int) -> bool:
        """Give the file its next name. False: not now, as another is at it, or writes to the one that would be removed."""
        with _opened(self.path.parent) as folder, _locked(folder, fcntl.LOCK_EX) as alone:
            if not alone:
                return False
            if self._size(fd) is not None:
                names = [self.path]
                while len(names) <= self._kept and names[-1].exists():
                    names.append(self.path.with_name(f"{self.path.name}.{len(names)}"))
                if _in_use(names[-1]):
                    return False
                for newer, older in reversed(list(itertools.pairwise(names))):
                    os.replace(newer, older)
        return True


def _ends_with_a_line(fd: int) -> bool:
    for _ in range(LOOKS):
        size = os.fstat(fd).st_size
        if not size or os.pread(fd, 1, size - 1) == b"\n":
            return True
        time.sleep(LOOK)
    return False


def _in_use(path: Path) -> bool:
    with suppress(FileNotFoundError), _opened(path) as fd, _locked(fd, fcntl.LOCK_EX) as alone:
        return not alone
    return False


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _locked(fd: int, how: int) -> Iterator[bool]:
    """Whether it has the lock, which it does not wait for."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


class SafeFile:
    """The same for who has more important things to do: what can't be written is lost, and that is said. One thread at a time."""

    def __init__(self, file: LogFile) -> None:
        self._file = file
        self._lost = 0
        self._told = -QUIET

    def write(self, lines: bytes) -> None:
        """Append whole lines, if it can be done. Never raises."""
        try:
            self._file.write(lines)
        except OSError as error:
            first, self._lost = not self._lost, self._lost + lines.count(b"\n")
            if first and time.monotonic() - self._told > QUIET:
                self._told = time.monotonic()
                log.warning("%s can't be written: %s. Tasks go on; its lines are lost meanwhile", self._file.path, error.strerror)
        else:
            if self._lost:
                lost, self._lost = self._lost, 0
                log.warning("%s is written again; %d lines are missing", self._file.path, lost)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
