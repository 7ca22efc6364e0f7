"""What a worker's processes are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from krq.brokers.base import Broker
from krq.config import Config
from krq.hooks import Module
from krq.registry import Registry


class Spec(NamedTuple):
    """What a child is made of, and its hosts. Nothing in it holds a connection: it crosses a fork."""

    config: Config
    registry: Registry
    modules: Sequence[Module]
    queues: Sequence[str]
    make_broker: Callable[[Config], Broker]
    inbox: str = ""
    """one of ``queues`` that is this worker's own; "": each child has one that is named after it"""
    limits: Sequence[tuple[str, str | bool]] = ()
    """of the registered names: JSON as places.lua reads it, or False"""
