"""Where two BLAS threads beat one: a whole training step, over cell, H, B and dtype.

    python experiments/performance/threads.py [FILE.json]

Two trainings of one configuration run side by side, one with one thread and one with two, and take turns step by step,
so that both see the same disturbances of the machine. Printed and kept: the ratio of the shortest times, above 1 where
two threads are faster, and of the medians. From this comes the rule in ``gradpath.threads``.
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

from gradpath import config
from gradpath.threads import multiply_adds
from gradpath.training import train

LENGTH, SECONDS, PAIRS = 20, 1.5, 5
"""T; each point runs for so long, and at least so many pairs of steps."""
CELLS, WIDTHS, BATCHES, DTYPES = (
    ("rnn", "lstm"),
    (16, 32, 64, 128, 256, 512, 1024),
    (20, 64, 128, 256),
    ("float32", "float64"),
)


def measure(controller: ThreadpoolController, cell: str, width: int, batch: int, dtype: str) -> dict[str, object]:
    """The times of one point."""
    shape = [f"cell={cell}", f"cell.hidden_size={width}", f"train.batch_size={batch}", f"train.dtype={dtype}"]
    rest = [f"task.length={LENGTH}", "instruments=[grad_norm,clip_scale]", "train.eval_size=1", "train.steps=1000000"]
    experiment = config.experiment(shape + rest)
    trainings = {threads: train(experiment) for threads in (1, 2)}
    times: dict[int, list[float]] = {1: [], 2: []}
    until = time.perf_counter() + SECONDS
    while len(times[2]) < PAIRS + 1 or time.perf_counter() < until:
        for threads, training in trainings.items():
            with controller.limit(limits=threads, user_api="blas"):
                started = time.perf_counter()
                next(training)
                times[threads].append(time.perf_counter() - started)
    one, two = (np.array(times[threads][1:]) for threads in (1, 2))  # the first step of each warms up
    return {
        "cell": cell,
        "H": width,
        "B": batch,
        "dtype": dtype,
        "multiply_adds": multiply_adds(experiment),
        "one_thread_ms": round(1e3 * float(one.min()), 3),
        "ratio_of_shortest": round(float(one.min() / two.min()), 3),
        "ratio_of_medians": round(float(np.median(one) / np.median(two)), 3),
    }


def main() -> None:
    controller = ThreadpoolController()
    rows = []
    for dtype, cell, width, batch in product(DTYPES, CELLS, WIDTHS, BATCHES):
        rows.append(measure(controller, cell, width, batch, dtype))
        print(*rows[-1].values(), sep="\t", flush=True)
    if len(sys.argv) > 1:
        found = {"date": date.today().isoformat(), "cores": os.cpu_count(), "blas": controller.info(), "rows": rows}
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
