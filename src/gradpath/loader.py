"""Reads runs back from MLflow: the one module that does."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gradpath import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class Series:
    """One instrument's readings: ``values`` [probe, T, name] or [probe, name], ``steps`` of the probes, ``names``."""

    names: tuple[str, ...]
    steps: NDArray
    values: NDArray

    def column(self, name: str) -> NDArray:
        """[probe, T] or [probe] of one name."""
        return self.values[..., self.names.index(name)]


@dataclass(frozen=True)
class Run:
    """A finished run: its identity, its resolved configuration, and everything that was measured."""

    run_id: str
    name: str
    arm: str
    config: dict[str, Any]
    tags: dict[str, str]
    lag: NDArray
    loss: Series
    evaluation: Series
    series: dict[str, Series]
    chance_loss: float
    longest_lag: int
    """Of the task: from the first input that matters to the output that needs it."""

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def diverged_at(self) -> int | None:
        """The training step at which loss or gradient stopped being finite."""
        step = self.tags.get("diverged_at_step")
        return int(step) if step is not None else None


def newest_sweep(uri: str | None, experiment: str | None) -> tuple[str, str]:
    """(MLflow experiment, sweep_id) of the newest finished run, of one experiment or of all."""
    client = store.connect(uri, create=False)
    known = {e.experiment_id: e.name for e in client.search_experiments()}
    ids = [i for i, name in known.items() if experiment in (None, name)]
    if not ids:
        names = ", ".join(sorted(set(known.values()) - {"Default"})) or "none yet"
        raise store.StoreError(f"study={experiment}: no such MLflow experiment; there are: {names}")
    found = client.search_runs(ids, "attributes.status = 'FINISHED' and tags.sweep_id != ''", max_results=1)
    if not found:
        raise store.StoreError("nothing to report: no finished run; start one with: gradpath run")
    return known[found[0].info.experiment_id], found[0].data.tags["sweep_id"]


def load(uri: str | None, experiment: str, sweep_id: str) -> list[Run]:
    """The finished runs of a sweep, by arm and seed."""
    client = store.connect(uri, create=False)
    found = _search(client, experiment, sweep_id)
    runs = [_read(client, run) for run in found if run.info.status == "FINISHED"]
    if not runs:
        raise store.StoreError(f"sweep={sweep_id}: no finished run in experiment {experiment}")
    return sorted(runs, key=lambda run: (run.arm, run.seed, run.run_id))


def outcomes(uri: str | None, experiment: str, sweep_id: str) -> list[tuple[str, str, dict[str, str]]]:
    """(name, status, tags) of every run of a sweep, oldest first."""
    runs = sorted(_search(store.connect(uri, create=False), experiment, sweep_id), key=lambda run: run.info.start_time)
    return [(run.info.run_name, run.info.status, dict(run.data.tags)) for run in runs]


def _search(client: "MlflowClient", experiment: str, sweep_id: str) -> list["MlflowRun"]:
    """Every run of a sweep, whatever its status, page by page."""
    found: list[MlflowRun] = []
    place, token = client.get_experiment_by_name(experiment), None
    while place:
        query = f"tags.sweep_id = '{sweep_id}'"
        page = client.search_runs([place.experiment_id], query, max_results=1000, page_token=token)
        found += page
        if not (token := page.token):
            break
    return found


def _read(client: "MlflowClient", run: "MlflowRun") -> Run:
    path = _artifact(client, run, store.ARTIFACT)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        config = yaml.safe_load(_artifact(client, run, "config.yaml").read_text())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise store.StoreError(f"run {run.info.run_name} ({run.info.run_id}): damaged artifact: {error}") from error
    if int(arrays["schema_version"]) != store.SCHEMA_VERSION:
        raise store.StoreError(f"run {run.info.run_name}: its artifact has another schema version than this gradpath")

    def series(name: str, names: tuple[str, ...]) -> Series:
        return Series(names, arrays[f"{name}/steps"], arrays[f"{name}/values"])

    instruments = [key.removesuffix("/names") for key in arrays if key.endswith("/names")]
    return Run(
        run_id=run.info.run_id,
        name=run.info.run_name,
        arm=run.data.params["arm"],
        config=config,
        tags=dict(run.data.tags),
        lag=arrays["lag"],
        loss=series("loss", ("loss",)),
        evaluation=series("evaluation", ("loss", "score", "solved")),
        series={name: series(name, tuple(arrays[f"{name}/names"].tolist())) for name in instruments},
        chance_loss=float(arrays["chance_loss"]),
        longest_lag=int(arrays["longest_lag"]),
    )


def _artifact(client: "MlflowClient", run: "MlflowRun", name: str) -> Path:
    """A local path to an artifact: in place where it lies on this machine, also in a store that has moved since."""
    uri = run.info.artifact_uri
    places = [folder / name] if (folder := store.local_path(uri)) else []
    if file := store.sqlite_file(client.tracking_uri):
        places.append(file.parent / "artifacts" / run.info.run_id / "artifacts" / name)
    for place in places:
        if place.is_file():
            return place
    try:
        return Path(client.download_artifacts(run.info.run_id, name))
    except store.UnreachableError:
        raise
    except store.StoreError as error:
        raise store.StoreError(f"run {run.info.run_name} ({run.info.run_id}): no artifact {name}") from error
