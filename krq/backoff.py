"""How long to wait before the next attempt."""

from __future__ import annotations

import math
import random

import msgspec

from krq.durations import CENTURY
from krq.errors import OptionError


class Backoff(msgspec.Struct, frozen=True):
    """``first * factor ** n + step * n`` seconds after n earlier failures, at most ``most``, spread by ``jitter``.

    ``jitter`` is the part of the wait that is left to chance: 0 none, 0.5 between half and the whole, 1 anything.
    ``exponential``, ``linear`` and ``fixed`` make the usual ones. Raises ``OptionError`` for what makes no sense.
    """

    first: float = 1.0
    factor: float = 2.0
    most: float = 600.0
    jitter: float = 0.5
    step: float = 0.0

    def __post_init__(self) -> None:
        sane = 0 <= self.first <= self.most <= CENTURY and 1 <= self.factor < math.inf and 0 <= self.step <= CENTURY
        if not (sane and 0 <= self.jitter <= 1):
            cure = "0 <= first <= most <= a hundred years, factor >= 1, step >= 0, 0 <= jitter <= 1."
            raise OptionError(f"{self} makes no sense", cure=cure)

    @classmethod
    def exponential(cls, first: float = 1.0, factor: float = 2.0, most: float = 600.0, jitter: float = 0.5) -> Backoff:
        """``first`` seconds, then ``factor`` times as long each time: the default."""
        return cls(first=first, factor=factor, most=most, jitter=jitter)

    @classmethod
    def linear(cls, first: float = 1.0, step: float | None = None, most: float = 600.0, jitter: float = 0.5) -> Backoff:
        """``first`` seconds, then ``step`` (None: ``first``) longer each time."""
        return cls(first=first, factor=1.0, most=most, jitter=jitter, step=first if step is None else step)

    @classmethod
    def fixed(cls, wait: float, jitter: float = 0.0) -> Backoff:
        """``wait`` seconds each time."""
        return cls(first=wait, factor=1.0, most=wait, jitter=jitter)

    def ceiling(self, failures: int) -> float:
        """The longest wait, in seconds, after so many failures (1, 2, …)."""
        before = max(0, failures - 1)
        try:
            return min(self.most, (self.first * self.factor**before if self.first else 0.0) + self.step * before)
        except OverflowError:
            return self.most

    def delay(self, failures: int, chance: float | None = None) -> float:
        """The wait after so many failures; ``chance`` in [0, 1) replaces the random number."""
        part = random.random() if chance is None else chance
        return self.ceiling(failures) * (1 - self.jitter * part)
