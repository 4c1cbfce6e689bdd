"""Contestants checked against each other, and then timed: interleaved, in random order, round by
round in one process.

The machine's noise makes absolute times worthless, but it hits all contestants of a round nearly
alike.
"""

from collections.abc import Sequence
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from problem import Answer, Contestant

TOLERANCE = {"float64": 1e-9, "float32": 1e-4}
MIN_ROUNDS = 6
"""Rounds; the extremes of 6 enclose the median with probability 97 %."""
TRIALS, NEAR = 4, 1.5


class MismatchError(AssertionError):
    """Two contestants do not give the same numbers."""


def check(name: str, answer: Answer, reference: Answer, dtype: str) -> None:
    """Holds loss, every parameter's gradient (relative to its norm) and every norm of every step to
    the tolerance; raises MismatchError.
    """
    _close(f"{name}: loss", np.array([answer.loss]), np.array([reference.loss]), dtype)
    for parameter, expected in reference.gradient.items():
        _close(f"{name}: gradient of {parameter}", answer.gradient[parameter].ravel(), expected.ravel(), dtype)
    if answer.norms is None:
        return
    assert reference.norms is not None
    for parameter, expected in reference.norms.items():
        for step, (norm, expected_norm) in enumerate(zip(answer.norms[parameter], expected, strict=True), 1):
            _close(f"{name}: norm of {parameter} at step {step}", np.array([norm]), np.array([expected_norm]), dtype)


def _close(quantity: str, values: NDArray, expected: NDArray, dtype: str) -> None:
    error, size = np.linalg.norm(values - expected), np.linalg.norm(expected)
    if not error <= TOLERANCE[dtype] * size:  # NaN fails, and what ought to be 0 must be
        raise MismatchError(
            f"{quantity} is off by {error:.1e} of {size:.1e}, more than {TOLERANCE[dtype]:.0e}, in {dtype}"
        )


def fastest(variants: Sequence[Contestant]) -> Contestant:
    """Of several ways of doing the same the one with the shortest of a few interleaved trials;
    after the first, only those go on that are ``NEAR`` the best.
    """
    best = dict.fromkeys(range(len(variants)), np.inf)
    for trial in range(TRIALS):
        for index, seconds in best.items():
            if trial and seconds > NEAR * min(best.values()):
                continue
            start = perf_counter()
            variants[index].run()
            best[index] = min(seconds, perf_counter() - start)
    return variants[min(best, key=best.__getitem__)]


def rounds(contestants: Sequence[Contestant], seconds: float, seed: int = 0) -> dict[str, NDArray]:
    """Name → (rounds, stages + 1) seconds of each stage, and of the processor for the whole step;
    as many rounds as fit into ``seconds``, but at least ``MIN_ROUNDS``.
    """
    rng = np.random.default_rng(seed)
    samples: dict[str, list[list[float]]] = {contestant.name: [] for contestant in contestants}
    start = perf_counter()
    for count in range(max(contestant.most for contestant in contestants)):
        if count >= MIN_ROUNDS and perf_counter() - start > seconds:
            break
        taking_part = [contestant for contestant in contestants if count < contestant.most]
        for index in rng.permutation(len(taking_part)):
            value, processor, marks = None, process_time(), [perf_counter()]
            for stage in taking_part[index].stages.values():
                value = stage(value)
                marks.append(perf_counter())
            value = None  # giving back its memory is part of a step
            marks[-1] = perf_counter()
            samples[taking_part[index].name].append([*np.diff(marks).tolist(), process_time() - processor])
    return {name: np.array(rows) for name, rows in samples.items()}
