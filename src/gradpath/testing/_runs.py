"""Runs in the form in which a store returns them: through the artifact alone, which takes no time,
or through a new store.
"""

import atexit
import shutil
import sqlite3
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
    """The runs of these seeds, trained side by side, recorded in a new store and read back from
    it.
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
    """An empty MLflow database, created once for each process, because that takes seconds."""
    folder = tempfile.mkdtemp(prefix="gradpath-contract-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return migrated(Path(folder) / "mlflow.db")


def migrated(file: Path) -> Path:
    """A new MLflow database in a single file, so that it can be copied."""
    store.connect(f"sqlite:///{file}")
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return file


def as_diverged(run: Run, step: int, value: float = np.nan, every: int = 1) -> Run:
    """The run as if it had diverged at a step: its last readings hold ``value`` in every
    ``every``-th element.
    """

    def cut_series(series: Series) -> Series:
        earlier = series.steps < step
        last_values = series.values[-1].copy()
        last_values.reshape(-1)[::every] = value
        if "non_finite" in series.names:
            last_values = np.full_like(last_values, np.nan)
            last_values[series.names.index("non_finite")] = 1
        return Series(
            series.names, np.append(series.steps[earlier], step), np.append(series.values[earlier], [last_values], 0)
        )

    loss = Series(("loss",), np.arange(step + 1), np.append(run.loss.values[:step], value))
    evaluated = run.evaluation.steps < step
    evaluation = Series(run.evaluation.names, run.evaluation.steps[evaluated], run.evaluation.values[evaluated])
    series = {n: s if n == "loss_surface" and step else cut_series(s) for n, s in run.series.items()}
    tags = {"solved": "true", "diverged": "true", "diverged_at_step": str(step)}  # the task had been solved before
    return replace(run, loss=loss, evaluation=evaluation, series=series, tags=run.tags | tags)
