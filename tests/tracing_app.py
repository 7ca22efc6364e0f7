"""The app that the worker of test_tracing.py runs. Spans go to a file, and not before the worker ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TextIO

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

import krq
from krq.info import Event
from krq.modules import default
from krq.modules.tracing import Tracing

app = krq.KRQ(modules=[*default(), Tracing()])
quick = krq.Backoff(first=0.05, most=0.1)


@app.on("worker_started")
def record(_: Event) -> None:
    """In the child: exporters do not cross a fork."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=spans_file(), formatter=line), schedule_delay_millis=600_000))
    trace.set_tracer_provider(provider)


def spans_file() -> TextIO:
    return Path(os.environ["SPANS"]).open("a")


def line(span: ReadableSpan) -> str:
    return span.to_json(indent=None) + "\n"


def here() -> list[str]:
    """Trace and span that are current."""
    found = trace.get_current_span().get_span_context()
    return [f"0x{found.trace_id:032x}", f"0x{found.span_id:016x}"]


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task
def where() -> list[str]:
    return here()


@app.task
async def awhere() -> list[str]:
    return here()


@app.task(retries=1, backoff=quick)
def once() -> list[str]:
    if krq.current().attempt == 1:
        raise ValueError("not yet")
    return here()


@app.task(retries=0)
def never(token: str) -> None:
    raise LookupError("nothing there")


@app.task
def parent() -> list[str]:
    """Sends a task, and makes one."""
    add.options(task_id="sent-inside").send(1, 1)
    krq.current().spawn(add, 2, 2)
    return here()


@app.task(isolate=True)
def alone() -> list[str]:
    return here()


if __name__ == "__main__":
    import sys

    app.config_worker(worker_id=sys.argv[1])
    app.run()
