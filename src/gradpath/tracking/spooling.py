"""Writes a run into a store that may be away, a server or a database of another program: through a
journal on this machine's disk, so that training never waits for the store and nothing that was
measured depends on it.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import yaml

from gradpath.tracking import ending, sender, store
from gradpath.tracking.journal import Journal
from gradpath.tracking.liveness import pulse
from gradpath.tracking.sender import Sender, contacts
from gradpath.tracking.spool import left

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from gradpath.training.experiment import Tracking


def connect(tracking: "Tracking") -> "tuple[MlflowClient, str]":
    """A client that writes one run, and the id of its MLflow experiment: empty where the store is
    away and the run is to be sent later.
    """
    if store.is_local(tracking.uri):
        client = store.connect(tracking.uri, timeout=tracking.timeout, wait=ending.PATIENCE)
        with store.patience(ending.PATIENCE):
            return client, store.experiment_id(client, tracking.experiment)
    spooling = Spooling(tracking)
    try:
        return cast("MlflowClient", spooling), store.experiment_id(cast("MlflowClient", spooling), tracking.experiment)
    except store.UnreachableError as error:
        spooling.contact.lost(error)
        spooling.contact.given_up = True
        return cast("MlflowClient", spooling), ""


def start_pulse(client: "MlflowClient", run_id: str) -> None:
    """Renews a run's heartbeat; a sender does this by itself."""
    if not isinstance(client, Spooling):
        pulse.start(client, run_id)


class Spooling:
    """A client of one run. What it writes goes into a journal, and from there to the store when the
    store is there; everything else is asked of the store.
    """

    def __init__(self, tracking: "Tracking") -> None:
        self.tracking_uri = store.tracking_uri(tracking.uri)
        self.contact = contacts.setdefault(self.tracking_uri, sender.Contact())
        self._tracking = tracking
        self._client: Any = None
        self._sender: Sender | None = None

    @property
    def patience(self) -> float:
        """Seconds that the store is waited for."""
        return 0.0 if self.contact.given_up else self._tracking.timeout

    @property
    def direct(self) -> Any:
        """The client of the store itself; raises UnreachableError after the time that a store is
        waited for.
        """
        if self._client is None:
            self._client = store.connect(self.tracking_uri, timeout=self._tracking.timeout, wait=self.patience)
        return self._client

    def __getattr__(self, name: str) -> Any:
        def request(*arguments: Any, **keywords: Any) -> Any:
            with store.patience(self.patience):
                answer = getattr(self.direct, name)(*arguments, **keywords)
            self.contact.answered()
            return answer

        return request

    @property
    def run_id(self) -> str:
        """How the store calls the run; empty until it has it."""
        return "" if self._sender is None else str(self._sender.journal.header["run_id"])

    def create_run(self, experiment_id: str, tags: Mapping[str, str], run_name: str) -> Any:
        """A run, which the store makes now, or later if it is away: then its id is that of the
        journal.
        """
        self._begin(tags, run_name, int(time.time() * 1000), "")
        return SimpleNamespace(info=SimpleNamespace(run_id=self._wait(created=True)))

    def adopt(self, run: Any, tags: Mapping[str, str]) -> None:
        """Goes on with a run that the store has."""
        self._begin(tags, run.info.run_name or "", run.info.start_time, run.info.run_id)

    def _begin(self, tags: Mapping[str, str], run_name: str, start_time: int, run_id: str) -> None:
        header: dict[str, Any] = {"uri": store.shown(self.tracking_uri), "experiment": self._tracking.experiment}
        header |= {"tags": dict(tags), "run_name": run_name, "start_time": start_time, "run_id": run_id}
        self._sender = Sender(self.tracking_uri, Journal.begin(tags["attempt"], header), self._tracking.timeout)
        _senders.append(self._sender)
        self._sender.start()

    def _wait(self, created: bool = False) -> str:
        assert self._sender is not None
        self._sender.wait(self.patience, created)
        return str(self._journal().header["run_id"] or self._journal().key)

    def _journal(self) -> Journal:
        """The journal, unless the store has refused what is in it."""
        assert self._sender is not None
        if self._sender.failure is not None:
            raise type(self._sender.failure)(self._sender.failure.reason)
        return self._sender.journal

    def log_batch(
        self, run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = ()
    ) -> None:
        """As MLflow's."""
        points = [[metric.key, float(metric.value), metric.timestamp, metric.step] for metric in metrics]
        named = (("params", params), ("tags", tags))
        content = {name: {item.key: item.value for item in items} for name, items in named}
        self._journal().add({"batch": {"metrics": points, **content}})

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        """As MLflow's."""
        self._journal().add({"batch": {"metrics": [], "params": {}, "tags": {key: value}}})

    def log_artifact(self, run_id: str, path: str, folder: str = "") -> None:
        """As MLflow's."""
        self._journal().keep(f"{folder}/{Path(path).name}".lstrip("/"), Path(path))

    def log_text(self, run_id: str, text: str, name: str) -> None:
        """As MLflow's."""
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / name
            store.ask("", "write a temporary file", lambda: file.write_text(text, "utf-8"))
            self.log_artifact(run_id, str(file))

    def log_dict(self, run_id: str, content: Mapping[str, Any], name: str) -> None:
        """As MLflow's."""
        as_yaml = name.endswith(".yaml")
        text = yaml.dump(content, indent=2, default_flow_style=False) if as_yaml else json.dumps(content, indent=2)
        self.log_text(run_id, text, name)

    def delete_artifacts(self, run_id: str, folder: str) -> None:
        """Deletes a folder of artifacts, where the store lets us."""
        self._journal().add({"discarded": folder})

    def set_terminated(self, run_id: str, status: str) -> None:
        """As MLflow's. Whoever ends the run waits with ``delivery`` for the store to have it."""
        self._journal().add({"status": status, "time": int(time.time() * 1000)})

    def delete_run(self, run_id: str) -> None:
        """Ends and deletes the run."""
        self._journal().add({"deleted": True})
        self._wait()


