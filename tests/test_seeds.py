"""Many seeds as one array axis: bit for bit what each gives alone."""

from dataclasses import replace

import pytest

from gradpath import config
from gradpath.training import Step, train, train_seeds

SMALL = ["task.length=30", "train.batch_size=7", "train.eval_size=20", "train.steps=12"]


def signature(step: Step) -> tuple:
    measured = {name: (m.names, m.values.tobytes()) for name, m in step.measurements.items()}
    return step.step, step.loss, step.log10_grad_norm, step.evaluation, step.diverged, measured


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("hidden", [3, 20, 64])
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
def test_side_by_side_is_bit_identical_to_one_by_one(overrides: list[str], hidden: int, dtype: str) -> None:
    one = config.experiment([*SMALL, *overrides, f"cell.hidden_size={hidden}", f"train.dtype={dtype}"])
    experiments = [replace(one, seed=seed) for seed in range(5)]
    together = list(train_seeds(experiments))
    for index, experiment in enumerate(experiments):
        alone = [signature(step) for step in train(experiment)]
        assert [signature(steps[index]) for steps in together] == alone


def test_a_seed_that_diverges_drops_out_and_leaves_the_others_as_they_are() -> None:
    wild = ["arm=rnn", "cell.activation=relu", "init=orthogonal", "init.gain=1.1", "optimizer=sgd", "optimizer.lr=0.03"]
    one = config.experiment([*SMALL, *wild, "train.steps=40"])
    experiments = [replace(one, seed=seed) for seed in range(6)]
    together = list(train_seeds(experiments))
    ends = {index: sum(index in steps for steps in together) for index in range(6)}
    assert len(set(ends.values())) > 1, "the seeds are meant to end at different steps"
    for index, experiment in enumerate(experiments):
        alone = list(train(experiment))
        assert len(alone) == ends[index]
        found = [steps[index].loss for steps in together if index in steps]
        assert [repr(step.loss) for step in alone] == [repr(loss) for loss in found]


def test_only_the_seed_may_differ() -> None:
    one = config.experiment(SMALL)
    with pytest.raises(ValueError, match="seed only"):
        next(train_seeds([one, config.experiment([*SMALL, "optimizer.lr=0.1"])]))
