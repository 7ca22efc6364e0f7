"""KRQ, the facade: the table of contents of the system.

    define   task, registry, handle              what users write
    send     submitter → broker → admit          the log first, then the schedule
    run      worker.supervisor → child → engine  take, run, settle, log
    look     inspector, waiter                   what is where, and the end of it
    extend   hooks, modules                      retries and whatever users add
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar, Unpack, overload

import msgspec

from krq import administer, brokers, config, ids, selection, work
from krq import modules as default_modules
from krq.call import Call, Parent
from krq.config import Config, Settings
from krq.errors import AppClosed, ArgumentError, OptionError, TaskNotFound
from krq.graveyard import DeadLetters
from krq.handle import ChainHandle, TaskHandle
from krq.hooks import Module, find
from krq.info import Arguments, Stats, TaskFilter, TaskInfo, TaskPage, WorkerFailure, WorkerInfo
from krq.inspector import Inspector
from krq.lineage import Publish, Workflows
from krq.logreader import LogReading
from krq.modules.broadcast import RollCalls
from krq.modules.chaining import Chaining
from krq.modules.grouping import Grouping
from krq.modules.limits import Limiting, definitions
from krq.modules.listeners import Listening
from krq.modules.schedule import Scheduling
from krq.registry import CatchAll, Registry
from krq.results import Outcomes
from krq.selection import Selection
from krq.states import TaskStatus
from krq.store.client import Store
from krq.store.waiter import Waiter
from krq.submitter import Builder, Submitter, check_options
from krq.task import Task
from krq.watching import Watching
from krq.worker.spec import Spec
from krq.workflow import Signature

P = ParamSpec("P")
R = TypeVar("R")


class _Clients(NamedTuple):
    """What holds connections; belongs to one process."""

    pid: int
    store: Store
    broker: brokers.Broker
    submitter: Submitter
    waiter: Waiter
    inspector: Inspector
    outcomes: Outcomes

    @property
    def publish(self) -> Publish:
        """The submitter's, for messages that are built already."""
        return self.submitter.publish


class _WorkerSetup(NamedTuple):
    """What ``config_worker`` chose."""

    inbox: str | None = None
    worker_id: str | None = None
    queues: Sequence[str] | None = None


