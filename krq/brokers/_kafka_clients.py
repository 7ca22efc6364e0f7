"""Making kafka-python clients: where the brokers are, which options each client takes, what its errors mean."""

from __future__ import annotations

import difflib
import logging
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kafka.errors as kafka_errors
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from krq.config import Config
from krq.errors import ConfigError, KafkaConnectionError

#: what kafka-python may raise when its IO loop ended or a socket failed beneath it, besides its own errors
CLIENT_FAILURES = (KafkaError, OSError, RuntimeError)

#: a record may be so much larger than a message: key, headers and framing
HEADROOM = 64 * 1024

_PROBE = 2.0  # seconds for one TCP connect
_PAUSE = 0.1  # seconds between two rounds of connects
_RESERVED = frozenset(
    {
        "acks", "allow_auto_create_topics", "auto_offset_reset", "bootstrap_servers", "consumer_timeout_ms",
        "enable_auto_commit", "enable_idempotence", "group_id", "kafka_client", "key_deserializer", "key_serializer",
        "max_in_flight_requests_per_connection", "partition_assignment_strategy", "partitioner", "transactional_id",
        "value_deserializer", "value_serializer",
    }
)  # fmt: skip
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_RECONNECT = {"reconnect_backoff_ms": 50, "reconnect_backoff_max_ms": 1000}


def addresses(url: str) -> list[tuple[str, int]]:
    """The bootstrap brokers of ``host:port[,host:port]``, with or without ``kafka://``; the port defaults to 9092."""
    found = []
    for part in url.removeprefix("kafka://").rstrip("/").split(","):
        text = part.strip()
        host, colon, port = text.rpartition(":")
        if not colon or text.endswith("]"):
            host, port = text, "9092"
        if not host or "@" in text or "/" in text or not port.isdigit():
            raise ConfigError(
                f"broker={url!r} can't be used: {part!r} is no host:port",
                cure="Write host:port[,host:port]; user and password go to kafka={'sasl_plain_username': …}.",
            )
        found.append((host.strip("[]"), int(port)))
    return found


class NetClient(KafkaNetClient):  # type: ignore[misc]
    """kafka-python's network client, that never lets the broker make a topic on its own terms.

    3.0.12 does not hand ``allow_auto_create_topics=False`` down to where metadata is asked for.
    """

    def __init__(self, **configs: Any) -> None:
        super().__init__(**configs)
        self.cluster.config["allow_auto_create_topics"] = False

    def refusal(self) -> BaseException | None:
        """Why a bootstrap broker refused us (TLS, SASL), where it did."""
        for broker in self.cluster.bootstrap_brokers():
            failure = self._manager.auth_failure(broker.node_id)
            if isinstance(failure, BaseException):
                return failure
        return None


class Producer(KafkaProducer):  # type: ignore[misc]
    """A producer whose ``str()``, evaluated for each record by ``send``, costs nothing."""

    def __str__(self) -> str:
        return "KRQ producer"


