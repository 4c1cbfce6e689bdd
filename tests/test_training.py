"""Training: deterministic, blind to its instruments, and honest when it diverges."""

import weakref
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import DIVERGES
from gradpath.commands import compose
from gradpath.core.network import Network
from gradpath.core.tape import Batch, LayerTape, Tape
from gradpath.engine.workspace import Workspace
from gradpath.training.loop import Step, train

SMALL = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20", "train.steps=8"]


def steps(*overrides: str) -> list[Step]:
    return list(train(compose.experiment([*SMALL, *overrides])))


def readings(run: list[Step]) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = {}
    for step in run:
        for name, measurement in step.measurements.items():
            values.setdefault(name, []).append(measurement.values.tobytes())
    return values


@pytest.mark.parametrize("arm", ["rnn", "clipped_rnn", "lstm"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_configuration_gives_bit_identical_results(arm: str, dtype: str) -> None:
    first_steps, second_steps = (steps(f"arm={arm}", f"train.dtype={dtype}") for _ in range(2))
    assert [s.loss for s in first_steps] == [s.loss for s in second_steps]
    assert readings(first_steps) == readings(second_steps)
    assert first_steps[-1].evaluation == second_steps[-1].evaluation


def test_instruments_cannot_touch_training() -> None:
    with_instruments, without_instruments = steps(), steps("instruments=[]")
    assert [s.loss for s in with_instruments] == [s.loss for s in without_instruments]
    assert all(not s.measurements for s in without_instruments)


def test_another_cell_trains_on_the_same_data(monkeypatch: pytest.MonkeyPatch) -> None:
    batches_by_arm: dict[str, list[bytes]] = {}
    original = Network.forward_seeds

    def spy(self, thetas, batches, workspace):
        batches_by_arm.setdefault(type(self.cell).__name__, []).append(batches[0].inputs.tobytes())
        return original(self, thetas, batches, workspace)

    monkeypatch.setattr(Network, "forward_seeds", spy)
    steps("cell=rnn")
    steps("cell=lstm", "init=orthogonal")
    assert batches_by_arm["RNN"] == batches_by_arm["LSTM"]
    assert len(set(batches_by_arm["RNN"])) == 10, "nine training batches and the evaluation set, all different"


def test_step_zero_is_the_initialisation_and_the_last_follows_the_last_update() -> None:
    run = steps()
    assert [s.step for s in run] == list(range(9))
    assert "param_grad_norm" in run[0].measurements
    assert "param_grad_norm" in run[8].measurements
    longer = steps("train.steps=9")
    assert [s.loss for s in longer[:9]] == [s.loss for s in run]


def test_the_first_reading_can_be_switched_off() -> None:
    run = steps("instruments.param_grad_norm.schedule.first=false")
    assert "param_grad_norm" not in run[0].measurements
    assert "param_grad_norm" in run[1].measurements


def test_divergence_is_a_result() -> None:
    run = steps(*DIVERGES, "train.steps=30")
    assert run[-1].diverged
    assert len(run) < 31
    assert not any(s.diverged for s in run[:-1])
    assert "param_grad_norm" in run[-1].measurements, "the profile of the step at which it ended is read"
    assert run[-1].evaluation is None


def test_a_new_largest_gradient_is_read_when_it_happens() -> None:
    run = steps(
        "arm=rnn",
        "init=orthogonal",
        "init.gain=1.5",
        "optimizer=sgd",
        "optimizer.lr=1",
        "train.steps=60",
        "instruments.param_grad_norm.schedule.log_spaced=null",
    )
    norms = np.array([s.log10_grad_norm for s in run])
    reading_steps = [s.step for s in run if "param_grad_norm" in s.measurements and 0 < s.step < len(run) - 1]
    assert reading_steps, "this training explodes"
    largest = norms[0]
    for step in range(1, len(run) - 1):
        assert (step in reading_steps) == (norms[step] > largest + np.log10(2.0)), step
        if step in reading_steps:
            largest = norms[step]


def test_a_new_largest_spike_is_read_though_training_began_with_a_larger_gradient() -> None:
    """What the verdict needs: at the step of a spike, the profile over the lag."""
    run = steps(
        "arm=open_lstm",
        "optimizer.lr=0.1",
        "train.steps=60",
        "seed=1",
        "instruments.state_grad_norm.schedule={log_spaced: null, new_max: null, new_spike: 2.0}",
    )
    norms = [s.log10_grad_norm for s in run]
    reading_steps = [s.step for s in run if "state_grad_norm" in s.measurements and 0 < s.step < len(run) - 1]
    largest = 0.0
    for step in range(1, len(run) - 1):
        spike = norms[step] - np.median(norms[max(0, step - 20) : step])
        assert (step in reading_steps) == (spike > max(largest, np.log10(2.0))), step
        if step in reading_steps:
            largest = spike
    assert any(norms[step] < norms[0] for step in reading_steps), "else new_max would have read it"


def test_no_pass_outlives_what_is_read_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of earlier passes when one begins: nothing at a training step's; beside the
    counterfactuals' and the evaluation's, of which there are several, the training step's alone.
    """
    passes: list[weakref.ref[Tape]] = []
    live_counts: list[int] = []
    original = Network.forward_seeds

    def forward(
        self: Network, thetas: NDArray, batches: Sequence[Batch], workspace: Workspace
    ) -> tuple[list[LayerTape], list[Tape]]:
        live_counts.append(sum(tape() is not None for tape in passes))
        layers, tapes = original(self, thetas, batches, workspace)
        passes.extend(weakref.ref(tape) for tape in tapes)
        return layers, tapes

    monkeypatch.setattr(Network, "forward_seeds", forward)
    monkeypatch.setattr("gradpath.training.passes.EVALUATED", 6)
    overrides = "instruments=[counterfactual,counterfactual_loss,reach,path_grad_norm,credit]"
    steps("arm=lstm", "train.steps=2", "train.eval_every=1", overrides)
    counterfactuals, evaluated = 2 * [1] * 5, [1] * 4
    assert live_counts == [0, *counterfactuals, *evaluated, 0, *evaluated, 0, *counterfactuals, *evaluated]


def test_a_long_evaluation_set_is_scored_fewer_sequences_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    (in_one_pass,) = (step.evaluation for step in steps("train.dtype=float64", "task=copy") if step.evaluation)
    monkeypatch.setattr("gradpath.training.passes.ELEMENTS", 11 * 32 * 4 * 6)
    sizes: list[int] = []
    original = Network.forward
    monkeypatch.setattr(
        Network,
        "forward",
        lambda self, theta, batch, *arguments: (
            sizes.append(batch.mask.shape[1]) or original(self, theta, batch, *arguments)
        ),
    )
    (in_parts,) = (step.evaluation for step in steps("train.dtype=float64", "task=copy") if step.evaluation)
    assert sizes == [8, 8, 4]
    assert (in_parts.loss, in_parts.score) == (
        pytest.approx(in_one_pass.loss, rel=1e-13),
        pytest.approx(in_one_pass.score, rel=1e-13),
    )


@pytest.mark.slow
def test_an_lstm_solves_the_adding_problem_that_the_rnn_does_not() -> None:
    demo = ["+experiment=demo", "seed=1"]
    results = {arm: list(train(compose.experiment([*demo, f"arm={arm}"])))[-1] for arm in ("rnn", "chrono_lstm")}
    assert results["chrono_lstm"].evaluation is not None
    assert results["chrono_lstm"].evaluation.solved
    assert not (results["rnn"].evaluation and results["rnn"].evaluation.solved)
