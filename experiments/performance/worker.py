"""The child process of one thread setting: plays its matches and prints each as a line of JSON.

Started by ``benchmark.py``, which sets the environment that BLAS, PyTorch and XLA read once, when
they are imported.
"""

import gc
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

RATIOS = (
    ("ours, norms", "PyTorch"),
    ("ours, norms", "PyTorch, norms"),
    ("ours, norms", "JAX, norms"),
    ("ours, norms", "floor"),
    ("ours, norms", "ours"),
    ("ours, default instruments", "ours"),
    ("ours, every instrument", "ours"),
    ("ours", "PyTorch"),
    ("ours", "JAX"),
    ("floor", "PyTorch"),
    ("JAX", "PyTorch"),
    ("PyTorch, norms", "PyTorch"),
    ("JAX, norms", "PyTorch"),
)
"""Whose time over whose."""


def measure_row(
    threads: dict[str, int], cell: str, shape: tuple[int, int, int], dtype: str, seconds: float
) -> dict[str, Any]:
    """One row of the results: every contestant checked, then timed."""
    import contest
    import floor
    import ours
    from peers import jax_scan
    from peers.pytorch import PyTorch
    from problem import Shape, random_problem

    problem = random_problem(cell, Shape(*shape), dtype)
    executor = None
    if threads["gradpath"] > 1:
        problem = replace(problem, network=replace(problem.network, splits_large_passes=True))
        executor = ThreadPoolExecutor(threads["gradpath"] - 1)
    ours_contestants = list(ours.contestants(problem, executor))
    torch_peer = PyTorch(problem)
    reference = ours_contestants[1].read(ours_contestants[1].run())
    chosen = [*ours_contestants, floor.contestant(problem, threads["numpy"] or 1)]
    for peer_contestants in (
        torch_peer.plain(),
        torch_peer.with_norms(),
        jax_scan.plain(problem),
        jax_scan.with_norms(problem),
    ):
        candidates = list(peer_contestants)
        for contestant in candidates:
            contest.check(
                f"{contestant.name} ({contestant.variant})", contestant.read(contestant.run()), reference, dtype
            )
        chosen.append(contest.fastest(candidates))
    samples = contest.rounds(chosen, seconds)
    return {
        "cell": cell,
        "shape": list(shape),
        "dtype": dtype,
        "milliseconds": {
            contestant.name: summary(list(contestant.stages), samples[contestant.name]) for contestant in chosen
        },
        "ways": {contestant.name: contestant.variant for contestant in chosen if contestant.variant},
        "ratios": ratios(samples),
    }


def summary(stages: list[str], samples: NDArray) -> dict[str, Any]:
    """Quartiles over the rounds of the whole step in ms, the median of each of its stages, and the
    processor's time over that of the clock: below 1 where others had the processor, above where
    several threads ran.
    """
    seconds = samples[:, :-1]
    totals = seconds.sum(axis=1)
    lower, median, upper = (round(1e3 * float(value), 4) for value in np.quantile(totals, (0.25, 0.5, 0.75)))
    statistics = {"rounds": len(totals), "median": median, "lower quartile": lower, "upper quartile": upper}
    statistics["shortest"] = round(1e3 * float(totals.min()), 4)
    statistics["processor"] = round(float(samples[:, -1].sum() / totals.sum()), 3)
    medians = np.median(1e3 * seconds, axis=0).round(4).tolist()
    return statistics | {"stages": dict(zip(stages, medians, strict=True))}


def ratios(samples: dict[str, NDArray]) -> dict[str, list[float]]:
    """Median over the rounds of the ratio within a round, and its interval; over the rounds that
    both have played.
    """
    from ratios import median_interval

    totals = {name: rows[:, :-1].sum(axis=1) for name, rows in samples.items()}
    intervals = {}
    for numerator, denominator in RATIOS:
        if numerator in totals:
            count = min(len(totals[numerator]), len(totals[denominator]))
            interval = median_interval(totals[numerator][:count] / totals[denominator][:count])
            intervals[f"{numerator} / {denominator}"] = [round(value, 4) for value in interval]
    return intervals


def main() -> None:
    """Reads the matches from standard input: {"threads": "one" or "default", "matches": [what
    ``measure_row`` gets …]}.
    """
    order = json.load(sys.stdin)
    if order["threads"] == "one" and hasattr(os, "sched_setaffinity"):
        # XLA takes as many threads as it may use processors, whatever its flags say.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from threadpoolctl import threadpool_limits

    import machine
    from contest import MismatchError

    libraries = machine.libraries()
    print(json.dumps(libraries), flush=True)
    for match in order["matches"]:
        try:
            with threadpool_limits(1, "blas"):  # as `gradpath run` does
                print(json.dumps(measure_row(libraries["threads"], *match)), flush=True)
        except MismatchError as error:
            sys.exit(f"benchmark: {match[0]}, (T, B, H) = {match[1]}: {error}")
        machine.forget_compiled()
        gc.collect()


if __name__ == "__main__":
    main()
