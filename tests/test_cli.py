"""The command as a person types it, in a process of its own, from any directory."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import PATIENCE
from gradpath.commands import compose
from gradpath.schema import locations
from gradpath.tracking import loader

SMALL = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=8"]
GRADPATH = [sys.executable, "-m", "gradpath"]


def gradpath(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GRADPATH, *arguments], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_a_run_from_any_directory_leaves_nothing_there(home: Path, tmp_path_factory, command) -> None:
    directory = tmp_path_factory.mktemp("anywhere")
    completed = gradpath("run", "arm=lstm", "task=temporal_order", *SMALL, "seed=3", cwd=directory)
    assert completed.returncode == 0, completed.stderr
    assert list(directory.iterdir()) == []
    experiment, sweep = loader.newest_sweep(None, None)
    (run,) = loader.load(None, experiment, sweep)
    assert run.name == "lstm · temporal_order T=12 · seed 3"
    status, stdout, stderr = command("report", "figures=[gates]")
    assert status == 0, stderr
    assert Path(stdout.splitlines()[-1]).exists()


def test_a_sweep(home: Path) -> None:
    completed = gradpath("run", "-m", "arm=rnn,clipped_rnn,lstm", "seed=0,1", *SMALL, cwd=home)
    assert completed.returncode == 0, completed.stderr
    experiment, sweep = loader.newest_sweep(None, None)
    names = {run.name for run in loader.load(None, experiment, sweep)}
    assert names == {f"{arm} · adding T=12 · seed {seed}" for arm in ("rnn", "clipped_rnn", "lstm") for seed in (0, 1)}
    assert "[6/6] lstm · adding T=12 · seed 1: step 8/8" in completed.stderr


def test_a_sweep_with_seeds_side_by_side_counts_runs(home: Path, command) -> None:
    status, stdout, stderr = command("run", "-m", "arm=rnn,lstm", "seed=0..2", *SMALL)
    assert status == 0, stderr
    assert stdout.startswith("6 runs of sweep ")
    assert "[1-3/6] rnn · adding T=12 · 3 seeds: step 8/8" in stderr
    assert "[4-6/6] lstm · adding T=12 · 3 seeds: median test loss" in stderr
    runs = loader.load(None, *loader.newest_sweep(None, None))
    assert sorted((run.arm, run.seed) for run in runs) == [(arm, seed) for arm in ("lstm", "rnn") for seed in range(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cell.hidden_size=abc"], "gradpath: cell.hidden_size=abc: must be an integer ≥ 1"),
        (["-m", "seed=0,1", "clip.max_norm=1,-1"], "gradpath: clip.max_norm=-1.0: must be > 0"),
        (["-m", "arm=rnn,mlp"], "gradpath: arm=mlp: no such name; there are"),
        (["--nope"], "gradpath: unrecognized arguments: --nope"),
        (["-m", "seed=0,0"], " seed=0: this point is in the sweep twice"),
        (["seed=5..2"], "gradpath: seed=5..2: must be an integer ≥ 0, a range 0..15 or a list [0,3,7], each seed once"),
        (["-m", "arm=rnn,lstm", "seed=0..x"], "gradpath: seed=0..x: must be an integer ≥ 0, a range 0..15 or a list"),
        (["-m", "arm=rnn,lstm", "seed=0,[]"], "gradpath: seed=[]: must be an integer ≥ 0, a range 0..15 or a list"),
        (["-m", "seed=0..3,[5,2]"], " seed=[5,2]: this point is in the sweep twice, with seed 2"),
        (["tracking.uri=sqlite:////tmp"], "gradpath: tracking.uri=sqlite:////tmp: is no file; must name a file"),
        (["tracking.uri=file:///tmp/x"], "gradpath: tracking.uri=file:///tmp/x: must be a database"),
    ],
)
def test_bad_input_is_one_line_exit_status_two_and_no_run(
    home: Path, arguments: list[str], message: str, command
) -> None:
    status, stdout, stderr = command("run", *SMALL, *arguments)
    assert status == 2
    assert stderr.startswith("gradpath: ")
    assert message in stderr
    assert stderr.count("\n") == 1
    assert stdout == ""
    from gradpath.tracking import store

    client = store.connect(None)
    assert client.search_runs([e.experiment_id for e in client.search_experiments()]) == []


def test_bad_input_has_its_exit_status_in_a_process_of_its_own(home: Path) -> None:
    completed = gradpath("run", *SMALL, "cell.hidden_size=abc", cwd=home)
    assert (completed.returncode, completed.stdout) == (2, "")
    assert completed.stderr.startswith("gradpath: cell.hidden_size=abc: must be an integer ≥ 1")


def test_options_may_stand_after_the_overrides(home: Path, command) -> None:
    status, stdout, stderr = command("run", "seed=0,1", *SMALL, "-m")
    assert status == 0, stderr
    assert "2 runs of sweep" in stdout


def test_unknown_command_and_bare_command(home: Path) -> None:
    assert gradpath("train", cwd=home).returncode == 2
    assert "gradpath run" in gradpath(cwd=home).stdout


def test_the_configuration_is_printed_without_running(home: Path) -> None:
    completed = gradpath("run", "--cfg", "job", "arm=rnn", cwd=home)
    assert completed.returncode == 0
    assert "activation: tanh" in completed.stdout


@pytest.mark.parametrize(
    ("seeds", "signal_number", "returned"),
    [
        ("0", signal.SIGINT, 130),
        ("0..2", signal.SIGTERM, 143),
        pytest.param("0", signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param("0..2", signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_signal_closes_every_run_as_killed(
    home: Path, seeds: str, signal_number: signal.Signals, returned: int
) -> None:
    arguments = ["run", f"seed={seeds}", "train.steps=1000000", *SMALL[:-1]]
    process = subprocess.Popen([*GRADPATH, *arguments], cwd=home, stderr=subprocess.PIPE, text=True, env=os.environ)
    count = len(compose.experiments([f"seed={seeds}"]))
    deadline = time.monotonic() + PATIENCE
    while len(_running()) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == returned
    assert "Traceback" not in stderr
    assert [status for _, status, _ in _running()] == ["KILLED"] * count, stderr


def test_a_run_that_was_killed_is_found_by_the_next_command(home: Path, command) -> None:
    arguments = ["run", "train.steps=1000000", *SMALL[:-1]]
    process = subprocess.Popen([*GRADPATH, *arguments], cwd=home, stderr=subprocess.PIPE, text=True, env=os.environ)
    deadline = time.monotonic() + PATIENCE
    while not _running() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert [status for _, status, _ in _running()] == ["RUNNING"]
    _, _, stderr = command("run", *SMALL)
    assert "found a run that was killed, now marked so: lstm · adding T=12 · seed 0" in stderr
    assert sorted(status for _, status, _ in _running()) == ["FINISHED", "KILLED"]


def test_one_point_that_fails_is_named_and_the_others_finish(home: Path) -> None:
    """A million units do not fit into any memory."""
    points = ["cell.hidden_size=1000000,6", "cell=rnn,lstm", "seed=0,[1,2]"]
    completed = gradpath("run", "-m", *points, *SMALL[:1], *SMALL[2:-1], "train.steps=2", cwd=home)
    assert completed.returncode == 1
    assert completed.stderr.count("failed: ") == 4
    assert "failed: rnn · adding T=12 · seed 0: MemoryError: Unable to allocate" in completed.stderr
    assert "failed: lstm · adding T=12 · 2 seeds: MemoryError: Unable to allocate" in completed.stderr
    assert sorted(status for _, status, _ in _running()) == ["FAILED"] * 6 + ["FINISHED"] * 6


def _running() -> list:
    from gradpath.tracking import store

    client = store.connect(None)
    if (experiment := client.get_experiment_by_name("gradpath")) is None:
        return []
    return [(r.info.run_name, r.info.status, r.data.tags) for r in client.search_runs([experiment.experiment_id])]


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; sys.argv = ['gradpath', 'run', '--help']\n"
        "from gradpath.commands.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'mlflow', 'matplotlib', 'seaborn', 'pandas', 'scipy', 'torch'} & set(sys.modules)\n"
        "print('heavy:', heavy, file=sys.stderr)"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert completed.stderr.strip() == "heavy: set()"


SMALLER = {
    "ablation": ["arm=chrono_lstm,ablation/no_forget_gate", "task.length=20"],
    "cliff": ["optimizer.lr=0.1,1", "instruments.loss_surface.points=9"],
    "clipping": ["arm=clipped_rnn,value_clipped_rnn", "task.length=20"],
    "credit": ["arm=rnn,gru", "task.length=4"],
    "demo": ["arm=clipped_rnn,chrono_lstm", "task.length=20"],
    "exploding": ["task.length=20"],
    "forget_bias": ["arm=forget_bias/0,forget_bias/3,chrono_lstm", "task.length=12,20"],
    "gates": ["arm=chrono_lstm,rnn", "task.length=20"],
    "lyapunov": ["arm=rnn,lstm", "task.length=20"],
    "spectral_radius": ["init.gain=0.5,1.3", "task.length=20"],
    "vanishing": ["arm=rnn,lstm", "task.length=20"],
}
"""What else is cut down of a study."""
STUDIES = sorted(path.stem for path in (locations.conf() / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_study_runs_two_steps_and_its_figures_draw(home: Path, study: str, command) -> None:
    """The commands are those of the study's README."""
    page = (Path(__file__).parents[1] / "experiments" / study / "README.md").read_text()
    assert f"`gradpath run -m +experiment={study}`" in page
    (report,) = re.findall(rf"`gradpath (report study={study}[^`]*)`", page)
    overrides = ["train.steps=2", "train.eval_size=10", "seed=0"]
    if study != "cliff":  # which is of one unit and one sequence
        overrides += ["train.batch_size=4", "cell.hidden_size=5"]
    status, _, stderr = command("run", "-m", f"+experiment={study}", *overrides, *SMALLER[study])
    assert status == 0, stderr
    status, _, stderr = command(*report.split(), "formats=[svg]")
    assert status == 0, stderr