_senders: list[Sender] = []
"""Of the runs of this process that the store does not have in full."""


@contextmanager
def delivery(timeout: float) -> Iterator[None]:
    """At its end the store has the runs of this process, unless it does not answer for ``timeout``
    seconds, or for a few once the process is to end; then they are sent later.
    """
    seconds = timeout
    try:
        yield
    except BaseException as error:
        seconds = timeout if isinstance(error, Exception) else ending.PATIENCE_INTERRUPTED
        raise
    finally:
        failures = []
        try:
            for waiting in [s for s in _senders if s.journal.status or s.failure]:
                waiting.wait(0 if waiting.contact.given_up else seconds)
                if waiting.failure is not None:
                    failures.append(waiting.failure.with_kept(waiting.journal.folder))
        finally:
            _senders[:] = [s for s in _senders if not s.ended]
        if failures and sys.exception() is None:
            raise failures[0]


def send_left(client: "MlflowClient") -> tuple[int, list[str]]:
    """Sends what other processes have left for this store; the number of runs that it has now, and
    a line for each that it refuses. Raises UnreachableError.
    """
    count, lines = 0, []
    for journal in left(store.shown(client.tracking_uri)):
        if isinstance(journal, str):
            lines.append(journal)
            continue
        if not journal.status:  # its process was killed
            journal.add({"status": "KILLED", "time": journal.last_written()})
        try:
            while journal.pending:
                sender.deliver(client, journal)
        except sender.TakenOverError as error:
            lines.append(str(error))
        except store.UnreachableError:
            raise
        except store.StoreError as error:
            lines.append(f"{error}; what was measured is kept in {journal.folder}")
            continue
        else:
            count += journal.status != "DELETED"
        journal.remove()
    return count, lines
