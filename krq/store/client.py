"""The client of the store: connects, runs scripts, and knows under which epoch it may trust what it sees."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, NoScriptError, OutOfMemoryError, RedisError, ResponseError
from redis.retry import Retry

from krq.config import Config, mask
from krq.errors import AppClosed, ConfigError, NamespaceClosed, RedisConnectionError, StoreError
from krq.store.keys import Keys
from krq.store.scripts import Script, source

log = logging.getLogger("krq.store")

#: seconds a single command may take before its connection is given up
TIMEOUT = 5.0
MINIMUM = (7, 0)

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


class Epoch(NamedTuple):
    """One life of the store's contents. Numbers only rise; with the attempt they make the fencing token."""

    id: str
    number: int
    open: bool
    reason: str
    """``fresh``, or why it was closed: ``restarted``, ``emptied``"""


NO_EPOCH = Epoch("", 0, False, "")


class Answer(NamedTuple):
    """What a script said: OK and the rest, or why it did nothing."""

    status: str
    values: Sequence[Any] = ()

    @property
    def ok(self) -> bool:
        """Whether the script did its work."""
        return self.status == "OK"


class Store:
    """Runs scripts on one shard. Thread-safe. Not usable after a fork: make another.

    Nothing is retried inside: every script may be repeated by its caller, who knows whether that is wanted.
    """

    def __init__(self, config: Config, shard: int = 0, timeout: float = TIMEOUT) -> None:
        self.config = config
        self.keys = Keys(config.namespace, shard)
        self.epoch = NO_EPOCH
        self.redis = connect(config.backend, timeout)
        self._pid = os.getpid()

    @property
    def name(self) -> str:
        """For people: where it is."""
        return f"Redis at {mask(self.config.backend)}"

    # --- scripts -----------------------------------------------------------------------------

    def run(self, script: Script, *args: Any) -> Answer:
        """Run one script under the epoch in force. Raises ``RedisConnectionError`` or ``StoreError``."""
        return self.run_all([(script, args)])[0]

    def run_all(self, calls: Sequence[tuple[Script, Sequence[Any]]]) -> list[Answer]:
        """Run scripts one after the other in one round trip; each is atomic, all of them are not."""
        if os.getpid() != self._pid:
            raise AppClosed("This app belongs to the process that it was forked from")
        packed = [(source(script), _pack(args)) for script, args in calls]
        try:
            replies = self._send(packed)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                for (script, _), reply in zip(packed, replies, strict=True):
                    if isinstance(reply, NoScriptError):
                        self.redis.script_load(script.text)
                # the scripts that did run may be repeated, as any script may
                replies = self._send(packed)
        except RedisError as error:
            raise translate(error, self.name) from error
        return [self._read(reply) for reply in replies]

    def _send(self, packed: Sequence[tuple[Any, bytes]]) -> list[Any]:
        if len(packed) == 1:
            try:
                return [self.redis.evalsha(packed[0][0].sha, 1, self.keys.epoch, self.epoch.id, packed[0][1])]
            except NoScriptError as error:
                return [error]
        pipeline = self.redis.pipeline(transaction=False)
        for script, args in packed:
            pipeline.evalsha(script.sha, 1, self.keys.epoch, self.epoch.id, args)
        return list(pipeline.execute(raise_on_error=False))

    def _read(self, reply: Any) -> Answer:
        if isinstance(reply, RedisError):
            raise translate(reply, self.name) from reply
        status, *values = _unpack(reply)
        return Answer(status, values)

    @contextmanager
    def plain(self) -> Iterator[Any]:
        """The client library's own object, for plain reads and what needs no script. Raises as ``run`` does."""
        try:
            yield self.redis
        except RedisError as error:
            raise translate(error, self.name) from error

    # --- epochs ------------------------------------------------------------------------------

    def check(self) -> None:
        """Connect and see that this Redis can be used. Raises ``RedisConnectionError`` or ``StoreError``."""
        with self.plain() as redis:
            info = redis.info()
        version = tuple(int(part) for part in str(info.get("redis_version", "0.0")).split(".")[:2])
        if version < MINIMUM:
            raise StoreError(f"{self.name} has version {info.get('redis_version')}", cure="KRQ needs Redis >= 7.0 or Valkey >= 7.2.")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and not str(policy).startswith("volatile"):
            raise StoreError(f"{self.name} evicts keys ({policy}): tasks would vanish", cure="Run: CONFIG SET maxmemory-policy noeviction")

    def renew(self, new_id: str) -> Epoch:
        """Find the epoch in force, or begin a new one where Redis was emptied or restarted. Returns it.

        It may be closed: then only beats and assertions run until it opens.
        """
        before = self.epoch
        with self.plain() as redis:
            stored, reason = redis.hmget(self.keys.epoch, "id", "reason")
        seen = stored.decode() if isinstance(stored, bytes) else stored
        # made by somebody who knew nothing of the epoch before: Redis was emptied in between
        unknowing = seen is None or reason == b"fresh"
        suspicious = bool(before.id) and seen != before.id and unknowing
        answer = self.run(Script.CLOSE, new_id, before.number, seen or False, suspicious)
        self.epoch = Epoch(*answer.values)
        if before.id and self.epoch.id != before.id and self.epoch.reason == "emptied":
            log.error("%s was emptied: its schedule is gone; going on under epoch %d from what Kafka has not seen completed",
                      self.name, self.epoch.number)
        elif before.id and self.epoch.id != before.id:
            log.warning("%s is another life of the server (%s): epoch %d", self.name, self.epoch.reason, self.epoch.number)
        return self.epoch

    def call(self, script: Script, *args: Any) -> Sequence[Any]:
        """Run a script for a client that keeps nothing under an epoch: adopt another epoch and go on.

        Raises ``NamespaceClosed`` while the namespace is being checked after a restart or a loss.
        """
        for _ in range(4):
            answer = self.run(script, *args) if self.epoch.id else Answer("EPOCH")
            if answer.ok:
                return answer.values
            if answer.status == "CLOSED":
                answer = self.run(Script.OPEN, int(self.config.lease * 1000))
                if not (answer.ok and answer.values[0]):
                    break
            elif answer.status not in ("EPOCH", "EMPTY", "RESTARTED"):
                raise StoreError(f"{script} answered {answer.status}")
            else:
                self.renew(os.urandom(8).hex())
        raise NamespaceClosed(f"{self.name} is being checked after a restart or a loss of data")

    def close(self) -> None:
        """Let go of the connections."""
        if os.getpid() == self._pid:
            self.redis.close()


