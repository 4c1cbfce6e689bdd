"""A search in place of every combination: what it draws, what it scores, and that it goes on."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import DIVERGES, PATIENCE
from gradpath.commands import compose, search_space
from gradpath.commands.search_space import Choices, Numbers
from gradpath.schema.settings import ConfigError
from gradpath.tracking import loader, store

Command = Callable[..., tuple[int, str, str]]
SMALL = ["task.length=6", "train.batch_size=4", "train.eval_size=8", "train.steps=2"]
SEARCH = ["run", "-m", "hydra/sweeper=optuna"]
SPACE = ["arm=rnn,lstm", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "cell.hidden_size=range(2,9,2)"]
optuna = [
    pytest.mark.cluster,
    pytest.mark.skipif(find_spec("optuna") is None, reason="optuna is not installed: pip install -e '.[optuna]'"),
]


def runs(query: str = "") -> list:
    client = store.connect(None)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], query))


def space(*overrides: str) -> search_space.Space:
    return search_space.read(compose.parameters(overrides, intervals=True)[1])


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("optimizer.lr=interval(0.001,0.1)", Numbers(0.001, 0.1)),
        ("optimizer.lr=tag(log,interval(1e-4,1e-1))", Numbers(1e-4, 0.1, log=True)),
        ("cell.hidden_size=range(8,65,8)", Numbers(8, 64, 8, integer=True)),
        ("cell.hidden_size=range(8,64,8)", Numbers(8, 56, 8, integer=True)),
        ("cell.hidden_size=int(interval(8,64))", Numbers(8, 64, integer=True)),
        ("cell.hidden_size=tag(int,interval(8,64))", Numbers(8, 64, integer=True)),
        ("cell.hidden_size=tag(log,int(interval(8,64)))", Numbers(8, 64, log=True, integer=True)),
        ("init.gain=range(0.5,2,0.5)", Numbers(0.5, 1.5, 0.5)),
        ("arm=rnn,lstm", Choices(("rnn", "lstm"))),
        ("arm=choice(rnn,lstm)", Choices(("rnn", "lstm"))),
        ("clip.max_norm=null,1.0", Choices(("null", "1.0"))),
    ],
)
def test_the_space_in_hydra_s_grammar(override: str, values: Numbers | Choices) -> None:
    read = space(override, "task.length=6")
    assert read.keys == {override.partition("=")[0]: values}
    assert read.fixed == ("task.length=6",)


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=interval(1,0)",
        "optimizer.lr=interval(1,1)",
        "optimizer.lr=tag(log,interval(0,1))",
        "cell.hidden_size=range(8,8)",
        "task.length=6",
    ],
)
def test_a_space_that_is_none_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(override) if "(" in override else "nothing to search"):
        space(override)


def test_of_two_values_of_a_key_the_later_holds() -> None:
    assert space("arm=rnn,lstm", "arm=gru", "seed=0,1").fixed == ("arm=gru",)


def test_without_optuna_one_line_says_what_to_install(home: Path, command: Command, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, output, errors = command(*SEARCH, *SPACE, *SMALL)
    assert (status, output) == (2, "")
    assert errors == "gradpath: hydra/sweeper=optuna: needs Optuna: pip install 'gradpath[optuna]'\n"


def test_an_interval_without_a_search_is_refused_as_before(home: Path, command: Command) -> None:
    status, _, errors = command("run", "-m", "optimizer.lr=interval(0,1)")
    assert status == 2
    assert "an interval has no points to run" in errors


class TestOptuna:
    pytestmark = optuna

    def test_a_search_has_one_sweep_a_report_and_a_best_point(self, home: Path, command: Command) -> None:
        arguments = [*SEARCH, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=2", "jobs=2", *SPACE, *SMALL]
        status, output, errors = command(*arguments)
        assert status == 0, errors
        (sweep_id,) = {run.data.tags["sweep_id"] for run in runs()}
        content = loader.sweep(None, "gradpath", sweep_id)
        assert (len(content.newest), content.missing, content.doubled) == (6, {}, [])
        losses = {run.info.run_id: run.data.metrics["test/loss"] for run in runs()}
        assert len(re.findall(r"^trial \d: .*: test/loss ", errors, re.MULTILINE)) == 6
        (marked,) = runs("tags.best_of_search != ''")
        assert losses[marked.info.run_id] == min(losses.values())
        assert f"test/loss {min(losses.values()):.6g} at " in output
        # The command that is printed makes the same run again.
        words = shlex.split(output.split("Again: ")[1])[1:]
        assert command(*words)[0] == 0
        again = [run for run in runs() if run.data.tags["config_hash"] == marked.data.tags["config_hash"]]
        assert len({run.data.metrics["test/loss"] for run in again}) == 1
        assert len(again) == 2
        # The same command has nothing to do; a longer one goes on.
        status, output, errors = command(*arguments)
        assert (status, errors) == (0, "")
        assert output.startswith("6 trials of study ")
        arguments[3] = "hydra.sweeper.n_trials=8"
        assert command(*arguments)[2].count("\ntrial ") + command(*arguments)[2].count("\ntrial ") == 2
        assert {run.data.tags["sweep_id"] for run in runs()} >= {sweep_id}

    def test_what_is_tried_does_not_depend_on_a_kill(self, home: Path, tmp_path: Path) -> None:
        """Of the whole group at some moment, again and again, until the search is done."""
        begun = time.monotonic()
        arguments = ["hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.n_startup_trials=2", "jobs=2", *SPACE]
        words = [sys.executable, "-m", "gradpath", *SEARCH, *arguments, *SMALL[:-1], "train.steps=300"]
        tried = []
        for name in ("whole", "killed"):
            took = time.monotonic() - begun
            environment = os.environ | {"GRADPATH_HOME": str(tmp_path / name)}
            for attempt in range(40):
                seconds = PATIENCE if name == "whole" else took * (0.4 + 0.1 * attempt)
                process = subprocess.Popen(
                    words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
                    start_new_session=True,
                )  # fmt: skip
                try:
                    output, errors = process.communicate(timeout=seconds)
                    break
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.communicate()
            assert process.returncode == 0, errors
            tried.append(output.rpartition("trials of study")[2])
            client = store.connect(f"sqlite:///{tmp_path / name}/mlruns/mlflow.db")
            ids = [e.experiment_id for e in client.search_experiments()]
            finished = client.search_runs(ids, "attributes.status = 'FINISHED'")
            assert max(Counter(run.data.tags["config_hash"] for run in finished).values()) == 1
            tried.append(str(sorted(run.data.tags["config_hash"] for run in finished)))
        assert attempt > 0
        assert tried[:2] == tried[2:]

    def test_the_longest_task_that_is_solved(self, home: Path, command: Command, monkeypatch) -> None:
        from gradpath.tasks.adding import Adding

        monkeypatch.setattr(Adding, "solved", lambda task, score: task.length <= 7)
        objective = ["hydra.sweeper.objective=longest_solved", "hydra.sweeper.n_trials=8", "jobs=1"]
        status, output, errors = command(
            *SEARCH, *objective, "task.length=int(interval(4,12))", "cell.hidden_size=3", *SMALL[1:], "seed=0..1"
        )
        assert status == 0, errors
        solved = [int(length) for length in re.findall(r"longest_solved (\d+)", errors)]
        assert max(solved) <= 7
        assert set(solved) - {0}
        assert f"longest_solved {max(solved)} at task.length={max(solved)}" in output

    def test_a_run_that_diverged_is_the_worst_there_is(self, home: Path, command: Command) -> None:
        overrides = [o for o in DIVERGES if not o.startswith("optimizer.lr")]
        arguments = ["hydra.sweeper.n_trials=2", "jobs=1", "optimizer.lr=0.001,1000", "train.steps=60", *SMALL[:-1]]
        status, _, errors = command(*SEARCH, *arguments, *overrides)
        assert status == 0, errors
        values = dict(re.findall(r"optimizer.lr=(\S+): test/loss (\S+)", errors))
        assert values.get("1000", "inf") == "inf"

    def test_a_trial_that_fails_is_named_and_the_others_finish(self, home: Path, command: Command) -> None:
        arguments = ["hydra.sweeper.n_trials=6", "jobs=1", "cell.hidden_size=3,1000000", *SMALL]
        status, output, errors = command(*SEARCH, *arguments)
        assert status == 1
        assert "MemoryError" in errors
        assert "failed: trial " in errors
        assert "at cell.hidden_size=3. Again: gradpath run " in output

    def test_what_cannot_be_is_refused_before_the_first_trial(self, home: Path, command: Command) -> None:
        for arguments, message in (
            (["cell.hidden_size=int(interval(0,8))"], "cell.hidden_size=0: must be"),
            (["arm=rnn,nope"], "arm=nope: no such name"),
            (["arm=rnn,lstm", "hydra.sweeper.sampler.name=x"], "hydra.sweeper.sampler.name=x: must be tpe or random"),
            (["arm=rnn,lstm", "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: must be at least 1"),
            (["arm=rnn,lstm", "hydra.sweeper.direction=up"], "hydra.sweeper.direction=up: must be minimize or"),
            (["arm=rnn,lstm", "hydra.sweeper.storage=x"], "hydra.sweeper.storage=x: "),
            (["arm=rnn,lstm", "hydra.sweeper.n_trails=1"], "hydra.sweeper.n_trails"),
        ):
            status, _, errors = command(*SEARCH, *arguments, *SMALL)
            assert (status, message in errors, errors.count("\n")) == (2, True, 1), errors
        assert runs() == []
        status, _, errors = command(*SEARCH, "arm=rnn,lstm", "hydra.sweeper.objective=x", "jobs=1", *SMALL)
        assert status == 2
        assert "hydra.sweeper.objective=x: no such number of a run; there are longest_solved, " in errors

    def test_a_second_command_at_the_same_search_is_refused(self, home: Path) -> None:
        words = [sys.executable, "-m", "gradpath", *SEARCH, *SPACE, *SMALL[:-1], "train.steps=100000", "jobs=1"]
        first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + PATIENCE
        while not runs() and time.monotonic() < deadline:
            time.sleep(0.2)
        second = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
        first.terminate()
        errors = first.communicate(timeout=PATIENCE)[1]
        assert (second.returncode, "another command is at this search" in second.stderr) == (2, True)
        assert (first.returncode, "Traceback" in errors) == (143, False)
        assert {run.info.status for run in runs()} == {"KILLED"}
