"""A child and its hosts: forked, watched and ended together. Only the supervisor's thread comes here."""

from __future__ import annotations

import os
import signal
import socket
import time
from contextlib import suppress
from multiprocessing.connection import Connection

from krq import ids
from krq.worker.child import Child
from krq.worker.heart import End
from krq.worker.host import Host
from krq.worker.hosts import PID, REQUEST
from krq.worker.page import Page
from krq.worker.process import cause, end_group, fork
from krq.worker.spec import Spec
from krq.worker.tally import Tally


class Family:
    """One child's place in a worker, over its lives."""

    def __init__(self, spec: Spec, worker_id: str, alive: tuple[int, int]) -> None:
        self.spec = spec
        self.worker_id = worker_id
        self.tally = Tally(task.name for task in spec.registry) if spec.config.metrics_port else None
        self.page = Page(spec.config.slots, self.tally)
        self.incarnation = ""
        self.pid = 0
        self.born = 0.0
        self.fenced = False
        """it was killed because of its lease: nobody's fault"""
        self.restarts = 0
        self.start_at = 0.0
        self.end_to_tell: End | None = None
        self.control: socket.socket | None = None
        self._alive = alive
        self._hosts: dict[int, int] = {}

    def start(self) -> None:
        """Fork a child under a fresh incarnation."""
        self.page.reset()
        self.incarnation = ids.new_incarnation(self.worker_id)
        self.born = time.monotonic()
        self.fenced = False
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.control.setblocking(False)
        if self.tally is not None:
            self.tally.started()
        self.pid = fork(lambda: Child(self.spec, self.incarnation, self.page, theirs).run(), self._alive)
        theirs.close()

    def serve(self) -> None:
        """Fork the hosts that the child asks for."""
        while self.control is not None:
            try:
                _, fds, _, _ = socket.recv_fds(self.control, len(REQUEST), 3)
            except BlockingIOError:
                return
            self._start_host(*fds)

    def _start_host(self, pipe: int, told: int, life: int) -> None:
        try:
            pid = fork(lambda: Host(self.spec, Connection(pipe), life).run(), self._alive)
        except OSError:
            os.close(told)  # the slot reads the end of it
        else:
            self._hosts[pid] = told
            self._tell(told, f"{pid:0{PID}d}")
        finally:
            os.close(pipe)
            os.close(life)

    @staticmethod
    def _tell(told: int, text: str) -> None:
        with suppress(BrokenPipeError):  # the slot has let go of it
            os.write(told, text.encode())

    def reap(self) -> int | None:
        """Note which hosts have ended; the exit code of the child once it has, and all its hosts with it."""
        for pid in list(self._hosts):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self._end_host(pid, cause(os.waitstatus_to_exitcode(status)))
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if not ended:
            return None
        self._ended()
        return os.waitstatus_to_exitcode(status)

    def _end_host(self, pid: int, how: str) -> None:
        end_group(pid)
        told = self._hosts.pop(pid)
        self._tell(told, how)
        os.close(told)

    def _ended(self) -> None:
        end_group(self.pid)
        if self.tally is not None:
            self.tally.ended()
        for pid in list(self._hosts):
            self._end_host(pid, "its worker ended")
        if self.control is not None:
            self.control.close()
        self.control, self.pid = None, 0

    def tell(self, number: int) -> None:
        """Send the child a signal."""
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def fence(self) -> None:
        """Kill it because of its lease."""
        self.fenced = True
        self.kill()

    def kill(self) -> None:
        """End the child and its hosts now."""
        self.tell(signal.SIGKILL)

    def end(self) -> None:
        """The same, and wait until they are gone."""
        if self.pid:
            self.kill()
            os.waitpid(self.pid, 0)
            self._ended()
