"""Where a store is: any folder, the environment, no password in sight, and readers that create
nothing.
"""

import gc
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from gradpath.commands import compose, ui
from gradpath.commands.execute import execute
from gradpath.tracking import loader, store, store_uri

TINY = ["task.length=12", "cell.hidden_size=4", "train.batch_size=5", "train.eval_size=20", "train.steps=1"]
FOLDERS = [
    "a%20b",
    "branch%2Fx",
    "what?",
    "what?x=y",
    "x#y",
    "50%",
    "ä ö;'\"&=+",
    "a@b:c",
    "new\nline",
    "file:",
    "y" * 250,
]


def test_a_run_in_a_folder_of_any_name(tmp_path: Path, migrated_database: Path, monkeypatch, capsys) -> None:
    """The database, its artifacts and what MLflow says of them are there and nowhere else."""
    monkeypatch.chdir(tmp_path)
    for name in FOLDERS:
        home = tmp_path / name
        (home / "mlruns").mkdir(parents=True)
        shutil.copy(migrated_database, home / "mlruns" / "mlflow.db")
        monkeypatch.setenv("GRADPATH_HOME", str(home))
        recorder = execute(compose.experiment(TINY), "s")
        (run,) = loader.load(None, *loader.newest_sweep(None, None))
        assert len(run.loss.values) == 2
        assert Path(recorder.client.download_artifacts(recorder.run_id, "config.yaml")).is_file()
        assert len(list((home / "mlruns" / "artifacts").rglob("measurements.npz"))) == 1
        assert store.tracking_uri(store.tracking_uri(None)) == store.tracking_uri(None)
        assert store.sqlite_file(store.tracking_uri(None)) == home / "mlruns" / "mlflow.db"
    assert {path.name for path in tmp_path.iterdir()} == set(FOLDERS)
    captured = capsys.readouterr()
    assert "View run" not in captured.out + captured.err
    assert "waiting" not in captured.err


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite://", "must name a file"),
        ("sqlite:///", "must name a file"),
        ("sqlite:////", "must name a file"),
        ("sqlite:///file::memory:?cache=shared&uri=true", "must end with the path of a file"),
        ("sqlite:////tmp/what?/mlflow.db", "in which a ? is written %3F"),
        ("sqlite://host/x.db", "must name a file"),
        ("sqlite:////tmp/a%00b.db", "must name a file"),
        ("file:///tmp/x", "must be a database"),
        ("postgresql:host", "must be a database"),
        ("sqlitefoo:///x", "must be a database"),
        ("postgresql://us:pa55@host:port/db", "must be a database"),
        ("databricks", "must be a database"),
        ("", "must be a database"),
        ("http://", "must name a host"),
        ("http://host:99999", "must name a host"),
        ("http://us:pa55@:5000", "must name a host"),
    ],
)
@pytest.mark.parametrize("key", ["tracking.uri", "MLFLOW_TRACKING_URI"])
def test_a_store_that_cannot_be_is_refused(uri: str, reason: str, key: str, monkeypatch) -> None:
    if key != "tracking.uri":
        if not uri:
            return  # an empty variable is none
        monkeypatch.setenv(key, uri)
    with pytest.raises(store.StoreError) as error:
        store.tracking_uri(uri if key == "tracking.uri" else None)
    assert str(error.value).startswith(f"{key}=")
    assert reason in str(error.value)
    assert "pa55" not in str(error.value)


def test_what_is_no_file_is_not_replaced_by_a_database(tmp_path: Path, monkeypatch) -> None:
    """A pipe, and links that lead nowhere, as to a disk that is not mounted."""
    (tmp_path / "mlruns").mkdir()
    os.mkfifo(tmp_path / "pipe.db")
    for name in ("link.db", "mlruns/mlflow.db"):
        (tmp_path / name).symlink_to("/no/such/disk/x.db")
    (tmp_path / "loop.db").symlink_to(tmp_path / "loop.db")
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path))
    paths_before = sorted(tmp_path.rglob("*"))
    for path in (*(tmp_path / f"{name}.db" for name in ("pipe", "link", "loop")), None):
        with pytest.raises(store.StoreError, match=r"must name a file"):
            store.connect(None if path is None else f"sqlite:///{path}", timeout=0.1)
    assert sorted(tmp_path.rglob("*")) == paths_before


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store.tracking_uri("sqlite:///here.db") == f"sqlite:///{tmp_path}/here.db"


def test_the_environment_says_where_results_go_unless_the_user_does(
    home: Path, tmp_path, migrated_database, monkeypatch
) -> None:
    shutil.copy(migrated_database, tmp_path / "theirs.db")
    shutil.copy(migrated_database, tmp_path / "given.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/theirs.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of the environment")
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.setenv(name, "nonsense://12345")
    execute(compose.experiment(TINY), "a")
    overrides = ["tracking.experiment=given", f"tracking.uri=sqlite:///{tmp_path}/given.db"]
    execute(compose.experiment([*TINY, *overrides]), "b")
    assert loader.newest_sweep(None, None) == ("of the environment", "a")
    assert loader.newest_sweep(overrides[1].partition("=")[2], None) == ("given", "b")
    assert compose.experiment(["+experiment=demo", *TINY]).tracking.experiment == "demo", "a study has its own"
    assert [name for name, _ in ui.links(None, "")] == ["of the environment"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "")
    assert compose.experiment(TINY).tracking.experiment == "gradpath"
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    assert compose.experiment(TINY).tracking.experiment == "gradpath"
    with pytest.raises(store.StoreError):
        loader.newest_sweep(None, None)


