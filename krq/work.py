"""Start a worker: check that its servers are there, say what it serves, hand over to the supervisor."""

from __future__ import annotations

import logging
import time

from krq import brokers, logs
from krq.config import Config, mask
from krq.errors import KRQError, OptionError, WorkerInitializationError
from krq.store.client import Store
from krq.worker.spec import Spec
from krq.worker.supervisor import Supervisor

log = logging.getLogger("krq.worker")

#: seconds that a worker waits for its servers at the start
PATIENCE = 30.0


def run(spec: Spec, worker_id: str, processes: int = 1) -> None:
    """Run a worker in this process and its children until it is stopped."""
    if processes < 1:
        raise OptionError(f"processes={processes} must be at least 1")
    if not len(spec.registry) and spec.registry.catch_all is None:
        raise WorkerInitializationError("No task is registered", cure="Decorate functions with @app.task, or pass task_func to run().")
    if processes > 1:
        spec = spec._replace(inbox="")  # each child is a worker of its own, and so is its inbox
    config = spec.config
    logs.configure(style=config.log_format)
    if config.log_dir:
        logs.open_files(config.log_dir, worker_id, config.log_bytes, config.log_files, config.log_format)
    try:
        _run(spec, worker_id, processes)
    finally:
        logs.close_files()


def _run(spec: Spec, worker_id: str, processes: int) -> None:
    config = spec.config
    wait_for_servers(config)
    log.info("worker %s of %r on %s and %s: queues %s; tasks %s", worker_id, config.namespace, mask(config.broker), mask(config.backend),
             ", ".join(spec.queues), ", ".join(spec.registry.names))
    Supervisor(spec, worker_id, processes).run()


def wait_for_servers(config: Config) -> None:
    """Reach Redis and the broker, or raise ``WorkerInitializationError`` with what is wrong. Leaves no connection behind."""
    deadline = time.monotonic() + PATIENCE
    told = False
    while True:
        try:
            _reach(config)
            return
        except KRQError as error:
            if not isinstance(error, ConnectionError) or time.monotonic() > deadline:
                raise WorkerInitializationError(error.cause, cure=error.advice) from error
            if not told:
                log.warning("waiting for the servers: %s", error)
            told = True
            time.sleep(0.5)


def _reach(config: Config) -> None:
    store = Store(config)
    try:
        store.check()
    finally:
        store.close()
    brokers.probe(config)
