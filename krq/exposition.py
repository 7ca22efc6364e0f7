"""Numbers in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: for who asks without the library
CURE = "pip install 'krq[metrics]'"


def text(collect: Callable[[], Iterator[Any]]) -> bytes:
    """Metric families as text. Raises ``ImportError`` without ``prometheus-client``."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(collect))
    return generate_latest(registry)


class _Collector:
    def __init__(self, collect: Callable[[], Iterator[Any]]) -> None:
        self.collect = collect
