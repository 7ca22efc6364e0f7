"""Capabilities that can be left out: each is one file on the hooks of ``krq.hooks``."""

from __future__ import annotations

from krq.hooks import Module
from krq.modules.broadcast import Broadcast
from krq.modules.chaining import Chaining
from krq.modules.grouping import Grouping
from krq.modules.journal import Journal
from krq.modules.limits import Limits
from krq.modules.listeners import Listeners
from krq.modules.masking import Masking
from krq.modules.retries import Retries
from krq.modules.schedule import Schedules
from krq.modules.tasklogs import TaskLogs


def default() -> list[Module]:
    """What ``KRQ(modules=None)`` uses."""
    return [Masking(), Retries(), Chaining(), Grouping(), Broadcast(), Schedules(), Limits(), Listeners(), Journal(), TaskLogs()]
