"""The faults of a sweep, against MLflow's server on PostgreSQL as docs/server.md starts them, and
against that PostgreSQL without the server.
"""

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import DIVERGES, PATIENCE
from gradpath.commands import compose
from gradpath.commands.execute import execute_seeds
from gradpath.tracking import loader, store
from test_parallel import GRADPATH, alive, started

PAGE = (Path(__file__).parents[1] / "docs" / "server.md").read_text(encoding="utf-8")
SETUP, SERVE, RESTART, STOP = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name))
SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8"]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not PROGRAMS or not importlib.util.find_spec("psycopg"), reason="needs PostgreSQL and psycopg"),
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class Server:
    """Both, in a folder of their own, by the commands of the page."""

    def __init__(self, home: Path) -> None:
        self.home, self.port, database_port = home, free_port(), free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        folder = home / "gradpath-server"
        self.database = f"postgresql+psycopg://mlflow:pa55@/mlflow?host={folder}&port={database_port}"
        self._ports = {"5433": str(database_port), "5000": str(self.port)}
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        if os.geteuid() == 0:  # PostgreSQL does not run as root
            paths.insert(0, str(self._as_another_user(folder)))
        self._environment = {**os.environ, "HOME": str(home), "PATH": os.pathsep.join(paths)}
        self._process: subprocess.Popen | None = None
        self.follow(SETUP)
        self.start()

    def _as_another_user(self, folder: Path) -> Path:
        folder.mkdir()
        shutil.chown(folder, "postgres")
        shutil.chown(self.home, "postgres")
        programs = self.home / "bin"
        programs.mkdir()
        for name in ("initdb", "pg_ctl"):
            (programs / name).write_text(f'#!/bin/sh\nexec runuser -u postgres -- {PROGRAMS[-1] / name} "$@"\n')
            (programs / name).chmod(0o755)
        return programs

    def commands(self, block: str) -> list[str]:
        for written, chosen in self._ports.items():
            block = block.replace(written, chosen)
        return ["bash", "-e", "-c", block]

    def follow(self, block: str) -> None:
        subprocess.run(self.commands(block), env=self._environment, check=True, timeout=PATIENCE, stdout=sys.stderr)

    def start(self) -> None:
        with (self.home / "mlflow.log").open("a") as log:
            self._process = subprocess.Popen(
                self.commands(SERVE), env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            assert self._process.poll() is None, (self.home / "mlflow.log").read_text()[-2000:]
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)

    def stop(self, number: int = signal.SIGKILL) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)
        self._process.wait(PATIENCE)

    def away(self, part: str) -> None:
        self.stop() if part == "server" else self.follow(STOP)

    def back(self, part: str) -> None:
        self.start() if part == "server" else self.follow(RESTART)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    home = Path(tempfile.mkdtemp(prefix="gradpath-"))
    running = Server(home)
    try:
        yield running
    finally:
        running.stop(signal.SIGTERM)
        running.follow(STOP)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An MLflow experiment and a home of the test's own."""
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path.name


def runs(uri: str, name: str, query: str = "") -> list:
    client = store.connect(uri)
    experiment = client.get_experiment_by_name(name)
    return list(client.search_runs([experiment.experiment_id], query)) if experiment else []


def statuses(uri: str, name: str) -> Counter:
    return Counter(run.info.status for run in runs(uri, name))


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)


def content(uri: str, run_id: str) -> tuple:
    client = store.connect(uri)
    keys = client.get_run(run_id).data.metrics
    curves = {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}
    return curves, Path(client.download_artifacts(run_id, store.ARTIFACT)).read_bytes()


def expected(*overrides: str) -> tuple:
    """The same run in the project's own database."""
    (recorder,) = execute_seeds(compose.experiments([*SMALL, *overrides, "resume=false", "tracking.experiment=e"]), "s")
    return content(store.tracking_uri(None), recorder.run_id)


def completed(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*GRADPATH, *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False)


def left(folder: Path) -> list[Path]:
    return sorted((folder / "spool").glob("*"))


def test_only_this_machine_gets_in(server: Server, name: str) -> None:
    done = completed("run", "tracking=server", f"tracking.uri={server.uri}", *SMALL, "train.steps=3")
    assert done.returncode == 0, done.stderr
    assert statuses(server.uri, name) == {"FINISHED": 1}
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=False).stdout
    addresses = [line.split()[3] for line in listening.splitlines()]
    assert {a for a in addresses if a.endswith(f":{server.port}")} <= {f"127.0.0.1:{server.port}"}
    assert (server.home / "gradpath-server" / "artifacts").is_dir()


