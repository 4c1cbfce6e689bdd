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


def row(what: str, threads: int, shape: tuple[str, int, int], one: list[float], together: list[float]) -> Row:
    ratios = [a / b for a, b in zip(one, together, strict=True)]
    scale = 1.0 if what.startswith("command") else 1e3 / STEPS / SEEDS
    found = Row(
        what, threads, *shape, scale * median(one), scale * median(together), median(ratios), min(ratios), max(ratios)
    )
    cells = " ".join(f"{value:9.3g}" for value in (found.one_by_one, found.side_by_side))
    print(f"{what:<20} {threads:>3} {found.arm:<5} {found.hidden_size:>3} {found.batch_size:>3} {cells}", end="  ")
    print(f"{found.ratio:.2f} ({found.least:.2f} … {found.most:.2f})", flush=True)
    return found


def overrides(arm: str, hidden_size: int, batch_size: int) -> list[str]:
    return [f"arm={arm}", f"cell.hidden_size={hidden_size}", f"train.batch_size={batch_size}"]


def steps(shape: tuple[str, int, int], instruments: list[str], threads: int, turns: int) -> dict[int, list[float]]:
    """Seconds of each turn: 0 → one after another, number of threads → side by side."""
    one = compose.experiment([*overrides(*shape), *instruments, "train.steps=1000000", "train.eval_size=1"])
    experiments = [replace(one, seed=seed) for seed in range(SEEDS)]
    kinds: dict[int, list[Iterator[Any]]] = {0: [train(experiment) for experiment in experiments]}
    kinds |= {each: [train_seeds(experiments, each)] for each in sorted({1, threads})}
    times: dict[int, list[float]] = {each: [] for each in kinds}
    for _, (each, streams) in itertools.product(range(turns + 1), kinds.items()):
        began = time.perf_counter()
        for stream in streams:
            for _ in itertools.islice(stream, STEPS):
                pass
        times[each].append(time.perf_counter() - began)
    return {each: taken[1:] for each, taken in times.items()}  # the first turn warms up


def command(*arguments: str) -> float:
    """Seconds of a ``gradpath run`` with a store of its own."""
    with tempfile.TemporaryDirectory() as home:
        environment = os.environ | {"GRADPATH_HOME": home}
        asked = [sys.executable, "-m", "gradpath", "run", *arguments]
        began = time.perf_counter()
        subprocess.run(asked, env=environment, check=True, capture_output=True)
        return time.perf_counter() - began


def commands(shape: tuple[str, int, int], turns: int) -> tuple[list[float], list[float]]:
    """Seconds of each turn, one after another and side by side; the default configuration but for
    the shape and 300 steps.
    """
    given = [*overrides(*shape), "train.steps=300"]
    each = "seed=" + ",".join(map(str, range(SEEDS)))
    taken = [(command("-m", *given, each), command(*given, f"seed=0..{SEEDS - 1}")) for _ in range(turns)]
    return [one for one, _ in taken], [together for _, together in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5, help="turns of each kind (5)")
    parser.add_argument("--commands", type=int, default=1, help="turns of the whole commands, which take minutes (1)")
    given = parser.parse_args()
    rows, threads = [], thread_count(compose.experiment([]), seeds=SEEDS)
    print(f"{'':<20} {'thr':>3} {'arm':<5} {'H':>3} {'B':>3} {'one by one':>9} {'together':>9} ratio", flush=True)
    for shape in SHAPES:
        for what, instruments in {"step, ms": [], "step, none read, ms": ["instruments=[]"]}.items():
            with threadpool_limits(1, "blas"):
                times = steps(shape, instruments, threads, given.turns)
            rows += [row(what, each, shape, times[0], taken) for each, taken in times.items() if each]
    timed = [shape for shape in SHAPES if given.commands and shape[2] == 20]
    rows += [row("command, s", threads, shape, *commands(shape, given.commands)) for shape in timed]
    found = {"date": datetime.now().astimezone().isoformat(timespec="seconds"), "seeds": SEEDS}
    found |= {"numpy": np.__version__, "cores": os.cpu_count(), "rows": [asdict(each) for each in rows]}
    Path(__file__).with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
