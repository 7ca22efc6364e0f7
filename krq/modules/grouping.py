"""Grouping: ``app.group_tasks``, tasks by name that run side by side, and a final one that waits for all of them.

What ``krq.group(…) | final`` makes of signatures this makes of tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from krq.handle import ChainHandle
from krq.hooks import Module
from krq.modules.chaining import App, signatures
from krq.workflow import Chain, Group


class Grouping(Module):
    """Owns ``KRQ.group_tasks``."""

    def group_tasks(self, app: App, tasks: Sequence[Sequence[Any]], final_task: Sequence[Any]) -> ChainHandle[Any]:
        """Send ``[(name, args), (name, args, kwargs), …]`` and ``final_task``, one such tuple more, as one batch.

        The final task keeps its own arguments and starts when all the others have succeeded; when one of them fails, it fails with
        ``DEPENDENCY_FAILED``. Returns a handle whose ``result()`` is the final task's and whose ``children`` are the group and the
        final task. Raises as ``KRQ.submit_many``, and ``OptionError`` for tasks that are no such tuples.
        """
        return cast("ChainHandle[Any]", Chain([Group(signatures(app, tasks)), *signatures(app, [final_task])]).send())
