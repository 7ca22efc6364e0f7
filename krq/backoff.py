"""How long to wait before the next attempt."""

from __future__ import annotations

import random

import msgspec

from krq.errors import OptionError


class Backoff(msgspec.Struct, frozen=True):
    """Exponential back-off: ``first * factor ** n`` seconds, at most ``most``, spread by ``jitter``.

    ``jitter`` is the part of the wait that is left to chance: 0 none, 0.5 between half and the whole, 1 anything.
    """

    first: float = 1.0
    factor: float = 2.0
    most: float = 600.0
    jitter: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.most or not self.factor >= 1 or not 0 <= self.jitter <= 1:
            raise OptionError(f"{self} makes no sense", cure="0 <= first <= most, factor >= 1, 0 <= jitter <= 1.")

    def ceiling(self, failures: int) -> float:
        """The longest wait, in seconds, after so many failures (1, 2, …)."""
        try:
            return min(self.most, self.first * self.factor ** max(0, failures - 1))
        except OverflowError:
            return self.most

    def delay(self, failures: int, chance: float | None = None) -> float:
        """The wait after so many failures; ``chance`` in [0, 1) replaces the random number."""
        part = random.random() if chance is None else chance
        return self.ceiling(failures) * (1 - self.jitter * part)
