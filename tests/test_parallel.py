"""A sweep on every core: the same numbers, and nothing lost but what a killed process had begun."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.commands import execute, signals
from gradpath.commands.progress import Whole
from gradpath.schema import plugins
from gradpath.tracking import loader, store
from gradpath.training import passes

Command = Callable[..., tuple[int, str, str]]
SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8", "train.steps=2"]
SWEEP = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL]
LONG = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL[:-1], "train.steps=1000000"]
GRADPATH = [sys.executable, "-m", "gradpath"]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "cores", lambda: 2)


def runs(query: str = "") -> list:
    client = store.connect(None)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], query))


def statuses() -> Counter:
    return Counter(run.info.status for run in runs())


def until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, process.communicate()


def started(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [*GRADPATH, "run", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_sweep_in_processes_has_the_numbers_of_one_after_another(home: Path, command: Command, two_cores) -> None:
    status, output, errors = command("run", *SWEEP)
    assert status == 0, errors
    assert "4 finished" in output
    by_process = runs()
    assert {run.data.tags["pid"] for run in by_process}.isdisjoint({str(os.getpid())})
    assert len({run.data.tags["pid"] for run in by_process}) <= 2
    assert {run.data.tags["threads"] for run in by_process} == {"1"}
    for number, name in enumerate(("rnn · adding T=6 · seed 0", "rnn · adding T=6 · seed 1"), 1):
        assert f"[{number}/4] {name}: step 2/2, loss " in errors
    assert command("run", *SWEEP, "jobs=1", "resume=false")[0] == 0
    (parallel, serial) = (
        {run.config_hash: run for run in loader.load(None, "gradpath", sweep_id)}
        for sweep_id in sorted({run.data.tags["sweep_id"] for run in runs()})
    )
    assert parallel.keys() == serial.keys()
    for identity, run in parallel.items():
        assert run.loss.values.tobytes() == serial[identity].loss.values.tobytes()
        for name, series in run.series.items():
            assert series.values.tobytes() == serial[identity].series[name].values.tobytes(), name
    assert {run.data.tags["pid"] for run in runs()} - {run.data.tags["pid"] for run in by_process} == {str(os.getpid())}


def test_never_more_processes_than_jobs_or_cores(home: Path, command: Command, monkeypatch) -> None:
    counts = []
    monkeypatch.setattr(
        "pebble.ProcessPool", lambda count, **settings: counts.append(count) or (_ for _ in ()).throw(KeyboardInterrupt)
    )
    for cores, jobs, expected in ((8, "null", 4), (3, "null", 3), (2, "8", 4), (2, "3", 3)):
        monkeypatch.setattr(passes, "cores", lambda cores=cores: cores)
        command("run", *SWEEP, f"jobs={jobs}")
        assert counts.pop() == expected
    assert command("run", *SWEEP, "jobs=0")[0] == 2


def test_points_that_fail_are_named_and_the_others_finish(home: Path, command: Command, two_cores) -> None:
    status, output, errors = command(
        "run", "-m", "cell.hidden_size=3,1000000,4", "cell=rnn", *SMALL[2:], "task.length=6"
    )
    assert status == 1
    assert "2 finished, 1 failed" in output
    (failed,) = (line for line in errors.splitlines() if line.startswith("failed: "))
    assert "MemoryError: Unable to allocate" in failed
    assert "; lower task.length, " in failed
    assert failed.endswith("[cell.hidden_size=1000000]")
    assert statuses() == {"FINISHED": 2, "FAILED": 1}


def test_a_killed_process_costs_its_own_point_which_is_tried_again(home: Path) -> None:
    process = started("-m", "arm=rnn,lstm", "seed=0,1", *SMALL[:-1], "train.steps=1500", "jobs=2")
    until(lambda: statuses()["RUNNING"] > 0, process)
    victim = runs("attributes.status = 'RUNNING'")[0]
    os.kill(int(victim.data.tags["pid"]), signal.SIGKILL)
    output, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert f"{victim.info.run_name}: its process was ended by SIGKILL; it is tried again\n" in errors
    assert "4 finished" in output
    assert statuses() == {"FINISHED": 4, "KILLED": 1}
    assert store.connect(None).get_run(victim.info.run_id).info.status == "KILLED"
    assert "Traceback" not in errors


def test_a_point_that_kills_its_process_fails_in_the_end(
    home: Path, tmp_path: Path, command: Command, two_cores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(plugins.VARIABLE, "")
    monkeypatch.setattr(plugins, "_added", [])
    plugin = tmp_path / "fatal"
    for folder, name, text in (
        ("tasks", "fatal.py", FATAL_TASK),
        ("conf/task", "fatal.yaml", "defaults:\n  - _fatal\n  - _self_\nlength: 6\n"),
    ):
        (plugin / folder).mkdir(parents=True)
        (plugin / folder / name).write_text(text, "utf-8")
    status, output, errors = command(
        "run", "--plugin", str(plugin), "-m", "task=adding,fatal", "task.length=6", *SMALL[1:]
    )
    assert status == 1
    assert "1 finished, 1 failed" in output
    assert (
        "failed: lstm · fatal T=6 · seed 0: its process was ended by SIGKILL, 2 times; if memory ran out, lower "
        in errors
    )
    assert statuses() == {"FINISHED": 1, "KILLED": 2}


FATAL_TASK = """
import os
import signal
from dataclasses import dataclass

