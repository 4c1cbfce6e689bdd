"""Lets a store that has been moved or copied find its artifacts, which MLflow keeps under absolute
paths.

Only entries that are proven to be gradpath's own are rewritten: a run whose folder lies beside the
database under its own id, and an experiment that gradpath has made. This is proven by a tag with
the experiment's location, by its runs, or by its original.
"""

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from gradpath.tracking.store_uri import artifact_root, local_path, sqlite_file

LOCATION_TAG = "gradpath.artifact_location"
"""Tag of an experiment that holds the artifact location given to it by gradpath."""


def rehome(uri: str) -> None:
    """Points the experiments and runs of an SQLite store to the artifacts beside it, in one
    transaction.
    """
    file, root = sqlite_file(uri), artifact_root(uri)
    if file is None or root is None:
        return
    folder = file.parent / "artifacts"
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=1)) as database:
        runs = [
            (run, artifacts, f"{root}/{run}/artifacts")
            for run, artifacts in database.execute(
                "SELECT run_uuid, artifact_uri FROM runs WHERE substr(artifact_uri, 1, ?) <> ?",
                (len(root) + 1, root + "/"),
            )
            if _is_moved(artifacts, folder / run / "artifacts", run) and (folder / run / "artifacts").is_dir()
        ]
        experiments = [
            (experiment, location)
            for experiment, name, location in database.execute(
                "SELECT experiment_id, name, artifact_location FROM experiments WHERE artifact_location <> ?", (root,)
            ).fetchall()
            if _is_moved(location, folder, "") and _is_gradpaths(database, file, experiment, name, location)
        ]
        if not runs and not experiments:
            return
        with database:
            database.executemany(
                "UPDATE runs SET artifact_uri = ? WHERE run_uuid = ? AND artifact_uri = ?",
                [(new, run, old) for run, old, new in runs],
            )
            for experiment, location in experiments:
                database.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ? AND artifact_location = ?",
                    (root, experiment, location),
                )
                database.execute(
                    "INSERT INTO experiment_tags (key, value, experiment_id) VALUES (?, ?, ?) "
                    "ON CONFLICT (key, experiment_id) DO UPDATE SET value = excluded.value",
                    (LOCATION_TAG, root, experiment),
                )


def _is_moved(location: str | None, current: Path, run: str) -> bool:
    """Is a location a local folder of gradpath's form that differs from the current one?"""
    path = local_path(location or "")
    if path is None or path.name != "artifacts" or (run and path.parent.name != run):
        return False
    return path.resolve() != current.resolve()


def _is_gradpaths(database: sqlite3.Connection, file: Path, experiment: int, name: str, location: str) -> bool:
    """Did gradpath choose the location of an experiment? The experiment's tag proves it. Where
    there is no tag, as in version 0.1, it is proven by a run whose folder was moved along, or by
    the store beside the location, of which this store is a copy.
    """
    query = "SELECT value FROM experiment_tags WHERE experiment_id = ? AND key = ?"
    if (tag := database.execute(query, (experiment, LOCATION_TAG)).fetchone()) is not None:
        return bool(tag[0] == location)
    runs = database.execute("SELECT run_uuid, artifact_uri FROM runs WHERE experiment_id = ?", (experiment,)).fetchall()
    artifacts = file.parent / "artifacts"
    if any(uri == f"{location}/{run}/artifacts" and (artifacts / run / "artifacts").is_dir() for run, uri in runs):
        return True
    original = (local_path(location) or file).with_name(file.name)
    with suppress(OSError, sqlite3.Error):
        if original.is_file() and not os.path.samefile(original, file):
            with closing(sqlite3.connect(f"{original.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
                query = "SELECT artifact_location FROM experiments WHERE experiment_id = ? AND name = ?"
                return connection.execute(query, (experiment, name)).fetchone() == (location,)
    return False
