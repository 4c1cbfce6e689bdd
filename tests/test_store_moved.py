"""A store that moves finds its artifacts, and nothing that is not proven to be gradpath's own is
rewritten.
"""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from gradpath.tracking import store

Make = Callable[[str], Path]
FOREIGN = ["s3://bucket/runs", "hdfs://host/runs/artifacts", "mlflow-artifacts:/7", "/not/mounted/artifacts"]


@pytest.fixture
def folder(tmp_path: Path, migrated_database: Path) -> Path:
    """A folder with an empty store in it."""
    original_folder = tmp_path / "original"
    original_folder.mkdir()
    shutil.copy(migrated_database, original_folder / "mlflow.db")
    return original_folder


def uri(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def record(folder: Path, name: str = "gradpath") -> str:
    """A run with an artifact, and its id."""
    client = store.connect(uri(folder))
    run_id = client.create_run(store.experiment_id(client, name)).info.run_id
    client.log_text(run_id, "measured", "note.txt")
    return run_id


def artifact_folders(folder: Path) -> set[str]:
    """The runs whose artifact lies in a store's own folder."""
    return {path.parents[1].name for path in folder.glob("artifacts/*/artifacts/note.txt")}


def rows(folder: Path) -> tuple[list, list, list]:
    """Everything about places that a database holds."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        execute = database.execute
        runs = execute("SELECT run_uuid, artifact_uri FROM runs ORDER BY run_uuid").fetchall()
        locations = execute("SELECT name, artifact_location FROM experiments ORDER BY name").fetchall()
        return runs, locations, execute("SELECT key, value FROM experiment_tags ORDER BY key").fetchall()


def as_version_0_1(folder: Path) -> None:
    """Takes away what version 0.1 did not write."""
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("DELETE FROM experiment_tags")


@pytest.mark.parametrize("old", [False, True], ids=["", "0.1"])
@pytest.mark.parametrize("move", ["moved", "copied", "linked", "without artifacts"])
def test_new_artifacts_go_where_the_store_is(folder: Path, tmp_path: Path, move: str, old: bool) -> None:
    first_run = record(folder)
    if old:
        as_version_0_1(folder)
    other_folder = tmp_path / "other"
    if move == "moved":
        folder.rename(other_folder)
    elif move == "linked":
        other_folder.symlink_to(folder)
    else:
        shutil.copytree(folder, other_folder, ignore=shutil.ignore_patterns("artifacts") if "without" in move else None)
    rows_before = rows(folder) if move in ("copied", "without artifacts") else None
    second_run = record(other_folder)
    assert artifact_folders(other_folder) == ({second_run} if "without" in move else {first_run, second_run})
    client = store.connect(uri(other_folder))
    assert [Path(client.download_artifacts(run, "note.txt")).read_text() for run in (first_run, second_run)] == [
        "measured"
    ] * 2
    if rows_before is not None:
        assert rows(folder) == rows_before
        assert artifact_folders(folder) == {first_run}
        third_run = record(folder)
        assert artifact_folders(folder) == {first_run, third_run}


def test_moved_twice_and_back(folder: Path, tmp_path: Path) -> None:
    runs, current_folder = [record(folder)], folder
    for name in ("a", "b c%20d#?", "original"):
        current_folder = current_folder.rename(tmp_path / name)
        client = store.connect(store.tracking_uri(None) if name == "" else named(current_folder))
        run_id = client.create_run(store.experiment_id(client, "gradpath")).info.run_id
        client.log_text(run_id, "measured", "note.txt")
        runs.append(run_id)
        assert artifact_folders(current_folder) == set(runs)
        for run in runs:
            assert Path(client.download_artifacts(run, "note.txt")).read_text() == "measured"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def named(folder: Path) -> str:
    from sqlalchemy.engine import URL

    return URL.create("sqlite", database=f"{folder}/mlflow.db").render_as_string(hide_password=False)


@pytest.mark.parametrize("location", FOREIGN)
def test_an_experiment_whose_artifacts_lie_elsewhere_stays_as_it_is(folder: Path, location: str) -> None:
    client = store.connect(uri(folder))
    foreign = client.create_experiment("theirs", artifact_location=location)
    runs = [client.create_run(foreign).info.run_id for _ in range(2)]
    rows_before = rows(folder)
    assert store.experiment_id(client, "theirs") == foreign
    assert rows(folder) == rows_before
    # Not even where a folder beside the database has the name of the whole location.
    (folder / "artifacts" / "theirs").mkdir(parents=True)
    store.experiment_id(client, "theirs")
    assert {run for run, _ in rows(folder)[0]} == set(runs)
    assert rows(folder) == rows_before


@pytest.mark.parametrize("location", [*FOREIGN, "LOCAL"])
def test_a_moved_store_takes_only_its_own_experiment_along(folder: Path, tmp_path: Path, location: str) -> None:
    own_run = record(folder)
    client = store.connect(uri(folder))
    location = location.replace("LOCAL", str(tmp_path / "theirs" / "artifacts"))
    foreign = client.create_experiment("theirs", artifact_location=location)
    foreign_run = client.create_run(foreign).info.run_id
    moved_folder = folder.rename(tmp_path / "other")
    record(moved_folder)
    runs, experiments, _ = rows(moved_folder)
    assert dict(runs)[foreign_run] == f"{location}/{foreign_run}/artifacts"
    assert dict(experiments)["theirs"] == location
    assert dict(runs)[own_run] == f"{moved_folder}/artifacts/{own_run}/artifacts"
    assert dict(experiments)["gradpath"] == f"{moved_folder}/artifacts"


def test_a_location_that_somebody_has_changed_since_is_no_longer_ours(folder: Path, tmp_path: Path) -> None:
    record(folder)
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = '/mnt/share/artifacts' WHERE name = 'gradpath'")
    rows_before = rows(folder)
    client = store.connect(uri(folder))
    store.experiment_id(client, "gradpath")
    assert rows(folder) == rows_before


def test_a_run_is_moved_by_its_own_folder_only(folder: Path, tmp_path: Path) -> None:
    """Of two runs that came along in the database, the folder of one has stayed behind: it is found
    where it is.
    """
    runs = [record(folder), record(folder)]
    other_folder = tmp_path / "other"
    shutil.copytree(folder, other_folder)
    shutil.rmtree(other_folder / "artifacts" / runs[0])
    record(other_folder)
    locations = dict(rows(other_folder)[0])
    assert locations[runs[0]] == f"{folder}/artifacts/{runs[0]}/artifacts"
    assert locations[runs[1]] == f"{other_folder}/artifacts/{runs[1]}/artifacts"