from gradpath.tasks.adding import Adding


@dataclass
class Fatal(Adding):
    def sample(self, rng, batch_size):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("number", "group", "returned"),
    [
        (signal.SIGINT, True, 130),
        (signal.SIGTERM, False, 143),
        pytest.param(signal.SIGHUP, True, 129, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, 143, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_sweep_closes_its_runs_and_leaves_no_process(
    home: Path, number: int, group: bool, returned: int
) -> None:
    process = started(*LONG, "jobs=2")
    until(lambda: statuses()["RUNNING"] == 2, process)
    pids = [int(run.data.tags["pid"]) for run in runs()]
    (os.killpg if group else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, output) == (returned, ""), errors
    assert errors.splitlines()[-1].endswith(": 0 of 4 runs finished")
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors
    assert statuses() == {"KILLED": 2}, errors
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(20))
def test_a_sweep_that_is_killed_at_any_moment_is_completed_by_the_same_command(home: Path, trial: int) -> None:
    """The whole group at once, as a machine that goes down; or a worker; or the command alone."""
    arguments = ["-m", "arm=rnn,lstm", "seed=0,1", *SMALL[:-1], "train.steps=300", "jobs=2"]
    process = started(*arguments)
    time.sleep(2.0 + 0.25 * trial)
    if trial % 3 == 2:
        process.kill()
        process.communicate()
        time.sleep(3)  # its workers end with the point that they have in hand
    else:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    completed = subprocess.run(
        [*GRADPATH, "run", *arguments], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert "Traceback" not in completed.stderr
    finished = Counter(run.data.tags["config_hash"] for run in runs("attributes.status = 'FINISHED'"))
    assert sorted(finished.values()) == [1, 1, 1, 1]
    assert set(statuses()) <= {"FINISHED", "KILLED"}
    name, sweep_id = loader.newest_sweep(None, None)
    content = loader.sweep(None, name, completed.stdout.split(" of sweep ")[1].split()[0])
    assert (len(content.newest), content.missing, content.damaged) == (4, {}, []), sweep_id


def test_a_script_without_a_main_guard_runs_once(home: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import gradpath as gp\nprint('begun')\n"
        f"runs = gp.sweep(arm=['rnn', 'lstm'], jobs=2, **{dict(o.split('=') for o in SMALL)!r})\n"
        "print(len(runs), __file__)\n",
        "utf-8",
    )
    completed = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout == f"begun\n2 {script}\n"


class Deleted:
    """Raises a signal while it is being deleted, where Python drops the exception."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_drops_ends_the_run_all_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradpath.commands import compose

    def train(*arguments: object, original: Callable = execute.train_seeds) -> object:
        for steps in original(*arguments):
            deleted = Deleted()
            del deleted
            yield steps

    monkeypatch.setattr(execute, "train_seeds", train)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(compose.experiment(SMALL), "s")
    assert statuses() == {"KILLED": 1}
    signals.check()  # which has been told of it, and not more


def test_the_display_of_the_whole(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [0.0, 0.5, 0.0]
    whole = Whole([1, 4, 2], shares)
    monkeypatch.setattr("gradpath.commands.progress.PLAIN_SECONDS", -1.0)
    later = time.monotonic() + 10
    monkeypatch.setattr(time, "monotonic", lambda: later)
    whole.show({1})
    whole.ended(0, failed=True)
    whole.show({1, 2})
    whole.end()
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"0 of 7 runs done, 4 running, 2[45] s left", first)
    assert re.fullmatch(r"0 of 7 runs done, 6 running, 1 failed, 1[34] s left", second)
