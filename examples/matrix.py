"""Arithmetic on numbers and matrices, sent as one batch. Needs numpy.

    krq worker examples.matrix:app         in one terminal
    python examples/matrix.py              in another

Results are rounded where the call says `round_to`.
"""

import operator
import sys
from functools import reduce
from typing import Any

import numpy as np

from krq import KRQ, ResultTimeout, TaskFailed

Matrix = list[list[float]]

app = KRQ()


def _rounded(value: Any, round_to: int | None) -> Any:
    """What JSON can carry: plain numbers and lists, rounded to so many digits."""
    plain = np.asarray(value) if round_to is None else np.round(np.asarray(value, dtype=float), round_to)
    return plain.tolist()


@app.task
def addition(*numbers: float, round_to: int | None = None) -> float:
    return _rounded(sum(numbers), round_to)


@app.task
def subtraction(first: float, *others: float, round_to: int | None = None) -> float:
    return _rounded(first - sum(others), round_to)


@app.task
def multiplication(*numbers: float, round_to: int | None = None) -> float:
    return _rounded(reduce(operator.mul, numbers, 1), round_to)


@app.task(retries=0)
def division(dividend: float, divisor: float, round_to: int | None = None) -> float:
    return _rounded(dividend / divisor, round_to)


@app.task
def power(base: float, exponent: float, round_to: int | None = None) -> float:
    return _rounded(base**exponent, round_to)


@app.task(retries=0)
def root(number: float, degree: int = 2, round_to: int | None = None) -> float:
    if number < 0:
        raise ValueError(f"{number} has no real root of degree {degree}")
    return _rounded(number ** (1 / degree), round_to)


@app.task(retries=0)
def matrix_addition(first: Matrix, *others: Matrix, round_to: int | None = None) -> Matrix:
    return _rounded(reduce(np.add, map(np.asarray, others), np.asarray(first)), round_to)


@app.task(retries=0)
def matrix_multiplication(first: Matrix, *others: Matrix, round_to: int | None = None) -> Matrix:
    return _rounded(reduce(np.matmul, map(np.asarray, others), np.asarray(first)), round_to)


BATCH: list[dict[str, Any]] = [
    {"task": "addition", "args": [10, 20, 30], "kwargs": {"round_to": 2}},
    {"task": "multiplication", "args": [2.5, 3.5], "kwargs": {"round_to": 1}},
    {"task": "subtraction", "args": [100, 58]},
    {"task": "division", "args": [22, 7], "kwargs": {"round_to": 4}},
    {"task": "power", "args": [2, 10]},
    {"task": "root", "args": [27, 3], "kwargs": {"round_to": 6}},
    {"task": "matrix_addition", "args": [[[1, 2], [3, 4]], [[10, 20], [30, 40]]]},
    {"task": "matrix_multiplication", "args": [[[1, 2], [3, 4]], [[0, 1], [1, 0]]]},
    {"task": "matrix_multiplication", "args": [[[1, 2, 3]], [[1, 2, 3]]]},  # shapes that do not fit: fails, alone
    {"task": "division", "args": [1, 0]},
]


def main() -> int:
    for call, handle in zip(BATCH, app.submit_many(BATCH), strict=True):
        try:
            outcome = str(handle.result(timeout=30))
        except TaskFailed as error:
            outcome = f"failed, {error.kind}: {error.message.splitlines()[0]}"
        except ResultTimeout:
            print("Nothing came back. Start a worker: krq worker examples.matrix:app", file=sys.stderr)
            return 1
        print(f"{call['task']:22} {call['args']!s:36} {outcome}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
