"""Sends journals: each request until the store has acknowledged it, in order, any number of times.

Sending a request twice changes nothing: a metric has the time at which it was measured, a tag, a
parameter, an artifact and a status replace themselves, and the run that a journal creates is found
again by its tag ``attempt``.
"""

import sys
import threading
import time
from contextlib import suppress
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gradpath.tracking import store
from gradpath.tracking.journal import Journal
from gradpath.tracking.liveness import pulse
from gradpath.tracking.store_client import QUIET

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

REQUESTS = threading.BoundedSemaphore(8)
"""Requests of this process at once."""
CHECKPOINTS = ("0.npz", "1.npz")
"""The files of a run's checkpoints."""
LONGEST_PAUSE = 2.0
"""Seconds between two attempts to reach a store that is away."""


class TakenOverError(store.StoreError):
    """Another process goes on with the run: what the journal holds is computed again there."""


def deliver(client: "MlflowClient", journal: Journal) -> None:
    """Sends the next request of a journal, or first makes its run. Raises StoreError."""
    if not journal.header["run_id"]:
        journal.header["run_id"] = _run_id(client, journal)
        journal.note(journal.header["run_id"])
        return
    run_id = journal.header["run_id"]
    (kind, value), *_ = journal.requests[journal.acknowledged].items()
    match kind:
        case "batch":
            _batch(client, run_id, **value)
        case "artifact":
            client.log_artifact(run_id, str(journal.artifact(value)), value.rpartition("/")[0] or None)
        case "discarded":
            delete_checkpoints(client.get_run(run_id), value)
        case "status":
            _check_runs(client, journal)
            client.set_terminated(run_id, value, end_time=journal.requests[journal.acknowledged].get("time"))
        case "deleted":
            if client.get_run(run_id).info.lifecycle_stage == "active":
                client.set_terminated(run_id, "KILLED")
                client.delete_run(run_id)
    journal.acknowledge(run_id)


def _batch(
    client: "MlflowClient", run_id: str, metrics: list[Any], params: dict[str, str], tags: dict[str, str]
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    client.log_batch(
        run_id,
        metrics=[Metric(key, value, timestamp, step) for key, value, timestamp, step in metrics],
        params=[Param(key, value) for key, value in params.items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )


def _run_id(client: "MlflowClient", journal: Journal) -> str:
    """The run of a journal, which is made where the store has none."""
    header = journal.header
    experiment_id = store.experiment_id(client, header["experiment"])
    if runs := _runs(client, journal, experiment_id):
        return str(runs[0].info.run_id)
    with store.patience(0):
        run = client.create_run(experiment_id, header["start_time"], header["tags"], header["run_name"])
    return str(run.info.run_id)


def _runs(client: "MlflowClient", journal: Journal, experiment_id: str) -> "list[Run]":
    """The runs of a journal: more than one where the store has acted upon a request although it did
    not answer.
    """
    query, order = f"tags.attempt = '{journal.key}'", ["attributes.start_time ASC"]
    return list(store.pages(lambda token: client.search_runs([experiment_id], query, order_by=order, page_token=token)))


def _check_runs(client: "MlflowClient", journal: Journal) -> None:
    """Deletes other runs that the store has made of this journal; raises TakenOverError."""
    run = client.get_run(journal.header["run_id"])
    if run.data.tags.get("attempt") != journal.key:
        raise TakenOverError(f"{journal.header['run_name']} ({run.info.run_id}): another process goes on with it")
    for duplicate in _runs(client, journal, run.info.experiment_id):
        if duplicate.info.run_id != run.info.run_id:
            client.delete_run(duplicate.info.run_id)


def delete_checkpoints(run: "Run", folder: str) -> None:
    """Deletes a folder of a run's artifacts that holds nothing else, where the store lets us."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with suppress(Exception):
        repository: Any = get_artifact_repository(run.info.artifact_uri)
        if {PurePosixPath(file.path).name for file in repository.list_artifacts(folder)} <= {*CHECKPOINTS}:
            repository.delete_artifacts(folder)


class Contact:
    """What this process knows of a store. ``is_lost``: it does not answer; ``given_up``: it was
    waited for in vain, and nobody waits again until it answers.
    """

    def __init__(self) -> None:
        self.is_lost = self.given_up = False

    def lost(self, error: store.StoreError) -> None:
        """A request has failed; the first time it is said."""
        if not self.is_lost:
            self.is_lost = True
            tqdm.write(f"gradpath: {error}; the run goes on, and what it measures is sent later", file=sys.stderr)

    def answered(self) -> None:
        """A request has been acknowledged."""
        self.is_lost = self.given_up = False


contacts: dict[str, Contact] = {}
"""By tracking URI."""


class Sender(threading.Thread):
    """Sends one journal while its run is being computed, beside it; ``failure`` is why the store
    refuses it, if it does.
    """

    def __init__(self, uri: str, journal: Journal, timeout: float) -> None:
        super().__init__(name="gradpath-sender", daemon=True)
        self.journal, self.contact = journal, contacts.setdefault(uri, Contact())
        self.failure: store.StoreError | None = None
        self.ended = False
        self._uri, self._timeout = uri, timeout
        self._client: MlflowClient | None = None

    def run(self) -> None:
        """Ends once the run has ended and the store has everything."""
        pause = 0.1
        try:
            while not self.journal.status or self.journal.pending:
                try:
                    self._next()
                    pause = 0.1
                except store.UnreachableError as error:
                    self.contact.lost(error)
                    time.sleep(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            self.journal.remove()
        except TakenOverError as error:
            tqdm.write(f"gradpath: {error}", file=sys.stderr)
            self.journal.remove()
        except store.StoreError as error:
            self.failure = error
        except Exception as error:  # of MLflow's, which is no reason to lose what the journal holds
            self.failure = store.StoreError(f"{store.shown(self._uri)}: {type(error).__name__}: {error}")
        finally:
            pulse.stop(self.journal.header["run_id"])
            self.ended = True
            self.journal.notify()

    def wait(self, seconds: float, created: bool = False) -> bool:
        """Waits until the store has the run, or all of it; not longer than ``seconds`` without an
        answer of the store.
        """
        journal, deadline, seen = self.journal, time.monotonic() + seconds, None
        line = f"gradpath: waiting for {store.shown(self._uri)} ({seconds:g} s)"
        notice = threading.Timer(QUIET, tqdm.write, (line,), {"file": sys.stderr})
        notice.daemon = True
        if seconds > QUIET:
            notice.start()
        try:
            with journal.changed:
                while not (self.ended or (created and journal.header["run_id"])):
                    if seen != (seen := (journal.acknowledged, journal.header["run_id"])):
                        deadline = time.monotonic() + seconds
                    if (remaining := deadline - time.monotonic()) <= 0:
                        self.contact.given_up = True
                        return False
                    journal.changed.wait(remaining)
        finally:
            notice.cancel()
        return self.failure is None

    def _next(self) -> None:
        """The next request; without one, waits for it."""
        journal = self.journal
        with journal.changed:
            if journal.header["run_id"] and not journal.pending:
                journal.changed.wait()
                return
        with REQUESTS, store.patience(0):
            if self._client is None:
                self._client = store.connect(self._uri, timeout=self._timeout, wait=0)
                if journal.header["run_id"]:  # of a run that is gone on with
                    pulse.start(self._client, journal.header["run_id"])
            new = not journal.header["run_id"]
            deliver(self._client, journal)
        self.contact.answered()
        if new:
            pulse.start(self._client, journal.header["run_id"])
            journal.notify()
