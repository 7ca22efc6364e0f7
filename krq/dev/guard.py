"""Run as a script: tie the life of this process to its parent's, then become the server.

``python -I -S guard.py prctl|pipe PARENT_PID COMMAND...`` keeps its pid over the exec, so whoever
started it holds the server itself. It is a script, and not a ``preexec_fn``, because Python code
between fork and exec can deadlock where the parent has threads.

``prctl``: the kernel sends SIGKILL when the *thread* that forked us ends (Linux). ``pipe``: a
watcher beside the server does so when standard input, a pipe from the parent, closes.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1
WATCH_SECONDS = 1.0


def tie_by_kernel(parent: int) -> None:
    """Ask for SIGKILL at the parent's end, which may already have come."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit("The parent ended before the server started.")


def tie_by_pipe() -> None:
    """Leave a watcher behind that ends with the server, or ends it when the pipe closes."""
    server = os.getpid()
    if os.fork() == 0:
        while os.getppid() == server:
            if select.select([0], [], [], WATCH_SECONDS)[0] and os.getppid() == server:
                os.kill(server, signal.SIGKILL)
        os._exit(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


def main(mode: str, parent: str, *command: str) -> None:
    """Tie, restore the signals as a shell would give them, and exec."""
    if mode == "prctl":
        tie_by_kernel(int(parent))
    else:
        tie_by_pipe()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
