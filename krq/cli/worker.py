"""``krq worker``: run the tasks of an app."""

from __future__ import annotations

import logging
import os
from typing import Any

import click
import msgspec

from krq import logs
from krq.cli.target import load
from krq.config import LOG_FORMATS, mask
from krq.core import KRQ
from krq.dev.stack import same_backend, same_broker
from krq.errors import ConfigError

LEVELS = ("debug", "info", "warning", "error")


@click.command(short_help="Run the tasks of an app.")
@click.argument("target", metavar="APP")
@click.option("--processes", "-p", default=1, show_default=True, type=click.IntRange(min=1), help="Processes that run tasks.")
@click.option("--concurrency", "-c", type=click.IntRange(min=1), metavar="N",
              help="Tasks at a time in each process; else cores + 4, at most 32.")
@click.option("--queues", "-q", metavar="A,B", help="Serve these queues; else the app's own and those of its tasks.")
@click.option("--worker-id", metavar="ID", help="Name of this worker, unlike all others; else host-pid.")
@click.option("--inbox", metavar="TOPIC", help="Serve a queue of this worker's own, too.")
@click.option("--log-level", "-l", type=click.Choice(LEVELS, case_sensitive=False), help="How much to log; else info.")
@click.option("--log-format", type=click.Choice(LOG_FORMATS, case_sensitive=False), help="A line, or a JSON object a line; else text.")
@click.option("--log-dir", type=click.Path(file_okay=False), metavar="DIR",
              help="Write krq.log and results.log there, too. All workers of a host may share it.")
@click.option("--metrics-port", type=click.IntRange(0, 65_535), metavar="N", help="Answer /metrics, /live and /ready there; else nowhere.")
@click.option("--metrics-host", metavar="ADDRESS", help="On this address, such as 0.0.0.0 for probes from outside; else 127.0.0.1.")
@click.option("--local", is_flag=True, hidden=True, help="Run for `krq dev`: refuse an app that names other servers.")
def worker(target: str, processes: int, queues: str | None, worker_id: str | None, inbox: str | None, log_level: str | None, local: bool,
           **settings: Any) -> None:
    """Run the tasks of APP: module:attribute, or file.py[:attribute]; the attribute is `app` unless given.

    SIGTERM or Ctrl-C stops it: running tasks get the app's grace time, then they are handed back. A second one ends it at once.

    \b
    Example:
      krq worker tasks:app
      krq worker shop/tasks.py --processes 4 --queues default,mail
      krq worker tasks:app --log-dir /var/log/krq
      krq worker tasks:app --metrics-port 9108 --metrics-host 0.0.0.0
    """
    app = load(target)
    if local:
        refuse_other_servers(app, target)
    app.config = msgspec.structs.replace(app.config, **{name: value for name, value in settings.items() if value is not None})
    logs.configure((log_level or "info").upper(), app.config.log_format)
    if log_level:
        logging.getLogger("krq").setLevel(log_level.upper())
    if worker_id or inbox or queues:
        names = None if queues is None else [name.strip() for name in queues.split(",") if name.strip()]
        app.config_worker(topic=inbox, worker_id=worker_id, queues=names)
    app.run(processes=processes)


def refuse_other_servers(app: KRQ, target: str) -> None:
    """Raise ``ConfigError`` when the app's constructor names other servers than the environment does."""
    wrong = []
    for name, mine, same in (("broker", app.config.broker, same_broker), ("backend", app.config.backend, same_backend)):
        given = os.environ.get(f"KRQ_{name.upper()}")
        if given is not None and not same(mine, given):
            wrong.append(f"{name}={mask(mine)!r} where `krq dev` has {mask(given)!r}")
    if wrong:
        cure = "Leave them out there: KRQ() takes KRQ_BROKER and KRQ_BACKEND. Or run it against its own servers with `krq worker`."
        if os.environ.get("KRQ_BROKER", "").startswith("redis") and not app.config.broker.startswith("redis"):
            cure += " Or start Kafka here, too: `krq dev --kafka`."
        raise ConfigError(f"{target} names other servers in its KRQ(...): {' and '.join(wrong)}", cure=cure)


COMMANDS: tuple[click.Command, ...] = (worker,)
