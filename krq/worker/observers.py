"""The hooks of modules that watch: they are told what happens, and decide nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from krq.hooks import Module

log = logging.getLogger("krq.worker")

OBSERVERS = ("received", "started", "ended", "worker_started", "worker_stopping", "worker_stopped", "tick", "host_ended")


class Observers:
    """Tells modules. One that fails is logged, and changes nothing. Free for a hook that no module has. Thread-safe."""

    def __init__(self, modules: Sequence[Module]) -> None:
        self._modules = modules
        self._hooks: dict[str, list[Callable[..., object]]] = {
            hook: [getattr(m, hook) for m in modules if getattr(type(m), hook) is not getattr(Module, hook)] for hook in OBSERVERS
        }

    def tell(self, hook: str, *args: Any) -> None:
        """Tell all that have this hook."""
        for tell in self._hooks[hook]:
            try:
                tell(*args)
            except BaseException:  # boundary: observers may fail
                log.exception("%s failed; the worker goes on", tell.__qualname__)

    def tell_one(self, place: int, hook: str, *args: Any) -> None:
        """Tell the one at this place of the list."""
        tell = getattr(self._modules[place], hook)
        try:
            tell(*args)
        except BaseException:  # boundary: the same
            log.exception("%s failed; the worker goes on", tell.__qualname__)
