"""Logging of the command line and of workers: colours on a terminal, plain when piped, JSON when asked for; and ``krq.log``."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import colorlog
import msgspec

from krq.errors import KRQError, WorkerInitializationError
from krq.logfiles import LogFile, SafeFile

COLOURS = {"DEBUG": "cyan", "INFO": "green", "WARNING": "yellow", "ERROR": "red", "CRITICAL": "red,bg_white"}
#: the files of a host, in its ``log_dir``
LOG, RESULTS = "krq.log", "results.log"
#: seconds that lines of tasks wait for others to share their write, and how many may wait
LINGER, MAX_HELD = 0.01, 100_000

log = logging.getLogger("krq.logs")

#: what a line in JSON has beside the usual
Fields = Mapping[str, Any]

_encode = msgspec.json.Encoder().encode


def configure(level: str = "INFO", style: str = "text") -> None:
    """Show KRQ's log on stderr, unless the application has set up logging itself. ``style``: ``text`` or ``json``."""
    logger = logging.getLogger("krq")
    if logger.handlers or logging.getLogger().handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines() if style == "json" else _for_people())
    handler.setLevel(level)
    logger.addHandler(handler)
    logger.setLevel(level)


def open_files(folder: str, worker: str, most: int, kept: int, style: str = "text") -> LogFileHandler:
    """Write KRQ's log to ``krq.log`` in this folder, too: all from INFO up, and more where ``configure`` was asked for more.

    The folder is made when missing. Raises ``WorkerInitializationError`` when the files can't be written. ``close_files`` undoes it.
    """
    path = Path(folder)
    lines = JSONLines(worker) if style == "json" else TextLines(worker)
    try:
        path.mkdir(parents=True, exist_ok=True)
        LogFile(path / RESULTS, most, kept).check()
        file = LogFile(path / LOG, most, kept)
        first = lines.line(time.time(), os.getpid(), "INFO", log.name, f"worker {worker} writes to {path / LOG} and {path / RESULTS}", {})
        file.write(f"{first}\n".encode())
    except OSError as error:
        cure = "Let log_dir (KRQ_LOG_DIR, --log-dir) name a folder on a disk with room that this user may write, or leave it out."
        raise WorkerInitializationError(f"log_dir={folder!r} can't be written: {error.strerror}", cure=cure) from error
    handler = LogFileHandler(file, lines)
    logger = logging.getLogger("krq")
    logger.addHandler(handler)
    if logger.level > logging.INFO:  # the terminal's handler has the level that was asked for
        logger.setLevel(logging.INFO)
    return handler


def close_files() -> None:
    """Stop writing to ``krq.log``."""
    for handler in list(logging.getLogger("krq").handlers):
        if isinstance(handler, LogFileHandler):
            logging.getLogger("krq").removeHandler(handler)
            handler.close()


def log_file() -> LogFileHandler | None:
    """What writes to ``krq.log`` in this process, if anything does."""
    return next((handler for handler in logging.getLogger("krq").handlers if isinstance(handler, LogFileHandler)), None)


def name_process(worker: str) -> None:
    """Say of which worker this process is: its lines have the name."""
    for handler in logging.getLogger("krq").handlers:
        if isinstance(handler.formatter, TextLines | JSONLines):
            handler.formatter.worker = worker


class _Clock:
    """Times as text, to the millisecond. Of many in one each is made once."""

    def __init__(self, form: str, *, utc: bool = False) -> None:
        self._form, self._read = form, time.gmtime if utc else time.localtime
        self._last = (0, "")

    def __call__(self, at: float) -> str:
        ms = int(at * 1000)
        known, text = self._last
        if known != ms:
            text = f"{time.strftime(self._form, self._read(at))}.{ms % 1000:03d}"
            self._last = (ms, text)
        return text


def _for_people() -> logging.Formatter:
    """With colours on a terminal, unless ``NO_COLOR`` is set; elsewhere without, which is quicker, too."""
    form = "%(asctime)s %(levelname)-8s{} %(name)s: %(message)s"
    if (sys.stderr.isatty() and "NO_COLOR" not in os.environ) or "FORCE_COLOR" in os.environ:
        coloured = "%(log_color)s" + form.format("%(reset)s")
        made: logging.Formatter = colorlog.ColoredFormatter(coloured, log_colors=COLOURS, force_color=True)
    else:
        made = logging.Formatter(form.format(""))
    made.default_msec_format = "%s.%03d"
    return made