@pytest.mark.parametrize("part", ["server", "database"])
@pytest.mark.parametrize("direct", [False, True], ids=["http", "postgresql"])
def test_an_outage_costs_no_point(server: Server, name: str, part: str, direct: bool, tmp_path: Path) -> None:
    if direct and part == "server":
        pytest.skip("a database alone")
    uri = server.database if direct else server.uri
    process = started(*SMALL, "train.steps=4000", f"tracking.uri={uri}", "tracking.timeout=600")
    until(lambda: any("train/loss" in run.data.metrics for run in runs(uri, name)), process)
    server.away(part)
    time.sleep(10)
    server.back(part)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert errors.count("is sent later") == 1
    assert "Traceback" not in errors
    assert "pa55" not in output + errors
    (run,) = runs(uri, name)
    assert run.info.status == "FINISHED"
    assert content(uri, run.info.run_id) == expected("train.steps=4000")
    assert left(tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlruns", "spool"]


def test_a_server_that_is_gone_for_good_is_sent_to_later(server: Server, name: str, tmp_path: Path) -> None:
    """During the first points of a sweep; the others begin without it. Sending is killed thrice."""
    arguments = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL, "train.steps=3000", f"tracking.uri={server.uri}"]
    process = started(*arguments, "jobs=2", "tracking.timeout=3")
    until(lambda: statuses(server.uri, name)["RUNNING"] == 2, process)
    server.away("server")
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1, errors
    assert "4 not sent" in output
    assert f"send what is kept in {tmp_path}/spool with: gradpath send" in output
    assert "Traceback" not in errors
    refused = completed("run", *arguments, "tracking.timeout=1")
    assert (refused.returncode, refused.stderr.count("Connection refused")) == (2, 1)
    server.back("server")
    before = len(left(tmp_path))
    for _ in range(3):
        sending = subprocess.Popen([*GRADPATH, "send"], stdout=subprocess.PIPE)
        seen = size(tmp_path)
        while sending.poll() is None and size(tmp_path) == seen:
            time.sleep(0.01)
        sending.kill()
        sending.communicate()
    assert len(left(tmp_path)) <= before
    done = completed("send")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert left(tmp_path) == []
    assert statuses(server.uri, name) == {"FINISHED": 4}
    first = next(r for r in runs(server.uri, name) if r.data.params["seed"] == "1" and r.data.params["arm"] == "lstm")
    assert content(server.uri, first.info.run_id) == expected("arm=lstm", "seed=1", "train.steps=3000")
    again = completed("run", *arguments)
    assert again.returncode == 0
    assert "skipped: 4 of 4 runs" in again.stderr


def size(folder: Path) -> int:
    """What sending changes in the spool."""
    return sum(hash(path.read_bytes()) for path in folder.glob("spool/*/acknowledged"))


def test_a_killed_worker_costs_its_own_point(server: Server, name: str, tmp_path: Path) -> None:
    arguments = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL, "train.steps=1500", "jobs=2", f"tracking.uri={server.uri}"]
    process = started(*arguments)
    until(lambda: statuses(server.uri, name)["RUNNING"] > 0, process)
    victim = runs(server.uri, name, "attributes.status = 'RUNNING'")[0]
    os.kill(int(victim.data.tags["pid"]), signal.SIGKILL)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert "4 finished" in output
    assert statuses(server.uri, name) == {"FINISHED": 4, "KILLED": 1}
    assert left(tmp_path) == []


@pytest.mark.parametrize("trial", range(4))
def test_a_killed_sweep_is_completed_by_the_same_command(server: Server, name: str, tmp_path: Path, trial: int) -> None:
    arguments = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL, "train.steps=600", "jobs=2", f"tracking.uri={server.uri}"]
    process = started(*arguments)
    time.sleep(4.0 + 2.0 * trial)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = completed("run", *arguments)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    finished = Counter(run.data.tags["config_hash"] for run in runs(server.uri, name, "attributes.status = 'FINISHED'"))
    assert sorted(finished.values()) == [1, 1, 1, 1]
    assert set(statuses(server.uri, name)) <= {"FINISHED", "KILLED"}
    assert left(tmp_path) == []
    content = loader.sweep(server.uri, name, done.stdout.split(" of sweep ")[1].split()[0])
    assert (len(content.newest), content.missing, content.damaged) == (4, {}, [])


