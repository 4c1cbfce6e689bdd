"""Which loop over time runs, the compiled one or Python's: what says so, and that both give the
same bits.
"""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import PATIENCE, signature
from gradpath import engine
from gradpath.cells.rnn import RNN
from gradpath.commands import compose, execute
from gradpath.core.step import Step
from gradpath.engine import compiled, replay
from gradpath.engine.replay import Loop
from gradpath.schema.settings import ConfigError
from gradpath.training.loop import train

needs_compiled = pytest.mark.skipif(replay._replay is None, reason="the compiled loop does not run here")
SMALL = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=2"]


@pytest.mark.parametrize(
    ("setting", "numpy", "reason", "refusal"),
    [
        ("0", "2.1.0", "switched off by GRADPATH_REPLAY=0", ""),
        ("1", "1.26.4", "not proved on NumPy 1.26.4, but from 2.0 to before 2.6", ""),
        ("1", "2.6.0rc1", "not proved on NumPy 2.6.0rc1, but from 2.0 to before 2.6", ""),
        ("1", "3.0.0.dev0", "not proved on NumPy 3.0.0.dev0, but from 2.0 to before 2.6", ""),
        (
            "require",
            "2.10.0",
            "not proved on NumPy 2.10.0, but from 2.0 to before 2.6",
            "GRADPATH_REPLAY=require: the compi",
        ),
        ("", "2.1.0", "", "GRADPATH_REPLAY=: must be 0, 1 or require"),
        ("true", "2.1.0", "", "GRADPATH_REPLAY=true: must be 0, 1 or require"),
        ("2", "2.1.0", "", "GRADPATH_REPLAY=2: must be 0, 1 or require"),
    ],
)
def test_which_loop_runs_and_why(setting: str, numpy: str, reason: str, refusal: str) -> None:
    choice = compiled.choose(setting, numpy)
    assert choice.module is None
    assert choice.reason == reason
    assert choice.refusal.startswith(refusal)
    assert bool(choice.refusal) == bool(refusal)


@needs_compiled
@pytest.mark.parametrize("numpy", ["2.0.0", "2.4.6", "2.5.99"])
def test_the_compiled_loop_runs_within_the_range_that_it_was_proved_on(numpy: str) -> None:
    assert compiled.choose("1", numpy) == compiled.Choice(replay._replay)
    assert compiled.choose("require", numpy) == compiled.Choice(replay._replay, required=True)


def test_a_loop_that_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "gradpath.engine._replay", raising=False)
    monkeypatch.setattr(engine, "__path__", [])
    monkeypatch.delattr(engine, "_replay", raising=False)
    assert compiled.choose("1", "2.1.0") == compiled.Choice(None, "not built")
    required = compiled.choose("require", "2.1.0")
    assert required.refusal == "GRADPATH_REPLAY=require: the compiled loop is not built"
    monkeypatch.setattr(compiled, "CHOICE", required)
    with pytest.raises(compiled.ReplayError, match="is not built"):
        Loop(lambda rows: np.negative(rows[0], out=rows[0]), [np.ones((9, 3, 4))], 0)


@pytest.mark.parametrize("setting", ["0", pytest.param("1", marks=pytest.mark.slow), "require", "maybe"])
def test_the_command_takes_the_setting_and_says_which_loop_ran(setting: str, home: Path) -> None:
    """In a process of its own, which reads the variable when it starts."""
    if setting == "require" and replay._replay is None:
        pytest.skip("the compiled loop does not run here")
    environment = {**os.environ, "GRADPATH_REPLAY": setting}
    arguments = [sys.executable, "-m", "gradpath", "run", *SMALL]
    completed = subprocess.run(arguments, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    if setting == "maybe":
        assert (completed.returncode, completed.stdout) == (2, "")
        assert completed.stderr == "gradpath: GRADPATH_REPLAY=maybe: must be 0, 1 or require\n"
        assert tags() == []
        return
    assert completed.returncode == 0, completed.stderr
    (tag,) = tags()
    switched_off = "python: switched off by GRADPATH_REPLAY=0"
    assert tag["replay"] == (
        switched_off if setting == "0" else compiled.loop_used([compiled.CHOICE.reason] * (not compiled.CHOICE.module))
    )
    assert completed.stderr.count(f"loop over time: {tag['replay']}\n") == 1


def tags() -> list[dict[str, str]]:
    from gradpath.tracking import store

    client = store.connect(None)
    return [run.data.tags for run in client.search_runs([e.experiment_id for e in client.search_experiments()])]


@needs_compiled
@pytest.mark.parametrize(
    "overrides", [["cell=lstm"], ["cell=gru", "cell.layers=2"], ["cell=rnn", "train.dtype=float64"]]
)
def test_a_run_is_the_same_to_the_bit_whichever_loop_runs(home: Path, overrides: list[str], monkeypatch) -> None:
    experiment = compose.experiment([*SMALL, *overrides])
    runs, recorders = [], []
    for module in (replay._replay, None):
        monkeypatch.setattr(replay, "_replay", module)
        runs.append([signature(step) for step in train(experiment)])
        recorders.append(execute.execute(experiment, "s"))
    assert runs[0] == runs[1]
    compiled_run, python_run = (recorder.client.get_run(recorder.run_id).data for recorder in recorders)
    assert compiled_run.tags["replay"] == "compiled"
    assert python_run.tags["replay"] == "python: not built"
    assert compiled_run.tags["config_hash"] == python_run.tags["config_hash"]
    assert compiled_run.params == python_run.params
    assert compiled_run.metrics == python_run.metrics


def by_clip(self: RNN, s: Step) -> None:
    """The step of a ReLU, with what is no ufunc."""
    s.gates[...] = np.clip(s.pre, 0, None)
    s.leaving[0][...] = s.gates[..., 0, :]


@needs_compiled
@pytest.mark.parametrize("threads", [1, 2])
def test_a_body_that_cannot_be_recorded_is_named(home: Path, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where seeds train in threads of their own."""
    monkeypatch.setattr(RNN, "step", by_clip)
    monkeypatch.setattr(execute, "thread_count", lambda *_: threads)
    experiments = compose.experiments([*SMALL, "cell=rnn", "cell.activation=relu", "seed=0..1"])
    for recorder in execute.execute_seeds(experiments, "s"):
        replay_tag = recorder.client.get_run(recorder.run_id).data.tags["replay"]
        assert replay_tag == "python: by_clip: calls clip, which is no ufunc"
    execute.check_loops(experiments)
    monkeypatch.setattr(compiled, "CHOICE", SimpleNamespace(refusal="", reason="", required=True))
    with pytest.raises(ConfigError, match=r"^GRADPATH_REPLAY=require: by_clip: calls clip, which is no ufunc$"):
        execute.check_loops(experiments)