class TextLines(logging.Formatter):
    """A line for people, with worker and process. A traceback follows in lines of its own."""

    def __init__(self, worker: str = "") -> None:
        super().__init__("%(message)s")
        self.worker = worker
        self._clock = _Clock("%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Any record."""
        return self.line(record.created, record.process, record.levelname, record.name, super().format(record), {})

    def line(self, at: float, pid: int | None, level: str, logger: str, message: str, _fields: Fields) -> str:
        """The same of its parts."""
        return f"{self._clock(at)} {level:<8} {self.worker}[{pid}] {logger}: {message}"


class JSONLines(logging.Formatter):
    """An object a line: time (UTC), level, logger, worker, pid, message, and where there are any id, task, attempt and traceback."""

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self.worker = worker
        self._clock = _Clock("%Y-%m-%dT%H:%M:%S", utc=True)

    def format(self, record: logging.LogRecord) -> str:
        """Any record."""
        fields = dict(getattr(record, "krq", {}))
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self.line(record.created, record.process, record.levelname, record.name, record.getMessage(), fields)

    def line(self, at: float, pid: int | None, level: str, logger: str, message: str, fields: Fields) -> str:
        """The same of its parts."""
        told = {"time": self._clock(at) + "Z", "level": level, "logger": logger, "worker": self.worker, "pid": pid, "message": message}
        return _encode({**told, **fields}).decode()


class LogFileHandler(logging.Handler):
    """Writes to ``krq.log``: each record at once, or after ``collect`` a moment later, many at a time. Thread-safe."""

    def __init__(self, file: LogFile, lines: TextLines | JSONLines) -> None:
        super().__init__()
        self.setFormatter(lines)
        self._file = SafeFile(file)
        self._lines = lines
        self._noted: deque[str] = deque(maxlen=MAX_HELD)
        self._work = threading.Event()
        self._pid = os.getpid()
        self._collects = False
        self._writes = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write it, behind what was noted before."""
        try:
            self._renew()
            self._add(self.format(record))
            if not self._collects:
                self.flush()
        except Exception:  # boundary: logging never raises
            self.handleError(record)

    def collect(self) -> None:
        """Start the thread that writes. What is logged waits for it from now on, in this process."""
        self._renew()
        self._collects = True
        threading.Thread(target=self._run, name="krq-lines", daemon=True).start()

    def note(self, at: float, level: str, logger: str, message: str, fields: Fields) -> None:
        """The same without a record, for who is in a hurry. Needs ``collect``. ``at``: Unix seconds."""
        self._add(self._lines.line(at, self._pid, level, logger, message, fields))

    def _add(self, line: str) -> None:
        self._noted.append(line)
        if not self._work.is_set():
            self._work.set()

    def _run(self) -> None:
        while True:
            self._work.wait()
            time.sleep(LINGER)
            self._work.clear()
            self.flush()

    def _renew(self) -> None:
        """After a fork: what was noted before is the parent's to write."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._collects = self._writes = False
            self._noted.clear()

    def flush(self) -> None:
        """Write what was noted."""
        self.acquire()
        try:
            self._renew()
            if not self._writes:  # else it is a signal's handler, or the file's own complaint: the one below goes on with it
                self._writes = True
                while self._noted:
                    lines = [self._noted.popleft() for _ in range(len(self._noted))]
                    self._file.write("\n".join([*lines, ""]).encode(errors="backslashreplace"))
                self._writes = False
        finally:
            self.release()

    def close(self) -> None:
        """Write the rest, let go of the file."""
        self.flush()
        self._file.close()
        super().close()


class _Tail(logging.Handler):
    """Hands each line to a function."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__()
        self._note = note
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._note(self.format(record))
        except Exception:  # boundary: logging never raises
            self.handleError(record)


def keep_tail(note: Callable[[str], None]) -> None:
    """Also hand each line of this process's log to ``note``, one at a time."""
    root = logging.getLogger()
    # a root without handlers stays so: Python then shows warnings on stderr by itself
    (root if root.handlers else logging.getLogger("krq")).addHandler(_Tail(note))


class Wait:
    """Says once that something waits for a server that is away, and once that it goes on. One thread."""

    def __init__(self, logger: logging.Logger, text: str) -> None:
        self._logger, self._text = logger, text
        self._since: float | None = None

    @property
    def waiting(self) -> bool:
        """Whether the last word was that it waits."""
        return self._since is not None

    def begin(self, error: KRQError, level: int = logging.WARNING) -> None:
        """It waits, because of this. Said at the first time only."""
        if self._since is None:
            self._since = time.monotonic()
            self._logger.log(level, "%s: %s", self._text, error.cause)

    def end(self) -> None:
        """It goes on. Free while nothing waits."""
        if self._since is not None:
            self._logger.info("%s no more: going on after %.1f s", self._text, time.monotonic() - self._since)
            self._since = None
