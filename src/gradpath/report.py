"""The report: figures drawn from what MLflow holds, and nothing else."""

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from gradpath import loader, paths, store
from gradpath.figures import CannotDrawError, Figure
from gradpath.loader import Run
from gradpath.settings import Settings, setting


@dataclass
class Report(Settings):
    """Which runs, and which figures. Without a choice: the newest sweep."""

    figures: dict[str, Figure] = field(default_factory=dict)
    study: str | None = setting(None, "MLflow experiment, named after its study; null for the one with the newest run")
    sweep: str | None = setting(None, "sweep_id of the runs to draw; null for the newest of the experiment")
    uri: str | None = setting(None, "MLflow tracking URI; null for the project's own SQLite database")
    out: str | None = setting(None, "folder for the figures; null for reports/figures/EXPERIMENT")


def write(report: Report) -> int:
    """Draws every figure as PNG and SVG into ``reports/figures/EXPERIMENT/``; 1 where one could not be drawn."""
    import matplotlib

    matplotlib.use("Agg")
    # The same runs give the same bytes: no date in the files, no random ids in the SVG.
    matplotlib.rcParams["svg.hashsalt"] = "gradpath"
    experiment, sweep = report.study, report.sweep
    if experiment is None or sweep is None:
        experiment, newest = loader.newest_sweep(report.uri, experiment)
        sweep = sweep or newest
    runs = loader.load(report.uri, experiment, sweep)
    _complete(report.uri, experiment, sweep, runs)
    out = Path(report.out) if report.out else paths.figures() / experiment
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise store.StoreError(f"out={out}: cannot be written: {error.strerror}") from error
    print(f"{len(runs)} runs of sweep {sweep}, experiment {experiment}")
    failed = 0
    for name, figure in tqdm(report.figures.items(), desc="figures", disable=not sys.stderr.isatty()):
        try:
            _draw(name, figure, runs, out)
        except CannotDrawError as error:
            print(f"{name}: not drawn: {error}", file=sys.stderr)
            failed = 1
    return failed


def _draw(name: str, figure: Figure, runs: list[Run], out: Path) -> None:
    """One figure into its two files."""
    from matplotlib import pyplot

    missing = {need for need in figure.needs for run in runs if need not in run.series}
    if missing:
        raise CannotDrawError(f"the runs did not record {', '.join(sorted(missing))}")
    canvas = figure.draw(runs)
    for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        canvas.savefig(out / f"{name}.{suffix}", dpi=figure.dpi, bbox_inches="tight", metadata=metadata)
    pyplot.close(canvas)
    print(out / f"{name}.png")


def _complete(uri: str | None, experiment: str, sweep: str, runs: list[Run]) -> None:
    """Refuses a sweep with holes (a point that did not finish) or doubles (the same point twice), and names them."""
    unfinished = [name for name, status, _ in loader.outcomes(uri, experiment, sweep) if status != "FINISHED"]
    names = {run.tags["config_hash"]: run.name for run in runs}
    doubled = [names[point] for point, count in Counter(run.tags["config_hash"] for run in runs).items() if count > 1]
    for what, which in (("did not finish", unfinished), ("are there more than once", doubled)):
        if which:
            raise store.StoreError(f"sweep {sweep} of {experiment}: these points {what}: {', '.join(which)}")
