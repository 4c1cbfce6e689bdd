"""Whatever befalls a store, the user reads one line without a password, and what was measured is
kept.
"""

import contextlib
import http.server
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import PATIENCE
from gradpath.commands import compose
from gradpath.tracking import ending, loader, recorder, store, store_client
from gradpath.tracking.recorder import Recorder
from gradpath.training.loop import train

SMALL = ["task.length=12", "cell.hidden_size=4", "train.batch_size=5", "train.eval_size=20", "train.steps=4"]


@contextlib.contextmanager
def locked_database(database: Path) -> Iterator[Callable[[], None]]:
    """Another program has the database for itself until it is told to let go."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield lambda: connection.execute("ROLLBACK") and None
    finally:
        connection.close()


class Clock:
    """Time that passes by sleeping only, so that nothing depends on how fast the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(ending, "PATIENCE", 3.0)
    monkeypatch.setattr(ending, "PATIENCE_INTERRUPTED", 0.1)
    monkeypatch.setattr(store_client, "BUSY", 20)
    clock = Clock()
    monkeypatch.setattr(store_client, "time", clock)
    return clock


def measured(path: Path) -> int:
    with np.load(path, allow_pickle=False) as arrays:
        return len(arrays["loss/values"])


def test_a_store_that_stays_locked_is_one_line_and_what_was_measured_is_kept(home: Path, capsys) -> None:
    experiment = compose.experiment(SMALL)
    database = home / "mlruns" / "mlflow.db"
    with (
        pytest.raises(store.UnreachableError) as error,
        contextlib.ExitStack() as stack,
        Recorder(experiment, {}) as open_run,
    ):
        for step in train(experiment):
            open_run.record(step)
        stack.enter_context(locked_database(database))
    unsent_file = home / "unsent" / f"{open_run.run_id}.npz"
    assert str(error.value) == (
        f"tracking.uri=sqlite:///{database}: cannot write metrics: the database is locked by another process; "
        f"waited for 3 s; what was measured is kept in {unsent_file}"
    )
    assert measured(unsent_file) == 5
    assert f"waiting for sqlite:///{database} (3 s): " in capsys.readouterr().err


def test_a_store_that_is_locked_for_a_while_loses_nothing(home: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("gradpath.tracking.outbox.FLUSH_SECONDS", 0.0)
    experiment = compose.experiment(SMALL)
    with (
        Recorder(experiment, {"sweep_id": "s"}) as open_run,
        locked_database(home / "mlruns" / "mlflow.db") as release_lock,
    ):
        for step in train(experiment):
            open_run.record(step)
        stderr = capsys.readouterr().err
        release_lock()
    assert stderr.count("\n") == 1
    assert "the run goes on, and what it measures is sent later" in stderr
    (run,) = loader.load(None, "gradpath", "s")
    assert len(run.loss.values) == 5
    assert len(open_run.client.get_metric_history(open_run.run_id, "train/loss")) == 5


def test_a_database_that_is_deleted_is_not_made_anew(home: Path) -> None:
    experiment = compose.experiment(SMALL)
    database = home / "mlruns" / "mlflow.db"
    with (
        pytest.raises(
            store.StoreError, match=r"cannot write metrics: the database file .*is gone|moved or deleted"
        ) as error,
        Recorder(experiment, {}) as open_run,
    ):
        for step in train(experiment):
            open_run.record(step)
        database.unlink()
    assert measured(error.value.kept[0]) == 5
    assert not database.exists()
    assert str(error.value).count("\n") == 0


def test_seeds_side_by_side_are_all_kept(home: Path) -> None:
    experiments = [compose.experiment([*SMALL, f"seed={seed}"]) for seed in range(3)]
    with pytest.raises(store.UnreachableError) as error, contextlib.ExitStack() as runs:
        lock_stack = runs.enter_context(contextlib.ExitStack())
        recorders = [runs.enter_context(Recorder(experiment, {})) for experiment in experiments]
        for open_run, experiment in zip(recorders, experiments, strict=True):
            for step in train(experiment):
                open_run.record(step)
        lock_stack.enter_context(locked_database(home / "mlruns" / "mlflow.db"))
    assert sorted(error.value.kept) == sorted(home / "unsent" / f"{run.run_id}.npz" for run in recorders)
    assert str(error.value).endswith(f"; what was measured is kept in 3 files in {home}/unsent")
    assert str(error.value).count("waited for") == 1


def test_the_error_of_a_run_is_not_hidden_by_its_store(home: Path, capsys) -> None:
    experiment = compose.experiment(SMALL)
    with pytest.raises(ZeroDivisionError), Recorder(experiment, {}) as open_run:
        open_run.record(next(train(experiment)))
        (home / "mlruns" / "mlflow.db").unlink()
        raise ZeroDivisionError
    stderr = capsys.readouterr().err
    assert stderr.startswith("gradpath: tracking.uri=sqlite:///")
    assert stderr.count("\n") == 1
    assert measured(Path(stderr.split()[-1])) == 1


@pytest.mark.parametrize("moment", ["running", "closing"])
def test_ctrl_c_is_heard_while_a_store_is_waited_for(home: Path, monkeypatch, clock: Clock, moment: str) -> None:
    """An interrupt does not wait again for what does not answer."""
    experiment = compose.experiment(SMALL)
    monkeypatch.setattr(ending, "PATIENCE", 3600.0)
    sleep = clock.sleep

    def interrupt(seconds: float) -> None:
        monkeypatch.setattr(clock, "sleep", sleep)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), contextlib.ExitStack() as stack, Recorder(experiment, {}) as open_run:
        open_run.record(next(train(experiment)))
        stack.enter_context(locked_database(home / "mlruns" / "mlflow.db"))
        if moment == "running":
            raise KeyboardInterrupt
        monkeypatch.setattr(clock, "sleep", interrupt)
    assert clock.now < 1
    assert measured(home / "unsent" / f"{open_run.run_id}.npz") == 1


