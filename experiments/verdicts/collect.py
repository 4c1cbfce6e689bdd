"""The labelled collection: trains its runs anew and writes what a verdict is made of; says how
judge does on it.

python experiments/verdicts/collect.py            # the confusion matrices from evidence.json
python experiments/verdicts/collect.py train      # trains all runs and writes evidence.json
python experiments/verdicts/collect.py train NAME # … those named
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from threadpoolctl import threadpool_limits

from gradpath.commands import compose
from gradpath.tracking.evidence import Evidence, outcome, weigh
from gradpath.tracking.verdict import ORDER, judge
from gradpath.training.loop import train

FOLDER = Path(__file__).parent
EVIDENCE = FOLDER / "evidence.json"
DEFAULTS = ["train.eval_size=500", "instruments=[state_grad_norm,gate_activation,reach]"]
"""What is not judged is left out, to be quick; a run's own overrides come later and win."""
PARTS = ("training", "held out", "fresh")
"""Thresholds were set on the first; the second is the other half of the same draw, the third was
trained afterwards.
"""


def collection() -> dict[str, dict[str, str]]:
    """Name → the run's part, label, overrides and why it has that label."""
    return yaml.safe_load((FOLDER / "collection.yaml").read_text(encoding="utf-8"))


def observe(overrides: str) -> Evidence:
    """Trains one run, and what its verdict is made of."""
    experiment = compose.experiment([*DEFAULTS, *overrides.split()])
    readings: dict[str, tuple[Sequence[str], list[int], list[Any]]] = {}
    norms, losses, evaluation, diverged_at = {}, [], None, None
    for step in train(experiment):
        losses.append(step.loss)
        norms[step.step] = step.log10_grad_norm
        for name, measurement in step.measurements.items():
            _, steps, values = readings.setdefault(name, (measurement.names, [], []))
            steps.append(step.step)
            values.append(measurement.values)
        evaluation = step.evaluation
        diverged_at = step.step if step.diverged else None
    return weigh(outcome(experiment.task, losses[0], evaluation, diverged_at), readings, norms, experiment.cell.roles)


def stored() -> dict[str, Evidence]:
    """Name → evidence, as it was trained last."""
    return {name: Evidence(**fields) for name, fields in json.loads(EVIDENCE.read_text()).items()}


def matrix(runs: Mapping[str, Mapping[str, str]], evidence: Mapping[str, Evidence], part: str) -> str:
    """Labels down, verdicts across, as a table of Markdown."""
    names = [name for name in runs if runs[name]["part"] == part]
    pairs = Counter((runs[name]["label"], judge(evidence[name]).word) for name in names)
    rows = [f"| {part} | {' | '.join(ORDER)} |", f"|{'---|' * (len(ORDER) + 1)}"]
    rows += [
        f"| **{label}** | {' | '.join(str(pairs[label, verdict] or '·') for verdict in ORDER)} |" for label in ORDER
    ]
    agreeing = sum(count for (label, verdict), count in pairs.items() if label == verdict)
    return "\n".join([*rows, "", f"{agreeing} of {len(names)} as labelled."])


def _rounded(evidence: Evidence) -> dict[str, Any]:
    fields = asdict(evidence)
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in fields.items()}


def main(arguments: Sequence[str]) -> None:
    runs = collection()
    if arguments[:1] == ["train"]:
        stored_fields = json.loads(EVIDENCE.read_text()) if EVIDENCE.exists() else {}
        with threadpool_limits(1, "blas"):
            for name in arguments[1:] or runs:
                stored_fields[name] = _rounded(observe(runs[name]["overrides"]))
                print(name, judge(Evidence(**stored_fields[name])), flush=True)
        lines = [f"{json.dumps(name)}: {json.dumps(stored_fields[name])}" for name in runs]
        EVIDENCE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    evidence = stored()
    for part in PARTS:
        print(matrix(runs, evidence, part), end="\n\n")
    for name, run in runs.items():
        verdict = judge(evidence[name])
        if verdict.word != run["label"]:
            print(f"{name} ({run['part']}): {run['label']}, called {verdict.word}: {verdict.reason}")


if __name__ == "__main__":
    with np.errstate(over="ignore", invalid="ignore"):
        main(sys.argv[1:])
