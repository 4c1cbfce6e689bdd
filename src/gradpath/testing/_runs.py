"""Runs as a store gives them back: through the artifact alone, which takes no time, or through a
store of their own.
"""

import atexit
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from gradpath.commands.execute import execute_seeds
from gradpath.tracking import artifact, loader, store
from gradpath.tracking.loader import Run, Series
from gradpath.tracking.readings import Readings
from gradpath.training.experiment import Experiment
from gradpath.training.loop import train


def recorded(experiment: Experiment) -> Run:
    """A run that was trained, written to its artifact and read back."""
    readings = Readings(experiment)
    for step in train(experiment):
        readings.add(step)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "measurements.npz"
        np.savez(file, **readings.arrays())  # type: ignore[arg-type]
        measurements = artifact.measurements(file)
    tags = {"solved": "false", "diverged": "false", "config_hash": experiment.config_hash}
    if readings.diverged_at is not None:
        tags |= {"diverged": "true", "diverged_at_step": str(readings.diverged_at)}
    fields = vars(measurements) | {"roles": measurements.roles or experiment.cell.roles}
    identity = (experiment.config_hash, experiment.run_name, experiment.arm, experiment.resolved(), tags)
    return Run(*identity, **fields)


def stored(experiments: Sequence[Experiment]) -> list[Run]:
    """The runs of these seeds, trained side by side and recorded in a new store, as it gives them
    back.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        database = Path(folder) / "mlflow.db"
        shutil.copy(_new_database(), database)
        uri = f"sqlite:///{database}"
        tracking = replace(experiments[0].tracking, uri=uri, experiment="contract")
        execute_seeds([replace(experiment, tracking=tracking) for experiment in experiments], "contract")
        return loader.load(uri, "contract", "contract")


@cache
def _new_database() -> Path:
    """A database of MLflow's, made once in a process, since that takes seconds."""
    folder = tempfile.mkdtemp(prefix="gradpath-contract-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    file = Path(folder) / "mlflow.db"
    store.connect(f"sqlite:///{file}")
    return file


def as_diverged(run: Run, step: int) -> Run:
    """The run as it would be if loss and gradient had been NaN from a training step on."""

    def cut(series: Series) -> Series:
        earlier = series.steps < step
        last = np.full_like(series.values[-1:], np.nan)
        return Series(series.names, np.append(series.steps[earlier], step), np.append(series.values[earlier], last, 0))

    evaluated = run.evaluation.steps < step
    evaluation = replace(run.evaluation, steps=run.evaluation.steps[evaluated], values=run.evaluation.values[evaluated])
    tags = run.tags | {"solved": "false", "diverged": "true", "diverged_at_step": str(step)}
    series = {name: cut(reading) for name, reading in run.series.items()}
    return replace(run, loss=cut(run.loss), evaluation=evaluation, series=series, tags=tags)