class KRQ(Scheduling, Limiting, Listening, RollCalls, DeadLetters, Workflows, Watching, LogReading):
    """A task queue: define tasks on it, send them, run workers for them, look at them.

    ``broker`` is the log, ``backend`` the schedule and the results; see ``krq.config.Config`` for both, for all
    ``settings`` and for the environment variables behind them. ``modules``: None for the usual ones. Making one connects
    to nothing; the first use does. Thread-safe; after a fork the child makes connections of its own.
    """

    def __init__(self, broker: str | None = None, backend: str | None = None, namespace: str | None = None,
                 modules: Sequence[Module] | None = None, **settings: Unpack[Settings]) -> None:
        self.config: Config = config.load({"broker": broker, "backend": backend, "namespace": namespace, **settings})
        self.registry = Registry()
        self.modules = list(default_modules.default() if modules is None else modules)
        brokers.check(self.config)
        self._setup = _WorkerSetup()
        self._made: _Clients | None = None
        self._lock = threading.Lock()
        self._closed = False
        for module in self.modules:
            module.attach(self)

    # --- define ------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, /, **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]: ...
    def task(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function, ``def`` or ``async def``, as a task.

        Options: ``name`` (default: the function's), ``queue``, ``priority``, ``expires``, and those of the modules, such as
        ``retries`` and ``backoff``. Raises ``OptionError`` for others, ``DuplicateTask`` for a name in use.
        """
        check_options(options, self.modules, of_task=True)

        def register(function: Callable[..., Any]) -> Task[..., Any]:
            settings = {name: value for name, value in options.items() if name != "name"}
            task = Task(self, function, options.get("name") or function.__name__, settings)
            for module in self.modules:
                module.check(task)
            self.registry.add(task)
            return task

        return register if function is None else register(function)

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise ``OptionError`` when these are no options of a call."""
        check_options(options, self.modules, of_task=False)

    # --- send --------------------------------------------------------------------------------

    def submit(self, task: str, /, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        """Send a task by name; works where the function is not importable. Returns when the log has it (acks=all).

        Raises ``ArgumentError``, ``NotSerializable``, ``MessageTooLarge``, ``MessageInvalid`` or another
        ``SubmissionError``: it was not sent. ``SubmissionTimeout``: unknown; sending again with the error's ``task_id`` is
        safe. ``KafkaConnectionError``/``RedisConnectionError``: the log is away; it was not sent.
        """
        return self.send_calls([Call(task, args, kwargs, self.registry.get(task))])[0]

    def submit_many(self, tasks: Sequence[Mapping[str, Any]]) -> list[TaskHandle[Any]]:
        """Send several: ``[{"task": name, "args": [...], "kwargs": {...}, "options": {...}}, …]``, as one batch.

        All are checked before the first is sent. Not atomic: ``BatchError`` says which were not confirmed.
        """
        return self.send_calls([self._call(fields) for fields in tasks])

    def send_task(self, name: str, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None, /, **options: Any) -> str:
        """Send a task by name with a list of arguments; returns its id. Raises as ``submit``."""
        if isinstance(args, str | bytes) or not isinstance(args, Sequence):
            raise ArgumentError(f"args={args!r} of {name!r} is no list")
        self.check_options(options)
        return self.send_calls([Call(name, args, kwargs or {}, self.registry.get(name), options)])[0].id

    def send_calls(self, calls: Sequence[Call]) -> list[TaskHandle[Any]]:
        """Send calls as one batch: what all the other ways to send come to."""
        if not calls:
            return []
        return [TaskHandle(task_id, self) for task_id in self._clients.submitter.send(calls)]

    def build_children(self, calls: Sequence[Call], parent: Parent) -> list[tuple[str, bytes]]:
        """Make the messages that a running task's worker will send for it. Connects to nothing. Raises as ``submit_many``."""
        return Builder(self.config, self.modules).children(calls, parent)

    def _call(self, fields: Mapping[str, Any]) -> Call:
        unknown = set(fields) - {"task", "args", "kwargs", "options"}
        if "task" not in fields or unknown:
            cure = 'Give {"task": name, "args": [...], "kwargs": {...}, "options": {...}}.'
            raise OptionError(f"{dict(fields)!r} is no task to submit", cure=cure)
        options = fields.get("options", {})
        self.check_options(options)
        return Call(fields["task"], fields.get("args", ()), fields.get("kwargs", {}), self.registry.get(fields["task"]), options)

    # --- workflows ---------------------------------------------------------------------------

    def signature(self, name: str, /, *args: Any, **kwargs: Any) -> Signature[Any]:
        """A call by name for ``krq.chain`` and ``krq.group``: what ``task.s`` is where the function is not importable."""
        return Signature(self, Call(name, args, kwargs, self.registry.get(name)))

    def chain_tasks(self, tasks: Sequence[Sequence[Any]], final_callback: Callable[[list[Any]], object] | None = None) -> ChainHandle[Any]:
        """Run ``[(name, args), …]`` one after the other, each with its own arguments: see ``krq.modules.chaining``."""
        return find(self.modules, Chaining).chain_tasks(self, tasks, final_callback)

    def group_tasks(self, tasks: Sequence[Sequence[Any]], final_task: Sequence[Any]) -> ChainHandle[Any]:
        """Run ``[(name, args), …]`` side by side, then ``(name, args)``: see ``krq.modules.grouping``."""
        return find(self.modules, Grouping).group_tasks(self, tasks, final_task)

    def serving(self, name: str) -> list[WorkerInfo]:
        """The live workers that know a task of this name."""
        return self._clients.inspector.serving(name)

    # --- look --------------------------------------------------------------------------------

    def handle(self, task_id: str) -> TaskHandle[Any]:
        """A handle of a task that was sent elsewhere."""
        return TaskHandle(ids.check_task_id(task_id), self)

    def status(self, task_id: str | TaskHandle[Any]) -> TaskInfo:
        """A task as it stands. Raises ``TaskNotFound``."""
        info = self._clients.inspector.infos([str(task_id)])[0]
        if info is None:
            raise TaskNotFound(f"No task {str(task_id)!r} is known")
        return info

    def result(self, task_id: str | TaskHandle[Any], timeout: float | None = None) -> Any:
        """Wait for the end and return the result; see ``TaskHandle.result``."""
        return self._clients.outcomes.results([str(task_id)], timeout)[0]

    async def aresult(self, task_id: str | TaskHandle[Any], timeout: float | None = None) -> Any:
        """``result`` for coroutines: waits without blocking the event loop."""
        return (await self._clients.outcomes.aresults([str(task_id)], timeout))[0]

    def results(self, task_ids: Sequence[str], timeout: float | None = None) -> list[Any]:
        """Wait for all of these and return their results in order; raises as soon as one has ended in another way."""
        return self._clients.outcomes.results(task_ids, timeout)

    async def aresults(self, task_ids: Sequence[str], timeout: float | None = None) -> list[Any]:
        """``results`` for coroutines."""
        return await self._clients.outcomes.aresults(task_ids, timeout)

    def ends(self, task_ids: Sequence[str], timeout: float | None = None) -> Iterator[str]:
        """The ids in the order in which the tasks end, in whatever way. Raises ``ResultTimeout`` when some are late."""
        return self._clients.outcomes.ends(task_ids, timeout)

    def when_ended(self, task_ids: Sequence[str], call: Callable[[], object]) -> None:
        """Call this once, in a thread of the app, when all of these have succeeded or one has not. It must be quick."""
        self._clients.outcomes.when_ended(task_ids, call)

    def ended(self, task_ids: Sequence[str]) -> int:
        """How many of these have ended by now, in whatever way."""
        return self._clients.outcomes.ended(task_ids)

    def children(self, task_id: str | TaskHandle[Any]) -> list[str]:
        """Ids of the tasks that this one made while it ran (``Context.spawn``), in order."""
        return self._clients.inspector.children(str(task_id))

    def infos(self, task_ids: Sequence[str]) -> list[TaskInfo | None]:
        """These tasks as they stand, None for those that nobody knows."""
        return self._clients.inspector.infos(task_ids)

    def tasks(self, status: TaskStatus | str | None = None, name: str | None = None, limit: int = 100, *, queue: str | None = None,
              worker: str | None = None) -> list[TaskInfo]:
        """At most ``limit`` tasks of a status, a name, a queue, a worker (None: any); bounded work, never a scan of all."""
        wanted = TaskFilter(status=None if status is None else TaskStatus(status), name=name, queue=queue, worker=worker)
        return self._clients.inspector.tasks(wanted, limit)

    def page(self, wanted: TaskFilter | None = None, cursor: str | None = None, limit: int = 50) -> TaskPage:
        """The same page by page, with a filter by status, name, queue and worker: see ``Inspector.page``."""
        return self._clients.inspector.page(wanted or TaskFilter(), cursor, limit)

    def arguments(self, task_id: str | TaskHandle[Any]) -> Arguments | None:
        """What a task was sent with, without what ``mask`` hides. None: not known, or it has succeeded and its message is gone."""
        return self._clients.inspector.arguments([str(task_id)])[0]

    @property
    def inspector(self) -> Inspector:
        """The read side on its own: what the commands and the dashboard look through."""
        return self._clients.inspector

    def workers(self) -> list[WorkerInfo]:
        """The live workers with their slots, totals and last heartbeat."""
        return self._clients.inspector.workers()

    def failures(self, limit: int = 100) -> list[WorkerFailure]:
        """Deaths of workers, the latest first."""
        return self._clients.inspector.failures(limit)

    def stats(self) -> Stats:
        """Numbers of each queue and of all."""
        return self._clients.inspector.stats()

    # --- act ---------------------------------------------------------------------------------

    def cancel(self, task_id: str | TaskHandle[Any]) -> bool:
        """End a task that has not started, tell a running one to stop. False: it had ended. Raises ``TaskNotFound``."""
        return administer.cancel(self.config, self._clients.store, self._clients.broker, str(task_id))

    def cancel_all(self, task_ids: Sequence[str]) -> int:
        """``cancel`` for many, the last first, so that none fails for want of another. Returns how many had not ended."""
        return administer.cancel_all(self.config, self._clients.store, self._clients.broker, task_ids)

    def cancel_many(self, name: str | None = None, queue: str | None = None, key: str | None = None) -> int:
        """``cancel`` for all tasks of a name, a queue, a key, or what is given of them. Returns how many had not ended.

        Of those in the schedule: what stands in the log alone, behind a full window, is not reached; call it again. Not atomic:
        what is sent meanwhile may be met or not. Each page of 500 is in the log before it is cancelled.
        """
        return selection.cancel(self._clients.store, Selection(name, queue, key), self.cancel_all)

    def pause(self, queue: str) -> None:
        """Workers take nothing more of a queue until ``resume``; what runs goes on."""
        administer.control(self.config, self._clients.store, self._clients.broker, ids.check_queue(queue), paused=True)

    def resume(self, queue: str) -> None:
        """Undo ``pause``."""
        administer.control(self.config, self._clients.store, self._clients.broker, ids.check_queue(queue), paused=False)

    def purge(self, queue: str) -> int:
        """Drop all that is ready or scheduled in a queue, and its backlog in the log. Returns how many were in the schedule."""
        return administer.purge(self.config, self._clients.store, self._clients.broker, ids.check_queue(queue))

    def clear(self) -> int:
        """Purge every queue. What runs goes on. Returns how many tasks were dropped from the schedule."""
        return sum(self.purge(queue) for queue in self._clients.inspector.queues())

    def note(self, act: str, concerns: str, data: Mapping[str, Any]) -> None:
        """Write an act into the log before it is done: for modules. Raises ``BrokerConnectionError``."""
        administer.note(self.config, self._clients.broker, act, concerns, data)

    # --- run ---------------------------------------------------------------------------------

    def config_worker(self, group_id: str | None = None, topic: str | None = None, worker_id: str | None = None,
                      queues: Sequence[str] | None = None) -> None:
        """Say what ``run`` shall be: ``topic`` is this worker's own inbox, served beside the shared ``queues``.

        ``group_id``: consumer group, ``worker_id``: its name (default host-pid), ``queues``: default the app's queue and
        those of its tasks. What is not given stays as it was.
        """
        if group_id is not None:
            self.config = msgspec.structs.replace(self.config, group=group_id)
        if topic is not None:
            self._setup = self._setup._replace(inbox=ids.check_queue(topic))
        if worker_id is not None:
            self._setup = self._setup._replace(worker_id=ids.check_task_id(worker_id))
        if queues is not None:
            self._setup = self._setup._replace(queues=queues)

    def run(self, task_func: CatchAll | None = None, processes: int = 1) -> None:
        """Work until SIGTERM or SIGINT; a second signal ends it at once. From the main thread.

        ``task_func(task_type, args)`` serves the names nobody registered. Forks ``processes`` children that run the tasks.
        Raises ``WorkerInitializationError`` or ``WorkerRecoveryError``.
        """
        if task_func is not None:
            self.registry.catch_all = task_func
        self.close(forever=False)
        spec = Spec(self.config, self.registry, self.modules, self.served_queues, brokers.make, self._setup.inbox or "",
                    definitions(self.modules, self.registry))
        work.run(spec, self._setup.worker_id or ids.default_worker_id(), processes)

    @property
    def served_queues(self) -> list[str]:
        """The queues that ``run`` serves: the own inbox first, then the shared ones."""
        shared = self._setup.queues or [self.config.queue, *(t.settings["queue"] for t in self.registry if "queue" in t.settings)]
        return list(dict.fromkeys([*([self._setup.inbox] if self._setup.inbox else []), *map(ids.check_queue, shared)]))

    # --- clients -----------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The schedule itself: for modules. Belongs to this process."""
        return self._clients.store

    @property
    def broker(self) -> brokers.Broker:
        """The log itself: the same."""
        return self._clients.broker

    @property
    def _clients(self) -> _Clients:
        made = self._made
        if made is not None and made.pid == os.getpid():
            return made
        if self._closed:
            raise AppClosed("This app was closed")
        if made is not None:  # forked: what belongs to the parent is left alone
            self._lock = threading.Lock()
        with self._lock:
            if self._made is None or self._made.pid != os.getpid():
                self._made = self._connect()
            return self._made

    def _connect(self) -> _Clients:
        store = Store(self.config)
        broker = brokers.make(self.config)
        waiter = Waiter(store)
        atexit.register(waiter.close)
        inspector = Inspector(self.config, store, broker)
        submitter = Submitter(self.config, broker, store, self.modules, waiter.expect)
        return _Clients(os.getpid(), store, broker, submitter, waiter, inspector, Outcomes(waiter, inspector))

    def close(self, *, forever: bool = True) -> None:
        """Let go of all connections; whoever waits for a result gets ``AppClosed``. May be repeated."""
        self._closed = self._closed or forever
        with self._lock:
            made, self._made = self._made, None
        if made is not None and made.pid == os.getpid():
            made.waiter.close()
            made.broker.close()
            made.store.close()

    def __enter__(self) -> KRQ:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<KRQ {self.config.namespace!r} on {config.mask(self.config.broker)} and {config.mask(self.config.backend)}>"
