"""Where it pays to cut a pass in two for two threads: a whole training step, over cell, T, B, H and
dtype.

    python experiments/performance/threads.py [FILE.json]

Three trainings of one configuration run side by side: whole in one thread, in halves in one thread,
in halves in two. They take turns step by step, so that all see the same disturbances of the
machine. Printed and kept: the medians of the ratios to the first. From these comes the rule in
``gradpath.engine.partition``.
"""

import json
import os
import sys
import time
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
from threadpoolctl import ThreadpoolController

from gradpath.commands import compose
from gradpath.engine import partition
from gradpath.training.loop import train_seeds
from gradpath.training.threads import multiply_adds

SECONDS, TURNS = 1.5, 6
"""Each point runs for so long, and at least so many turns."""
SCHEDULES = {"whole": (2**62, 1), "halves": (0, 1), "halves in two threads": (0, 2)}
"""Multiply-adds from which a pass is cut, and threads."""
CELLS, DTYPES = ("rnn", "lstm"), ("float32", "float64")
SHAPES = [*product((50, 200), (20, 32), (32, 64, 128)), (50, 128, 256), (20, 128, 512)]
"""(T, B, H)."""


def measure(cell: str, shape: tuple[int, int, int], dtype: str) -> dict[str, object]:
    """The ratios of one point."""
    length, batch, width = shape
    overrides = [f"cell={cell}", f"cell.hidden_size={width}", f"train.batch_size={batch}", f"train.dtype={dtype}"]
    overrides += [f"task.length={length}", "instruments=[grad_norm]", "train.eval_size=1", "train.steps=1000000"]
    experiment = compose.experiment([*overrides, "train.threads=2"])
    trainings = {name: train_seeds([experiment], threads) for name, (_, threads) in SCHEDULES.items()}
    times: list[list[float]] = []
    deadline = time.perf_counter() + SECONDS
    while len(times) <= TURNS or time.perf_counter() < deadline:
        times.append([])
        for name, training in trainings.items():
            partition.MIN_MULTIPLY_ADDS = SCHEDULES[name][0]
            start = time.perf_counter()
            next(training)
            times[-1].append(time.perf_counter() - start)
    turns = np.array(times[1:])  # the first step of each warms up
    halves, halves_in_two_threads = np.median(turns[:, 1:] / turns[:, :1], axis=0).round(3).tolist()
    return {
        "cell": cell,
        "shape": shape,
        "dtype": dtype,
        "multiply_adds": multiply_adds(experiment),
        "whole_ms": round(1e3 * float(np.median(turns[:, 0])), 3),
        "halves": halves,
        "halves in two threads": halves_in_two_threads,
    }


def main() -> None:
    controller = ThreadpoolController()
    rows = []
    with controller.limit(limits=1, user_api="blas"):
        for dtype, cell, shape in product(DTYPES, CELLS, SHAPES):
            rows.append(measure(cell, shape, dtype))
            print(*rows[-1].values(), sep="\t", flush=True)
    if len(sys.argv) > 1:
        results = {"date": date.today().isoformat(), "cores": os.cpu_count(), "blas": controller.info(), "rows": rows}
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
