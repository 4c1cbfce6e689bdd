"""Runs that a store holds already, which the same command need not do again."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradpath.tracking.liveness import dead
from gradpath.tracking.provenance import source_tags
from gradpath.tracking.store_client import pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

VALID = "attributes.status != 'FAILED' and attributes.status != 'KILLED'"


@dataclass(frozen=True)
class Earlier:
    """A run of another command: it has finished, or is ``running`` in a process that is alive."""

    run_id: str
    sweep_id: str
    running: bool
    diverged: bool


def earlier(client: "MlflowClient", experiment_id: str, identities: Collection[str]) -> dict[str, Earlier]:
    """The runs of this code with one of these identities (``config_hash``), of each the newest that
    has finished, else one that is running; in one query, whatever their number.
    """
    runs: dict[str, Earlier] = {}
    query = " and ".join([VALID, "tags.config_hash != ''", *_same_code()])
    for run in pages(lambda token: client.search_runs([experiment_id], query, max_results=1000, page_token=token)):
        identity = run.data.tags["config_hash"]
        if identity not in identities or (identity in runs and not runs[identity].running):
            continue
        running = run.info.status == "RUNNING"
        if not running or (identity not in runs and not dead(run.data.tags)):
            diverged = run.data.tags.get("diverged") == "true"
            runs[identity] = Earlier(run.info.run_id, run.data.tags.get("sweep_id", ""), running, diverged)
    return runs


def is_second(client: "MlflowClient", run_id: str) -> bool:
    """Does another command compute what this run has just begun to, or has it just done so? Of two
    that began at once it is the one whose record is older.
    """
    own = client.get_run(run_id)
    query = " and ".join([VALID, f"tags.config_hash = '{own.data.tags['config_hash']}'", *_same_code()])
    runs = pages(lambda token: client.search_runs([own.info.experiment_id], query, page_token=token))
    return any(_age(run) < _age(own) and (run.info.status == "FINISHED" or not dead(run.data.tags)) for run in runs)


def _same_code() -> list[str]:
    return [f"tags.{key} = '{value}'" for key, value in source_tags().items()]


def _age(run: "Run") -> tuple[int, str]:
    return run.info.start_time, run.info.run_id
