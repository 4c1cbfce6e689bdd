"""How much faster are many seeds side by side than one after another?
`python experiments/performance/seeds.py`

Adding problem at T = 100, float32, one BLAS thread. First the training steps alone, `train_seeds`
against `train`, in one process, taking turns every few steps, with the default instruments and with
none, the seeds side by side in one thread and in as many as `gradpath run` takes; from step STEPS
on, where the default instruments have become rare as in a long run. Then whole commands, start to
end: `gradpath run seed=0..15` against `gradpath run -m seed=0,…,15`. Times are the clock's, so
nothing else should run. Prints a table and writes `seeds.json`.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from gradpath.commands import compose
from gradpath.training.loop import train, train_seeds
from gradpath.training.threads import thread_count

SEEDS, STEPS = 16, 10
"""Seeds, and training steps of one turn."""
SHAPES = [(arm, size, batch) for batch in (20, 32) for arm in ("rnn", "lstm") for size in (16, 32, 64)]


@dataclass(frozen=True)
class Row:
    """Milliseconds of one training step of one seed, or seconds of a whole command, one after
    another and side by side, medians; and what one after another takes, times as long: the median
    and the extremes of the turns.
    """

    what: str
    threads: int
    arm: str
    hidden_size: int
    batch_size: int
    one_by_one: float
    side_by_side: float
    ratio: float
    least: float
    most: float


def row(
    quantity: str, threads: int, shape: tuple[str, int, int], one_by_one: list[float], side_by_side: list[float]
) -> Row:
    ratios = [a / b for a, b in zip(one_by_one, side_by_side, strict=True)]
    scale = 1.0 if quantity.startswith("command") else 1e3 / STEPS / SEEDS
    measured = Row(
        quantity,
        threads,
        *shape,
        scale * median(one_by_one),
        scale * median(side_by_side),
        median(ratios),
        min(ratios),
        max(ratios),
    )
    cells = " ".join(f"{value:9.3g}" for value in (measured.one_by_one, measured.side_by_side))
    print(
        f"{quantity:<20} {threads:>3} {measured.arm:<5} {measured.hidden_size:>3} {measured.batch_size:>3} {cells}",
        end="  ",
    )
    print(f"{measured.ratio:.2f} ({measured.least:.2f} … {measured.most:.2f})", flush=True)
    return measured


def overrides(arm: str, hidden_size: int, batch_size: int) -> list[str]:
    return [f"arm={arm}", f"cell.hidden_size={hidden_size}", f"train.batch_size={batch_size}"]


def steps(shape: tuple[str, int, int], instruments: list[str], threads: int, turns: int) -> dict[int, list[float]]:
    """Seconds of each turn: 0 → one after another, number of threads → side by side."""
    base_experiment = compose.experiment([*overrides(*shape), *instruments, "train.steps=1000000", "train.eval_size=1"])
    experiments = [replace(base_experiment, seed=seed) for seed in range(SEEDS)]
    kinds: dict[int, list[Iterator[Any]]] = {0: [train(experiment) for experiment in experiments]}
    kinds |= {count: [train_seeds(experiments, count)] for count in sorted({1, threads})}
    times: dict[int, list[float]] = {count: [] for count in kinds}
    for _, (count, streams) in itertools.product(range(turns + 1), kinds.items()):
        start = time.perf_counter()
        for stream in streams:
            for _ in itertools.islice(stream, STEPS):
                pass
        times[count].append(time.perf_counter() - start)
    return {count: seconds[1:] for count, seconds in times.items()}  # the first turn warms up


def command(*arguments: str) -> float:
    """Seconds of a ``gradpath run`` with a store of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"GRADPATH_HOME": home}
        command_line = [sys.executable, "-m", "gradpath", "run", *arguments]
        start = time.perf_counter()
        subprocess.run(command_line, env=environment, check=True, capture_output=True)
        return time.perf_counter() - start


def commands(shape: tuple[str, int, int], turns: int) -> tuple[list[float], list[float]]:
    """Seconds of each turn, one after another and side by side; the default configuration but for
    the shape and 300 steps.
    """
    shape_overrides = [*overrides(*shape), "train.steps=300"]
    seed_override = "seed=" + ",".join(map(str, range(SEEDS)))
    pairs = [
        (command("-m", *shape_overrides, seed_override), command(*shape_overrides, f"seed=0..{SEEDS - 1}"))
        for _ in range(turns)
    ]
    return [one_by_one for one_by_one, _ in pairs], [side_by_side for _, side_by_side in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="turns of each kind (5)")
    parser.add_argument("--commands", type=int, default=1, help="turns of the whole commands, which take minutes (1)")
    options = parser.parse_args()
    rows, threads = [], thread_count(compose.experiment([]), seeds=SEEDS)
    print(f"{'':<20} {'thr':>3} {'arm':<5} {'H':>3} {'B':>3} {'one by one':>9} {'together':>9} ratio", flush=True)
    for shape in SHAPES:
        for quantity, instruments in {"step, ms": [], "step, none read, ms": ["instruments=[]"]}.items():
            with threadpool_limits(1, "blas"):
                times = steps(shape, instruments, threads, options.turns)
            rows += [
                row(quantity, thread_count, shape, times[0], seconds)
                for thread_count, seconds in times.items()
                if thread_count
            ]
    timed = [shape for shape in SHAPES if options.commands and shape[2] == 20]
    rows += [row("command, s", threads, shape, *commands(shape, options.commands)) for shape in timed]
    results = {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "seeds": SEEDS}
    results |= {
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "rows": [asdict(measured) for measured in rows],
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