def test_a_run_is_made_once_though_its_answer_was_lost(home: Path, monkeypatch) -> None:
    open_run = Recorder(compose.experiment(SMALL), {})
    create = open_run.client.create_run

    def lose_answer(*arguments: Any, **keywords: Any) -> Any:
        create(*arguments, **keywords)
        raise store.UnreachableError("the connection was broken")

    monkeypatch.setattr(open_run.client, "create_run", lose_answer)
    with open_run:
        pass
    (run,) = open_run.client.search_runs([open_run.experiment_id])
    assert run.info.run_id == open_run.run_id


def test_nowhere_to_keep_it_is_said_too(home: Path, monkeypatch) -> None:
    (home / "unsent").write_text("a file where the folder would be")
    with (
        pytest.raises(store.StoreError, match=r"^no space; nor could what was measured be kept: .* exists: .*/unsent$"),
        Recorder(compose.experiment(SMALL), {}) as open_run,
    ):
        open_run.record(next(train(open_run.experiment)))
        monkeypatch.setattr(recorder.tempfile, "gettempdir", lambda: str(home / "unsent"))
        raise store.StoreError("no space")


class Server(http.server.BaseHTTPRequestHandler):
    status = 503
    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        if self.status == 0:
            time.sleep(0.2)
            return
        body = b"<html>no MLflow here</html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "message", "is_retried"),
    [
        (None, "Connection refused; waited for 3 s", True),
        (0, "the connection was broken; waited for 3 s", True),
        (503, "the server answers with status 503; waited for 3 s", True),
        (404, "404", False),
        (401, "401", False),
        (200, "", False),
    ],
)
def test_a_server_that_does_not_serve(status: int | None, message: str, is_retried: bool, capsys) -> None:
    handler = type("Handler", (Server,), {"status": status})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        if status is None:
            server.socket.close()
        else:
            thread.start()
        try:
            with pytest.raises(store.StoreError) as error:
                store.connect(f"http://us:pa55@127.0.0.1:{port}", timeout=3 if is_retried else PATIENCE)
        finally:
            if status is not None:
                server.shutdown()
                thread.join()
    line = str(error.value)
    assert line.startswith(f"tracking.uri=http://***@127.0.0.1:{port}: cannot search experiments: "), line
    assert message in line
    assert "\n" not in line
    captured = capsys.readouterr()
    assert "pa55" not in line + captured.out + captured.err
    assert isinstance(error.value, store.UnreachableError) is is_retried
    assert (handler.requests > 1) is (is_retried and status is not None)
    assert not is_retried or "waiting for http://***@127.0.0.1" in captured.err


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("postgresql+psycopg2://us:pa55@127.0.0.1:1/db", "pip install 'psycopg2-binary'"),
        ("postgresql+psycopg://us:pa55@127.0.0.1:1/db", "pip install 'psycopg[binary]'"),
        ("mysql+pymysql://us:pa55@127.0.0.1:1/db?password=pa55", "pip install 'pymysql'"),
        ("mssql+pyodbc://us:pa55@127.0.0.1:1/db", "pip install 'pyodbc'"),
        ("postgresql+nonsense://us:pa55@127.0.0.1/db", "Can't load plugin"),
    ],
)
def test_a_database_without_its_driver(uri: str, message: str, monkeypatch) -> None:
    import sys

    for driver in store_client.DRIVERS:
        monkeypatch.setitem(sys.modules, driver, None)
    with pytest.raises(store.StoreError) as error:
        store.connect(uri)
    assert message in str(error.value)
    assert "pa55" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_full_disk_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count = 4")

        def fill_disk() -> None:
            database.execute("INSERT INTO t VALUES (zeroblob(99999))")

        with pytest.raises(store.StoreError, match="cannot write metrics: no space left on the disk"):
            store.ask(f"sqlite:///{file}", "write metrics", fill_disk)
        database.execute("PRAGMA query_only = 1")
        with pytest.raises(store.StoreError, match="the database is read-only"):
            store.ask(f"sqlite:///{file}", "write metrics", fill_disk)
    file.write_bytes(b"no database, but a text" * 100)
    contents_before = file.read_bytes()
    with pytest.raises(store.StoreError, match="cannot open it: the file is no SQLite database"):
        store.connect(f"sqlite:///{file}")
    assert file.read_bytes() == contents_before
    with pytest.raises(store.StoreError, match=r"No space left on device: /full/x"):
        store.ask("", "write", lambda: (_ for _ in ()).throw(OSError(28, os.strerror(28), "/full/x")))


