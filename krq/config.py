"""Settings: constructor before environment before default. A wrong value is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypedDict
from urllib.parse import urlsplit, urlunsplit

import msgspec

from krq import ids
from krq.errors import ConfigError

LOG_FORMATS = ("text", "json")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of an app. Each can also come from the environment as ``KRQ_<NAME>``."""

    broker: str = "localhost:9092"
    """``host:port[,host:port]`` or ``kafka://…`` for Kafka; ``redis://…`` or ``rediss://…`` for Redis Streams"""
    backend: str = "localhost"
    """``host[:port]``, ``redis://``, ``rediss://``, ``redis+sentinel://host:port/master`` or ``redis+cluster://``"""
    namespace: str = "krq"
    """prefix of topics and keys; apps of different namespaces never meet"""
    queue: str = "default"
    """where tasks go that name no queue"""
    group: str = ""
    """consumer group of the workers; "" means ``<namespace>.workers``"""

    heartbeat: float = 1.0
    """seconds between two beats of a worker"""
    lease: float = 10.0
    """seconds without a beat until a worker's tasks are given to others; at least 3 heartbeats"""
    grace: float = 30.0
    """seconds that running tasks get at a graceful stop before they are handed back"""
    concurrency: int = 0
    """slots of a worker child; 0 means min(32, cores + 4)"""

    send_timeout: float = 10.0
    """seconds that send() waits for the log"""
    max_message_bytes: int = 1_000_000
    """largest encoded message and largest encoded result"""
    max_depth: int = 64
    """deepest nesting of lists and objects in a message or a result"""
    result_ttl: float = 86_400.0
    """seconds that finished tasks are kept, at least"""
    unknown_task_grace: float = 600.0
    """seconds that a task waits for a worker that knows its name, then it is a dead letter"""
    max_deaths: int = 3
    """a task that was running at so many deaths of its worker becomes a dead letter"""

    recycle: int = 0
    """a process that has run so many tasks is replaced by a fresh one; 0: never"""

    window: int = 10_000
    """ready messages of a queue in Redis; beyond it Kafka keeps the backlog"""
    window_bytes: int = 64 * 1024 * 1024
    """the same in bytes"""
    partitions: int = 8
    """partitions of the topics that KRQ creates"""
    replication: int = 1
    """replication factor of the topics that KRQ creates; -1: the broker's default"""
    kafka: dict[str, Any] = {}
    """options handed to every Kafka client, such as ``security_protocol`` and ``sasl_*``"""

    log_dir: str = ""
    """folder where workers write ``krq.log`` and ``results.log``; "": nowhere"""
    log_format: str = "text"
    """of what workers log: ``text`` or ``json``"""
    log_bytes: int = 10 * 1024 * 1024
    """size at which a log file becomes ``krq.log.1``, and a new one begins"""
    log_files: int = 5
    """older log files that are kept, of each"""

    metrics_port: int = 0
    """where each worker answers /metrics, /live and /ready; 0: nowhere"""
    metrics_host: str = "127.0.0.1"
    """address of the same; ``0.0.0.0`` for probes and scrapers from outside"""

    @property
    def group_id(self) -> str:
        """The consumer group in force."""
        return self.group or f"{self.namespace}.workers"

    @property
    def slots(self) -> int:
        """The number of slots in force."""
        return self.concurrency or min(32, (os.cpu_count() or 1) + 4)

    def topic(self, queue: str) -> str:
        """The topic of a queue."""
        return f"{self.namespace}.{queue}"

    def queue_of(self, topic: str) -> str:
        """The queue of a topic."""
        return topic[len(self.namespace) + 1 :]

    @property
    def events_topic(self) -> str:
        """The topic of ended attempts."""
        return self.topic("events")

    @property
    def logs_topic(self) -> str:
        """The topic of what tasks log and print: the one that forgets by itself."""
        return self.topic("logs")

    @property
    def dead_topic(self) -> str:
        """The topic of dead letters."""
        return self.topic("dead")


class Settings(TypedDict, total=False):
    """What may be given to ``KRQ(...)`` besides broker, backend and namespace: see ``Config``."""

    queue: str
    group: str
    heartbeat: float
    lease: float
    grace: float
    concurrency: int
    send_timeout: float
    max_message_bytes: int
    max_depth: int
    result_ttl: float
    unknown_task_grace: float
    max_deaths: int
    recycle: int
    window: int
    window_bytes: int
    partitions: int
    replication: int
    kafka: dict[str, Any]
    log_dir: str
    log_format: str
    log_bytes: int
    log_files: int
    metrics_port: int
    metrics_host: str


def load(given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Config:
    """Build the settings from constructor arguments (None: not given) and the environment.

    Raises ``ConfigError`` naming the setting and where its value came from.
    """
    fields = {field.name: field for field in msgspec.structs.fields(Config)}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in fields:
            raise ConfigError(f"There is no setting {name!r}{_closest(name, fields)}")
        if value is not None:
            values[name] = _convert(name, value, fields[name].type, f"{name}={value!r}", strict=True)
    for name, field in fields.items():
        text = environ.get(f"KRQ_{name.upper()}")
        if name not in values and text is not None:
            raw = _json(text, name) if field.type is not str and name == "kafka" else text
            values[name] = _convert(name, raw, field.type, f"KRQ_{name.upper()}={text!r}", strict=False)
    config = Config(**values)
    _check(config)
    return config


def mask(url: str) -> str:
    """The URL without its password, for logs and errors."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    user = parts.netloc.rpartition("@")[0].partition(":")[0]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{parts.netloc.rpartition('@')[2]}"))


def _json(text: str, name: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise ConfigError(f"KRQ_{name.upper()} is no JSON object: {error}") from error


def _convert(name: str, value: Any, kind: Any, shown: str, *, strict: bool) -> Any:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        wanted = getattr(kind, "__name__", kind)
        raise ConfigError(f"{shown} can't be used: {error}", cure=f"Give {name} as {wanted}.") from error


def _closest(name: str, names: Mapping[str, Any]) -> str:
    import difflib

    found = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _check(config: Config) -> None:
    ids.check_namespace(config.namespace)
    ids.check_queue(config.queue)
    positive = (
        "heartbeat", "lease", "send_timeout", "max_message_bytes", "max_depth", "window", "window_bytes", "partitions", "max_deaths",
        "log_bytes", "log_files",
    )  # fmt: skip
    for name in positive:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name}={getattr(config, name)!r} must be more than 0")
    for name in ("grace", "concurrency", "recycle", "result_ttl", "unknown_task_grace"):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)!r} must not be negative")
    if not 0 <= config.metrics_port <= 65_535:
        raise ConfigError(f"metrics_port={config.metrics_port} is no port")
    if config.log_format not in LOG_FORMATS:
        raise ConfigError(f"log_format={config.log_format!r} is none of {', '.join(LOG_FORMATS)}")
    if config.lease < 3 * config.heartbeat:
        raise ConfigError(f"lease={config.lease} is less than three heartbeats of {config.heartbeat} s")
