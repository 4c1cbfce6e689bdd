"""Runs that a store holds already, which the same command need not do again."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradpath.tracking.liveness import dead
from gradpath.tracking.provenance import source_tags
from gradpath.tracking.store_client import pages
from gradpath.tracking.store_uri import sqlite_file
from gradpath.tracking.stored_run import is_readable, run_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


RERUN = "rerun_of"
"""Tag of a run that ``gradpath rerun`` has made: it stands for no point of any sweep."""


@dataclass(frozen=True)
class Earlier:
    """A run of another command: it has finished, or is ``running`` in a process that is alive."""

    run_id: str
    sweep_id: str
    running: bool
    diverged: bool


def earlier(
    client: "MlflowClient", experiment_id: str, identities: Collection[str]
) -> tuple[dict[str, Earlier], list[str], list[str]]:
    """The runs of this code with one of these identities (``config_hash``), of each the newest that
    has finished, else one that is running; the sweeps that have begun any of them, the newest
    first; and the names of finished runs that do not count, since their artifacts are damaged. In
    one query, whatever their number.
    """
    runs: dict[str, Earlier] = {}
    damaged: list[str] = []
    sweep_ids: dict[str, None] = {}
    query = " and ".join(["tags.config_hash != ''", *same_code()])
    for run in pages(lambda token: client.search_runs([experiment_id], query, max_results=1000, page_token=token)):
        tags = run.data.tags
        if (identity := tags["config_hash"]) not in identities or RERUN in tags:
            continue
        sweep_id = tags.get("sweep_id", "")
        sweep_ids[sweep_id] = None
        if identity in runs and not (runs[identity].running and run.info.status == "FINISHED"):
            continue
        if (status := _status(client, run)) in ("FINISHED", "RUNNING"):
            diverged = tags.get("diverged") == "true"
            runs[identity] = Earlier(run.info.run_id, sweep_id, status == "RUNNING", diverged)
        elif status == "DAMAGED":
            damaged.append(f"{run_name(run)} ({run.info.run_id})")
    return runs, [*sweep_ids], damaged


@contextmanager
def in_turn(uri: str) -> Iterator[None]:
    """One process after another, of those that write to an SQLite store: records of the same run
    are made in the order in which their commands then look for each other's.
    """
    from filelock import FileLock

    file = sqlite_file(uri)
    with FileLock(f"{file}.lock") if file is not None else nullcontext():
        yield


def is_second(client: "MlflowClient", run_id: str) -> bool:
    """Does another command compute what this run has just begun to, or has it just done so? Of two
    that began at once it is the one whose record is older.
    """
    this_run = client.get_run(run_id)
    unfailed = ["attributes.status != 'FAILED'", "attributes.status != 'KILLED'"]
    query = " and ".join([*unfailed, f"tags.config_hash = '{this_run.data.tags['config_hash']}'", *same_code()])
    runs = pages(lambda token: client.search_runs([this_run.info.experiment_id], query, page_token=token))
    older = [run for run in runs if _age(run) < _age(this_run) and RERUN not in run.data.tags]
    return any(_status(client, run) in ("FINISHED", "RUNNING") for run in older)


def _status(client: "MlflowClient", run: "Run") -> str:
    """How a run stands: one whose process is no more may have finished since it was looked up, and
    one that has finished may be ``DAMAGED`` since.
    """
    status = str(run.info.status)
    if status == "FINISHED" and not is_readable(client, run):
        return "DAMAGED"
    if status == "RUNNING" and dead(run.data.tags):
        status = str(client.get_run(run.info.run_id).info.status)
        return "KILLED" if status == "RUNNING" else status
    return status


def same_code() -> list[str]:
    """The conditions of a query for runs of this very code."""
    return [f"tags.{key} = '{value}'" for key, value in source_tags().items()]


def _age(run: "Run") -> tuple[int, str]:
    return run.info.start_time, run.info.run_id
