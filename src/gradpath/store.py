"""The MLflow store: where it is, and that it exists. What is common to writing (recorder) and reading (loader)."""

import gc
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
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
    if given.startswith("sqlite:"):
        path = Path(given.removeprefix("sqlite:///"))
        if path == Path() or path.is_dir():
            raise StoreError(f"tracking.uri={given}: must name a file, as in sqlite:////absolute/path.db")
    return given


def masked(uri: str) -> str:
    """A URI as it may be shown: without its password."""
    return re.sub(r"(://[^:/@\s]*):.*@", r"\1:***@", uri)


def connect(given: str | None) -> "MlflowClient":
    """A client of the store, which is created first where it does not exist: once, however many processes start."""
    import logging

    uri = tracking_uri(given)
    for noisy in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with _lasting_imports():
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

    try:
        if (file := sqlite_file(uri)) and not file.exists():
            _create(file)
        return MlflowClient(tracking_uri=uri)
    except (MlflowException, SQLAlchemyError, OSError, sqlite3.Error) as error:
        raise StoreError(f"tracking.uri={uri}: cannot be used: {str(error).splitlines()[0]}") from error


@contextmanager
def _lasting_imports() -> Iterator[None]:
    """Keeps the garbage collector from what an import makes, then and ever after: of MLflow's 300 000 objects none is
    garbage, yet to look for it took a fifth of the import, and 0.1 s each time while points were being written.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
    gc.freeze()


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    return Path(uri.removeprefix("sqlite:///")).absolute() if uri.startswith("sqlite:///") else None


def artifact_root(uri: str) -> str | None:
    """Where the artifacts of a new MLflow experiment go: beside an SQLite file, the server's own choice elsewhere."""
    file = sqlite_file(uri)
    return str(file.parent / "artifacts") if file else None


def _create(file: Path) -> None:
    """Creates the database under a lock, since several processes that migrate one at the same time fail."""
    from filelock import FileLock
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.exists():
            return
        # Under another name until it is whole: nobody finds half a database, not even after a kill.
        unfinished = file.with_name(file.name + ".new")
        unfinished.unlink(missing_ok=True)
        MlflowClient(tracking_uri=f"sqlite:///{unfinished}").search_experiments(max_results=1)
        with sqlite3.connect(unfinished) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        unfinished.rename(file)


def _rehome(uri: str, location: str) -> None:
    """Lets an SQLite store that has been moved find its artifacts: MLflow keeps their paths absolute."""
    file, root = sqlite_file(uri), artifact_root(uri)
    if file is None or root is None or location == root or Path(location).is_dir():
        return
    with sqlite3.connect(file) as connection:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                (root, len(location) + 1, len(location), location),
            )


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
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"tracking.experiment={name}: has been deleted in MLflow; restore it there or choose another"
            )
        _rehome(client.tracking_uri, found.artifact_location)
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=artifact_root(client.tracking_uri)))
    except MlflowException:  # another process was faster
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)
