"""Sweeps on a Ray cluster and by submitit: what is lost costs its own point, what is stopped is
closed, and the same command goes on.
"""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.tracking import loader, store
from gradpath.tracking.decoding import arrays_of

SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8"]
GRADPATH = [sys.executable, "-m", "gradpath"]
LONG = "train.steps=1000000"


def lacks(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        find_spec(module) is None, reason=f"{module} is not installed: pip install -e '.[{module}]'"
    )


def runs(uri: str | None = None, query: str = "") -> list:
    client = store.connect(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], query))


def statuses(uri: str | None = None) -> Counter:
    return Counter(run.info.status for run in runs(uri))


def until(condition: Callable[[], bool], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and (process is None or process.poll() is None) and time.monotonic() < deadline:
        time.sleep(0.3)
    assert process is None or process.poll() is None, process.communicate()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def started(*arguments: str) -> subprocess.Popen:
    words = [*GRADPATH, "run", "-m", *arguments]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def ran(*arguments: str) -> tuple[int, str, str]:
    process = started(*arguments)
    output, errors = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in errors, errors
    return process.returncode, output, errors


# Ray: a head that computes nothing, and two nodes that share no disk with it or with each other.


def free_port() -> int:
    """Above those that Ray takes for its workers."""
    while True:
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            if (port := int(probe.getsockname()[1])) > 20000:
                return port


@dataclass
class Cluster:
    arguments: list[str]
    uri: str
    homes: Path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    homes, sockets = tmp_path_factory.mktemp("homes"), tempfile.mkdtemp(prefix="gp", dir="/tmp")
    port, store_port = free_port(), free_port()
    processes: list[subprocess.Popen] = []
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", f"--temp-dir={sockets}"]

    def start(words: list[str], name: str, **environment: str) -> None:
        (homes / name).mkdir()
        with (homes / f"{name}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    words,
                    stdout=log,
                    stderr=log,
                    cwd=homes / name,
                    env=os.environ | environment,
                    start_new_session=True,
                )
            )

    def listening(number: int) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", number)) == 0

    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in token.items():
            patch.setenv(name, value)
        patch.setenv("GRADPATH_HOME", str(homes / "head"))
        try:
            server = ["-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(store_port), "--workers", "1"]
            files = ["--backend-store-uri", "sqlite:///mlflow.db", "--artifacts-destination", "./artifacts"]
            start([sys.executable, *server, *files], "server")
            start([*ray, "--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false"], "head")
            until(lambda: listening(port) and listening(store_port))
            for name in ("first", "second"):
                # Over the folders of the others lies an empty disk of its own.
                hidden = f"mount -t tmpfs none {homes} && mount -t tmpfs none {sockets} && mkdir {homes}/{name}"
                joined = " ".join([*ray, "--num-cpus=1", f"--address=127.0.0.1:{port}"])
                words = ["sh", "-c", f"{hidden} && cd {homes}/{name} && exec {joined}"]
                start(["unshare", "-m", *words], name, GRADPATH_HOME=f"{homes}/{name}")
            uri = f"http://127.0.0.1:{store_port}"
            address = f"hydra.launcher.ray.init.address=127.0.0.1:{port}"
            until(lambda: nodes(port) == 2)
            yield Cluster(["hydra/launcher=ray", address, f"tracking.uri={uri}", *SMALL], uri, homes)
        finally:
            for process in reversed(processes):
                os.killpg(process.pid, signal.SIGTERM)
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(15)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            shutil.rmtree(sockets, ignore_errors=True)


def nodes(port: int) -> int:
    """That have a CPU to give."""
    words = f"import ray; ray.init('127.0.0.1:{port}', log_to_driver=False, logging_level='ERROR')\n"
    words += "print(sum(node['Alive'] and 'CPU' in node['Resources'] for node in ray.nodes()))"
    asked = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, timeout=PATIENCE)
    return int(asked.stdout.strip() or 0)


def can_unshare() -> bool:
    return shutil.which("unshare") is not None and subprocess.run(["unshare", "-m", "true"]).returncode == 0


on_ray = [
    pytest.mark.cluster,
    lacks("ray"),
    pytest.mark.skipif(not can_unshare(), reason="needs the right to make mount namespaces"),
]


