"""The report: verdicts and figures, drawn from the contents of MLflow alone."""

import html
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from gradpath.commands import drawing, pool
from gradpath.commands.hints import point_command, report_command, run_command
from gradpath.commands.report_settings import Report
from gradpath.figures._shared import common
from gradpath.schema import locations
from gradpath.schema.text import printable
from gradpath.tracking import loader, store
from gradpath.tracking.loader import Run, Sweep
from gradpath.tracking.verdict import ORDER, Verdict

LINES = 20
"""Largest number of runs whose verdicts have a line each; above it, each group of seeds has a line.
The list should fit on a screen.
"""
NAMED = 5
"""Largest number of missing points or skipped runs that are named; the others are counted."""


def write(report: Report, named: bool = False) -> int:
    """Prints the verdicts, and draws every figure in the formats of the report into
    ``reports/figures/EXPERIMENT/``.

    A sweep with points missing or double is refused with a StoreError unless ``partial`` is set. A
    figure that these runs do not hold the numbers for is left out. 1 where a figure failed or could
    not be written, where a finished run is damaged and had to be passed over, where no figure could
    be drawn, or not all that the user ``named``.
    """
    if (processes := drawing.processes(report)) > 1:
        pool.start_early(drawing.PRELOADED)
    experiment, sweep_id = chosen_sweep(report.study, report.sweep, report.uri)
    stored = loader.sweep(report.uri, experiment, sweep_id)
    title = _title(experiment, sweep_id)
    runs, doubts = _complete(stored, experiment, sweep_id, report)
    out = _folder(report.out, experiment)
    print(f"{len(runs)} run{'s'[: len(runs) != 1]} of {title}")
    for heading, lines in (("", doubts), ("passed over: ", stored.passed_over), ("left out: ", stored.damaged)):
        _print_lines(heading, lines)
    damaged = [stored.planned[point] for point in stored.damaged_points if point in stored.planned]
    if damaged and (command := point_command(damaged[0], sweep_id, report.uri)):
        print(f"run the first that is left out again: {command} resume=false", file=sys.stderr)
    # The terminal shows shortened reasons. They are complete in verdicts.md, and where the output
    # is redirected.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in verdicts(runs):
        print(line if width is None or len(line) <= width else line[: width - 1] + "…")
    failed = []
    try:
        _replace(out / "verdicts.md", _table(runs, title).encode(errors="backslashreplace"))
    except OSError as error:
        failed.append(f"verdicts.md ({_error_text(error)})")
    left_out, partly = [], []
    drawings = drawing.drawings(report.figures, runs, report.formats, processes)
    terminal = sys.stderr.isatty()
    for name, result in tqdm(drawings, "figures", total=len(report.figures), disable=not terminal):
        partly += [f"{name}: {text}" for text in result.undrawn]
        left_out += [f"{name} ({result.cannot})"] * bool(result.cannot)
        failed += [f"{name} ({result.failed})"] * bool(result.failed)
        try:
            for suffix, content in result.files.items():
                _replace(out / f"{name}.{suffix}", content)
        except OSError as error:
            failed.append(f"{name} ({_error_text(error)})")
            continue
        if result.files:
            print(printable(out / f"{name}.{report.formats[0]}", 4096))
    if left_out:
        print(f"not drawn: {', '.join(left_out)}", file=sys.stderr)
    _print_lines("not drawn in ", partly)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    none_drawn = bool(left_out) and len(left_out) == len(report.figures)
    return int(bool(failed or stored.damaged) or none_drawn or (named and bool(left_out)))


def chosen_sweep(study: str | None, sweep_id: str | None, uri: str | None) -> tuple[str, str]:
    """(MLflow experiment, sweep_id) of the runs to report, of the newest ones where none is named;
    raises StoreError where there are none.
    """
    if study is not None and sweep_id is not None:
        return study, sweep_id
    try:
        return loader.newest_sweep(uri, study, sweep_id)
    except loader.NothingFinishedError as error:
        raise store.StoreError(f"{error}; train one with: {run_command(study)}") from error


def verdicts(runs: list[Run]) -> list[str]:
    """The verdicts as aligned lines from good to bad: one line for each run, or, if there are many,
    for each group of seeds.
    """
    judged = _judged(runs)
    if len(runs) <= LINES:
        rows = [(verdict.word, f"{label} · seed {run.seed}", verdict.reason) for label, run, verdict in judged]
    else:
        rows = []
        for label in dict.fromkeys(label for label, _, _ in judged):
            group = [verdict for name, _, verdict in judged if name == label]
            counts = Counter(verdict.word for verdict in group)
            words = ", ".join(f"{count} {word}" for word, count in counts.items())
            rows.append((words, label, f"best: {group[0].reason}"))
    widths = [min(max(len(row[column]) for row in rows), 44) for column in (0, 1)]
    return [f"  {word:<{widths[0]}}  {name:<{widths[1]}}  {reason}" for word, name, reason in rows]


