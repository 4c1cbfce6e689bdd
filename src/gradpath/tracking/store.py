"""The MLflow store: that it exists and is MLflow's, and what is common to writing (recorder) and
reading (loader).
"""

import gc
import shlex
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from gradpath.schema import locations
from gradpath.tracking import store_client
from gradpath.tracking.liveness import reap
from gradpath.tracking.mlflow_output import silence
from gradpath.tracking.store_client import TIMEOUT, Client, UnreachableError, ask, limit_requests, pages, patience
from gradpath.tracking.store_moved import LOCATION_TAG, rehome
from gradpath.tracking.store_uri import (
    HOME,
    SERVERS,
    StoreError,
    artifact_root,
    backend_uri,
    in_wal_mode,
    local_path,
    masked,
    missing_store,
    named,
    shown,
    sqlite_file,
    sqlite_uri,
    tracking_uri,
    uri_key,
    writable,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "ARTIFACT",
    "SCHEMA_VERSION",
    "SERVERS",
    "TIMEOUT",
    "StoreError",
    "UnreachableError",
    "artifact_root",
    "ask",
    "backend_uri",
    "connect",
    "experiment_id",
    "is_local",
    "limit_requests",
    "local_path",
    "masked",
    "pages",
    "patience",
    "reap",
    "settle",
    "shown",
    "sqlite_file",
    "tracking_uri",
    "uri_key",
]

SCHEMA_VERSION = 1
"""Of the artifact ``gradients/measurements.npz``."""
ARTIFACT = "gradients/measurements.npz"

silence()


def connect(
    configured: str | None, create: bool = True, timeout: float | None = None, wait: float | None = None
) -> "MlflowClient":
    """A client of the store. One that does not exist is created first, once, however many processes
    start; without ``create`` it is refused, and nothing is written. An answer may take ``timeout``
    seconds; waits as long for a store that is away, or ``wait`` seconds, or as ``patience`` says.
    """
    uri = tracking_uri(configured)
    limit_requests(timeout)
    import_mlflow()
    from mlflow import MlflowClient

    with patience(timeout if wait is None else wait):
        file = sqlite_file(uri)
        if file is not None:
            if not ask(uri, "open it", lambda: file.exists() and (file.stat().st_size or not create)):
                if not create:
                    raise missing_store(uri)
                with uri_key(HOME) if file == locations.database() else nullcontext():
                    ask(uri, "create the database", lambda: _create(file))
            if create and not writable(file):
                raise StoreError(f"{named(uri)}: cannot be written: the file or its folder is read-only")
        backend = ask(uri, "open it", lambda: backend_uri(uri))
        if not uri.startswith(SERVERS):
            ask(uri, "open it", lambda: _check(uri, backend, create))
            if create and file is not None and in_wal_mode(file):
                _leave_wal_mode(file)
        client = Client(uri, ask(uri, "open it", lambda: MlflowClient(tracking_uri=backend)))
        if uri.startswith(SERVERS):
            client.search_experiments(max_results=1)
    return cast("MlflowClient", client)


def is_local(configured: str | None) -> bool:
    """Is the store a file of this machine, which is never away?"""
    return sqlite_file(tracking_uri(configured)) is not None


def _check(uri: str, backend: str, create: bool) -> None:
    """Refuses a database that is not MLflow's, or another MLflow's, before MLflow adds its tables
    to it.
    """
    import sqlalchemy

    engine = sqlalchemy.create_engine(backend, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        tables = set(sqlalchemy.inspect(connection).get_table_names())
        if not tables and create:
            return
        if not {"alembic_version", "experiments", "runs"} <= tables:
            raise StoreError(
                f"{named(uri)}: "
                + ("holds tables that are not MLflow's; it is left as it is" if tables else "holds no MLflow store")
            )
        revisions = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalars().all()
    head, all_revisions = _revisions()
    if set(revisions) == {head}:
        return
    if set(revisions) <= all_revisions:
        remedy = f"is of an older MLflow: back it up, then run: mlflow db upgrade {shlex.quote(shown(uri))}"
    else:
        remedy = "is of a newer MLflow than the one installed here: pip install --upgrade mlflow"
    raise StoreError(f"{named(uri)}: {remedy}")


@cache
def _revisions() -> tuple[str, frozenset[str]]:
    """The schema that the installed MLflow writes, and all that it has known."""
    import mlflow
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations"))
    return str(script.get_current_head()), frozenset(revision.revision for revision in script.walk_revisions())


@cache
def import_mlflow() -> None:
    """Imports MLflow once, keeps its own lines off the terminal, and lets SQLite be waited for in
    Python.
    """
    with _lasting_imports(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow  # noqa: F401
        from mlflow.store.db import utils
        from sqlalchemy import event
        from sqlalchemy.engine import Engine
    silence()
    utils.MAX_RETRY_COUNT = 1  # it would try for an hour to open a database, unseen

    @event.listens_for(Engine, "before_cursor_execute", retval=True)
    def _(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _executemany: bool) -> tuple[str, Any]:
        # MLflow lets SQLite wait for 20 s, in which Ctrl-C is not heard.
        if statement.startswith("PRAGMA busy_timeout"):
            statement = f"PRAGMA busy_timeout = {store_client.BUSY}"
        return statement, parameters


@contextmanager
def _lasting_imports() -> Iterator[None]:
    """Keeps the garbage collector from what an import makes, then and ever after: of MLflow's 300
    000 objects none is garbage, yet to look for it took a fifth of the import, and 0.1 s each time
    while points were being written. Once a process: what is frozen is never freed.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
    gc.freeze()


def _create(file: Path) -> None:
    """Creates the database under a lock, since several processes that migrate one at the same time
    fail.
    """
    from filelock import FileLock
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock"):
        if file.exists() and file.stat().st_size:
            return
        # Under a name of our own until it is whole: nobody finds half a database, not even after a
        # kill.
        unfinished = file.with_name(f".{file.name}.gradpath")
        unfinished.unlink(missing_ok=True)
        try:
            unfinished.touch()
            uri = backend_uri(sqlite_uri(unfinished))
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
            unfinished.rename(file)
        finally:
            unfinished.unlink(missing_ok=True)


def _leave_wal_mode(file: Path) -> None:
    """Lets a store of gradpath 0.1 be whole in its one file, and readable where nothing can be
    written, unless another process has it open; whoever closes it last does it then.
    """
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=0.1)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.execute("PRAGMA journal_mode=DELETE")
        finally:
            connection.close()
    except sqlite3.Error:
        return


def settle(uri: str) -> None:
    """At the end of a run: the file of an SQLite store holds everything, also one that is still in
    WAL mode.
    """
    file = sqlite_file(uri)
    if file is not None and file.exists() and in_wal_mode(file):
        _leave_wal_mode(file)


def experiment_id(client: "MlflowClient", name: str) -> str:
    """The id of an MLflow experiment, which is created where it does not exist."""
    uri = client.tracking_uri
    if (experiment := client.get_experiment_by_name(name)) is None:
        root = artifact_root(uri)
        try:
            return str(client.create_experiment(name, root, tags={LOCATION_TAG: root} if root else None))
        except StoreError:  # another process was faster
            if (experiment := client.get_experiment_by_name(name)) is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise StoreError(f"tracking.experiment={name}: has been deleted in MLflow; restore it there or choose another")
    ask(uri, "find its artifacts", lambda: rehome(uri))
    return str(experiment.experiment_id)
