"""Finds runs and sweeps in MLflow, and reads them back."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradpath.schema.text import printable
from gradpath.tracking import plan, store
from gradpath.tracking.artifact import Series
from gradpath.tracking.decoding import DamagedError
from gradpath.tracking.earlier import RERUN
from gradpath.tracking.stored_run import Run, read_run, run_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment as MlflowExperiment
    from mlflow.entities import Run as MlflowRun

__all__ = ["NothingFinishedError", "Run", "Series", "Sweep", "load", "newest_sweep", "outcomes", "sweep"]


IDS = 500
"""Runs that one query names, which databases take."""


class NothingFinishedError(store.StoreError):
    """The store holds no finished run of what was asked for."""


@dataclass
class Sweep:
    """A sweep as a store holds it: what can be drawn, and what cannot and why."""

    runs: list[Run] = field(default_factory=list)
    """The finished ones that are whole, by arm, seed and place in the plan, of one point the newest
    last.
    """
    damaged: list[str] = field(default_factory=list)
    """Finished runs of ours that cannot be read, each with the reason."""
    damaged_points: list[str] = field(default_factory=list)
    """Their identities."""
    passed_over: list[str] = field(default_factory=list)
    """What is there and does not belong to the sweep's points: runs of other tools, damaged plans,
    …
    """
    planned: dict[str, plan.Point] = field(default_factory=dict)
    """By identity (``config_hash``); none where no plan is stored."""
    missing: dict[str, str] = field(default_factory=dict)
    """Points without a finished run: identity, name."""
    doubled: list[str] = field(default_factory=list)
    """Points with several finished runs that are whole."""

    @property
    def newest(self) -> list[Run]:
        """Of each point the newest of its ``runs``."""
        newest = {run.config_hash: run for run in self.runs}
        return [run for run in self.runs if newest[run.config_hash] is run]


def newest_sweep(uri: str | None, experiment: str | None, sweep_id: str | None = None) -> tuple[str, str]:
    """(MLflow experiment, sweep_id) of gradpath's newest finished run, of one experiment or of all,
    of one sweep or of any.
    """
    client = store.connect(uri, create=False)
    experiment_names = {
        e.experiment_id: e.name for e in store.pages(lambda token: client.search_experiments(page_token=token))
    }
    ids = [i for i, name in experiment_names.items() if experiment in (None, name)]
    if not ids:
        _active(client, str(experiment))
        names = [printable(name, 80) for name in sorted(set(experiment_names.values()) - {"Default"})]
        alternatives = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") or "none yet"
        raise NothingFinishedError(
            f"study={printable(experiment)}: no such MLflow experiment; there are: {alternatives}"
        )
    finished = "attributes.status = 'FINISHED' and tags.sweep_id != '' and tags.config_hash != ''"
    query = f"{finished} and {_is_sweep(sweep_id)}" if sweep_id is not None else finished
    # Mostly the first is one of ours; with other tools' runs among them it is the first that is.
    for run in store.pages(lambda token: client.search_runs(ids, query, max_results=50, page_token=token)):
        if _identity(run) and RERUN not in run.data.tags and sweep_id in (None, run.data.tags["sweep_id"]):
            return experiment_names[run.info.experiment_id], run.data.tags["sweep_id"]
    scope = f" in experiment {printable(experiment)}" if experiment is not None else ""
    if sweep_id is None:
        raise NothingFinishedError(f"nothing to report: no run has finished{scope}")
    newest = newest_sweep(uri, experiment)  # which says itself that there is none
    alternatives = f"the newest is {printable(newest[1])}, of {printable(newest[0])}"
    raise store.StoreError(f"sweep={printable(sweep_id)}: no finished run{scope}; {alternatives}")


def load(uri: str | None, experiment: str, sweep_id: str) -> list[Run]:
    """The finished runs of a sweep, by arm and seed; raises StoreError where one is damaged."""
    content = sweep(uri, experiment, sweep_id)
    for line in content.damaged:
        raise store.StoreError(line)
    if not content.runs:
        raise store.StoreError(f"sweep={printable(sweep_id)}: no finished run in experiment {printable(experiment)}")
    return content.runs


def sweep(uri: str | None, experiment: str, sweep_id: str) -> Sweep:
    """What a store holds of a sweep. A point is there when one run of it has FINISHED: runs of it
    that were killed or failed before are superseded. What should be there is what the sweep's plans
    say; without a plan (version 0.1), what was begun.
    """
    client = store.connect(uri, create=False)
    mlflow_experiment = _active(client, experiment)
    content, finished = Sweep(), set()
    content.planned, content.passed_over = plan.read(mlflow_experiment.tags if mlflow_experiment else {}, sweep_id)
    begun: dict[str, str] = {}
    damaged: list[tuple[str, str]] = []
    members = _search(client, mlflow_experiment, sweep_id)
    if mlflow_experiment is not None:
        members += _of_other_sweeps(client, mlflow_experiment, members, content.planned)
    for run in reversed(members):  # oldest first
        point = _identity(run)
        if point is None:
            content.passed_over.append(f"{_described(run)}: not a run of gradpath, it has no config_hash")
        elif run.info.status == "FINISHED":
            finished.add(point)
            try:
                content.runs.append(read_run(client, run, point))
            except DamagedError as error:
                damaged.append((point, f"{_described(run)}: {error}"))
        else:
            begun[point] = run_name(run) + (" (still running)" if run.info.status == "RUNNING" else "")
    places = {point: place for place, point in enumerate(content.planned)}
    content.runs.sort(key=lambda run: (run.arm, run.seed, places.get(run.config_hash, len(places))))
    counts = Counter(run.tags["config_hash"] for run in content.runs)
    content.doubled = [
        next(r.name for r in content.runs if r.tags["config_hash"] == p) for p, n in counts.items() if n > 1
    ]
    for point, line in damaged:  # beside a whole one of the same point it is superseded too
        (content.passed_over if counts[point] else content.damaged).append(line)
        content.damaged_points += [] if counts[point] else [point]
    expected = {point: planned.name for point, planned in content.planned.items()} | begun
    content.missing = {point: name for point, name in expected.items() if point not in finished}
    return content


def outcomes(uri: str | None, experiment: str, sweep_id: str) -> list[tuple[str, str, dict[str, str]]]:
    """(name, status, tags) of every run of a sweep, oldest first."""
    client = store.connect(uri, create=False)
    runs = sorted(_search(client, _active(client, experiment), sweep_id), key=lambda run: run.info.start_time or 0)
    return [(run_name(run), run.info.status, dict(run.data.tags)) for run in runs]


def _active(client: "MlflowClient", name: str) -> "MlflowExperiment | None":
    """The MLflow experiment of that name; raises StoreError where it has been deleted."""
    mlflow_experiment = client.get_experiment_by_name(name)
    if mlflow_experiment is not None and mlflow_experiment.lifecycle_stage != "active":
        raise store.StoreError(f"study={printable(name)}: has been deleted in MLflow; restore it there")
    return mlflow_experiment


def _is_sweep(sweep_id: str) -> str:
    """The filter for a sweep. A sweep_id that gradpath does not write (with a quote in it) is no
    part of a filter: it is looked for among all runs.
    """
    return f"tags.sweep_id = '{sweep_id}'" if re.fullmatch(r"[\w .-]+", sweep_id) else "tags.sweep_id != ''"


def _search(client: "MlflowClient", mlflow_experiment: "MlflowExperiment | None", sweep_id: str) -> list["MlflowRun"]:
    """Every run of a sweep, whatever its status, newest first."""
    if mlflow_experiment is None:
        return []
    runs = _matching(client, mlflow_experiment, _is_sweep(sweep_id))
    return [run for run in runs if run.data.tags.get("sweep_id") == sweep_id]


def _of_other_sweeps(
    client: "MlflowClient",
    mlflow_experiment: "MlflowExperiment",
    members: Sequence["MlflowRun"],
    planned: Mapping[str, plan.Point],
) -> list["MlflowRun"]:
    """The runs of other sweeps that stand for planned points, as far as they are there."""
    member_ids = {run.info.run_id for run in members}
    taken = {point.run_id: identity for identity, point in planned.items() if point.run_id not in {"", *member_ids}}
    runs: list[MlflowRun] = []
    for start in range(0, len(taken), IDS):
        listed = ", ".join(f"'{run_id}'" for run_id in [*taken][start : start + IDS])
        runs += _matching(client, mlflow_experiment, f"attributes.run_id IN ({listed})")
    return [run for run in runs if _identity(run) == taken[run.info.run_id]]


def _matching(client: "MlflowClient", mlflow_experiment: "MlflowExperiment", query: str) -> Iterator["MlflowRun"]:
    ids = [mlflow_experiment.experiment_id]
    return store.pages(lambda token: client.search_runs(ids, query, max_results=1000, page_token=token))


def _identity(run: "MlflowRun") -> str | None:
    """The point that a run has recorded; None where it is not gradpath's, whose runs all say it."""
    point = run.data.tags.get("config_hash", "")
    return point if re.fullmatch(r"[0-9a-f]{12}", point) and run.data.tags.get("sweep_id") else None


def _described(run: "MlflowRun") -> str:
    return f"run {run_name(run)} ({printable(run.info.run_id, 40)})"
