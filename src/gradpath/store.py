"""The MLflow store: where it is, and that it exists. What is common to writing (recorder) and reading (loader)."""

import os
import socket
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from gradpath import paths

# Read by MLflow when it is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMA_VERSION = 1
"""Of the artifact ``gradients/measurements.npz``."""
ARTIFACT = "gradients/measurements.npz"
DATABASES = ("sqlite:///", "postgresql://", "postgresql+psycopg://", "mysql://", "mysql+pymysql://", "mssql://")
SERVERS = ("http://", "https://")


class StoreError(Exception):
    """The store cannot be used; the message says why in one line."""


def tracking_uri(given: str | None) -> str:
    """The tracking URI to use: the one given, or the project's own SQLite database under an absolute path."""
    if given is None:
        return f"sqlite:///{paths.database()}"
    if not given.startswith(DATABASES + SERVERS):
        raise StoreError(
            f"tracking.uri={given}: must be a database (sqlite:////absolute/path.db, postgresql://…) or a server (http://…)"
        )
    return given


def connect(given: str | None) -> "MlflowClient":
    """A client of the store, which is created first where it does not exist: once, however many processes start."""
    import logging

    uri = tracking_uri(given)
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if (file := sqlite_file(uri)) and not file.exists():
            _create(uri, file)
        return MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
        raise StoreError(f"tracking.uri={uri}: cannot be used: {str(error).splitlines()[0]}") from error


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifact_root(uri: str) -> str | None:
    """Where the artifacts of a new MLflow experiment go: beside an SQLite file, the server's own choice elsewhere."""
    file = sqlite_file(uri)
    return str(file.parent / "artifacts") if file else None


def _create(uri: str, file: Path) -> None:
    """Creates the database under a lock, since several processes that migrate one at the same time fail."""
    from filelock import FileLock
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if not file.exists():
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
            with sqlite3.connect(file) as connection:
                connection.execute("PRAGMA journal_mode=WAL")


def process_tags() -> dict[str, str]:
    """Who writes a run: what ``reap`` needs to know of it later."""
    return {"host": socket.gethostname(), "pid": str(os.getpid())}


def reap(client: "MlflowClient", experiment: str) -> list[str]:
    """Marks as KILLED the runs left RUNNING by a process of this machine that is no more, and returns their names."""
    found = []
    query = f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'"
    for run in client.search_runs([experiment], query, max_results=1000):
        try:
            os.kill(int(run.data.tags["pid"]), 0)
        except ProcessLookupError:
            client.set_terminated(run.info.run_id, "KILLED")
            found.append(run.info.run_name)
        except PermissionError:  # alive, and another user's
            continue
    return found


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The id of an MLflow experiment, which is created where it does not exist."""
    from mlflow.exceptions import MlflowException

    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_root(client.tracking_uri)))
    except MlflowException:  # another process was faster
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)