class Clients:
    """The maker of clients for one ``Config``. Thread-safe."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hosts = addresses(config.broker)
        self.name = "Kafka at " + ",".join(f"{host}:{port}" for host, port in self.hosts)
        self._servers = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts]
        _check(config.kafka)
        logger = logging.getLogger("kafka")
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.ERROR)

    def probe(self, timeout: float) -> None:
        """Wait until a bootstrap broker takes a TCP connection; ``KafkaConnectionError`` when none did in time.

        Clients leak when their constructor fails, so nothing is constructed before this passed.
        """
        if self.config.kafka.get("proxy_url") or self.config.kafka.get("socks5_proxy"):
            return
        deadline = time.monotonic() + timeout
        while True:
            for host, port in self.hosts:
                left = max(0.05, min(_PROBE, deadline - time.monotonic()))
                try:
                    socket.create_connection((host, port), left).close()
                    return
                except OSError as error:
                    cause = error
            if time.monotonic() + _PAUSE >= deadline:
                raise self.gone(cause) from cause
            threading.Event().wait(_PAUSE)

    def gone(self, cause: object) -> KafkaConnectionError:
        """The error for "no broker could be reached"."""
        return KafkaConnectionError(f"{self.name} can't be reached: {describe(cause)}")

    def producer(self, timeout: float, **options: Any) -> tuple[Any, NetClient]:
        """A producer with its network client, or ``KafkaConnectionError``."""
        return self._make(Producer, timeout, options | {"metrics_enabled": False})

    def consumer(self, timeout: float, **options: Any) -> tuple[Any, NetClient]:
        """A consumer with its network client, or ``KafkaConnectionError``."""
        return self._make(KafkaConsumer, timeout, options | {"metrics_enabled": False})

    def admin(self, timeout: float, **options: Any) -> tuple[Any, NetClient]:
        """An admin client with its network client, or ``KafkaConnectionError``."""
        return self._make(KafkaAdminClient, timeout, options)

    def _make(self, kind: Any, timeout: float, options: dict[str, Any]) -> tuple[Any, NetClient]:
        deadline = time.monotonic() + timeout
        self.probe(timeout)
        made: list[NetClient] = []

        def client(**configs: Any) -> NetClient:
            made.append(NetClient(**configs))
            return made[-1]

        given = {name: value for name, value in self.config.kafka.items() if name in kind.DEFAULT_CONFIG}
        given = _RECONNECT | options | given
        given["bootstrap_servers"] = self._servers
        given["kafka_client"] = client
        given["bootstrap_timeout_ms"] = max(500, int((deadline - time.monotonic()) * 1000))
        try:
            return kind(**given), made[-1]
        except CLIENT_FAILURES as error:
            refusal = next((reason for reason in (each.refusal() for each in made) if reason), error)
            for each in made:
                each.close()
            if isinstance(error, kafka_errors.KafkaConfigurationError):
                raise ConfigError(f"kafka={given_names(self.config)} can't be used: {error}") from error
            raise self.gone(refusal) from error
        except (ValueError, TypeError, AssertionError, ImportError) as error:
            for each in made:
                each.close()
            raise ConfigError(f"kafka={given_names(self.config)} can't be used: {error}") from error


def given_names(config: Config) -> list[str]:
    """The names of the user's Kafka options; their values may be secret."""
    return sorted(config.kafka)


def describe(error: object) -> str:
    """An error as people read it: kafka-python's often have no text but their type's."""
    if isinstance(error, KafkaError):
        text = str(error).strip()
        kind = type(error).__name__
        return text if text.startswith(kind) or not text else f"{kind}: {text}"
    return str(error) or type(error).__name__


def partitions_of(cluster: Any, topic: str) -> Sequence[int]:
    """The partitions of a topic that have a leader, else all of them, in order."""
    return sorted(cluster.available_partitions_for_topic(topic) or cluster.partitions_for_topic(topic) or ())


def _check(options: dict[str, Any]) -> None:
    known = {*KafkaProducer.DEFAULT_CONFIG, *KafkaConsumer.DEFAULT_CONFIG, *KafkaAdminClient.DEFAULT_CONFIG}
    for name in options:
        if name in _RESERVED:
            raise ConfigError(f"kafka={{{name!r}: …}}: KRQ sets this option itself", cure="Leave it out.")
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"kafka={{{name!r}: …}}: kafka-python has no such option{hint}")
    protocol = options.get("security_protocol", "PLAINTEXT")
    if protocol not in _PROTOCOLS:
        raise ConfigError(f"kafka={{'security_protocol': {protocol!r}}} is none of {', '.join(_PROTOCOLS)}")
    for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_crlfile"):
        if options.get(name) and not Path(options[name]).is_file():
            raise ConfigError(f"kafka={{{name!r}: {options[name]!r}}}: there is no such file")
