"""The numbers of a look as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from krq import exposition
from krq.dashboard.errors import WebRequestInvalid
from krq.rates import WINDOWS

#: names, help, and the field of a queue
_GAUGES = (
    ("krq_queue_ready", "Tasks that wait for a worker.", "ready"),
    ("krq_queue_scheduled", "Tasks that wait for their time.", "scheduled"),
    ("krq_queue_parked", "Tasks that are ready, but for a limit of theirs.", "parked"),
    ("krq_queue_backlog", "Records in the log that were not admitted yet.", "backlog"),
    ("krq_queue_paused", "1 where workers take nothing.", "paused"),
)
_TOTALS = (
    ("krq_processing", "Tasks that workers hold.", "processing"),
    ("krq_waiting", "Tasks that wait for other tasks.", "waiting"),
    ("krq_dead_letters", "Dead letters at hand, at most 1,000.", "dead"),
    ("krq_outbox", "Ended attempts that the log has not got yet. Grows while the broker is away.", "outbox"),
    ("krq_workers", "Live workers.", "workers"),
    ("krq_slots", "Tasks that they can run at a time.", "slots"),
)
_ENDS = ("succeeded", "failed", "cancelled", "retried")
_RATES = (("ended", "rates"), ("failed", "failure_rates"))


class Metrics:
    """Writes the text format. Without ``prometheus-client`` asking for it is refused, with the cure."""

    content_type = exposition.CONTENT_TYPE

    def text(self, seen: Mapping[str, Any]) -> bytes:
        """An overview as text. Raises ``WebRequestInvalid`` (501) where the library is missing."""
        try:
            return exposition.text(_Families(seen).collect)
        except ImportError as error:
            raise WebRequestInvalid("prometheus-client is not installed", cure=exposition.CURE, status=501) from error


class _Families:
    def __init__(self, seen: Mapping[str, Any]) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Any]:
        """All metric families."""
        yield from self._of_queues(self._seen["queues"])
        yield from self._of_all()

    def _of_queues(self, queues: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, text, field in _GAUGES:
            family = GaugeMetricFamily(name, text, labels=["queue"])
            for queue in queues:
                if queue[field] >= 0:  # -1: the broker has not answered
                    family.add_metric([queue["queue"]], float(queue[field]))
            yield family
        ends = CounterMetricFamily("krq_attempts", "Ended attempts.", labels=["queue", "outcome"])
        rates = GaugeMetricFamily("krq_queue_rate", "Tasks a second, over so many seconds.", labels=["queue", "outcome", "window"])
        for queue in queues:
            for outcome in _ENDS:
                ends.add_metric([queue["queue"], outcome], queue[outcome])
            for outcome, field in _RATES:
                for window, rate in zip(WINDOWS, queue[field], strict=True):
                    rates.add_metric([queue["queue"], outcome, str(window)], rate)
        yield ends
        yield rates

    def _of_all(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, text, field in _TOTALS:
            yield GaugeMetricFamily(name, text, value=self._seen["totals"][field])
        latency = GaugeMetricFamily("krq_latency_seconds", "Of the last 100 tasks that ended.", labels=["of", "quantile"])
        for of, field, quantile in (("wait", "wait", "0.5"), ("wait", "wait95", "0.95"), ("run", "run", "0.5"), ("run", "run95", "0.95")):
            value = self._seen["latency"][field]
            if value is not None:
                latency.add_metric([of, quantile], value)
        yield latency
