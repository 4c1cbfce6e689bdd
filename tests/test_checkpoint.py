"""A run that was killed goes on from its last checkpoint, and ends as if nothing had happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import PATIENCE, signature
from gradpath.commands import compose
from gradpath.commands.execute import execute_seeds
from gradpath.tracking import checkpoint, loader, store
from gradpath.tracking.recorder import Recorder
from gradpath.training.loop import train, train_seeds
from gradpath.training.state import TrainingState

SMALL = ["task.length=6", "cell.hidden_size=3", "train.batch_size=4", "train.eval_size=8"]
MEASURED = ["train.steps=40", "train.eval_every=7", "instruments.param_grad_norm.schedule.new_max=2.0"]
ARMS = ["arm=lstm", "arm=clipped_rnn optimizer=sgd optimizer.lr=0.5", "arm=gru optimizer=rmsprop", "cell=peephole_lstm"]


def run(*overrides: str, sweep: str = "s") -> list[Recorder]:
    return execute_seeds(compose.experiments([*SMALL, *overrides]), sweep)


def all_runs() -> list:
    client = store.connect(None)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def curves(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """All that the UI draws of a run."""
    client = store.connect(None)
    keys = client.get_run(run_id).data.metrics
    return {key: sorted((p.step, p.value) for p in client.get_metric_history(run_id, key)) for key in keys}


def artifact(run_id: str) -> bytes:
    client = store.connect(None)
    return Path(client.download_artifacts(run_id, store.ARTIFACT)).read_bytes()


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_training_goes_on_with_the_same_bits_from_any_checkpoint(arm: str, dtype: str) -> None:
    overrides = [*SMALL, *MEASURED, *arm.split(), f"train.dtype={dtype}"]
    expected = [signature(step) for step in train(compose.experiment(overrides))]
    experiment = compose.experiment([*overrides, "train.checkpoint_every=9"])
    steps = list(train(experiment))
    assert [signature(step) for step in steps] == expected
    states = [step.state for step in steps if step.state is not None]
    assert [state.step for state in states] == [9, 18, 27, 36]
    for state in states:
        stored = TrainingState.from_arrays(state.arrays())  # as it comes back
        resumed = [signature(step[0]) for step in train_seeds([experiment], states=[stored])]
        assert resumed == expected[state.step :]


def test_a_checkpoint_does_not_change_what_the_run_is() -> None:
    assert len({compose.experiment([f"train.checkpoint_every={n}"]).config_hash for n in ("null", 1, 100)}) == 1


class Killed(BaseException):
    """Ends a run at once, as a kill would: nothing is closed."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch):
    """Runs until a step, and then leaves the run as a killed process does."""

    def runs_until(step: int, *overrides: str, flush: float = 0.0) -> None:
        original = Recorder.record

        def record(self: Recorder, taken) -> None:
            if taken.step == step:
                raise Killed
            original(self, taken)

        with monkeypatch.context() as patch:
            patch.setattr("gradpath.tracking.outbox.FLUSH_SECONDS", flush)
            patch.setattr(Recorder, "record", record)
            patch.setattr(Recorder, "__exit__", lambda *arguments: None)
            with pytest.raises(Killed):
                run(*overrides)
        client = store.connect(None)
        for left in all_runs():
            if left.info.status == "RUNNING":
                client.set_terminated(left.info.run_id, "KILLED")

    return runs_until


@pytest.mark.parametrize("step", [5, 9, 10, 26, 40])
@pytest.mark.parametrize("flush", [0.0, 100.0])
def test_a_killed_run_ends_as_if_nothing_had_happened(home: Path, killed, step: int, flush: float) -> None:
    overrides = [*MEASURED, "train.checkpoint_every=9", "arm=clipped_rnn"]
    (whole,) = run(*overrides, "resume=false")
    expected = curves(whole.run_id), artifact(whole.run_id)
    whole.client.delete_run(whole.run_id)
    killed(step, *overrides, flush=flush)
    (left,) = all_runs()
    (resumed,) = run(*overrides)
    (finished,) = (r for r in all_runs() if r.info.status == "FINISHED")
    assert (finished.info.run_id == left.info.run_id) == (step >= 9)  # before there is no checkpoint
    assert len(all_runs()) == (1 if step >= 9 else 2)
    assert (curves(resumed.run_id), artifact(resumed.run_id)) == expected
    tags = ("verdict", "verdict_reason", "diverged", "solved", "true_zeros", "not_finite")
    before = store.connect(None).get_run(whole.run_id).data
    assert [finished.data.tags.get(tag) for tag in tags] == [before.tags.get(tag) for tag in tags]
    assert finished.data.params == before.params
    assert store.connect(None).list_artifacts(resumed.run_id, checkpoint.FOLDER) == []


