"""Adapters of the log: Kafka, and Redis Streams with consumer groups."""

from __future__ import annotations

from krq.brokers.base import Broker
from krq.config import Config, mask
from krq.errors import ConfigError

__all__ = ["Broker", "check", "make", "probe"]


def _is_streams(config: Config) -> bool:
    return config.broker.startswith(("redis://", "rediss://"))


def check(config: Config) -> None:
    """Raise ``ConfigError`` when ``broker=`` names no broker that there is an adapter for."""
    scheme, separator, _ = config.broker.partition("://")
    if separator and scheme not in ("kafka", "redis", "rediss"):
        raise ConfigError(f"broker={mask(config.broker)!r} has an unknown scheme", cure="Use host:port[,host:port], kafka://, redis:// or rediss://.")
    if not config.broker:
        raise ConfigError("broker is empty", cure="Use host:port[,host:port], kafka://, redis:// or rediss://.")


def make(config: Config) -> Broker:
    """The broker that ``broker=`` names. Connects to nothing yet."""
    check(config)
    if _is_streams(config):
        from krq.brokers.streams import StreamsBroker

        return StreamsBroker(config)
    from krq.brokers.kafka import KafkaBroker

    return KafkaBroker(config)


def probe(config: Config, timeout: float = 2.0) -> None:
    """See that the broker is there, leaving nothing behind: no thread, no connection. Safe before a fork.

    Raises ``KafkaConnectionError`` or ``RedisConnectionError``.
    """
    if _is_streams(config):
        broker = make(config)
        broker.connect(timeout)
        broker.close()
        return
    from krq.brokers._kafka_clients import Clients

    Clients(config).probe(timeout)