def translate(error: RedisError, name: str) -> RedisConnectionError | StoreError:
    """The KRQ error for what the client library raised."""
    if isinstance(error, AuthenticationError):
        return RedisConnectionError(f"{name} refused the login: {error}", cure="Give user and password in backend= as redis://user:password@host.")
    if isinstance(error, OutOfMemoryError) or (isinstance(error, ResponseError) and str(error).startswith("OOM")):
        return StoreError(f"{name} is full (maxmemory)", cure="Raise maxmemory; running tasks still end, and taking goes on by itself.")
    if isinstance(error, ResponseError) and not isinstance(error, BusyLoadingError):
        return StoreError(f"{name} says: {error}")
    return RedisConnectionError(f"{name} does not answer: {error}")


def connect(backend: str, timeout: float = TIMEOUT) -> redis.Redis:
    """A client for ``backend``; nothing is sent yet. ``timeout``: seconds until a command is given up.

    Raises ``ConfigError`` for a URL that means nothing here.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": min(timeout, 3.0),
        "retry": Retry(NoBackoff(), 0),
        "max_connections": 1000,
    }
    scheme, _, rest = backend.partition("://") if "://" in backend else ("redis", "", backend)
    try:
        if scheme in ("redis", "rediss", "unix"):
            return redis.Redis.from_url(f"{scheme}://{rest}", **options)
        if scheme == "redis+sentinel":
            return _sentinel(rest, options)
        if scheme == "redis+cluster":
            options.pop("retry")
            return redis.RedisCluster.from_url(f"redis://{rest}", **options)  # type: ignore[return-value]
    except ValueError as error:
        raise ConfigError(f"backend={mask(backend)!r} is no address: {error}") from error
    except RedisError as error:
        raise translate(error, f"Redis at {mask(backend)}") from error
    raise ConfigError(f"backend={mask(backend)!r} has an unknown scheme", cure="Use host[:port], redis://, rediss://, redis+sentinel:// or redis+cluster://.")


def _sentinel(rest: str, options: dict[str, Any]) -> redis.Redis:
    from redis.sentinel import Sentinel

    hosts, _, path = rest.partition("/")
    service = path.partition("/")[0]
    if not service:
        raise ConfigError("redis+sentinel:// needs the name of the master", cure="Write redis+sentinel://host:26379/mymaster.")
    nodes = [(host.partition(":")[0], int(host.partition(":")[2] or 26379)) for host in hosts.rpartition("@")[2].split(",")]
    sentinel: Any = Sentinel(nodes, sentinel_kwargs={"socket_timeout": options["socket_timeout"]}, **options)  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinel.master_for(service)
    return client
