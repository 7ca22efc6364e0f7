"""What is committed: the low-water, never what was merely read."""

from __future__ import annotations

import time
from pathlib import Path

from harness import Servers, ledger, running, until

from krq import brokers, config
from krq.dev.kafka import KafkaServer
from krq.dev.valkey import ValkeyServer
from krq.worker.intake import TICK


def test_what_still_runs_is_not_committed(kafka: KafkaServer, valkey: ValkeyServer, namespace: str, tmp_path: Path) -> None:
    """The records before it are, in the same commit: a wiped Redis would read exactly the one that runs again."""
    servers = Servers(kafka.url, valkey.url, namespace, heartbeat=0.3, lease=3, partitions=1)
    path = tmp_path / "ledger"
    with servers.app() as app, running(servers, tmp_path):
        settings = config.load({"broker": servers.broker, "namespace": namespace})
        broker, topic = brokers.make(settings), settings.topic("default")
        try:

            def lag() -> int:
                return broker.lag([topic], settings.group_id)[topic]

            for _ in range(3):
                assert app.submit("add", 1, 1).result(timeout=20) == 2
            app.submit("waits", str(path), 20.0)
            until(lambda: ledger(path), "it runs")
            until(lambda: lag() <= 1, "the first three are committed")
            assert [app.submit("add", 1, 1).result(timeout=20) for _ in range(3)] == [2, 2, 2]
            over = time.monotonic() + 1.5 * TICK
            while time.monotonic() < over:
                assert lag() == 4
        finally:
            broker.close()
