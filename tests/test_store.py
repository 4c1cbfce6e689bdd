"""What MLflow holds is what training measured; what comes back is what went in."""

import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

from conftest import DIVERGES, PATIENCE
from gradpath.commands import compose
from gradpath.commands.execute import Terminated, execute, terminable
from gradpath.tracking import loader, store
from gradpath.tracking.recorder import Recorder
from gradpath.training.experiment import Experiment
from gradpath.training.loop import train

SMALL = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=8"]


def small_experiment(*overrides: str) -> Experiment:
    return compose.experiment([*SMALL, *overrides])


def record(*overrides: str, sweep: str = "s") -> Recorder:
    return execute(small_experiment(*overrides), sweep)


def test_what_comes_back_is_what_went_in(home: Path) -> None:
    record("arm=clipped_lstm")
    (run,) = loader.load(None, "gradpath", "s")
    expected = list(train(small_experiment("arm=clipped_lstm")))
    assert run.loss.values.tolist() == [s.loss for s in expected]
    for name, series in run.series.items():
        readings = [(s.step, s.measurements[name]) for s in expected if name in s.measurements]
        assert series.steps.tolist() == [step for step, _ in readings]
        assert series.names == readings[0][1].names
        assert series.values.tobytes() == np.stack([m.values for _, m in readings]).tobytes()
        assert series.values.dtype == np.float64
    assert run.evaluation.values[-1, 0] == expected[-1].evaluation.loss  # type: ignore[union-attr]
    assert run.config == small_experiment("arm=clipped_lstm").resolved()
    assert (run.arm, run.seed, run.name) == ("clipped_lstm", 0, "clipped_lstm · adding T=12 · seed 0")


def test_curves_over_the_lag_are_metrics_and_true_zeros_are_marked(home: Path) -> None:
    recorder = record("arm=lstm")
    (run,) = loader.load(None, "gradpath", "s")
    series = run.series["param_grad_norm"]
    for name in ("W_ix", "W_fh", "b_o"):
        history = recorder.client.get_metric_history(recorder.run_id, f"log10_grad_norm_by_lag/{name}")
        values = {point.step: point.value for point in history}
        expected = dict(zip(run.lag.tolist(), series.column(name)[-1].tolist(), strict=True))
        finite = {lag: value for lag, value in expected.items() if np.isfinite(value)}
        assert {lag: values[lag] for lag in finite} == finite
        assert len(values) == 12
    # At t = 1, H_0 = 0 enters: the gradient of W_fh is a true zero there, in the artifact -inf, in
    # the UI on the floor.
    assert np.isneginf(series.column("W_fh")[-1][0])
    floor = {
        p.step: p.value for p in recorder.client.get_metric_history(recorder.run_id, "log10_grad_norm_by_lag/W_fh")
    }
    smallest = series.values[-1][np.isfinite(series.values[-1])].min()
    assert floor[11] == np.floor(smallest) - 1
    assert "log10_grad_norm_by_lag/W_fh: 1 of 12 lags" in run.tags["true_zeros"]
    assert "log10_grad_norm_by_lag/W_fx: " in run.tags["true_zeros"], "C_0 = 0: the forget gate does nothing at t = 1"


def test_everything_a_person_groups_and_filters_by(home: Path) -> None:
    recorder = record("arm=clipped_rnn", "seed=3", "tracking.experiment=study")
    run = recorder.client.get_run(recorder.run_id)
    expected = {"arm": "clipped_rnn", "cell": "rnn", "task": "adding", "T": "12", "seed": "3", "max_norm": "1.0"}
    assert expected.items() <= run.data.params.items()
    for tag in ("sweep_id", "config_hash", "code_version", "diverged", "solved"):
        assert tag in run.data.tags, tag
    assert run.info.run_name == "clipped_rnn · adding T=12 · seed 3"
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) <= 42
    resolved = Path(recorder.client.download_artifacts(recorder.run_id, "config.yaml"))
    assert yaml.safe_load(resolved.read_text())["cell"]["name"] == "rnn"


