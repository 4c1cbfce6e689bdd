"""Space that a run keeps on the disk of an SQLite store: when the disk is full it gives it up, so
that the database can still be told how it ended. (To change one row SQLite writes a journal.)
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gradpath.tracking.store_client import UnreachableError
from gradpath.tracking.store_uri import StoreError, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

SIZE = 1 << 16
"""Bytes; the journal of one row takes 20 kB."""


def keep(uri: str, run_id: str) -> None:
    """Makes the reserve of a run, if there is room for it."""
    file = _file(uri, run_id)
    try:
        if file is not None:
            file.write_bytes(bytes(SIZE))
    except OSError:
        release(uri, run_id)


def release(uri: str, run_id: str) -> bool:
    """Gives the reserve up; whether there was one."""
    file = _file(uri, run_id)
    with suppress(OSError):
        if file is not None:
            file.unlink()
            return True
    return False


def terminate(client: "MlflowClient", run_id: str, status: str) -> None:
    """Ends a run, on a full disk too: then its reserve of space is given up for it."""
    try:
        client.set_terminated(run_id, status)
    except UnreachableError:
        raise
    except StoreError:
        if not release(client.tracking_uri, run_id):
            raise
        client.set_terminated(run_id, status)
    finally:
        release(client.tracking_uri, run_id)


def _file(uri: str, run_id: str) -> Path | None:
    database = sqlite_file(uri)
    return None if database is None else database.with_name(f".{run_id}.reserve")
