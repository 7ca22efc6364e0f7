"""Options and addresses of the Kafka adapter, which need no server."""

from __future__ import annotations

import logging

import pytest

from krq.brokers._kafka_clients import addresses
from krq.brokers.kafka import KafkaBroker
from krq.config import Config
from krq.errors import ConfigError


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sasl_mechanisms.*sasl_mechanism'"):
        KafkaBroker(Config(kafka={"sasl_mechanisms": "PLAIN"}))
    with pytest.raises(ConfigError, match="enable_idempotence"):
        KafkaBroker(Config(kafka={"enable_idempotence": True}))


def test_addresses() -> None:
    assert addresses("kafka://a:1,b:2/") == [("a", 1), ("b", 2)]
    assert addresses("a, [::1]:3") == [("a", 9092), ("::1", 3)]
    for wrong in ("", "a:b", "user:pw@a:1", "a/b"):
        with pytest.raises(ConfigError):
            addresses(wrong)


def test_the_users_log_level_stays() -> None:
    logger = logging.getLogger("kafka")
    before = logger.level
    try:
        logger.setLevel(logging.DEBUG)
        KafkaBroker(Config())
        assert logger.level == logging.DEBUG
        logger.setLevel(logging.NOTSET)
        KafkaBroker(Config())
        assert logger.level == logging.ERROR
    finally:
        logger.setLevel(before)
