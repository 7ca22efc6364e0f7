"""Processes: fork one, have it die with its parent, say how it ended, end it with all that it has started."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import gc
import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from krq.errors import KRQError

log = logging.getLogger("krq.worker")

#: exit codes of a child that mean something to its supervisor
LEFT, FENCED, GONE, OVERTIME = 0, 71, 72, 73
#: seconds that the processes of a killed group get to vanish
_VANISH = 2.0
#: objects that Python makes before it looks for garbage: as it is by default, and in a process that runs tasks
_USUAL, _RARE = (700, 2_000), 10_000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def fork(work: Callable[[], int], alive: tuple[int, int]) -> int:
    """Run ``work`` in a new process, the leader of a group of its own; returns its pid. Its result is the exit code.

    Only from a process with one thread. ``alive``: a pipe whose writing end only the caller keeps.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(alive[1])
        _live(parent, alive[0], work)
    with contextlib.suppress(OSError):  # the child says the same; whoever is first
        os.setpgid(pid, pid)
    return pid


def _live(parent: int, alive: int, work: Callable[[], int]) -> None:
    """The rest of a process's life; never returns."""
    code = GONE
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        _die_with(parent, alive)
        faulthandler.enable(2)
        _collect_less()
        code = work()
    except KRQError as error:
        log.critical("%s", error)
    except BaseException:  # boundary: the supervisor reads the exit code
        log.exception("a process of this worker could not go on")
    finally:
        logging.shutdown()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _collect_less() -> None:
    """No search for garbage in what the parent made: it took a fifth of a busy worker's time, and copied pages that both share.

    How often to look at what is new stays as it is where somebody has chosen it.
    """
    gc.freeze()
    often, *rest = gc.get_threshold()
    if often in _USUAL:
        gc.set_threshold(_RARE, *rest)


def _die_with(parent: int, alive: int) -> None:
    """Be killed when the parent dies: by the kernel where it can, else by a thread that waits for the pipe's end."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=lambda: (os.read(alive, 1), os._exit(GONE)), name="krq-alive", daemon=True).start()
    if os.getppid() != parent:
        os._exit(GONE)


def die_at_close(fd: int) -> None:
    """Be killed when the other end of this pipe is closed: by the kernel where it can, else by a thread that waits for it."""
    if sys.platform == "linux":
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        if select.select([fd], [], [], 0)[0]:
            os._exit(GONE)
    else:
        threading.Thread(target=lambda: (os.read(fd, 1), os._exit(GONE)), name="krq-life", daemon=True).start()


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Meanwhile processes that lose their parent below us become our children, so that they can be reaped. Linux only."""
    if sys.platform == "linux":
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        if sys.platform == "linux":
            _prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def end_group(leader: int) -> None:
    """Kill a process and all of its group, and wait until none is left."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    deadline = time.monotonic() + _VANISH
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            pid, _ = os.waitpid(-leader, os.WNOHANG)
            if not pid:
                time.sleep(0.001)
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(leader, signal.SIGKILL)
        log.warning("processes of group %d do not vanish", leader)


def cause(code: int) -> str:
    """How a process ended, in words."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
        return f"killed by signal {-code}"
    return "its lease was lost" if code == FENCED else f"exit code {code}"