class TestRay:
    pytestmark = on_ray

    def test_a_sweep_on_nodes_that_share_nothing_but_the_store(self, cluster: Cluster) -> None:
        sweep = [*cluster.arguments, "arm=rnn,lstm", "seed=0,1,2", "train.steps=20"]
        status, output, errors = ran(*sweep)
        assert status == 0, errors
        assert "6 runs of sweep" in output
        assert "6 finished" in output
        sweep_id = output.split(" of sweep ")[1].split()[0]
        content = loader.sweep(cluster.uri, "gradpath", sweep_id)
        assert (len(content.newest), content.missing, content.doubled, content.damaged) == (6, {}, [], [])
        assert not (cluster.homes / "first" / "mlruns").exists()
        report = subprocess.run(
            [*GRADPATH, "report", "study=gradpath", f"sweep={sweep_id}", f"uri={cluster.uri}", "figures=[norm_by_lag]"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        assert report.returncode == 0, report.stderr
        assert report.stdout.startswith("6 runs")
        status, again, errors = ran(*sweep)
        assert (status, again) == (0, output)
        assert errors.endswith(
            "skipped: 6 of 6 runs, finished before with the same code; resume=false runs all of them again\n"
        )
        # The numbers are those of a run here.
        first = next(run for run in content.newest if run.seed == 0 and run.name.startswith("rnn"))
        status, output, errors = ran(*cluster.arguments[2:], "arm=rnn", "train.steps=20", "resume=false", "jobs=1")
        (here,) = loader.sweep(cluster.uri, "gradpath", output.split(" of sweep ")[1].split()[0]).newest
        assert here.config_hash == first.config_hash
        assert here.loss.values.tobytes() == first.loss.values.tobytes()

    def test_a_point_that_fails_is_named(self, cluster: Cluster) -> None:
        status, output, errors = ran(*cluster.arguments, "train.steps=2", "seed=10", "cell.hidden_size=3,1000000")
        assert status == 1
        assert "1 finished, 1 failed" in output
        (failed,) = (line for line in errors.splitlines() if line.startswith("failed: "))
        assert "MemoryError" in failed
        assert failed.endswith("[cell.hidden_size=1000000]")

    def test_a_killed_process_costs_its_own_point_which_is_tried_again(self, cluster: Cluster) -> None:
        process = started(*cluster.arguments, "seed=20,21,22", "train.steps=6000", "train.checkpoint_every=200")
        sweep = "attributes.status = 'RUNNING' and tags.checkpoint != ''"
        until(lambda: bool(runs(cluster.uri, sweep)), process)
        victim = runs(cluster.uri, sweep)[0]
        os.kill(int(victim.data.tags["pid"]), signal.SIGKILL)
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert f"{victim.info.run_name}: its process was killed; it is tried again\n" in errors
        assert f"{victim.info.run_name}: goes on at step " in errors
        assert "3 finished" in output
        assert store.connect(cluster.uri).get_run(victim.info.run_id).info.status == "FINISHED"

    @pytest.mark.parametrize(("number", "returned"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_what_is_stopped_is_closed(self, cluster: Cluster, number: int, returned: int) -> None:
        process = started(*cluster.arguments, f"seed={number}0,{number}1,{number}2", LONG)
        until(lambda: len(runs(cluster.uri, "attributes.status = 'RUNNING'")) == 2, process)
        running = runs(cluster.uri, "attributes.status = 'RUNNING'")
        os.killpg(process.pid, number)
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (returned, ""), errors
        assert "Traceback" not in errors
        assert errors.splitlines()[-1].endswith(": 0 of 3 runs finished")
        client = store.connect(cluster.uri)
        assert {client.get_run(run.info.run_id).info.status for run in running} == {"KILLED"}
        until(lambda: not any(alive(int(run.data.tags["pid"])) for run in running))

    def test_a_store_that_the_nodes_cannot_share_is_pointed_out(self, cluster: Cluster, tmp_path: Path) -> None:
        arguments = [a for a in cluster.arguments if not a.startswith("tracking.uri")]
        uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
        errors = ran(*arguments, uri, "train.steps=2", "seed=1")[2]
        assert f"note: {uri} is a file, which the 2 nodes of the Ray cluster cannot share" in errors


@pytest.mark.cluster
@lacks("ray")
def test_a_cluster_that_is_not_there_is_named(home: Path) -> None:
    address = f"hydra.launcher.ray.init.address=127.0.0.1:{free_port()}"
    status, _, errors = ran("hydra/launcher=ray", address, *SMALL, "seed=0,1")
    assert status == 2
    assert f"gradpath: {address}: no Ray cluster answers there: " in errors


# submitit: its local executor.


@pytest.mark.cluster
@lacks("submitit")
class TestSubmitit:
    @pytest.mark.parametrize("name", ["submitit", "submitit_local"])
    def test_never_more_at_once_than_cores(self, home: Path, name: str) -> None:
        status, output, errors = ran(f"hydra/launcher={name}", *SMALL, "seed=0,1,2,3", "train.steps=200", "jobs=2")
        assert status == 0, errors
        assert "4 finished" in output
        ends = sorted((run.info.start_time, run.info.end_time) for run in runs())
        for start, _ in ends:
            assert sum(first <= start < last for first, last in ends) <= 2
        assert ran(f"hydra/launcher={name}", *SMALL, "seed=0,1,2,3", "train.steps=200")[2].startswith("skipped: 4 of 4")

    def test_a_point_that_fails_is_named(self, home: Path) -> None:
        status, output, errors = ran("hydra/launcher=submitit", *SMALL, "train.steps=2", "cell.hidden_size=3,1000000")
        assert status == 1
        assert "1 finished, 1 failed" in output
        (failed,) = (line for line in errors.splitlines() if line.startswith("failed: "))
        assert "MemoryError" in failed
        assert failed.endswith("[cell.hidden_size=1000000]")

    @pytest.mark.parametrize(
        ("number", "group", "returned"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, 143)]
    )
    def test_what_is_stopped_is_closed(self, home: Path, number: int, group: bool, returned: int) -> None:
        process = started("hydra/launcher=submitit", *SMALL, "seed=0,1,2", LONG, "jobs=2")
        until(lambda: statuses()["RUNNING"] == 2, process)
        pids = [int(run.data.tags["pid"]) for run in runs()]
        (os.killpg if group else os.kill)(process.pid, number)
        output, errors = process.communicate(timeout=PATIENCE)
        assert (process.returncode, output) == (returned, ""), errors
        assert errors.splitlines()[-1].endswith(": 0 of 3 runs finished")
        assert "Traceback" not in errors
        assert statuses() == {"KILLED": 2}, errors
        assert not any(alive(pid) for pid in pids)

    def test_a_killed_process_costs_its_own_point_which_is_tried_again(self, home: Path) -> None:
        process = started("hydra/launcher=submitit", *SMALL, "seed=0,1", "train.steps=3000", "jobs=2")
        until(lambda: statuses()["RUNNING"] > 0, process)
        victim = runs(query="attributes.status = 'RUNNING'")[0]
        os.kill(int(victim.data.tags["pid"]), signal.SIGKILL)
        errors = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, errors
        assert re.search(
            rf"{victim.info.run_name}: its process ended without a word \(.*\); it is tried again\n", errors
        )
        assert statuses() == {"FINISHED": 2, "KILLED": 1}

    def test_a_preempted_job_goes_on_in_its_run_bit_for_bit(self, home: Path) -> None:
        arguments = [*SMALL, "seed=0,1", "train.steps=4000", "train.checkpoint_every=100"]
        process = started("hydra/launcher=submitit", *arguments, "jobs=2")
        until(lambda: any("checkpoint" in run.data.tags for run in runs()), process)
        preempted = next(run for run in runs() if "checkpoint" in run.data.tags)
        os.kill(int(preempted.data.tags["pid"]), signal.SIGUSR2)  # as Slurm does before it takes the machine
        output, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors
        assert f"{preempted.info.run_name}: goes on at step " in errors
        assert statuses() == {"FINISHED": 2}
        again = store.connect(None).get_run(preempted.info.run_id)
        assert again.data.tags["pid"] != preempted.data.tags["pid"]
        status, whole, errors = ran("jobs=1", *arguments, "resume=false")
        assert status == 0, errors
        for run in loader.sweep(None, "gradpath", output.split(" of sweep ")[1].split()[0]).newest:
            (other,) = (
                r
                for r in loader.sweep(None, "gradpath", whole.split(" of sweep ")[1].split()[0]).newest
                if r.config_hash == run.config_hash
            )
            assert bits(run.run_id) == bits(other.run_id)


SLURM = """
import os, shutil, signal, subprocess, sys, time
from pathlib import Path

folder, command, words = Path(os.environ["STAND_IN"]), Path(sys.argv[0]).name, sys.argv[1:]
if command == "sbatch":
    number = str(len([*folder.glob("*.sh")]) + 1)
    shutil.copy(words[0], folder / f"{number}.sh")
    environment = os.environ | {"SLURM_JOB_ID": number, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    with (folder / f"{number}.log").open("w") as log:
        process = subprocess.Popen(
            [str(folder / "job"), number], env=environment, start_new_session=True, stdout=log, stderr=log
        )
    (folder / f"{number}.pid").write_text(str(process.pid))
    print(f"Submitted batch job {number}")
elif command == "job":
    signal.signal(signal.SIGTERM, lambda *signal: None)
    script, again = folder / f"{words[0]}.sh", folder / f"{words[0]}.again"
    while subprocess.run(["sh", str(script)]) and again.exists():
        again.unlink()
elif command == "srun":
    python = next(index for index, word in enumerate(words) if word == sys.executable)
    os.execv(words[python], words[python:])
elif command == "scontrol":
    (folder / f"{words[1]}.again").touch()
elif command == "sacct":
    print("JobID|State|NodeList")
    for pid in folder.glob("*.pid"):
        state = "RUNNING" if Path(f"/proc/{pid.read_text()}").exists() else "FAILED"
        print(f"{pid.stem}|{state}|here")
elif command == "scancel":
    os.killpg(int((folder / f"{words[0]}.pid").read_text()), signal.SIGTERM)
"""


@pytest.fixture
def slurm(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for the commands of Slurm, which run a job here, and again where it asks for it."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("sbatch", "job", "srun", "scontrol", "sacct", "scancel"):
        (folder / name).write_text(f"#!{sys.executable}\n{SLURM}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("STAND_IN", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.cluster
@lacks("submitit")
class TestSlurm:
    ARGUMENTS = (
        "hydra/launcher=submitit_slurm hydra.launcher.partition=short hydra.launcher.timeout_min=30 "
        "hydra.launcher.array_parallelism=1 hydra.launcher.max_num_timeout=2 train.checkpoint_every=100"
    ).split()

    @pytest.mark.parametrize("signals", [[signal.SIGUSR2], [signal.SIGTERM, signal.SIGUSR2]])
    def test_a_preempted_job_goes_on_in_its_run(self, slurm: Path, signals: list[int]) -> None:
        process = started(*self.ARGUMENTS, *SMALL, "seed=0,1", "train.steps=3000")
        until(lambda: any("checkpoint" in run.data.tags for run in runs()), process)
        (preempted,) = runs()
        for number in signals:
            os.kill(int(preempted.data.tags["pid"]), number)
            time.sleep(1)
        errors = process.communicate(timeout=PATIENCE)[1]
        assert process.returncode == 0, errors
        assert f"{preempted.info.run_name}: goes on at step " in errors
        assert f"note: {store.shown(store.connect(None).tracking_uri)}" in errors.replace("tracking.uri=", "")
        assert statuses() == {"FINISHED": 2}
        assert len([*slurm.glob("*.sh")]) == 2
        script = (slurm / "1.sh").read_text()
        for line in ("partition=short", "time=30", "cpus-per-task=1", "signal=USR2@120", "job-name=gradpath"):
            assert f"#SBATCH --{line}\n" in script
        assert "gpu" not in script

    def test_what_is_stopped_is_cancelled(self, slurm: Path) -> None:
        process = started(*self.ARGUMENTS, *SMALL, "seed=0,1", LONG)
        until(lambda: statuses()["RUNNING"] == 1, process)
        process.terminate()
        assert process.wait(PATIENCE) == 143
        assert statuses() == {"KILLED": 1}
        assert not (slurm / "2.sh").exists()

    def test_without_slurm_one_line_says_so(self, home: Path) -> None:
        status, _, errors = ran("hydra/launcher=submitit_slurm", *SMALL, "seed=0,1")
        assert (status, "srun" in errors.splitlines()[-1]) == (2, True)


def bits(run_id: str) -> bytes:
    folder = store.local_path(store.connect(None).get_run(run_id).info.artifact_uri)
    assert folder is not None
    arrays = arrays_of(folder / store.ARTIFACT)
    return b"".join(arrays[name].tobytes() for name in sorted(arrays))


@pytest.mark.parametrize(
    ("launcher", "module", "extra"),
    [("ray", "ray", "ray"), ("submitit", "submitit", "submitit"), ("submitit_slurm", "submitit", "submitit")],
)
def test_what_is_missing_is_named(home: Path, command, monkeypatch, launcher: str, module: str, extra: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    status, output, errors = command("run", "-m", f"hydra/launcher={launcher}", *SMALL, "seed=0,1")
    assert (status, output) == (2, "")
    assert f"pip install 'gradpath[{extra}]'" in errors.splitlines()[-1]
    assert runs() == []
