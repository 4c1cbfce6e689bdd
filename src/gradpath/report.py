"""The report: verdicts and figures drawn from what MLflow holds, and nothing else."""

import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from gradpath import loader, paths, store
from gradpath.figures import CannotDrawError, Figure, style
from gradpath.loader import Run
from gradpath.settings import Settings, setting
from gradpath.verdict import ORDER, Verdict

LINES = 20
"""Up to this many runs the verdicts take a line each, above it a line a group of seeds: a screen, not more."""


@dataclass
class Report(Settings):
    """Which runs, and which figures. Without a choice: the newest sweep."""

    figures: dict[str, Figure] = field(default_factory=dict)
    study: str | None = setting(None, "MLflow experiment, named after its study; null for the one with the newest run")
    sweep: str | None = setting(None, "sweep_id of the runs to draw; null for the newest of the experiment")
    uri: str | None = setting(None, "MLflow tracking URI; null for the project's own SQLite database")
    out: str | None = setting(None, "folder for the figures; null for reports/figures/EXPERIMENT")


def write(report: Report, named: bool = False) -> int:
    """Prints the verdicts, and draws every figure as PNG and SVG into ``reports/figures/EXPERIMENT/``. A figure that
    these runs do not hold the numbers for is left out; 1 where none could be drawn, or not all that the user ``named``.
    """
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
    # A terminal is spared the ends of long reasons; whole they are in verdicts.md, and where the output is kept.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in verdicts(runs):
        print(line if width is None or len(line) <= width else line[: width - 1] + "…")
    (out / "verdicts.md").write_text(_table(runs, f"sweep {sweep} of {experiment}"), encoding="utf-8")
    left_out = []
    for name, figure in tqdm(report.figures.items(), desc="figures", disable=not sys.stderr.isatty()):
        try:
            _draw(name, figure, runs, out)
        except CannotDrawError as error:
            left_out.append(f"{name} ({error})")
    if left_out:
        print(f"not drawn: {', '.join(left_out)}", file=sys.stderr)
    return int(bool(left_out) and (named or len(left_out) == len(report.figures)))


def verdicts(runs: list[Run]) -> list[str]:
    """The verdicts as aligned lines from good to bad: one a run, or where there are many one a group of seeds."""
    judged = _judged(runs)
    if len(runs) <= LINES:
        rows = [(verdict.word, f"{label} · seed {run.seed}", verdict.reason) for label, run, verdict in judged]
    else:
        rows = []
        for label in dict.fromkeys(label for label, _, _ in judged):
            found = [verdict for name, _, verdict in judged if name == label]
            counts = Counter(verdict.word for verdict in found)
            words = ", ".join(f"{count} {word}" for word, count in counts.items())
            rows.append((words, label, f"best: {found[0].reason}"))
    widths = [min(max(len(row[column]) for row in rows), 44) for column in (0, 1)]
    return [f"  {word:<{widths[0]}}  {name:<{widths[1]}}  {reason}" for word, name, reason in rows]


def _judged(runs: list[Run]) -> list[tuple[str, Run, Verdict]]:
    """(label of the group, run, verdict), from good to bad."""
    found = []
    for group in style.groups(runs):
        for run in sorted(group.runs, key=lambda run: run.seed):
            word = run.tags.get("verdict", "unknown")
            reason = run.tags.get("verdict_reason", "recorded without a verdict")
            found.append((group.name, run, Verdict(word, reason)))
    return sorted(found, key=lambda row: ORDER.index(row[2].word))


def _table(runs: list[Run], title: str) -> str:
    """The verdicts as a page of Markdown."""
    rows = [f"| {label} · seed {run.seed} | {v.word} | {v.reason} |" for label, run, v in _judged(runs)]
    return "\n".join([f"# Verdicts: {title}", "", "| run | verdict | why |", "|---|---|---|", *rows, ""])


def _draw(name: str, figure: Figure, runs: list[Run], out: Path) -> None:
    """One figure into its two files."""
    from matplotlib import pyplot

    missing = {need for need in figure.needs for run in runs if need not in run.series}
    if missing:
        raise CannotDrawError(f"needs {', '.join(sorted(missing))}")
    try:
        canvas = figure.draw(runs)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            canvas.savefig(out / f"{name}.{suffix}", dpi=figure.dpi, bbox_inches="tight", metadata=metadata)
    finally:  # also of what a figure had begun before it found that it cannot be drawn
        pyplot.close("all")
    print(out / f"{name}.png")


def _complete(uri: str | None, experiment: str, sweep: str, runs: list[Run]) -> None:
    """Refuses a sweep with holes (a point that did not finish) or doubles (the same point twice), and names them."""
    unfinished = [name for name, status, _ in loader.outcomes(uri, experiment, sweep) if status != "FINISHED"]
    names = {run.tags["config_hash"]: run.name for run in runs}
    doubled = [names[point] for point, count in Counter(run.tags["config_hash"] for run in runs).items() if count > 1]
    for what, which in (("did not finish", unfinished), ("are there more than once", doubled)):
        if which:
            raise store.StoreError(f"sweep {sweep} of {experiment}: these points {what}: {', '.join(which)}")
