"""Many seeds as one array axis: bit for bit what each gives alone, in training and in MLflow."""

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from conftest import signature
from gradpath.commands import compose
from gradpath.commands.execute import Terminated, execute, execute_seeds
from gradpath.tracking import store
from gradpath.tracking.recorder import Recorder
from gradpath.training import loop
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step, train, train_seeds

SMALL = ["task.length=30", "train.batch_size=7", "train.eval_size=20", "train.steps=12"]
DIVERGING = [
    "arm=rnn",
    "cell.activation=relu",
    "init=orthogonal",
    "init.gain=1.1",
    "optimizer=sgd",
    "optimizer.lr=0.03",
]
"""Overrides with which some seeds diverge, at different steps."""
PER_WRITE_TAGS = {"sweep_id", "attempt", "heartbeat"}
"""Tags that tell who has written a run, and when, and nothing of the run."""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [3, 20, 64])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        ["arm=rnn"],
        ["arm=clipped_lstm"],
        ["arm=lstm", "cell.layers=2", "task=copy", "task.length=9"],
        ["arm=lstm_1997"],
        ["arm=gru"],
    ],
    ids=" ".join,
)
@pytest.mark.pairwise
def test_side_by_side_is_bit_identical_to_one_by_one(
    overrides: list[str], threads: int, hidden: int, dtype: str
) -> None:
    sizes = [f"cell.hidden_size={hidden}", f"train.dtype={dtype}", "train.steps=6"]
    base_experiment = compose.experiment([*SMALL, *overrides, *sizes])
    experiments = [replace(base_experiment, seed=seed) for seed in range(5)]
    side_by_side = list(train_seeds(experiments, threads))
    for index, experiment in enumerate(experiments):
        one_by_one = [signature(step) for step in train(experiment)]
        assert [signature(steps[index]) for steps in side_by_side] == one_by_one


def six_diverging() -> list[Experiment]:
    base_experiment = compose.experiment([*SMALL, *DIVERGING, "train.steps=40"])
    return [replace(base_experiment, seed=seed) for seed in range(6)]


@cache
def losses_alone() -> list[list[str]]:
    """The losses of each seed trained by itself."""
    return [[repr(step.loss) for step in train(experiment)] for experiment in six_diverging()]


@pytest.mark.parametrize("threads", [1, 2, 6])
@pytest.mark.parametrize("seed_count", [1, 2, 6])
def test_a_seed_that_diverges_drops_out_and_leaves_the_others_as_they_are(
    monkeypatch, seed_count: int, threads: int
) -> None:
    """However many are differentiated at once."""
    monkeypatch.setattr(loop, "CHUNK_ELEMENTS", seed_count * 30 * 7 * 64)
    experiments = six_diverging()
    side_by_side = list(train_seeds(experiments, threads))
    ends = {index: sum(index in steps for steps in side_by_side) for index in range(6)}
    assert len(set(ends.values())) > 1, "the seeds are meant to end at different steps"
    for index, one_by_one in enumerate(losses_alone()):
        assert len(one_by_one) == ends[index]
        losses = [steps[index].loss for steps in side_by_side if index in steps]
        assert list(one_by_one) == [repr(loss) for loss in losses]


def test_only_the_seed_may_differ() -> None:
    base_experiment = compose.experiment(SMALL)
    with pytest.raises(ValueError, match="seed only"):
        next(train_seeds([base_experiment, compose.experiment([*SMALL, "optimizer.lr=0.1"])]))


def stored_values(recorder: Recorder) -> dict[str, object]:
    """Everything that MLflow holds of a run but times, ids and the sweep."""
    client, run = recorder.client, recorder.client.get_run(recorder.run_id)
    folder = Path(client.download_artifacts(recorder.run_id, ""))
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    arrays = np.load(files.pop(store.ARTIFACT), allow_pickle=False)
    files.pop("log.txt")
    histories = {key: client.get_metric_history(recorder.run_id, key) for key in run.data.metrics}
    return {
        "name, status": (run.info.run_name, run.info.status),
        "params": run.data.params,
        "tags": {key: value for key, value in run.data.tags.items() if key not in PER_WRITE_TAGS},
        "metrics": {key: [(point.step, point.value) for point in history] for key, history in histories.items()},
        "arrays": {key: (value.dtype, value.shape, value.tobytes()) for key, value in arrays.items()},
        "files": {name: path.read_bytes() for name, path in files.items()},
    }


@pytest.mark.parametrize(
    ("overrides", "diverged"),
    [(["arm=clipped_lstm"], {"false"}), (["task=copy", "task.length=9"], {"false"}), (DIVERGING, {"true", "false"})],
)
def test_each_is_stored_as_if_it_had_run_alone(home: Path, overrides: list[str], diverged: set[str]) -> None:
    overrides = [*SMALL, *overrides, "train.eval_every=5", f"train.steps={40 if overrides is DIVERGING else 12}"]
    side_by_side = [
        stored_values(recorder) for recorder in execute_seeds(compose.experiments([*overrides, "seed=[3,0,1,2]"]), "s")
    ]
    one_by_one = [
        stored_values(execute(compose.experiment([*overrides, f"seed={seed}"]), "t")) for seed in (3, 0, 1, 2)
    ]
    assert side_by_side == one_by_one
    assert len({str(run["arrays"]) for run in side_by_side}) == 4
    assert {run["tags"]["diverged"] for run in side_by_side} == diverged  # type: ignore[index]


