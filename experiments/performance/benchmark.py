"""Times gradpath's step against PyTorch, JAX and its own matrix products; writes results, table and
figure.

All of it goes into this folder, with ``--quick`` two shapes into ``mlruns/benchmark``.
``make benchmark`` installs the peers first.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

import machine
import table
from gradpath.schema import locations
from problem import CELLS, Shape

FOLDER = Path(__file__).parent
FIGURES = FOLDER.parents[1] / "reports" / "figures" / "performance"
SHAPES = tuple(
    Shape(*sizes)
    for sizes in ((100, 20, 50), (100, 32, 64), (200, 32, 128), (500, 20, 128), (1000, 20, 128), (200, 128, 256))
)
DTYPES = ("float32", "float64")
THREADS = ("one", "default")
VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmark.py",
        usage="%(prog)s [options]",
        description="gradpath's step against PyTorch, JAX and its floor",
    )
    parser.add_argument("--quick", action="store_true", help="two shapes in float32, one thread, a second each")
    parser.add_argument("--shapes", nargs="+", type=_shape, default=SHAPES, metavar="T,B,H")
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=tuple(CELLS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--threads", nargs="+", choices=THREADS, default=THREADS)
    parser.add_argument("--seconds", type=float, default=4.0, help="of timing for each row, if 6 rounds take less")
    parser.add_argument("--output", type=Path, help="folder; as a rule this one where every row is timed")
    chosen = parser.parse_args(arguments)
    if chosen.quick:
        chosen.shapes, chosen.dtypes, chosen.threads, chosen.seconds = SHAPES[:2], DTYPES[:1], THREADS[:1], 1.0
    return chosen


def _shape(text: str) -> Shape:
    try:
        shape = Shape(*map(int, text.split(",")))
    except (TypeError, ValueError):
        shape = Shape(0, 0, 0)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be T,B,H, three integers ≥ 1, such as 200,32,128")
    return shape


def matches(chosen: argparse.Namespace) -> list[tuple[str, Shape, str, float]]:
    """The rows of one thread setting: arguments of ``worker.measure_row``."""
    return [
        (cell, shape, dtype, chosen.seconds)
        for shape in chosen.shapes
        for cell in chosen.cells
        for dtype in chosen.dtypes
    ]


def measure(threads: str, order: list[tuple[str, Shape, str, float]]) -> Iterator[dict[str, Any]]:
    """What the child process of one thread setting says: first its libraries, then a row for each
    match.
    """
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    if threads == "one":
        environment |= dict.fromkeys(VARIABLES, "1")
    command = [sys.executable, str(FOLDER / "worker.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdin
        assert child.stdout
        json.dump({"threads": threads, "matches": order}, child.stdin)
        child.stdin.close()
        yield from map(json.loads, child.stdout)
    if child.returncode:
        sys.exit(child.returncode)


def main() -> None:
    chosen = parse()
    if missing := [name for name in ("torch", "jax") if importlib.util.find_spec(name) is None]:
        print(f"benchmark: {' and '.join(missing)} not installed: pip install -e '.[peers]'", file=sys.stderr)
        sys.exit(2)
    results: dict[str, Any] = {"machine": machine.describe(), "libraries": {}, "rows": []}
    order = matches(chosen)
    with tqdm(total=len(order) * len(chosen.threads), unit="row", disable=None) as bar:
        for threads in chosen.threads:
            libraries = measure(threads, order)
            results["libraries"][threads] = next(libraries)
            for row in libraries:
                results["rows"].append({"threads": threads, **row})
                bar.update()
    write(results, chosen)


def write(results: dict[str, Any], chosen: argparse.Namespace) -> None:
    import figure

    complete = {table.key(row) for row in results["rows"]} >= set(every_row())
    output, figures = chosen.output, chosen.output
    if output is None:
        output, figures = (FOLDER, FIGURES) if complete else (locations.home() / "mlruns" / "benchmark",) * 2
    for folder in (output, figures):
        folder.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(_json(results))
    page = table.page(results)
    (output / "results.md").write_text(page)
    if output == FOLDER:
        table.put(table.headline(results["rows"]), FOLDER / "README.md")
    figure.draw(results["rows"], figures / "performance.png")
    print(page)
    print(f"Written: {output}/results.json, results.md; {figures}/performance.png")


def every_row() -> list[tuple[str, str, str, Shape]]:
    """The keys of the rows of the whole benchmark."""
    return [(t, d, c, s) for t in THREADS for d in DTYPES for c in CELLS for s in SHAPES]


def _json(results: dict[str, Any]) -> str:
    """One line a row, so that a diff can be read."""
    head = {key: value for key, value in results.items() if key != "rows"}
    rows = ",\n".join(f"  {json.dumps(row)}" for row in results["rows"])
    return f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'


if __name__ == "__main__":
    main()