def test_seeds_side_by_side_go_on_together(home: Path, killed, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = [*MEASURED, "train.checkpoint_every=9", "seed=0..2"]
    expected = {r.experiment.seed: artifact(r.run_id) for r in run(*overrides, "resume=false")}
    client = store.connect(None)
    for recorded in all_runs():
        client.delete_run(recorded.info.run_id)
    original = checkpoint.save

    def save(client, run_id: str, arrays, turn: int) -> None:
        if turn == 3 and len([r for r in all_runs() if "checkpoint" in r.data.tags]) == 3:
            raise Killed  # between two seeds: the first has a checkpoint more than the others
        original(client, run_id, arrays, turn)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        killed(100, *overrides)
    assert len(run(*overrides)) == 3
    assert {int(r.data.params["seed"]): r.info.status for r in all_runs()} == dict.fromkeys(range(3), "FINISHED")
    assert {int(r.data.params["seed"]): artifact(r.info.run_id) for r in all_runs()} == expected


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "other"])
def test_a_damaged_checkpoint_is_passed_over(home: Path, killed, damage: str) -> None:
    overrides = [*MEASURED, "train.checkpoint_every=9"]
    (whole,) = run(*overrides, "resume=false")
    expected = artifact(whole.run_id)
    whole.client.delete_run(whole.run_id)
    killed(30, *overrides)
    (left,) = all_runs()
    folder = store.local_path(left.info.artifact_uri) / checkpoint.FOLDER
    newest = folder / checkpoint.CHECKPOINTS[27 // 9 % 2]
    content = newest.read_bytes()
    if damage == "other":
        newest.write_bytes(Path(store.local_path(left.info.artifact_uri) / "config.yaml").read_bytes())
    else:
        newest.write_bytes({"truncated": content[:-100], "empty": b"", "text": b"no zip"}[damage])
    assert sorted(checkpoint.load(store.connect(None), left, compose.experiment([*SMALL, *overrides]))) == [18]
    (resumed,) = run(*overrides)
    assert resumed.run_id == left.info.run_id
    assert artifact(resumed.run_id) == expected


def test_a_checkpoint_of_another_training_is_passed_over(home: Path, killed) -> None:
    overrides = [*MEASURED, "train.checkpoint_every=9"]
    folders = []
    for others in ([], ["optimizer.lr=0.1"]):
        killed(30, *overrides, *others)
        (left,) = (r for r in all_runs() if r.data.params["lr"] == ("0.1" if others else "0.001"))
        folders.append(store.local_path(left.info.artifact_uri) / checkpoint.FOLDER)
    for name in checkpoint.CHECKPOINTS:
        (folders[0] / name).write_bytes((folders[1] / name).read_bytes())
    (resumed,) = run(*overrides)
    (expected,) = run(*overrides, "resume=false")
    assert resumed.checkpoints == {}
    assert (curves(resumed.run_id), artifact(resumed.run_id)) == (curves(expected.run_id), artifact(expected.run_id))


def test_of_two_that_go_on_with_one_run_where_no_lock_is_shared_one_goes_on(home: Path, killed) -> None:
    """As with a server: both have found the run before either has taken it over."""
    overrides = [*SMALL, *MEASURED, "train.checkpoint_every=9"]
    killed(30, *overrides[len(SMALL) :])
    (left,) = all_runs()
    experiment = compose.experiment(overrides)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "unfinished", lambda *arguments: left)
        with Recorder(experiment, {"sweep_id": "a"}) as first, Recorder(experiment, {"sweep_id": "b"}) as second:
            assert first.run_id == second.run_id == left.info.run_id
            assert (first.withdrawn(), second.withdrawn()) == (True, False)
            assert [r.info.status for r in all_runs()] == ["RUNNING"]
            second.restore(max(second.checkpoints))
    assert [r.info.status for r in all_runs()] == ["FINISHED"]
    assert not list((home / "mlruns").glob(".*.reserve"))


@pytest.mark.slow
def test_two_commands_that_go_on_with_one_run_at_once(home: Path) -> None:
    arguments = [*SMALL, "train.steps=2000", "train.checkpoint_every=50"]
    command = [sys.executable, "-m", "gradpath", "run", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and not any("checkpoint" in r.data.tags for r in all_runs()):
        time.sleep(0.1)
    process.kill()
    process.communicate()
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=PATIENCE) for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert "".join(errors for _, errors in ended).count(": goes on at step ") == 1, ended
    assert not any("Traceback" in errors for _, errors in ended)
    assert [r.info.status for r in all_runs()] == ["FINISHED"]
    assert all(len(points) == len(dict(points)) for points in curves(all_runs()[0].info.run_id).values())


def test_a_signal_leaves_a_run_that_goes_on(home: Path) -> None:
    """SIGTERM, as before a preemption: the run is KILLED, its last curves are not yet drawn."""
    command = [sys.executable, "-m", "gradpath", "run", *SMALL, "train.steps=3000", "train.checkpoint_every=50"]
    for number in (signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline, seen = time.monotonic() + PATIENCE, {r.data.tags.get("checkpoint") for r in all_runs()}
        while time.monotonic() < deadline and process.poll() is None:
            if {r.data.tags.get("checkpoint") for r in all_runs()} - seen - {None}:
                break
            time.sleep(0.1)
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE)
        (left,) = all_runs()
        assert left.info.status == {signal.SIGTERM: "KILLED", signal.SIGKILL: "RUNNING"}[number], errors
        assert not any(key.startswith(("log10_grad_norm_by_lag", "summary")) for key in left.data.metrics)
    completed = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "lstm · adding T=6 · seed 0: goes on at step " in completed.stderr
    (finished,) = all_runs()
    assert (finished.info.run_id, finished.info.status) == (left.info.run_id, "FINISHED")
    assert "error" not in finished.data.tags
    (expected,) = run("train.steps=3000", "resume=false")
    assert artifact(finished.info.run_id) == artifact(expected.run_id)
    assert curves(finished.info.run_id) == curves(expected.run_id)
    name, sweep_id = loader.newest_sweep(None, None)
    assert len(loader.sweep(None, name, completed.stdout.split(" of sweep ")[1].split()[0]).newest) == 1, sweep_id
