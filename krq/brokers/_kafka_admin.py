"""Topics of Kafka: creating, looking at, trimming and measuring them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import kafka.errors as kafka_errors
from kafka import TopicPartition
from kafka.admin import ConfigResource, MemberToRemove, OffsetSpec

from krq.brokers._kafka_clients import CLIENT_FAILURES, HEADROOM, Clients, describe
from krq.errors import BrokerConnectionError, ConfigError

_log = logging.getLogger("krq.broker")
_T = TypeVar("_T")
_NO_MARKS: Mapping[tuple[str, int], int] = MappingProxyType({})
_PAUSE = 0.1  # seconds between two attempts
_LEAST = 2.0  # seconds an attempt gets at least
_UNKNOWN_TOPIC = kafka_errors.UnknownTopicOrPartitionError.errno
_LOGS_TIME, _LOGS_BYTES = 3600, 64 * 1024 * 1024  # what tasks log is kept for so long at least; bytes of a partition
_MOVED = (kafka_errors.NotCoordinatorError, kafka_errors.CoordinatorNotAvailableError)  # else asked again for ever
_EXISTS = kafka_errors.TopicAlreadyExistsError.errno


class Admin:
    """One cached admin client behind a lock. Thread-safe; connects at the first call."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._lock = threading.Lock()
        self._client: Any = None
        self._known: set[str] = set()
        self._looked: dict[str, float] = {}
        self._warned: set[str] = set()

    def ensure(self, topics: Sequence[str], timeout: float, partitions: int | None = None) -> None:
        """Create the topics that are missing and wait until they have leaders; look at each topic once."""
        missing = [topic for topic in dict.fromkeys(topics) if topic not in self._known]
        if not missing:
            return
        self._call(lambda client: self._create(client, missing, partitions, timeout), timeout)
        now = time.monotonic()
        self._looked.update(dict.fromkeys(missing, now))
        self._known.update(missing)

    def look_again(self, topics: Sequence[str], timeout: float) -> None:
        """``ensure`` without trust in what is known, but not more often than each second."""
        now = time.monotonic()
        stale = [topic for topic in topics if self._looked.get(topic, 0.0) + 1.0 < now]
        self._known.difference_update(stale)
        self.ensure(stale, timeout)

    def topic_id(self, topic: str, timeout: float) -> str:
        """The identity of a topic, "" where it is missing or the broker is too old to say."""
        found = self._call(lambda client: client.describe_topics([topic]), timeout)
        return str(found[0].get("topic_id") or "") if found else ""

    def offsets(self, topics: Sequence[str], timeout: float) -> dict[TopicPartition, tuple[int, int]]:
        """(first offset still in the log, offset after the last) of every partition of the topics that exist."""

        def ask(client: Any) -> dict[TopicPartition, tuple[int, int]]:
            every = _partitions(client.describe_topics(list(topics)))
            if not every:
                return {}
            first = client.list_partition_offsets(dict.fromkeys(every, OffsetSpec.EARLIEST))
            last = client.list_partition_offsets(dict.fromkeys(every, OffsetSpec.LATEST))
            return {each: (first[each].offset, last[each].offset) for each in every}

        return self._call(ask, timeout)

    def lag(
        self, topics: Sequence[str], group: str, timeout: float, marks: Mapping[tuple[str, int], int] = _NO_MARKS
    ) -> dict[str, int]:
        """Records after the mark of their partition, else after its committed offset, by topic."""
        bounds = self.offsets(topics, timeout)
        committed: dict[TopicPartition, Any] = {}
        if bounds:
            committed = self._call(lambda client: client.list_group_offsets({group: list(bounds)})[group], timeout)
        found = dict.fromkeys(topics, 0)
        for each, (first, last) in bounds.items():
            offset = marks.get((each.topic, each.partition), committed[each].offset if each in committed else -1)
            found[each.topic] += max(0, last - max(first, offset))
        return found

    def expel(self, members: Sequence[str], group: str, timeout: float) -> None:
        """Remove dead members; those that are gone already are no matter."""
        dead = [MemberToRemove(member_id=member, reason="its worker died") for member in members]
        self._call(lambda client: client.remove_group_members(group, dead), timeout)

    def trim(self, topic: str, partition: int, before: int, timeout: float) -> None:
        """Delete what stands before an offset."""
        at = TopicPartition(topic, partition)
        self._call(lambda client: client.delete_records({at: before}), timeout)

    def close(self) -> None:
        """Let go of the connection; a later call would make a new one."""
        with self._lock:
            self._drop()

    def abandon(self) -> None:
        """Forget the client without touching it: it belongs to the process before a fork."""
        self._client = None

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                client.close()
            except CLIENT_FAILURES as error:
                _log.debug("closing the admin client: %s", error)

    def _call(self, work: Callable[[Any], _T], timeout: float) -> _T:
        deadline = time.monotonic() + timeout
        while True:
            if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise self._clients.gone("another request has been waiting for it")
            try:
                return work(self._open(deadline))
            except CLIENT_FAILURES as error:
                cause = error
                if not isinstance(error, kafka_errors.KafkaError) or isinstance(error, _MOVED):
                    self._drop()
            finally:
                self._lock.release()
            self._refuse(cause)
            if time.monotonic() + _PAUSE >= deadline:
                raise self._clients.gone(cause) from cause
            threading.Event().wait(_PAUSE)

    def _open(self, deadline: float) -> Any:
        if self._client is None:
            left = max(_PAUSE, deadline - time.monotonic())
            request = max(1000, int(min(10.0, max(left, _LEAST)) * 1000))
            self._client, _ = self._clients.admin(left, request_timeout_ms=request, metadata_max_age_ms=30_000)
        return self._client

    def _refuse(self, error: BaseException) -> None:
        """Raise for what repeating cannot mend."""
        if isinstance(error, BrokerConnectionError):
            raise error
        if isinstance(error, kafka_errors.UnknownError):
            return
        if isinstance(error, kafka_errors.BrokerResponseError) and not error.retriable:
            raise ConfigError(f"{self._clients.name} refused: {describe(error)}", cure=_cure(error)) from error

    def _create(self, client: Any, topics: list[str], partitions: int | None, timeout: float) -> None:
        there = set()
        for found in client.describe_topics(topics):
            if found["error_code"] == 0:
                there.add(found["name"])
            elif found["error_code"] != _UNKNOWN_TOPIC:
                raise kafka_errors.for_code(found["error_code"])(found["name"])
        wanted = {topic: self._settings(topic, partitions) for topic in topics if topic not in there}
        if wanted:
            answer = client.create_topics(wanted, timeout_ms=int(max(timeout, _LEAST) * 1000), raise_errors=False)
            for result in answer["topics"]:
                if result["error_code"] == _EXISTS:  # another was quicker: KRQ, or somebody with other settings
                    there.add(result["name"])
                elif result["error_code"]:
                    raise kafka_errors.for_code(result["error_code"])(result["error_message"] or result["name"])
            client.wait_for_topics(list(wanted), timeout_ms=int(max(timeout, _LEAST) * 1000))
        self._check_retention(client, sorted(there - self._warned - {self._clients.config.logs_topic}))

    def _settings(self, topic: str, partitions: int | None) -> dict[str, Any]:
        config = self._clients.config
        kept = {"retention.ms": "-1", "retention.bytes": "-1"}
        if topic == config.logs_topic:
            most = max(_LOGS_TIME, int(config.result_ttl))
            kept = {"retention.ms": str(most * 1000), "retention.bytes": str(_LOGS_BYTES), "segment.bytes": str(_LOGS_BYTES // 4)}
        return {
            "num_partitions": partitions or config.partitions,
            "replication_factor": config.replication,
            "configs": {
                **kept,
                "cleanup.policy": "delete",
                "max.message.bytes": str(config.max_message_bytes + HEADROOM),
            },
        }

    def _check_retention(self, client: Any, topics: list[str]) -> None:
        if not topics:
            return
        names = ["retention.ms", "retention.bytes", "cleanup.policy"]
        resources = [ConfigResource("TOPIC", topic, names) for topic in topics]
        try:
            found = client.describe_configs(resources, config_filter="all").get("topic", {})
        except kafka_errors.KafkaError as error:
            _log.debug("the retention of %s can't be read: %s", topics, describe(error))
            return
        for topic, settings in found.items():
            self._warned.add(topic)
            values = {name: str(entry.get("value")) for name, entry in settings.items()}
            wrong = [f"{name}={values[name]}" for name in names[:2] if values.get(name, "-1") != "-1"]
            wrong += ["cleanup.policy=compact"] if "compact" in values.get("cleanup.policy", "") else []
            if wrong:
                _log.warning(
                    "topic %s can LOSE pending tasks: it has %s. Set retention.ms=-1, retention.bytes=-1, "
                    "cleanup.policy=delete.", topic, ", ".join(wrong)
                )  # fmt: skip


def _partitions(topics: Sequence[dict[str, Any]]) -> list[TopicPartition]:
    return [
        TopicPartition(topic["name"], partition["partition_index"])
        for topic in topics
        if topic["error_code"] == 0
        for partition in topic["partitions"]
    ]


def _cure(error: BaseException) -> str:
    if isinstance(error, kafka_errors.AuthorizationError):
        return "Grant the rights to describe, create, read, write and delete records of the namespace's topics."
    if isinstance(error, kafka_errors.InvalidReplicationFactorError):
        return "Lower replication (KRQ_REPLICATION): there are fewer brokers than that."
    if isinstance(error, kafka_errors.InvalidTopicError):
        return "Use letters, digits, '.', '_', '-' for topics, 249 at most."
    return "Have the administrator of Kafka allow it, or create the topics beforehand."
