"""Threads: one where a pass is small, never more than the process's part of the cores, and BLAS
with one always.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from threadpoolctl import threadpool_info

from conftest import PATIENCE
from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.training import passes, threads

LARGE = ["cell.hidden_size=512", "train.batch_size=64", "task.length=10", "cell=rnn"]
JUST_LARGE_ENOUGH = ["cell.hidden_size=125", "train.batch_size=64", "task.length=66", "cell=rnn"]
REPORT_THREADS = """
import sys
from threadpoolctl import threadpool_info
from gradpath.commands import compose, execute

def spied(experiments, threads, states, train=execute.train_seeds):
    for steps in train(experiments, threads, states):
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {1}
        print("inside", threads, flush=True)
        sys.stdin.readline()  # until the other process is inside too
        yield steps

execute.train_seeds = spied
execute.execute_seeds([compose.experiment(sys.argv[2:])], "s", jobs=int(sys.argv[1]))
"""


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 8 cores, with BLAS free to use them."""
    monkeypatch.setattr(passes, "cores", lambda: 8)
    monkeypatch.setattr(threads, "threadpool_info", lambda: [{"user_api": "blas", "num_threads": 8}])


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 1),
        (["cell.hidden_size=64", "train.batch_size=32", "cell=lstm", "task.length=100"], 1),
        (JUST_LARGE_ENOUGH, 2),
        ([*JUST_LARGE_ENOUGH, "task.length=65"], 1),
        (["cell.hidden_size=128", "train.batch_size=20", "cell=lstm", "task.length=100"], 2),
        ([*LARGE, "train.batch_size=4", "task.length=1000"], 1),
        (LARGE, 2),
        ([*LARGE, "train.threads=1"], 1),
        ([*LARGE, "train.threads=5"], 2),
        (["train.threads=5"], 1),
    ],
)
def test_threads_follow_the_shape_unless_they_are_given(many_cores, overrides: list[str], expected: int) -> None:
    assert threads.thread_count(compose.experiment(overrides)) == expected


@pytest.mark.parametrize(("overrides", "seeds", "expected"), [([], 2, 2), ([], 16, 2), (LARGE, 16, 2)])
def test_seeds_share_the_threads_at_any_shape(many_cores, overrides: list[str], seeds: int, expected: int) -> None:
    assert threads.thread_count(compose.experiment(overrides), seeds=seeds) == expected
    assert threads.thread_count(compose.experiment([*overrides, "train.threads=1"]), seeds=seeds) == 1
    assert threads.thread_count(compose.experiment([*overrides, "train.threads=8"]), seeds=seeds) == min(8, seeds)
    assert threads.thread_count(compose.experiment(overrides), jobs=8, seeds=seeds) == 1


@pytest.mark.parametrize(("cell", "blocks"), [("rnn", 1), ("lstm", 4), ("gru", 4)])
def test_the_products_of_a_pass(cell: str, blocks: int) -> None:
    sizes = ["cell.hidden_size=10", "train.batch_size=7", "task=adding", "task.length=30"]
    network = compose.experiment([f"cell={cell}", *sizes, "cell.layers=2"]).network
    assert passes.multiply_adds(network, 30, 7) == 30 * 7 * 13 * blocks * 10
    assert passes.multiply_adds(network, 30, 7, layer=1) == 30 * 7 * 21 * blocks * 10


@pytest.mark.parametrize("jobs", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("setting", ["null", "4", "8"])
def test_jobs_at_once_never_have_more_threads_than_there_are_cores(many_cores, jobs: int, setting: str) -> None:
    single = threads.thread_count(compose.experiment([*LARGE, f"train.threads={setting}"]), jobs)
    assert single == max(1, min(2, 8 // jobs))
    side_by_side = threads.thread_count(compose.experiment([*LARGE, f"train.threads={setting}"]), jobs, seeds=16)
    assert side_by_side == max(1, min(2 if setting == "null" else int(setting), 8 // jobs))


@pytest.mark.parametrize(
    ("overrides", "large"),
    [
        ([], True),  # its evaluation
        (["train.eval_size=32"], False),
        (LARGE, True),
        (JUST_LARGE_ENOUGH, True),
        ([*JUST_LARGE_ENOUGH, "task.length=65", "train.eval_size=64"], False),
        ([*JUST_LARGE_ENOUGH, "task.length=65"], True),  # again its evaluation
        ([*JUST_LARGE_ENOUGH, "task.length=65", "train.eval_size=64", "cell.layers=2"], True),
    ],
)
def test_of_the_threads_the_identity_holds_what_decides_the_bits(many_cores, overrides: list[str], large: bool) -> None:
    """Not what it is called: of any number there are two results at most."""
    hashes = {n: compose.experiment([*overrides, f"train.threads={n}"]).config_hash for n in ("null", 1, 2, 4)}
    assert hashes["null"] == hashes[2] == hashes[4]
    assert (hashes[1] != hashes[2]) == large
    assert compose.experiment(overrides).resolved()["train"]["partitioned"] is large


def test_on_a_single_core_the_identity_is_that_of_one_thread(many_cores, monkeypatch: pytest.MonkeyPatch) -> None:
    one_thread = compose.experiment([*LARGE, "train.threads=1"]).config_hash
    monkeypatch.setattr(passes, "cores", lambda: 1)
    assert compose.experiment(LARGE).config_hash == one_thread


def test_what_blas_has_started_with_is_not_exceeded(many_cores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "threadpool_info", lambda: [{"user_api": "blas", "num_threads": 1}])
    assert threads.thread_count(compose.experiment(LARGE)) == 1
    assert threads.thread_count(compose.experiment([*LARGE, "train.threads=4"])) == 1


@pytest.mark.parametrize(("n_jobs", "expected"), [(None, 1), (3, 3), (-1, 8), (-2, 7)])
def test_the_launcher_says_how_many_jobs_run_at_once(monkeypatch, n_jobs: int | None, expected: int) -> None:
    monkeypatch.setattr(passes, "cores", lambda: 8)
    overrides = [] if n_jobs is None else [f"+hydra.launcher.n_jobs={n_jobs}"]
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    HydraConfig.instance().set_config(compose.composed("config", overrides))
    assert compose.jobs_at_once() == expected


def test_the_run_says_how_many_it_had(home: Path, many_cores) -> None:
    overrides = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=1"]
    recorder = execute(compose.experiment(overrides), "s")
    assert recorder.client.get_run(recorder.run_id).data.tags["threads"] == "1"


@pytest.mark.skipif(not threadpool_info(), reason="a BLAS whose threads cannot be set")
def test_two_processes_at_once_share_the_cores(home: Path) -> None:
    """Real processes, both in the middle of a run of a shape that alone takes two threads."""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    overrides = [*LARGE, "train.steps=0", "train.eval_size=5"]

    def start(jobs: int, seed: int) -> subprocess.Popen:
        command = [sys.executable, "-c", REPORT_THREADS, str(jobs), *overrides, f"seed={seed}"]
        return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True, env=environment)

    def thread_count(process: subprocess.Popen) -> int:
        label, count = process.stdout.readline().split()
        assert label == "inside"
        return int(count)

    processes = [start(2, 0), start(2, 1)]
    counts = [thread_count(process) for process in processes]
    for process in processes:
        process.communicate("\n", timeout=PATIENCE)
    single = start(1, 2)
    assert thread_count(single) == min(2, passes.cores())
    single.communicate("\n", timeout=PATIENCE)
    assert sum(counts) <= max(2, passes.cores())
    assert [process.returncode for process in (*processes, single)] == [0, 0, 0]