def test_a_crash_is_failed_and_keeps_what_was_measured(home: Path) -> None:
    experiment = small_experiment()
    stream = train(experiment)
    with pytest.raises(ZeroDivisionError), Recorder(experiment, {"sweep_id": "s"}) as recorder:
        recorder.record(next(stream))
        recorder.record(next(stream))
        raise ZeroDivisionError("on purpose")
    run = recorder.client.get_run(recorder.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "ZeroDivisionError: on purpose"
    assert len(recorder.client.get_metric_history(recorder.run_id, "train/loss")) == 2
    assert loader.outcomes(None, "gradpath", "s")[0][1] == "FAILED"


def test_an_interrupt_is_killed(home: Path) -> None:
    experiment = small_experiment()
    with pytest.raises(KeyboardInterrupt), Recorder(experiment, {"sweep_id": "s"}) as recorder:
        recorder.record(next(train(experiment)))
        raise KeyboardInterrupt
    assert recorder.client.get_run(recorder.run_id).info.status == "KILLED"


def test_divergence_is_finished_and_tagged_and_no_infinity_reaches_the_store(home: Path) -> None:
    recorder = record(*DIVERGES, "train.steps=30")
    run = recorder.client.get_run(recorder.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["diverged"] == "true"
    assert int(run.data.tags["diverged_at_step"]) < 30
    assert all(abs(value) < 1e300 for value in run.data.metrics.values())
    (loaded_run,) = loader.load(None, "gradpath", "s")
    assert loaded_run.diverged_at == int(run.data.tags["diverged_at_step"])


def test_a_store_that_has_moved_is_still_read(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    record()
    destination = tmp_path_factory.mktemp("moved") / "results"
    (home / "mlruns").rename(destination)
    (run,) = loader.load(f"sqlite:///{destination}/mlflow.db", "gradpath", "s")
    assert len(run.loss.values) == 9


def test_new_runs_of_a_moved_store_go_where_it_is_now(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    record()
    destination = tmp_path_factory.mktemp("moved")
    (home / "mlruns").rename(destination / "mlruns")
    monkeypatch.setenv("GRADPATH_HOME", str(destination))
    recorder = record(sweep="t")
    assert not (home / "mlruns").exists()
    assert len(list(destination.rglob("measurements.npz"))) == 2
    for run in recorder.client.search_runs([recorder.experiment_id]):
        assert run.info.artifact_uri.startswith(str(destination)), "the UI finds the old runs' artifacts too"


def test_a_run_whose_artifacts_cannot_be_written_is_failed(home: Path) -> None:
    experiment = small_experiment()
    with (
        pytest.raises(store.StoreError, match=r"cannot write an artifact: Not a directory: .*/artifacts/") as error,
        Recorder(experiment, {"sweep_id": "s"}) as recorder,
    ):
        for step in train(experiment):
            recorder.record(step)
        (home / "mlruns" / "artifacts").rename(home / "mlruns" / "gone")
        (home / "mlruns" / "artifacts").write_text("a file where the folder was")
    assert recorder.client.get_run(recorder.run_id).info.status == "FAILED"
    unsent_file = home / "unsent" / f"{recorder.run_id}.npz"
    assert str(error.value).endswith(f"; what was measured is kept in {unsent_file}")
    with np.load(unsent_file) as arrays:
        assert arrays["loss/values"].tolist() == [step.loss for step in train(experiment)]
    assert yaml.safe_load(unsent_file.with_suffix(".yaml").read_text()) == experiment.resolved()


def test_a_deep_stack_shows_its_bottom_and_top_and_keeps_all_in_the_artifact(home: Path) -> None:
    recorder = record("cell.layers=4")
    keys = recorder.client.get_run(recorder.run_id).data.metrics
    assert len(keys) <= 48
    assert "log10_grad_norm_by_lag/layer1/W_fh" in keys
    assert "log10_grad_norm_by_lag/layer4/W_fh" in keys
    (run,) = loader.load(None, "gradpath", "s")
    assert len(run.series["param_grad_norm"].names) == 4 * 12 + 2


def test_a_damaged_artifact_is_named(home: Path) -> None:
    record()
    (artifact,) = home.rglob("measurements.npz")
    artifact.write_bytes(artifact.read_bytes()[:100])
    with pytest.raises(store.StoreError, match=r"lstm · adding T=12 · seed 0 .*damaged artifact"):
        loader.load(None, "gradpath", "s")


@pytest.mark.parametrize("uri", ["file:///tmp/x", "/tmp/x", "mlruns", "ftp://host/x"])
def test_a_uri_that_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(store.StoreError, match="must be a database"):
        store.tracking_uri(uri)


def test_the_database_is_created_once_however_many_ask_whatever_its_folder_is_called(tmp_path: Path) -> None:
    import subprocess
    import sys

    home = tmp_path / "what? a%20b%2Fx#y"
    (home / "mlruns").mkdir(parents=True)
    (home / "mlruns" / "mlflow.db.new").write_text("somebody else's")
    script = "from gradpath.tracking import store; print(store.experiment_id(store.connect(None), 'one'))"
    env = os.environ | {"GRADPATH_HOME": str(home)}
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=-1, stderr=-1, text=True, env=env) for _ in range(3)
    ]
    results = [(process.communicate(timeout=PATIENCE), process.returncode) for process in processes]
    assert [status for _, status in results] == [0, 0, 0], results
    assert len({out.strip() for (out, _), _ in results}) == 1
    assert sorted(path.name for path in (home / "mlruns").iterdir()) == ["mlflow.db", "mlflow.db.lock", "mlflow.db.new"]
    assert (home / "mlruns" / "mlflow.db.new").read_text() == "somebody else's"
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


@pytest.mark.parametrize("moment", ["create_run", "log_batch", "log_artifact"])
@pytest.mark.parametrize("by_signal", [True, False], ids=["signal", "error"])
def test_a_run_is_closed_at_whatever_moment_it_ends(
    home: Path, monkeypatch, capsys, moment: str, by_signal: bool
) -> None:
    """SIGTERM, or an error of the store, in the middle of creating a run, of its parameters, of its
    artifact.
    """
    recorder = Recorder(small_experiment(), {"sweep_id": "s"})
    call = getattr(recorder.client, moment)

    def interrupt_after(*arguments, **keywords):
        result = call(*arguments, **keywords)
        if by_signal:
            os.kill(os.getpid(), signal.SIGTERM)
        elif moment != "create_run":
            raise OSError("disk full")
        return result

    monkeypatch.setattr(recorder.client, moment, interrupt_after)
    expected_error = (
        contextlib.nullcontext()
        if not by_signal and moment == "create_run"
        else pytest.raises(Terminated if by_signal else OSError)
    )
    with expected_error, terminable(), recorder:
        recorder.record(next(train(small_experiment())))
    (run,) = recorder.client.search_runs([recorder.experiment_id])
    assert run.info.status == ("KILLED" if by_signal else "FINISHED" if moment == "create_run" else "FAILED")
    is_unsent = moment == "log_artifact"
    assert bool(list(home.glob("unsent/*.npz"))) == is_unsent
    assert ("what was measured is kept in" in capsys.readouterr().err) == is_unsent