@pytest.mark.parametrize(
    ("number", "times", "returned"), [(signal.SIGINT, 1, 130), (signal.SIGINT, 2, 130), (signal.SIGTERM, 1, 143)]
)
@pytest.mark.parametrize("gone", ["", "server", "database"])
def test_signals_are_heard_at_once(
    server: Server, name: str, tmp_path: Path, number: int, times: int, returned: int, gone: str
) -> None:
    uri = server.database if gone == "database" else server.uri
    arguments = ["-m", "arm=rnn,lstm", *SMALL, "train.steps=1000000", f"tracking.uri={uri}"]
    process = started(*arguments, "jobs=2", "tracking.timeout=600")
    until(lambda: statuses(uri, name)["RUNNING"] == 2, process)
    pids = [int(run.data.tags["pid"]) for run in runs(uri, name)]
    if gone:
        server.away(gone)
        time.sleep(2)
    begun = time.monotonic()
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(1)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (returned, ""), errors
    assert "Traceback" not in errors
    assert time.monotonic() - begun < 60
    assert not any(alive(pid) for pid in pids)
    if gone:
        server.back(gone)
    next_command = completed("run", *SMALL, "train.steps=0", f"tracking.uri={uri}")  # which sends what is left
    assert next_command.returncode == 0, next_command.stderr
    assert statuses(uri, name) == {"KILLED": 2, "FINISHED": 1}
    assert left(tmp_path) == []


def test_points_that_fail_or_diverge(server: Server, name: str) -> None:
    done = completed(
        "run", "-m", "cell.hidden_size=3,1000000,4", "cell=rnn", *SMALL[2:], "task.length=6", "train.steps=2",
        f"tracking.uri={server.uri}",
    )  # fmt: skip
    assert done.returncode == 1
    assert "2 finished, 1 failed" in done.stdout
    assert "MemoryError" in done.stderr
    assert statuses(server.uri, name) == {"FINISHED": 2, "FAILED": 1}
    done = completed("run", *DIVERGES, "train.steps=40", f"tracking.uri={server.uri}")
    assert done.returncode == 0, done.stderr
    assert "1 finished (1 diverged)" in done.stdout
    assert len(runs(server.uri, name, "tags.diverged = 'true'")) == 1


def test_eight_processes_at_once_on_a_new_experiment(server: Server, name: str) -> None:
    processes = [started(*SMALL, "train.steps=5", f"seed={n}", f"tracking.uri={server.uri}") for n in range(8)]
    outcomes = [process.communicate(timeout=PATIENCE) for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, outcomes
    assert statuses(server.uri, name) == {"FINISHED": 8}
    assert len({run.info.experiment_id for run in runs(server.uri, name)}) == 1


class Slow:
    """A proxy that keeps every request for a while."""

    def __init__(self, port: int, seconds: float) -> None:
        self._target, self._seconds = port, seconds
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listening.accept()
            target = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pass, args=(client, target, self._seconds), daemon=True).start()
            threading.Thread(target=self._pass, args=(target, client, 0.0), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, seconds: float) -> None:
        try:
            while data := source.recv(1 << 20):
                time.sleep(seconds)
                target.sendall(data)
        except OSError:
            pass
        source.close()
        target.close()


def test_a_training_does_not_wait_for_a_slow_server(server: Server, name: str, monkeypatch) -> None:
    """A request a step, each of which takes 0.3 s: the training has ended before most are sent."""
    from gradpath.commands import execute
    from gradpath.tracking import spooling

    monkeypatch.setattr("gradpath.tracking.outbox.FLUSH_SECONDS", 0.0)
    pending: list[int] = []

    def train(*arguments: Any, original: Callable = execute.train_seeds) -> Iterator:
        yield from original(*arguments)
        pending.extend(waiting.journal.pending for waiting in spooling._senders)

    monkeypatch.setattr(execute, "train_seeds", train)
    uri = Slow(server.port, 0.3).uri
    execute_seeds(compose.experiments([*SMALL, "train.steps=60", f"tracking.uri={uri}"]), "s")
    assert pending[0] > 30
    (run,) = runs(server.uri, name)
    assert run.info.status == "FINISHED"
    assert content(server.uri, run.info.run_id) == expected("train.steps=60")
