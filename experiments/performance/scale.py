"""How time and memory of our step with all norms grow with T and B, and what each instrument needs
at T = 10 000.

Every case runs in a child process of its own, because the largest resident size of a process never
falls. Times are the processor's, of one thread, since cases that run one after the other do not
share the machine's noise. With ``--quick`` only T ≤ 1000, into ``mlruns/benchmark``.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from time import process_time
from typing import Any

import numpy as np
from tqdm import tqdm

import machine
import ours
from benchmark import FIGURES, FOLDER, VARIABLES
from gradpath.schema import locations
from problem import CELLS, Shape, random_problem

LENGTHS = (100, 300, 1000, 3000, 10_000)
BATCHES = (5, 10, 20, 40, 80, 160)
BATCH, HIDDEN, STEPS = 20, 128, 200
"""B and H where T varies, H and T where B varies."""
LIMIT = 4 * 2**30
"""Bytes of resident memory that T = 10 000 may take."""
REPEATS = 3


def measure_case(cell: str, shape: Shape, names: Sequence[str], repeats: int, seconds: int) -> dict[str, Any]:
    """In the child, which is stopped after so many ``seconds``: shortest time of ``repeats`` steps
    that read these instruments, largest resident size before and after them, and then, unless it
    was only one, what another step allocates at most beyond the memory that the last one has left
    to it, NumPy's included.
    """
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 10))
    problem = random_problem(cell, shape, "float32")
    instruments = ours.every_instrument(problem.network)
    step = ours.contestant(problem, problem.network.workspace(), "ours", {name: instruments[name] for name in names})
    resident_before, times = _largest_resident(), []
    for _ in range(repeats):
        start = process_time()
        step.run()
        times.append(process_time() - start)
    row = {"seconds": min(times), "resident_before": resident_before, "resident": _largest_resident()}
    if repeats > 1:
        tracemalloc.start()
        step.run()
        row["traced"] = tracemalloc.get_traced_memory()[1]
    return row


def _largest_resident() -> int:
    """Bytes."""
    return _bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _bytes(maxrss: int) -> int:
    return maxrss if sys.platform == "darwin" else 1024 * maxrss


def case(cell: str, shape: Shape, names: Sequence[str], repeats: int, seconds: int) -> dict[str, Any]:
    """Runs ``measure_case`` in a child process; of one that was stopped only its largest resident
    size is known.
    """
    order = json.dumps([cell, shape, list(names), repeats, seconds])
    environment = os.environ | dict.fromkeys(VARIABLES, "1")
    with subprocess.Popen(
        [sys.executable, __file__, "--case", order], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout
        stdout = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    row: dict[str, Any] = {"cell": cell, "shape": list(shape)}
    if child.returncode == -signal.SIGXCPU:
        return row | {"stopped_after": seconds, "resident": _bytes(usage.ru_maxrss)}
    if child.returncode:
        sys.exit(f"scale: the case {order} ended with status {child.returncode}")
    return row | json.loads(stdout)


def exponent(rows: Sequence[dict[str, Any]], axis: int) -> float:
    """p of time ∝ size^p, by least squares on logarithms."""
    sizes, seconds = zip(*((row["shape"][axis], row["seconds"]) for row in rows), strict=True)
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def bytes_per_element(rows: Sequence[dict[str, Any]], measured: str) -> float:
    """Slope of the memory over T·B·H, by least squares: what a constant overhead adds does not
    count.
    """
    return float(
        np.polyfit([np.prod(row["shape"], dtype=float) for row in rows], [row[measured] for row in rows], 1)[0]
    )


def rows_of_cell(rows: Sequence[dict[str, Any]], cell: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["cell"] == cell]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scale.py", description="growth of time and memory with T and B")
    parser.add_argument("--quick", action="store_true", help="T ≤ 1000, no instruments at T = 10 000")
    parser.add_argument(
        "--seconds", type=int, default=1800, help="of the processor, after which a slow instrument is stopped"
    )
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.case:
        cell, shape, *order = json.loads(chosen.case)
        print(json.dumps(measure_case(cell, Shape(*shape), *order)))
        return
    lengths = [steps for steps in LENGTHS if steps <= 1000 or not chosen.quick]
    growth = [
        *(("length", cell, Shape(steps, BATCH, HIDDEN)) for cell in CELLS for steps in lengths),
        *(("batch", cell, Shape(STEPS, batch, HIDDEN)) for cell in CELLS for batch in BATCHES),
    ]
    orders = [(kind, "all norms", cell, shape, ["param_grad_norm"], REPEATS, 600) for kind, cell, shape in growth]
    if not chosen.quick:
        names = sorted(ours.every_instrument(random_problem("lstm", Shape(1, 1, HIDDEN), "float32").network))
        readings = {name: [name] for name in names}
        readings["the default seven"] = list(ours.default_instruments())
        readings["every one but the slow"] = [name for name in names if name not in ours.SLOW]
        readings["every one"] = names
        longest = Shape(LENGTHS[-1], BATCH, HIDDEN)
        orders += [("instruments", label, "lstm", longest, readings[label], 1, chosen.seconds) for label in readings]
    results: dict[str, Any] = {"machine": machine.describe(), "length": [], "batch": [], "instruments": []}
    for kind, label, *order in tqdm(orders, unit="case", disable=None):
        results[kind].append({"read": label, **case(*order)})
    write(results, chosen.quick)


def write(results: dict[str, Any], quick: bool) -> None:
    import scale_figure
    import scale_table

    output, figures = (locations.home() / "mlruns" / "benchmark",) * 2 if quick else (FOLDER, FIGURES)
    for folder in (output, figures):
        folder.mkdir(parents=True, exist_ok=True)
    (output / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    page = scale_table.page(results)
    (output / "scale.md").write_text(page)
    scale_figure.draw(results, figures / "scale.png")
    print(page)
    print(f"Written: {output}/scale.json, scale.md; {figures}/scale.png")


if __name__ == "__main__":
    main()
