"""Checkpoints: what a run that was killed goes on from, among its own artifacts, so that any
machine that reaches the store can.

Two files that are written in turn, since a kill may leave the one being written in pieces. Each
holds what was measured so far, as ``measurements.npz`` does, and the state of the training.
"""

import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gradpath.core.trace import Measurement
from gradpath.tracking import artifact, store
from gradpath.tracking.decoding import DamagedError, arrays_of, refusing
from gradpath.tracking.earlier import same_code
from gradpath.tracking.liveness import dead
from gradpath.tracking.mlflow_metrics import TrainingCurves, lag_curves
from gradpath.tracking.readings import Readings
from gradpath.tracking.sender import CHECKPOINTS, delete_checkpoints
from gradpath.tracking.spooling import Spooling, send_left
from gradpath.tracking.store_client import pages
from gradpath.tracking.stored_run import artifact_file
from gradpath.training.evaluation import Evaluation
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step, check_state
from gradpath.training.state import TrainingState

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FOLDER = "checkpoint"
NORMS = "state/log10_grad_norm"
"""Of every training step so far."""
IDENTITY = "state/config_hash"


@dataclass(frozen=True)
class Continued:
    """A run that is gone on with: of each curve the steps at which the store has a point, and the
    checkpoints that are whole, by the training step that comes next.
    """

    run: "Run"
    points: dict[str, set[int]]
    checkpoints: dict[int, dict[str, NDArray]]


def go_on(client: "MlflowClient", experiment_id: str, experiment: Experiment, tags: dict[str, str]) -> Continued | None:
    """Takes over an unfinished run, as this process's, if there is one; of a store that is away,
    none.
    """
    if not isinstance(client, Spooling):
        return _go_on(client, experiment_id, experiment, tags)
    try:
        with store.patience(client.patience):
            send_left(client.direct)
            continued = _go_on(client.direct, experiment_id, experiment, tags)
    except store.UnreachableError:
        tags["attempt"] = secrets.token_hex(8)  # a run may bear the former
        return None
    if continued is not None:
        client.adopt(continued.run, tags)
    return continued


def _go_on(
    client: "MlflowClient", experiment_id: str, experiment: Experiment, tags: Mapping[str, str]
) -> Continued | None:
    if (run := unfinished(client, experiment_id, experiment.config_hash)) is None:
        return None
    take_over(client, run, tags)
    return Continued(run, stored_points(client, run), load(client, run, experiment))


def unfinished(client: "MlflowClient", experiment_id: str, identity: str) -> "Run | None":
    """The newest run of this code that has not finished, has a checkpoint, and is nobody's now."""
    query = " and ".join([f"tags.config_hash = '{identity}'", "tags.checkpoint != ''", *same_code()])
    for run in pages(lambda token: client.search_runs([experiment_id], query, page_token=token)):
        if run.info.status in ("KILLED", "FAILED") or (run.info.status == "RUNNING" and dead(run.data.tags)):
            return run
    return None


def take_over(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> None:
    """Opens a run again, as this process's."""
    client.update_run(run.info.run_id, "RUNNING")
    for key, value in {**tags, "continued": f"{time.time() * 1000:.0f}"}.items():
        client.set_tag(run.info.run_id, key, value)
    if "error" in run.data.tags:
        client.delete_tag(run.info.run_id, "error")


def stored_points(client: "MlflowClient", run: "Run") -> dict[str, set[int]]:
    """Of each curve the steps at which it has a point."""
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: {point.step for point in history} for key, history in histories.items()}


def arrays(experiment: Experiment, readings: Readings, state: TrainingState) -> dict[str, NDArray]:
    """What a checkpoint holds."""
    identified = {NORMS: readings.norms(), IDENTITY: np.array(experiment.config_hash)}
    return readings.arrays() | identified | state.arrays()


def save(client: "MlflowClient", run_id: str, arrays: Mapping[str, NDArray], turn: int) -> None:
    """Stores a checkpoint beside the one before it; raises StoreError."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CHECKPOINTS[turn % len(CHECKPOINTS)]
        store.ask("", "write a temporary file", lambda: np.savez(path, **arrays))  # type: ignore[arg-type]
        client.log_artifact(run_id, str(path), FOLDER)


def load(client: "MlflowClient", run: "Run", experiment: Experiment) -> dict[int, dict[str, NDArray]]:
    """The checkpoints of a run from which its training can go on, by the training step that comes
    next.
    """
    checkpoints = {}
    for name in CHECKPOINTS:
        with suppress(DamagedError), artifact_file(client, run, f"{FOLDER}/{name}") as path:
            step, stored = read(path, experiment)
            checkpoints[step] = stored
    return checkpoints


def read(path: Path, experiment: Experiment) -> tuple[int, dict[str, NDArray]]:
    """The training step that comes next after a checkpoint, and what it holds; raises DamagedError
    where the training of this experiment cannot go on from it.
    """
    artifact.measurements(path)
    with refusing(path.name):
        stored = arrays_of(path)
        state = TrainingState.from_arrays(stored)
        if str(stored[IDENTITY]) != experiment.config_hash:
            raise DamagedError("is that of another configuration")
        if not np.array_equal(stored["loss/steps"], np.arange(state.step)) or stored[NORMS].shape != (state.step,):
            raise DamagedError("holds another number of steps than it says")
        check_state(experiment, state)
        # What the recorder will do with it, done once in vain: the names, the shapes, the steps.
        readings, curves = Readings(experiment), TrainingCurves(experiment)
        for past in steps(stored):
            readings.add(past)
            list(curves.points(past))
        lag_curves(experiment, readings.series)
        return state.step, stored


def discard(client: "MlflowClient", run_id: str) -> None:
    """Deletes the checkpoints of a run that has finished, where the store lets us."""
    if isinstance(client, Spooling):
        client.delete_artifacts(run_id, FOLDER)
    else:
        delete_checkpoints(client.get_run(run_id), FOLDER)


def steps(arrays: Mapping[str, NDArray]) -> Iterator[Step]:
    """The training steps that a checkpoint holds, as they were when they happened."""
    evaluations = {
        int(step): Evaluation(float(loss), float(score), bool(solved))
        for step, (loss, score, solved) in zip(arrays["evaluation/steps"], arrays["evaluation/values"], strict=True)
    }
    measurements: dict[int, dict[str, Measurement]] = {}
    for name in _instruments(arrays):
        names = tuple(arrays[f"{name}/names"].tolist())
        for step, values in zip(arrays[f"{name}/steps"], arrays[f"{name}/values"], strict=True):
            measurements.setdefault(int(step), {})[name] = Measurement(names, values)
    past = zip(arrays["loss/steps"].tolist(), arrays["loss/values"].tolist(), arrays[NORMS].tolist(), strict=True)
    for step, loss, norm in past:
        yield Step(step, loss, norm, measurements.get(step, {}), evaluations.get(step), diverged=False)


def _instruments(arrays: Mapping[str, NDArray]) -> Sequence[str]:
    return [key.removesuffix("/names") for key in arrays if key.endswith("/names")]
