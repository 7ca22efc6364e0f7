"""Dead letters, at hand: list, look at, send again, drop. The newest 1,000 are in Redis; the topic keeps all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from krq import administer, events
from krq.config import Config
from krq.errors import BatchError, OptionError, TaskNotFound
from krq.events import DeadLetter
from krq.handle import TaskHandle
from krq.info import AttemptInfo, TaskInfo
from krq.inspector import Inspector
from krq.lineage import Clients, Lineage, Publish
from krq.message import Message
from krq.states import TaskStatus
from krq.store.client import Store
from krq.store.scripts import Script

#: letters read, sent again or dropped in one round trip
PAGE = 100
#: letters that are kept (dead.lua)
KEPT = 1_000

Refs = str | TaskHandle[Any] | Sequence[str | TaskHandle[Any]]


class Filter(NamedTuple):
    """Which letters are meant; None: any."""

    name: str | None = None
    code: str | None = None
    queue: str | None = None

    def meets(self, letter: DeadLetter) -> bool:
        """Whether it is one of these."""
        return self.name in (None, letter.name) and self.code in (None, letter.code) and self.queue in (None, letter.queue)


class Graveyard:
    """Reads and changes what Redis has of the dead letters. Thread-safe."""

    def __init__(self, config: Config, store: Store, inspector: Inspector, publish: Publish) -> None:
        self._config = config
        self._store = store
        self._inspector = inspector
        self._publish = publish

    def find(self, wanted: Filter, limit: int, before: float | None = None) -> list[DeadLetter]:
        """At most ``limit`` letters, the latest first; at most ``KEPT`` are read."""
        found: list[DeadLetter] = []
        highest = "+inf" if before is None else f"({before * 1000:.0f}"
        for start in range(0, KEPT, PAGE):
            with self._store.plain() as redis:
                refs = redis.zrange(self._store.keys("dead"), highest, "-inf", byscore=True, desc=True, offset=start, num=PAGE)
            found += [letter for letter in self._read(refs) if letter is not None and wanted.meets(letter)]
            if len(refs) < PAGE or len(found) >= limit:
                break
        return found[:limit]

    def get(self, refs: Sequence[str]) -> list[DeadLetter]:
        """These letters. Raises ``TaskNotFound`` where one is not at hand."""
        found = [letter for start in range(0, len(refs), PAGE) for letter in self._read(refs[start : start + PAGE])]
        for ref, letter in zip(refs, found, strict=True):
            if letter is None:
                raise TaskNotFound(f"No dead letter {ref!r} is at hand", cure="`krq dead` lists them; the dead topic keeps all.")
        return [letter for letter in found if letter is not None]

    def _read(self, refs: Sequence[str | bytes]) -> list[DeadLetter | None]:
        if not refs:
            return []
        with self._store.plain() as redis:
            raws = redis.hmget(self._store.keys("letters"), list(refs))
        return [None if raw is None else events.decode_letter(raw) for raw in raws]

    # --- act ---------------------------------------------------------------------------------

    def retry(self, refs: Sequence[str] | None, wanted: Filter) -> int:
        """Send their tasks again. Named ones must all be fit for it; of others those that are not stay where they are."""
        letters = self.find(wanted, KEPT) if refs is None else self.get(refs)
        again = []
        for start in range(0, len(letters), PAGE):
            some = letters[start : start + PAGE]
            infos = self._inspector.infos([letter.id for letter in some])
            for letter, info in zip(some, infos, strict=True):
                try:
                    *dependents, own = self._again(letter, info)
                except OptionError:
                    if refs is not None:
                        raise
                    continue
                if dependents:  # what follows from one may change what follows from the next
                    self._publish(dependents)
                    self._send([(letter, own)])
                again.append((letter, own, bool(dependents)))
        alone = [(letter, own) for letter, own, sent in again if not sent]
        for start in range(0, len(alone), PAGE):
            self._send(alone[start : start + PAGE])
        return len(again)

    def _again(self, letter: DeadLetter, info: TaskInfo | None) -> list[tuple[str, Message, bytes]]:
        """The messages that run its task again, and what did not run because of it; its own is the last."""
        if letter.partition >= 0:
            cure = "Publish it anew: `krq dead show --raw` gives its bytes. If it is of no use, `krq dead purge` drops it."
            raise OptionError(f"The dead letter {letter.ref} is a record that is no task ({letter.code}): it can't be retried", cure=cure)
        if info is not None:
            return Lineage(self._store, self._inspector).again(self._config, letter.id)
        # forgotten by now: the letter has all that is needed
        info = TaskInfo(id=letter.id, status=TaskStatus.FAILED, queue=letter.queue)
        return [administer.again(self._config, info, None if letter.size else letter.original)]

    def _send(self, again: Sequence[tuple[DeadLetter, tuple[str, Message, bytes]]]) -> None:
        try:
            self._publish([message for _, message in again])
        except BatchError as error:
            self.drop(error.accepted)
            raise
        self.drop([letter.ref for letter, _ in again])

    def drop(self, refs: Sequence[str]) -> int:
        """Forget these letters; their tasks stay as they are. Returns how many were there."""
        return sum(self._store.call(Script.DEAD, [], refs[start : start + PAGE])[0] for start in range(0, len(refs), PAGE))


class DeadLetters:
    """What ``KRQ`` offers of failed attempts and dead letters. Thread-safe. Redis away: ``RedisConnectionError``."""

    config: Config

    @property
    def _clients(self) -> Clients:
        raise NotImplementedError

    @property
    def _graveyard(self) -> Graveyard:
        clients = self._clients
        return Graveyard(self.config, clients.store, clients.inspector, clients.publish)

    def history(self, task_id: str | TaskHandle[Any]) -> list[AttemptInfo]:
        """The last ten attempts of a task that did not succeed, the earliest first. Raises ``TaskNotFound``."""
        return self._clients.inspector.history(str(task_id))

    def dead_letters(self, limit: int = 100, *, code: str | None = None, name: str | None = None, queue: str | None = None,
                     before: float | None = None) -> list[DeadLetter]:
        """What could not be run, with the reason and the original bytes, the latest first; the newest 1,000 are at hand.

        ``code``: of the error, such as ``POISON`` or ``ValueError``; ``name``: of the task; ``before``: Unix seconds, for the next page.
        """
        return self._graveyard.find(Filter(name, code, queue), limit, before)

    def dead_letter(self, ref: str | TaskHandle[Any]) -> DeadLetter:
        """One dead letter, by its ``ref``: the id of its task, or ``queue:partition:offset``. Raises ``TaskNotFound``."""
        return self._graveyard.get([str(ref)])[0]

    def retry_dead(self, ids: Refs | None = None, *, name: str | None = None, code: str | None = None, queue: str | None = None) -> int:
        """Run the tasks of these dead letters again, as ``retry`` does, and let go of the letters. Returns how many were sent.

        ``ids``: all of these, or ``OptionError`` and none, where one is a record that never was a task. Without ``ids`` all that
        the filter meets and that can be run. Not atomic: after an error of the broker some may have been sent; their letters are gone.
        """
        return self._graveyard.retry(_refs(ids, name, code, queue), Filter(name, code, queue))

    def purge_dead(self, ids: Refs | None = None, *, name: str | None = None, code: str | None = None, queue: str | None = None) -> int:
        """Forget these dead letters, or all that the filter meets. Their tasks stay failed, the topic keeps them. Returns how many."""
        refs = _refs(ids, name, code, queue)
        yard = self._graveyard
        return yard.drop([letter.ref for letter in yard.find(Filter(name, code, queue), KEPT)] if refs is None else refs)


def _refs(ids: Refs | None, *filters: str | None) -> list[str] | None:
    if ids is None:
        return None
    if any(each is not None for each in filters):
        raise OptionError("Dead letters are named by ids or by a filter, not by both", cure="Leave one of them out.")
    return [str(ids)] if isinstance(ids, str | TaskHandle) else list(dict.fromkeys(map(str, ids)))
