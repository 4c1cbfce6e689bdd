"""How the points of a sweep ended, by their records in MLflow and not by what a launcher's process
remembers.
"""

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradpath.tracking import store
from gradpath.tracking.ending import PATIENCE, PATIENCE_INTERRUPTED
from gradpath.tracking.liveness import dead
from gradpath.tracking.reserve import terminate
from gradpath.tracking.spool import unsent
from gradpath.tracking.spooling import send_left
from gradpath.training.experiment import Experiment


@dataclass
class Ended:
    """How a run ended, by its record."""

    status: str
    error: str = ""
    diverged: bool = False
    run_id: str = ""


def by_experiment(experiments: Iterable[Experiment]) -> dict[tuple[str | None, str], list[Experiment]]:
    """The runs by the store and the MLflow experiment that they are recorded in."""
    groups: dict[tuple[str | None, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.tracking.uri, experiment.tracking.experiment), []).append(experiment)
    return groups


def records(
    experiments: Iterable[Experiment], sweep_id: str, began: int, wait: float | None = None
) -> dict[str, Ended]:
    """How the runs of this sweep ended that have a record, by their identity: read from MLflow,
    since a process of a parallel launcher may have died without a word. Those that such a process
    left open are closed as KILLED. ``began`` is the start of the command, in milliseconds since
    1970. A run of which the store, a server, has not everything is UNSENT; where the server is
    away, after ``wait`` seconds, the others are UNREAD. A file that is locked is waited for too.
    """
    outcomes: dict[str, Ended] = {}
    for (uri, name), members in by_experiment(experiments).items():
        remote = not store.is_local(uri)
        identities = {member.config_hash for member in members}
        if remote and unsent(store.shown(store.tracking_uri(uri))):
            wait = min(wait or PATIENCE_INTERRUPTED, PATIENCE_INTERRUPTED)  # others have waited in vain
        try:
            outcomes |= _read(uri, name, members, sweep_id, began, wait)
        except store.UnreachableError:
            if not remote:
                raise
            outcomes |= dict.fromkeys(identities, Ended("UNREAD"))
        if remote:
            finished = {identity for identity, ended in outcomes.items() if ended.status == "FINISHED"}
            outcomes |= _unsent(uri, identities - finished, began)
    return outcomes


def _unsent(uri: str | None, identities: set[str], began: int) -> dict[str, Ended]:
    """The runs of this command that are still to be sent."""
    outcomes = {}
    for journal in unsent(store.shown(store.tracking_uri(uri))):
        identity = journal.header["tags"].get("config_hash")
        if identity in identities and journal.header["start_time"] >= began:
            error = "computed, but the store was away" if journal.status == "FINISHED" else ""
            outcomes[identity] = Ended("UNSENT", error)
    return outcomes


def _read(
    uri: str | None, name: str, members: list[Experiment], sweep_id: str, began: int, wait: float | None
) -> dict[str, Ended]:
    """The records of one MLflow experiment; what processes that are no more have left to be sent is
    sent first.
    """
    outcomes: dict[str, Ended] = {}
    timeout = members[0].tracking.timeout
    if wait is None:
        wait = PATIENCE if store.is_local(uri) else timeout
    with store.patience(wait):
        client = store.connect(uri, timeout=timeout, wait=wait)
        if not store.is_local(uri):
            for line in send_left(client)[1]:
                print(line, file=sys.stderr)
        if (experiment := client.get_experiment_by_name(name)) is None:
            return outcomes
        ids, order = [experiment.experiment_id], ["attributes.start_time ASC"]
        for shared in sorted({member.tracking.sweep_id or sweep_id for member in members}):
            query = f"tags.sweep_id = '{shared}'"

            def page(token: str | None, query: str = query) -> Any:
                return client.search_runs(ids, query, order_by=order, page_token=token)

            for run in store.pages(page):
                if max(run.info.start_time, milliseconds(run.data.tags.get("continued"))) < began:
                    continue
                if run.info.status == "RUNNING" and not dead(run.data.tags):
                    continue  # another command's, which shares the sweep
                outcomes[run.data.tags.get("config_hash", "")] = _ended(client, run)
    return outcomes


def milliseconds(tag: str | None) -> int:
    """The time that a tag tells; 0 where it tells none."""
    return int(tag) if tag and re.fullmatch("[0-9]{1,15}", tag) else 0


def _ended(client: Any, run: Any) -> Ended:
    """How a run ended; one whose process is no more is closed first."""
    status, tags = run.info.status, run.data.tags
    if status == "RUNNING" and dead(tags):
        terminate(client, run.info.run_id, status := "KILLED")
    return Ended(status, tags.get("error", ""), tags.get("diverged") == "true", run.info.run_id)


LAUNCH = "launch"
"""Tag of a run that a job of a cluster makes: the same for all attempts at the job."""


def close_left(experiments: Iterable[Experiment], launch: str) -> None:
    """Closes as KILLED the runs that earlier attempts at a job have left open: whoever calls it
    knows that they are over, which from another machine no heartbeat tells so soon.
    """
    for uri, name in by_experiment(experiments):
        client = store.connect(uri)
        if (experiment := client.get_experiment_by_name(name)) is not None:
            query = f"attributes.status = 'RUNNING' and tags.{LAUNCH} = '{launch}'"
            for run in client.search_runs([experiment.experiment_id], query):
                terminate(client, run.info.run_id, "KILLED")


def fallback_reason(failed: list[Ended]) -> str:
    """Why runs failed that did not say it."""
    if all(run.status == "MISSING" for run in failed):
        return "it never began"
    return "its process ended" if any(run.status == "KILLED" for run in failed) else "MLflow knows no reason"
