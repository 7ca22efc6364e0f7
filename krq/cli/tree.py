"""``krq tree``: a workflow with its states and times."""

from __future__ import annotations

import time

import click

from krq.cli import text
from krq.cli.target import connected
from krq.core import KRQ
from krq.states import TaskStatus
from krq.tree import Line


@click.command(short_help="The workflow that a task is in.")
@click.argument("task_id", metavar="ID")
@click.option("--limit", "-n", default=1_000, show_default=True, type=click.IntRange(1, 10_000), help="At most so many tasks.")
@click.option("--mermaid", is_flag=True, help="Print a Mermaid flowchart.")
@text.json_option
@connected
def tree(app: KRQ, task_id: str, limit: int, mermaid: bool, as_json: bool) -> None:
    """The workflow that a task is in, from any of its tasks: states and times. Each task stands once, beneath what it waits for.

    \b
    Example:
      krq tree 019a2b3c4d5e0123456789abcdef
      krq tree 019a2b3c4d5e0123456789abcdef --mermaid > flow.mmd
    """
    found = app.tree(task_id, limit=limit)
    if as_json:
        text.print_json(found)
    elif mermaid:
        click.echo(found.to_mermaid())
    else:
        for line in found.lines():
            click.echo(_line(line, task_id))
        if found.truncated:
            click.echo(f"It has more than these {limit} tasks: see --limit.", err=True)


def _line(line: Line, asked: str) -> str:
    node = line.node
    name = text.cell(node.name or "?").text
    parts = [line.rule + click.style(name, bold=node.id == asked), node.id, text.status(node.status) if node.status else "unknown"]
    took = text.between(node.started, node.finished)
    running = node.started if node.status is TaskStatus.PROCESSING else None
    parts += [took] if took else [f"for {text.coarse(time.time() - running)}"] if running else []
    parts += [f"attempt {node.attempt}"] if node.attempt > 1 else []
    parts += [f"after {line.waits:,} tasks"] if line.waits > 1 else []
    parts += [click.style(text.cell(node.error).text, fg="red")] if node.error else []
    return "  ".join(parts)


COMMANDS: tuple[click.Command, ...] = (tree,)
