"""Lengths of time as users write them: seconds, or a timedelta."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from krq.errors import OptionError

#: seconds; whoever asks for longer has mistaken the unit
CENTURY = 100 * 365.25 * 86_400


def seconds(what: str, value: Any) -> float:
    """``value`` as seconds: 0 to a hundred years. Raises ``OptionError``, which begins with ``what``."""
    try:
        number = value.total_seconds() if isinstance(value, timedelta) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = -1.0
    if isinstance(value, bool | str) or not 0 <= number <= CENTURY:
        raise OptionError(f"{what}={value!r} is no length of time", cure="Give seconds, 0 to those of a hundred years, or a timedelta.")
    return number
