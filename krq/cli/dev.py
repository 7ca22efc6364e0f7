"""``krq dev``: real servers on this machine, workers and the dashboard, until Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from krq.cli import text
from krq.config import Config
from krq.dev.process import Server
from krq.dev.stack import Program, Report, Stack, port_or_free, same_backend, same_broker
from krq.errors import KRQError

LOOK_SECONDS = 0.2
#: seconds that workers get to stop when a server has died under them, and the dashboard always
PATIENCE = 5.0
VALKEY_PORT, KAFKA_PORT, WEB_PORT = 6379, 9092, 8080

TRY = """\
In tasks.py:
    import krq

    app = krq.KRQ()

    @app.task
    def add(x: int, y: int) -> int:
        return x + y
"""

port_type = click.IntRange(1, 65_535)


@click.command(short_help="Real servers on this machine, workers and the dashboard.")
@click.argument("target", metavar="[APP]", required=False)
@click.option("--kafka", is_flag=True, help="Apache Kafka as the broker, as in production; else Redis Streams on the same Valkey.")
@click.option("--keep", is_flag=True, help="Keep the data in .krq here, and go on with it at the next start.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Keep the data in this folder.")
@click.option("--processes", "-p", type=click.IntRange(min=1), metavar="N", help="Processes that run tasks; else 1.")
@click.option("--concurrency", "-c", type=click.IntRange(min=1), metavar="N", help="Tasks at a time in each process.")
@click.option("--port", type=port_type, help=f"Port of Valkey; else {VALKEY_PORT}, or a free one where that is taken.")
@click.option("--kafka-port", type=port_type, help=f"Port of Kafka; else {KAFKA_PORT}, or a free one where that is taken.")
@click.option("--web-port", type=click.IntRange(0, 65_535),
              help=f"Port of the dashboard, 0 for none; else {WEB_PORT}, or a free one where that is taken.")
def dev(target: str | None, kafka: bool, keep: bool, data: Path | None, port: int | None, kafka_port: int | None, web_port: int | None,
        **for_workers: int | None) -> int:
    """Start a Valkey server (and Apache Kafka) on this machine, workers for APP (module:attribute or file.py), and the dashboard.

    Needs no root and no Docker. Runs until Ctrl-C, which stops the workers, then the rest; a second one ends all at once.
    The first --kafka fetches 45 MB.

    \b
    Example:
      krq dev tasks.py
      krq dev tasks:app --kafka --keep
    """
    if target is None and any(for_workers.values()):
        raise click.UsageError("--processes and --concurrency are for workers: give APP, too.")
    if kafka_port and not kafka:
        raise click.UsageError("--kafka-port is for Kafka: give --kafka, too.")
    folder = data or (_kept_folder() if keep else None)
    stack = Stack(folder, kafka, port or _port("Valkey", VALKEY_PORT), (kafka_port or _port("Kafka", KAFKA_PORT)) if kafka else None)
    options = [part for name, value in for_workers.items() if value is not None for part in (f"--{name}", str(value))]
    workers = None if target is None else Program(stack, "worker", target, "--local", *options)
    page = _port("the dashboard", WEB_PORT) if web_port is None else web_port
    shown = [] if target is None else ["--app", target]
    web = Program(stack, "web", "--port", str(page), *shown, quiet=True) if page else None
    with _signals():
        return _serve(stack, workers, web, lambda: _describe(stack, target, page))


def _serve(stack: Stack, workers: Program | None, web: Program | None, describe: Callable[[], None]) -> int:
    """Start, watch, stop; the exit code. Raises ``KeyboardInterrupt`` when asked a second time."""
    patience: float | None = None
    try:
        with _progress() as progress:
            stack.start(progress)
        describe()
        for program in (workers, web):
            if program is not None:
                program.start()
        return _watch(stack, workers, web)
    except KRQError as error:
        patience = PATIENCE
        return text.fail(str(error))
    except KeyboardInterrupt:
        click.echo("\nStopping; Ctrl-C again stops at once.")
        return 0
    finally:
        _stop(stack, workers, web, patience)


def _watch(stack: Stack, workers: Program | None, web: Program | None) -> int:
    while True:
        stack.check()
        if workers is not None and workers.code is not None:
            return text.fail(f"The worker ended ({_ending(workers.code)}); so do the servers.")
        if web is not None and web.code is not None:
            click.echo(f"Note: the dashboard ended ({_ending(web.code)}); `krq web` in another terminal shows why.", err=True)
            web = None
        time.sleep(LOOK_SECONDS)


def _ending(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _stop(stack: Stack, workers: Program | None, web: Program | None, patience: float | None) -> None:
    try:
        if workers is not None:
            workers.stop(patience)
        if web is not None:
            web.stop(PATIENCE)
        stack.stop()
    except KeyboardInterrupt:
        for program in (workers, web):
            if program is not None:
                program.kill()
        stack.kill()
        raise


@contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM and SIGINT raise ``KeyboardInterrupt``, also where a shell made us ignore SIGINT."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress() -> Iterator[Report]:
    """A progress bar that appears with the first report."""
    bars: list[Any] = []

    def report(what: str, done: int, total: int) -> None:
        if not bars:
            click.echo(f"{what} is fetched from Maven Central, this once ({total // 1_000_000} MB).")
            bars.append(click.progressbar(length=total, label="Fetching").__enter__())
        bars[0].length = total
        bars[0].update(done - bars[0].pos)

    try:
        yield report
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)


# --- what it says ----------------------------------------------------------------------------


def _kept_folder() -> Path:
    folder = Path(".krq")
    folder.mkdir(exist_ok=True)
    ignore = folder / ".gitignore"
    if not ignore.exists():
        ignore.write_text("*\n")
    return folder


def _port(name: str, usual: int) -> int:
    port = port_or_free(usual)
    if port != usual:
        click.echo(f"Port {usual} is taken; {name} gets {port}.")
    return port


def exports(stack: Stack) -> Mapping[str, str]:
    """The variables that must be set to reach the stack: those whose defaults lead elsewhere."""
    usual = Config()
    same = {"KRQ_BROKER": same_broker(usual.broker, stack.broker), "KRQ_BACKEND": same_backend(usual.backend, stack.backend)}
    return {name: value for name, value in stack.environment.items() if not same[name]}


def _describe(stack: Stack, target: str | None, page: int) -> None:
    titles = {"valkey": "Valkey", "kafka": "Kafka"}
    for server in stack.servers:
        click.echo(f"{_title(titles[server.name])}{_runs(server)}")
    if page:
        click.echo(f"{_title('Web')}http://127.0.0.1:{page}/")
    kept = "removed at the end; --keep keeps it" if stack.temporary else "kept for the next start"
    click.echo(f"{_title('Data')}{stack.data} ({kept})")
    if target is not None:
        click.echo(f"{_title('Logs')}krq.log, results.log in {os.environ.get('KRQ_LOG_DIR', stack.logs)}")
    needed = exports(stack)
    click.echo("\nIn another terminal:")
    if needed:
        click.echo("    export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in needed.items()))
    if target is None:
        click.echo("    krq worker tasks.py")
    click.echo(f"    krq submit {'add 1 2' if target is None else 'NAME ARGS'} --wait\n    krq stats\n")
    if target is None:
        click.echo(TRY)
    click.echo("Ctrl-C stops " + ("the servers." if target is None else f"the servers and the workers of {target}.") + "\n")


def _title(text: str) -> str:
    return click.style(f"{text:<8}", bold=True)


def _runs(server: Server) -> str:
    return f"{server.address:<17} process {server.pid}, log {server.log}"


COMMANDS: tuple[click.Command, ...] = (dev,)
