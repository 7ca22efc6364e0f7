"""``krq completion``: what a shell needs to complete commands, options, and names of queues and tasks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from click.shell_completion import CompletionItem, get_completion_class

from krq.cli.target import load
from krq.core import KRQ
from krq.errors import KRQError

VARIABLE = "_KRQ_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the script with which a shell completes krq.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which a shell completes commands and options, names of queues, and with --app names of tasks.

    \b
    Example:
      krq completion fish | source        # in ~/.config/fish/config.fish
      eval "$(krq completion zsh)"        # in ~/.zshrc, after compinit
      eval "$(krq completion bash)"       # in ~/.bashrc
    """
    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "krq", VARIABLE).source())


class Named(click.types.StringParamType):
    """Text of which the shell may know how it goes on."""

    def __init__(self, find: Callable[[KRQ], list[str]], *, of_app: bool = False) -> None:
        self._find = find
        self._of_app = of_app

    def shell_complete(self, ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """What does not work completes nothing: a line that is being typed is no place for errors."""
        found: list[str] = []
        if not self._of_app or ctx.params.get("target"):
            with contextlib.suppress(KRQError), contextlib.redirect_stderr(io.StringIO()), _app(ctx) as app:
                found = self._find(app)
        return [CompletionItem(name) for name in found if name.startswith(incomplete)]


class App(click.types.StringParamType):
    """A file or a module: the shell knows files best."""

    def shell_complete(self, _ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """See above."""
        return [CompletionItem(incomplete, type="file")]


#: what stands for what in usages and helps → how it is completed
KINDS: Mapping[str | None, click.ParamType[Any, Any]] = {
    "QUEUE": Named(lambda app: app.inspector.queues()),
    "TASK": Named(lambda app: sorted(task.name for task in app.registry), of_app=True),
    "APP": App(), "[APP]": App(),
}


def wire(command: click.Command) -> None:
    """Let everything that is a queue, a task or an app be completed as such."""
    for param in command.params:
        if param.metavar in KINDS and isinstance(param.type, click.types.StringParamType):
            param.type = KINDS[param.metavar]
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        wire(inner)


@contextmanager
def _app(ctx: click.Context) -> Iterator[KRQ]:
    """What the line so far leads to."""
    given = ctx.params
    app = load(given["target"]) if given.get("target") else KRQ(given.get("broker"), given.get("backend"), given.get("namespace"))
    with app:
        yield app


COMMANDS: tuple[click.Command, ...] = (completion,)
