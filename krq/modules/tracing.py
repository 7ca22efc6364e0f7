"""OpenTelemetry: spans from whoever sends a task to the worker that runs it. Off unless it is among the app's modules.

    app = krq.KRQ(modules=[*krq.modules.default(), Tracing()])

The trace travels in the message's headers, as W3C Trace Context. It says nothing about what a message asks for, so a task that is sent
again under its id is the same task (``krq.message.checksum``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import msgspec

from krq.hooks import Attempt, Module
from krq.message import Message
from krq.outcome import Cancelled, Died, ErrorInfo, Failed, Outcome, RetryAt, Succeeded, TimedOut
from krq.version import __version__

try:
    from opentelemetry import context, propagate, trace
    from opentelemetry.context import Context
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TracerProvider
except ImportError as error:
    raise ImportError("krq.modules.tracing needs OpenTelemetry: pip install 'krq[tracing]'") from error

#: milliseconds that spans get to leave when a worker ends
FLUSH = 5_000
#: workflows that are remembered, so that what was sent together is one trace
FLOWS = 1_000


class Tracing(Module):
    """A span where a task is sent, and one for each attempt to run it, which is current while its function runs.

    ``provider``: None for the one that ``opentelemetry.trace.set_tracer_provider`` was given, whenever that happens. Without the
    SDK nothing is recorded, and nothing added to messages.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = trace.get_tracer("krq", __version__, provider)
        self._running = threading.local()
        self._flows: OrderedDict[str, SpanContext] = OrderedDict()
        self._lock = threading.Lock()

    # --- the sender --------------------------------------------------------------------------

    def submit(self, message: Message, options: Mapping[str, Any]) -> Message:  # noqa: ARG002
        """Put the trace into the message's headers, those that find it there first."""
        above = self._above(message)
        attributes = {"messaging.operation.name": "create", "messaging.operation.type": "create", **_attributes(message, message.task_id)}
        span = self._tracer.start_span(f"create {message.task}", above, SpanKind.PRODUCER, attributes)
        span.end()
        if not span.get_span_context().is_valid:
            return message
        self._remember(message, span.get_span_context())
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span, above))
        own = {name: value for name, value in message.headers.items() if name not in carrier}
        return msgspec.structs.replace(message, headers={**carrier, **own})  # in front: see message.checksum

    def _above(self, message: Message) -> Context:
        """What the new span belongs to: what the message says, who sends it, or what was sent before it in its workflow."""
        here = context.get_current()
        if "traceparent" in message.headers:
            return propagate.extract(_texts(message.headers), here)
        if trace.get_current_span(here).get_span_context().is_valid or message.workflow is None:
            return here
        with self._lock:
            before = self._flows.get(message.workflow)
        return here if before is None else trace.set_span_in_context(trace.NonRecordingSpan(before), here)

    def _remember(self, message: Message, span: SpanContext) -> None:
        if message.workflow is not None:
            with self._lock:
                self._flows.setdefault(message.workflow, span)
                while len(self._flows) > FLOWS:
                    self._flows.popitem(last=False)

    # --- the worker --------------------------------------------------------------------------

    def started(self, attempt: Attempt) -> None:
        """The attempt's span begins, below that of the sender, and is the current one of the slot."""
        message = attempt.message
        above = propagate.extract(_texts(message.headers), Context())
        span = self._tracer.start_span(f"process {message.task}", above, SpanKind.CONSUMER, {
            "messaging.operation.name": "process", "messaging.operation.type": "process", **_attributes(message, attempt.id),
            "messaging.destination.name": attempt.queue, "krq.attempt": attempt.number, "krq.worker": attempt.worker,
        })
        self._running.span = span, context.attach(trace.set_span_in_context(span, above))

    def ended(self, attempt: Attempt, outcome: Outcome) -> None:  # noqa: ARG002
        """It ends, with what became of it."""
        span, token = self._running.__dict__.pop("span")
        said, error = _end(outcome)
        span.set_attribute("krq.outcome", said)
        if error is not None:
            span.add_event("exception", {
                "exception.type": error.type, "exception.message": error.message, "exception.stacktrace": error.traceback,
            })
            span.set_status(Status(StatusCode.ERROR, f"{error.type}: {error.message}"))
        span.end()
        context.detach(token)

    def worker_stopped(self, worker_id: str) -> None:  # noqa: ARG002
        """What the SDK has not sent yet goes out: the process ends without its exit handlers."""
        flush = getattr(self._provider or trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush(FLUSH)


def _attributes(message: Message, task_id: str) -> dict[str, Any]:
    found = {"messaging.system": "krq", "messaging.message.id": task_id, "krq.task": message.task}
    return found if message.workflow is None else {**found, "messaging.message.conversation_id": message.workflow}


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _end(outcome: Outcome) -> tuple[str, ErrorInfo | None]:
    match outcome:
        case Succeeded(family=family):
            return "success" if family is None else "spawned", None
        case RetryAt(error=error):
            return "retry", error
        case Failed(error=error) | TimedOut(error=error):
            return "failed", error
        case Died(cause=cause):
            return "died", ErrorInfo("DIED", cause)
        case Cancelled():
            return "cancelled", None
