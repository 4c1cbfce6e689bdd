"""What befalls a sweep in processes of its own: a store that is locked, missing, read-only or away,
Ctrl-C twice, no memory. Nothing is lost but what was not yet sent, nothing doubled, and every
status is true.
"""

import contextlib
import errno
import multiprocessing
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import PATIENCE
from gradpath.tracking import ending, loader, outcomes, store

SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8"]
SWEEP = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL, "jobs=2"]
GRADPATH = [sys.executable, "-m", "gradpath"]


def runs(uri: str | None = None) -> list:
    client = store.connect(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def statuses(uri: str | None = None) -> Counter:
    return Counter(run.info.status for run in runs(uri))


def started(*arguments: str, prefix: tuple[str, ...] = (), **settings: Any) -> subprocess.Popen:
    return subprocess.Popen(
        [*prefix, *GRADPATH, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **settings,
    )


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert process.poll() is None, process.communicate()


def ended(process: subprocess.Popen) -> tuple[int, str, list[str]]:
    """Status, output and errors, in which no traceback may stand."""
    output, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    return process.returncode, output, errors.splitlines()


def whole_sweep(output: str, steps: int, uri: str | None = None, experiment: str = "gradpath") -> None:
    """Every point is there once, with every point of its curves once."""
    sweep_id = output.split(" of sweep ")[1].split()[0]
    content = loader.sweep(uri, experiment, sweep_id)
    assert (len(content.runs), content.missing, content.doubled, content.damaged) == (4, {}, [], [])
    client = store.connect(uri)
    for run in content.runs:
        assert run.loss.steps.tolist() == list(range(steps + 1))
        stored = sorted(point.step for point in client.get_metric_history(run.run_id, "train/loss"))
        assert stored == list(range(0, steps + 1, stored[1])), run.name


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program has the database for itself."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=PATIENCE)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_a_sweep_waits_for_a_store_that_another_program_has_locked(home: Path, seconds: float) -> None:
    steps = 400
    process = started("run", *SWEEP, f"train.steps={steps}")
    until(lambda: statuses()["RUNNING"] > 0, process)
    with locked(home / "mlruns" / "mlflow.db"):
        time.sleep(seconds)
    status, output, errors = ended(process)
    assert status == 0, errors
    assert "4 finished" in output
    assert statuses() == {"FINISHED": 4}
    whole_sweep(output, steps)


def _make(home: str, ready: Any) -> None:
    os.environ["GRADPATH_HOME"] = home
    ready.wait()
    store.experiment_id(store.connect(None), "gradpath")


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks what has imported MLflow")
def test_eight_processes_make_a_store_once(tmp_path: Path) -> None:
    store.import_mlflow()  # once, before the fork
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(8)
    processes = [context.Process(target=_make, args=(str(tmp_path), ready)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * 8
    with contextlib.closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert sorted(name for (name,) in database.execute("SELECT name FROM experiments")) == ["Default", "gradpath"]
    assert sorted(file.name for file in (tmp_path / "mlruns").iterdir()) == ["mlflow.db", "mlflow.db.lock"]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["own", "same"])
def test_eight_sweeps_on_a_store_that_does_not_exist(tmp_path: Path, monkeypatch, seeds: str) -> None:
    monkeypatch.setenv("GRADPATH_HOME", str(tmp_path))
    processes = [
        started("run", "-m", "arm=rnn,lstm", f"seed={s},{s + 1}", *SMALL, "train.steps=5", "jobs=2")
        for s in (range(0, 16, 2) if seeds == "own" else [0] * 8)
    ]
    outcomes = [ended(process) for process in processes]
    assert [status for status, _, _ in outcomes] == [0] * 8, outcomes
    assert set(statuses()) == {"FINISHED"}
    finished = Counter(run.data.tags["config_hash"] for run in runs())
    assert len(finished) == (32 if seeds == "own" else 4)
    assert set(finished.values()) == {1}
    for _, output, _ in outcomes:
        content = loader.sweep(None, "gradpath", output.split(" of sweep ")[1].split()[0])
        assert (len(content.newest), content.missing) == (4, {}), output


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8])
def test_ctrl_c_twice_ends_at_once(home: Path, delay: float, jobs: int) -> None:
    """As a terminal sends it, to the whole group; the second while the first is being handled."""
    process = started("run", *SWEEP[:-1], f"jobs={jobs}", "train.steps=1000000")
    until(lambda: statuses()["RUNNING"] == jobs, process)
    begun = time.monotonic()
    for _ in range(2):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        time.sleep(delay)
    status, output, errors = ended(process)
    assert time.monotonic() - begun < 15
    assert (status, output) == (130, ""), errors
    assert len([line for line in errors if line.startswith("gradpath: ")]) == 1, errors
    assert errors[-1].startswith("gradpath: interrupted")
    store.reap(store.connect(None))
    assert set(statuses()) == {"KILLED"}


def sandboxed(*command: str) -> tuple[str, ...]:
    """The command in a mount namespace, of which nothing is left afterwards."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare, of util-linux")
    return ("unshare", "--map-root-user", "--mount", "sh", "-c", *command)


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99
shift
"$@"
"""


@pytest.mark.slow
def test_a_store_on_a_read_only_file_system_is_refused_and_can_be_reported(home: Path) -> None:
    status, _, errors = ended(started("run", *SWEEP[:3], "seed=0", *SMALL, "train.steps=2", "jobs=1"))
    assert status == 0, errors
    before = {file: file.read_bytes() for file in (home / "mlruns").rglob("*") if file.is_file()}
    prefix = sandboxed(READ_ONLY, "sh", str(home / "mlruns"))
    process = started("run", *SWEEP, "train.steps=2", prefix=prefix)
    status, output, errors = ended(process)
    if status == 99 or "unshare" in "".join(errors):
        pytest.skip(f"no file system can be mounted here: {errors}")
    assert (status, output) == (2, "")
    assert errors[-1:] == [
        f"gradpath: tracking.uri=sqlite:///{home}/mlruns/mlflow.db: cannot be written: "
        "the file or its folder is read-only"
    ]
    status, output, errors = ended(started("report", "study=gradpath", "figures=[gates]", prefix=prefix))
    assert status == 0, errors
    assert (home / "reports" / "figures" / "gradpath" / "gates.png").exists()
    assert {file: file.read_bytes() for file in (home / "mlruns").rglob("*") if file.is_file()} == before


def bound_by_permissions() -> tuple[str, ...]:
    """A prefix with which permissions hold for root too."""
    if os.getuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, of util-linux")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


@pytest.mark.slow
def test_a_store_that_becomes_read_only_in_the_middle_of_a_sweep(home: Path) -> None:
    folder = home / "mlruns"
    process = started("run", *SWEEP, "train.steps=1000000", prefix=bound_by_permissions())
    until(lambda: statuses()["RUNNING"] == 2, process)
    os.chmod(folder, 0o555)
    try:
        status, output, errors = ended(process)
    finally:
        os.chmod(folder, 0o755)
    assert (status, output) == (1, ""), errors
    assert "read-only" in errors[-1] or "cannot be opened" in errors[-1]
    assert len([line for line in errors if line.startswith("gradpath: ")]) <= 2, errors
    store.reap(store.connect(None))
    assert set(statuses()) <= {"KILLED", "FAILED"}, errors


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = subprocess.Popen(command, env=environment, cwd=folder, **quiet)
    try:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.slow
@pytest.mark.parametrize("away", [4.0, 40.0])
def test_a_server_that_is_stopped_and_started_during_a_sweep(home: Path, tmp_path: Path, away: float) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uri, steps = f"http://127.0.0.1:{port}", 1500
    with mlflow_server(home / "mlruns", port):
        process = started("run", *SWEEP, f"train.steps={steps}", f"tracking.uri={uri}")
        until(lambda: statuses(uri)["RUNNING"] == 2, process)
    time.sleep(away)
    with mlflow_server(home / "mlruns", port):
        status, output, errors = ended(process)
        assert status == 0, errors
        assert "4 finished" in output
        assert statuses(uri) == {"FINISHED": 4}
        whole_sweep(output, steps, uri)


CGROUP = Path("/sys/fs/cgroup/memory")


@pytest.fixture
def small_memory(request: pytest.FixtureRequest) -> Iterator[tuple[str, ...]]:
    """A prefix that gives a command 1 GiB."""
    group = CGROUP / f"gradpath-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(1 << 30))
    except OSError as error:
        pytest.skip(f"no group of processes can be limited here: {error}")
    try:
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")
    finally:
        time.sleep(0.5)
        group.rmdir()


@pytest.mark.slow
def test_a_point_that_the_kernel_kills_for_its_memory_fails_alone(home: Path, small_memory: tuple[str, ...]) -> None:
    sweep = ["-m", "arm=rnn", "task.length=6,2000000,7", "cell.hidden_size=64", *SMALL[2:], "train.steps=3", "jobs=2"]
    status, output, errors = ended(started("run", *sweep, prefix=small_memory))
    assert status == 1
    assert "2 finished, 1 failed" in output
    assert errors[-1].startswith("failed: rnn · adding T=2000000 · seed 0: ")
    assert "2 times" in errors[-1]
    assert "memory" in errors[-1]
    assert statuses() == {"FINISHED": 2, "KILLED": 2}


@pytest.mark.slow
def test_a_point_without_memory_fails_alone_and_says_what_to_lower(home: Path) -> None:
    """The address space is limited, as on a shared machine."""
    sweep = ["-m", "arm=rnn", "task.length=6,10000000,7", "cell.hidden_size=64", *SMALL[2:], "train.steps=3"]
    limited = ("sh", "-c", 'ulimit -v 6000000 && exec "$@"', "sh")
    status, output, errors = ended(started("run", *sweep, "jobs=2", prefix=limited))
    assert status == 1, errors
    assert "2 finished, 1 failed" in output
    assert errors[-1].startswith("failed: rnn · adding T=10000000 · seed 0: MemoryError: ")
    assert "lower " in errors[-1]
    assert statuses() == {"FINISHED": 2, "FAILED": 1}


def test_processes_that_cannot_be_started_are_no_fault_of_hydras_files(home: Path, command, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("gradpath.commands.parallel.run", refuse)
    status, output, errors = command("run", *SWEEP, "train.steps=2")
    assert status == 1
    assert "4 failed" in output
    assert errors.splitlines()[0].startswith("gradpath: the launcher gave up: BlockingIOError: ")
    assert "it never began" in errors


def test_a_sweep_waits_for_its_store_at_every_moment_but_its_start(home: Path, command, monkeypatch) -> None:
    """As long as its runs do once it has begun: a point begins, and the sweep ends, while another
    program has the store.
    """
    waits = []
    attempt = store.store_client._attempt

    def attempted(uri: str, action: str, question: Any) -> Any:
        waits.append((store.store_client._patience.get(), action))
        return attempt(uri, action, question)

    monkeypatch.setattr(store.store_client, "_attempt", attempted)
    assert command("run", "-m", "arm=rnn,lstm", *SMALL, "train.steps=2", "jobs=1")[0] == 0
    begun = next(index for index, (seconds, _) in enumerate(waits) if seconds == ending.PATIENCE)
    assert begun > 5
    # 0: what is asked again from outside, or sent another time
    assert {action for seconds, action in waits[begun:] if seconds not in (0, ending.PATIENCE)} == set()


@pytest.mark.parametrize("tag", ["soon", "-1", "9" * 5000, "1e9", "\u0663"])
def test_a_tag_that_tells_no_time_is_passed_over(tag: str) -> None:
    assert outcomes.milliseconds(tag) == 0
    assert outcomes.milliseconds("1700000000000") == 1700000000000


@pytest.mark.slow
def test_a_report_that_is_killed_leaves_no_half_of_a_file(home: Path, monkeypatch) -> None:
    """The same runs give the same bytes: a file is there as it should be, or not at all."""
    monkeypatch.chdir(home)
    assert ended(started("run", *SWEEP, "train.steps=20"))[0] == 0
    report = ["report", "study=gradpath", "figures=[gates,norm_by_lag]", "formats=[png,pdf,svg]"]
    begun = time.monotonic()
    assert ended(started(*report, "out=whole"))[0] == 0
    duration = time.monotonic() - begun
    expected = {file.name: file.read_bytes() for file in Path("whole").iterdir()}
    counts = Counter[int]()
    for trial in range(25):
        folder = home / f"out{trial}"
        process = started(*report, f"out={folder}")
        time.sleep(duration * (0.3 + 0.03 * trial))
        process.kill()
        process.communicate()
        files = {file.name: file.read_bytes() for file in folder.glob("[!.]*")}
        counts[len(files)] += 1
        assert files.items() <= expected.items(), trial
    assert len(counts) > 1, counts  # it was killed before and between the files
    assert len(expected) == 7