def _judged(runs: list[Run]) -> list[tuple[str, Run, Verdict]]:
    """(label of the group, run, verdict), from good to bad."""
    judged = [
        (group.name, run, run.verdict)
        for group in common.groups(runs)
        for run in sorted(group.runs, key=lambda run: run.seed)
    ]
    return sorted(judged, key=lambda row: ORDER.index(row[2].word))


def _table(runs: list[Run], title: str) -> str:
    """The verdicts as a page of Markdown, in which the store's text is escaped."""
    rows = [f"| {_cell(label)} · seed {run.seed} | {v.word} | {_cell(v.reason)} |" for label, run, v in _judged(runs)]
    return "\n".join([f"# Verdicts: {_cell(title)}", "", "| run | verdict | why |", "|---|---|---|", *rows, ""])


def _cell(text: str) -> str:
    """Escapes HTML, the end of a cell, code, links and images."""
    return re.sub(r"([\\|`\[\]])", r"\\\1", html.escape(text, quote=False))


def _title(experiment: str, sweep_id: str) -> str:
    return f"sweep {printable(sweep_id)}, experiment {printable(experiment)}"


def _folder(chosen: str | None, experiment: str) -> Path:
    """The folder for the figures, created if it does not exist. Without the user's choice it lies
    in the reports' folder, whatever the experiment of a shared store is called, and whatever has
    been put there.
    """
    out = Path(chosen) if chosen else locations.figures(experiment)
    try:
        if not chosen and not out.resolve().is_relative_to(locations.figures().resolve()):
            raise store.StoreError(f"{printable(out, 4096)}: leads out of the reports' folder; choose one with out=")
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: NUL; RuntimeError: a circular link
        raise store.StoreError(f"out={printable(out, 4096)}: cannot be written: {_error_text(error)}") from error
    return out


def _replace(file: Path, content: bytes) -> None:
    """Writes a file that is either complete or absent: it has another name until its last byte is
    on the disk.
    """
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _error_text(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return printable(f"{type(error).__name__}: {error}".partition("\n")[0], 200)


def _print_lines(heading: str, lines: list[str]) -> None:
    """Prints a message about several runs, and names the first few."""
    for line in lines[:NAMED]:
        print(heading + line, file=sys.stderr)
    if len(lines) > NAMED:
        print(f"{heading}and {len(lines) - NAMED} more", file=sys.stderr)


def _complete(stored: Sweep, experiment: str, sweep_id: str, report: Report) -> tuple[list[Run], list[str]]:
    """The runs to draw, and the remarks about them. Refuses a sweep with missing points (a point
    that did not finish) or duplicates (the same point twice), and names them.
    """
    title = _title(experiment, sweep_id)
    doubts = [] if stored.planned else ["no plan of this sweep is stored: points that never began cannot be named"]
    if not (stored.runs or stored.damaged or stored.missing):
        raise store.StoreError(f"{title}: no finished run")
    names = Counter(point.name for point in stored.planned.values())
    missing = []
    for identity, name in stored.missing.items():
        planned = stored.planned.get(identity)
        ambiguous = planned is not None and names[planned.name] > 1  # a sweep over a setting that the name leaves out
        missing.append(f"{name} ({printable(' '.join(planned.overrides))})" if planned and ambiguous else name)
    partial_command = printable(report_command(experiment, sweep_id, report.uri, "partial=true"), 4096)
    first_command = ""
    if first := next((stored.planned[point] for point in stored.missing if point in stored.planned), None):
        command = point_command(first, sweep_id, report.uri)
        first_command = f"; run the first: {command}" if command else ""
    holes = f"{len(missing)} of {len(stored.planned)} planned points" if stored.planned else "these points"
    for problem, points, remedy in (
        (f"{holes} did not finish", missing, first_command),
        ("these points are there more than once", stored.doubled, ""),
    ):
        if not points:
            continue
        suffix = f" and {len(points) - NAMED} more" if len(points) > NAMED else ""
        line = f"{title}: {problem}: {', '.join(points[:NAMED])}{suffix}"
        if not report.partial:
            raise store.StoreError(f"{line}{remedy}; draw what is there: {partial_command}")
        doubts.append(line)
    if not stored.runs:
        raise store.StoreError(
            f"{title}: no run can be read: {stored.damaged[0] if stored.damaged else 'none finished'}"
        )
    return stored.newest, doubts