def test_readers_create_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path / "home"))
    (tmp_path / "empty.db").touch()
    for uri in (None, f"sqlite:///{tmp_path}/no/such/store.db", f"sqlite:///{tmp_path}/empty.db"):
        for reader in (loader.newest_sweep, loader.load, loader.outcomes):
            with pytest.raises(store.StoreError, match=r"no such store|holds no MLflow store"):
                reader(uri, *["gradpath", "s"][: 1 if reader is loader.newest_sweep else 2])  # type: ignore[operator]
        if uri is not None:
            with pytest.raises(store.StoreError, match=r"no such store|holds no MLflow store"):
                ui.links(uri, "")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]
    assert (tmp_path / "empty.db").stat().st_size == 0


def recorded(home: Path) -> Path:
    execute(compose.experiment(TINY), "s")
    return home / "mlruns" / "mlflow.db"


def names(database: Path) -> list[str]:
    return [run.name for run in loader.load(f"sqlite:///{database}", "gradpath", "s")]


def test_after_a_run_the_file_alone_holds_it(home: Path, tmp_path_factory) -> None:
    """Also in a store that version 0.1 has made, which is in WAL mode."""
    with sqlite3.connect(home / "mlruns" / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.close()
    file = recorded(home)
    copied_file = tmp_path_factory.mktemp("copy") / "alone.db"
    shutil.copy(file, copied_file)
    with sqlite3.connect(copied_file) as copy:
        assert copy.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    assert not file.with_name("mlflow.db-wal").exists()
    assert not store_uri.in_wal_mode(file)


def test_while_another_program_has_a_store_in_wal_mode_the_file_is_whole_too(home: Path, tmp_path_factory) -> None:
    connection = sqlite3.connect(home / "mlruns" / "mlflow.db")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("SELECT * FROM runs").fetchall()
    file = recorded(home)
    copied_file = tmp_path_factory.mktemp("copy") / "alone.db"
    shutil.copy(file, copied_file)
    with sqlite3.connect(copied_file) as copy:
        assert copy.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]
    connection.close()


@pytest.mark.parametrize("mode", ["DELETE", "WAL", "WAL, and a writer was killed"])
def test_a_store_where_nothing_can_be_written_is_read(home: Path, tmp_path_factory, monkeypatch, mode: str) -> None:
    """As on a read-only medium: nothing is made beside it either. (Root is stopped by no
    permission, so the answer of the system call is replaced.)
    """
    file = recorded(home)
    medium = tmp_path_factory.mktemp("medium")
    database = sqlite3.connect(file)
    database.execute(f"PRAGMA journal_mode={mode.partition(',')[0]}")
    database.execute("UPDATE runs SET name = 'the newest'")
    database.commit()
    if "killed" in mode:
        shutil.copy(file.with_name("mlflow.db-wal"), medium)
        shutil.copy(file, medium)
    database.close()
    if "killed" not in mode:
        shutil.copy(file, medium)
    contents_before = {path.name: path.read_bytes() for path in medium.iterdir()}
    monkeypatch.setattr(
        os, "access", lambda path, access_mode: not (access_mode & os.W_OK and Path(path).is_relative_to(medium))
    )
    assert names(medium / "mlflow.db") == ["the newest"]
    assert {path.name: path.read_bytes() for path in medium.iterdir()} == contents_before
    with pytest.raises(store.StoreError, match="cannot be written: the file or its folder is read-only"):
        store.connect(f"sqlite:///{medium}/mlflow.db")


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://us:pa55@host/db", "postgresql://us:***@host/db"),
        ("postgresql://us:pa55@w/or@d@host/db?password=pa55", "postgresql://us:***@host/db?password=***"),
        ("at https://us:pa55@host:5000/x?token=pa55 (15 s)", "at https://***@host:5000/x?token=*** (15 s)"),
        ("https://pa55@host", "https://***@host"),
        ("[http://us:pa55@w@host/a]", "[http://***@host/a]"),
        (r"http\://us\:pa55@host or mysql\://us\:pa55@host", r"http\://***@host or mysql\://us\:***@host"),
        ("dsn: host=h password='pa55 word' user=u", "dsn: host=h password=*** user=u"),
        ("http://host:5000/a and sqlite:////a/b.db", "http://host:5000/a and sqlite:////a/b.db"),
    ],
)
def test_no_password_is_shown(text: str, redacted: str) -> None:
    assert store.masked(text) == redacted


def test_the_password_of_a_store_is_found_in_any_text() -> None:
    uri = "postgresql://us:p%40ss%2Fword@host/db"
    for text in ("no such role us, p@ss/word", "tried p%40ss%2Fword"):
        assert "ss" not in store.masked(text, uri).removeprefix("no such")
    assert store.shown(uri) == "postgresql://us:***@host/db"
    assert store.shown("sqlite:////a%20b/c.db") == "sqlite:////a b/c.db"


def test_runs_of_a_process_share_what_a_store_costs(home: Path) -> None:
    """A sweep of thousands of points does not grow: nothing more is frozen, and the connections are
    the same.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    execute(compose.experiment(TINY), "s")
    frozen, engines = gc.get_freeze_count(), dict(SqlAlchemyStore._engine_map)
    for seed in (1, 2):
        execute(compose.experiment([*TINY, f"seed={seed}"]), "s")
    assert gc.get_freeze_count() <= frozen
    assert SqlAlchemyStore._engine_map == engines
