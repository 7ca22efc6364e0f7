"""The group of all commands, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from krq.cli import act, completion, dashboard, dead, dev, events, limits, logs, look, schedules, submit, tree, web, why, worker
from krq.cli.text import cell, fail
from krq.errors import KRQError, TaskFailed
from krq.version import __version__

INTERRUPTED = 130


class Root(click.Group):
    """Lists its commands under headings, in the order in which they were added."""

    sections = (
        ("Run", ("worker", "dev")),
        ("Look", (
            "stats", "workers", "pending", "recent", "delayed", "task", "why", "tree", "logs", "events", "dead", "failures",
            "dashboard", "web",
        )),
        ("Act", ("submit", "cancel", "retry", "pause", "resume", "purge", "clear", "schedules", "limits")),
        ("Shell", ("completion",)),
    )

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section after the other."""
        rest = [name for name in self.list_commands(ctx) if not any(name in names for _, names in self.sections)]
        for title, names in (*self.sections, ("More", rest)):
            known = [(name, command) for name in names if (command := self.commands.get(name)) is not None]
            if known:
                width = formatter.width - 2 - max(len(name) for name, _ in known)
                with formatter.section(title):
                    formatter.write_dl([(name, command.get_short_help_str(width)) for name, command in known])


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="krq", message="%(prog)s %(version)s")
@click.pass_context
def root(ctx: click.Context) -> None:
    """KRQ: a distributed task queue on Kafka and Redis.

    \b
    Try it:
      krq dev tasks.py                    local servers, and workers for tasks.py
      krq submit add 1 2 --wait           in another terminal
      krq stats

    The servers come from --broker, --backend and --namespace, else from KRQ_BROKER, KRQ_BACKEND and KRQ_NAMESPACE,
    else they are Kafka at localhost:9092 and Redis at localhost:6379.

    Exit codes: 0, done; 1, it failed, told in one line on stderr; 2, wrong usage; 130, Ctrl-C.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


for module in (worker, dev, look, why, tree, logs, events, dead, submit, act, schedules, limits, dashboard, web, completion):
    for command in module.COMMANDS:
        root.add_command(command)
completion.wire(root)


def main(args: Sequence[str] | None = None) -> int:
    """Run ``krq`` with these arguments (None: those of the process). Returns the exit code.

    0: done. 1: a ``KRQError``, told in one line. 2: wrong usage. 130: Ctrl-C.
    """
    try:
        code: Any = root.main(args, prog_name="krq", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except TaskFailed as error:
        return fail(f"{cell(error.cause).text}. `krq task {error.task_id}` shows where [{error.code}]")
    except KRQError as error:
        return fail(str(error))
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise
        # whoever read our output has gone; Python would complain once more at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1