def test_a_seed_that_has_diverged_is_finished_while_the_others_go_on(home: Path, monkeypatch) -> None:
    original, diverged = Recorder.record, []

    def record(self: Recorder, step: Step) -> None:
        if diverged:
            raise KeyboardInterrupt
        original(self, step)
        diverged.extend([self.experiment.seed] * step.diverged)

    monkeypatch.setattr(Recorder, "record", record)
    with pytest.raises(KeyboardInterrupt):
        execute_seeds(compose.experiments([*SMALL, *DIVERGING, "train.steps=40", "seed=0..3"]), "s")
    run_statuses = statuses()
    assert len(diverged) == 1
    assert run_statuses.pop(diverged[0]) == "FINISHED"
    assert list(run_statuses.values()) == ["KILLED"] * 3


def statuses() -> dict[int, str]:
    """Seed → status of every run in the store."""
    client = store.connect(None)
    runs = client.search_runs([store.experiment_id(client, "gradpath")])
    return {int(run.info.run_name.rpartition(" ")[2]): run.info.status for run in runs}


def act_on_call(monkeypatch: pytest.MonkeyPatch, method: str, number: int, action: Callable[[], None]) -> None:
    """Does something in the middle of a call to the store, the ``number``-th of its kind."""
    call, calls = getattr(MlflowClient, method), []

    def replaced(*arguments, **keywords):
        result = call(*arguments, **keywords)
        calls.append(result)
        if len(calls) == number:
            action()
        return result

    monkeypatch.setattr(MlflowClient, method, replaced)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def raise_store_error() -> None:
    raise OSError("disk full")


SIGNAL = (terminate, Terminated, "KILLED")
ERROR = (raise_store_error, store.StoreError, "FAILED")


@pytest.mark.parametrize(
    ("method", "number", "ending", "expected"),
    [
        ("create_run", 1, SIGNAL, [1, 0]),
        ("create_run", 3, SIGNAL, [3, 0]),
        ("log_dict", 3, ERROR, [2, 0]),
        ("log_batch", 4, SIGNAL, [3, 0]),
        ("log_batch", 4, ERROR, [3, 0]),
        ("log_artifact", 7, SIGNAL, [3, 0]),
        ("log_artifact", 9, ERROR, [2, 1]),
        ("log_artifact", 11, SIGNAL, [1, 2]),
    ],
)
def test_all_runs_are_closed_at_whatever_moment_they_end(
    home: Path, monkeypatch, method: str, number: int, ending: tuple, expected: list[int]
) -> None:
    """SIGTERM, or an error of the store, while the runs are opened and while they are closed one by
    one.
    """
    action, kind, status = ending
    monkeypatch.setattr("gradpath.tracking.recorder.code_difference", lambda: "")
    act_on_call(monkeypatch, method, number, action)
    with pytest.raises(kind):
        execute_seeds(compose.experiments([*SMALL, "seed=0..2"]), "s")
    run_statuses = list(statuses().values())
    assert [run_statuses.count(status), run_statuses.count("FINISHED")] == expected
    assert len(run_statuses) == sum(expected)


def test_what_was_measured_before_an_error_is_kept_for_every_seed(home: Path, monkeypatch) -> None:
    original, recorded_steps = Recorder.record, []

    def record(self: Recorder, step: Step) -> None:
        original(self, step)
        recorded_steps.append(step)
        if len(recorded_steps) == 8:
            raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(Recorder, "record", record)
    with pytest.raises(ZeroDivisionError):
        execute_seeds(compose.experiments([*SMALL, "seed=0..2"]), "s")
    client = store.connect(None)
    runs = client.search_runs([store.experiment_id(client, "gradpath")])
    assert {run.data.tags["error"] for run in runs} == {"ZeroDivisionError: on purpose"}
    assert sorted(len(client.get_metric_history(run.info.run_id, "train/loss")) for run in runs) == [2, 3, 3]


def test_one_display_for_all(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiments = compose.experiments([*SMALL, *DIVERGING, "train.steps=40", "seed=0..3"])
    execute_seeds(experiments, "s", "[5-8/12]")
    stderr_lines = capsys.readouterr().err.splitlines()
    ends = {e.seed: list(train(e))[-1] for e in experiments}
    for seed, final_step in ends.items():
        name = f"[5-8/12] rnn · adding T=30 · seed {seed}"
        line = f"{name}: diverged at step {final_step.step}: loss or gradient is not finite"
        assert (line in stderr_lines) == final_step.diverged
    finished = [final_step for final_step in ends.values() if not final_step.diverged]
    assert 0 < len(finished) < 4
    loss = np.median([step.loss for step in finished])
    test_loss = np.median([step.evaluation.loss for step in finished])  # type: ignore[union-attr]
    name = "[5-8/12] rnn · adding T=30 · 4 seeds"
    assert stderr_lines[-1] == f"{name}: median test loss {test_loss:.4g}, 0 of 4 solved"
    (last_line,) = [line for line in stderr_lines if line.startswith(f"{name}: step 40/40, median loss {loss:.4g}, ")]
    assert f", {4 - len(finished)} of 4 diverged, " in last_line
    assert sum(": loop over time: " in line for line in stderr_lines) == 1
    assert len(stderr_lines) == 3 + 4 - len(finished)