def test_a_database_of_another_program_or_another_mlflow_is_left_as_it_is(
    tmp_path: Path, migrated_database: Path
) -> None:
    foreign_database, newer_database, older_database = (tmp_path / name for name in ("theirs.db", "new.db", "old.db"))
    with sqlite3.connect(foreign_database) as database:
        database.execute("CREATE TABLE bookmarks (x)")
    for file, version in ((newer_database, "ffffffffffff"), (older_database, "451aebb31d03")):
        shutil.copy(migrated_database, file)
        with sqlite3.connect(file) as database:
            database.execute("UPDATE alembic_version SET version_num = ?", (version,))
            database.execute("DROP TABLE spans")
    expected = {
        foreign_database: "holds tables that are not MLflow's",
        newer_database: "is of a newer MLflow than the one installed here",
        older_database: f"is of an older MLflow: back it up, then run: mlflow db upgrade sqlite:///{older_database}",
    }
    for file, reason in expected.items():
        contents_before = file.read_bytes()
        for create in (True, False):
            with pytest.raises(store.StoreError, match=reason):
                store.connect(f"sqlite:///{file}", create=create)
        assert file.read_bytes() == contents_before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.db", "old.db", "theirs.db"]


def test_eight_writers_at_once_lose_nothing(home: Path, monkeypatch) -> None:
    """Each with connections of its own, as processes have; in real time."""
    monkeypatch.setattr(store_client, "time", time)
    monkeypatch.setattr(ending, "PATIENCE", 300.0)
    from concurrent.futures import ThreadPoolExecutor

    def write(seed: int) -> str:
        with Recorder(experiments[seed], {"sweep_id": "s"}) as open_run:
            for step in steps:
                open_run.record(step)
        return open_run.run_id

    experiments = [compose.experiment([*SMALL, f"seed={seed}"]) for seed in range(8)]
    steps = list(train(experiments[0]))
    with ThreadPoolExecutor(8) as pool:
        run_ids = list(pool.map(write, range(8)))
    assert sorted(run.run_id for run in loader.load(None, "gradpath", "s")) == sorted(run_ids)
    client = store.connect(None)
    for run_id in run_ids:
        assert len(client.get_metric_history(run_id, "train/loss")) == len(steps)
