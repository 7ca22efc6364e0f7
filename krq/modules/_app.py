"""What modules ask of the app that they are attached to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from krq.call import Sender
from krq.config import Config
from krq.hooks import Module
from krq.registry import Registry
from krq.store.client import Store


class Keeper(Protocol):
    """It keeps what a module decides: in Redis, and noted in the log."""

    registry: Registry

    @property
    def store(self) -> Store: ...

    def note(self, act: str, concerns: str, data: Mapping[str, Any]) -> None: ...


class App(Sender, Keeper, Protocol):
    """It sends, too."""

    config: Config
    modules: list[Module]
