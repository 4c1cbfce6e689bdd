"""``gradpath check`` raises no false alarm: hostile configurations by name, and a random sweep of
them.
"""

import random

import pytest

from gradpath.commands import compose
from gradpath.gradient_check import every_case, merged, rescaled, small
from gradpath.schema.settings import SettingError
from gradpath.training.experiment import Dtype

SIZES = ["cell.hidden_size=4", "train.batch_size=3", "task.length=12"]


def alarms(overrides: list[str]) -> list[str]:
    rows: list = []
    for _, finding in every_case(compose.experiment(overrides)):
        rows = finding
    return [f"{row.place}, {row.case}: {row.error:.1e}" for row in merged(rows) if not row.passed]


@pytest.mark.parametrize(
    "overrides",
    [
        ["cell=rnn", "init.gain=1e-6", "clip.max_norm=0.01", "train.readout=false"],
        ["cell=gru", "cell.freeze_z=0", "cell.update_bias=20"],
        ["cell=lstm", "cell.chrono_t_max=100000", "cell.freeze_i=0", "cell.freeze_f=0"],
        pytest.param(["cell=rnn", "init.gain=50"], marks=pytest.mark.slow),
        pytest.param(["cell=rnn", "cell.activation=relu", "init=constant", "cell.layers=2"], marks=pytest.mark.slow),
        pytest.param(["cell=gru", "task=copy", "cell.initial_state=5", "init=identity"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_hostile_configurations(overrides: list[str]) -> None:
    assert alarms([*overrides, *SIZES]) == []


SATURATED = ["init=identity", "init.gain=300", "cell.initial_state=-2", "cell.freeze_r=1", "cell.update_bias=-20"]


@pytest.mark.parametrize(
    "overrides",
    [
        # H − N rounds to 0 in one type and not in the other: a gradient of which no digit is known,
        # nor its direction.
        ["cell=gru", *SATURATED, "seed=35", "task.length=20"],
        # Gates that float64 cannot hold: the plain gradient is so many times the smallest number,
        # or a false zero.
        ["cell=gru", "cell.update_bias=742"],
        ["cell=lstm", "cell.forget_bias=-742"],
    ],
    ids=" ".join,
)
def test_what_float64_cannot_hold(overrides: list[str]) -> None:
    experiment = compose.experiment([*SIZES, "train.readout=false", "train.dtype=float64", *overrides])
    rows = [row for findings in small(experiment) for row in findings.rows]
    assert [row.place for row in rows if not row.passed] == []


def test_what_comes_back_beside_a_loss_of_one_sequence_alone() -> None:
    """At such a step what the others send back is smaller by 2^1841, and is a part by itself all
    the same.
    """
    experiment = compose.experiment(
        ["cell=gru", *SATURATED, "seed=35", "cell.hidden_size=8", "task.length=20", "train.readout=false"]
    )
    rows = [row for findings in rescaled(experiment, Dtype.float32) for row in findings.rows]
    assert rows
    assert [row.place for row in rows if not row.passed] == []


def test_a_part_that_underflows_beside_its_exponent() -> None:
    """Of a saturated unit both factors of a path are so small that their product is a number only
    when one of them is scaled.
    """
    cell = ["cell=lstm", "cell.layers=3", "cell.hidden_size=4", "cell.forget_bias=10", "cell.ablation=no_output_gate"]
    fixed = ["task=adding", "task.length=20", "init=identity", "init.gain=300", "train.dtype=float64", "seed=355"]
    made = compose.experiment([*cell, *fixed])
    rows = [row for findings in rescaled(made, Dtype.float64) for row in findings.rows]
    assert rows
    assert [row.place for row in rows if not row.passed] == []


def random_overrides(rng: random.Random) -> list[str]:
    """A random configuration: any cell, ablation, depth, task, initialisation, gain, bias, clipping
    and optimiser.
    """
    cell = rng.choice(["rnn", "lstm", "gru"])
    overrides = [
        f"cell={cell}",
        f"cell.layers={rng.choice([1, 1, 2, 3])}",
        f"cell.hidden_size={rng.choice([1, 2, 4, 8, 16, 33])}",
        f"train.batch_size={rng.choice([1, 2, 5, 8])}",
        f"task={rng.choice(['adding', 'copy', 'temporal_order', 'constant_target'])}",
        f"task.length={rng.choice([12, 20, 30, 60])}",
        f"init={rng.choice(['uniform', 'orthogonal', 'gaussian', 'identity', 'constant', 'pascanu_smart_tanh'])}",
        f"init.gain={rng.choice([1e-6, 0.01, 0.3, 1, 3, 10, 50, 300])}",
        f"cell.initial_state={rng.choice([0, 0, -2, 0.5, 5])}",
        f"optimizer={rng.choice(['sgd', 'adam', 'rmsprop'])}",
        f"train.dtype={rng.choice(['float32', 'float64'])}",
        f"seed={rng.randrange(1000)}",
    ]
    overrides += rng.choice([[], [], ["clip.max_norm=0.01"], ["clip.max_value=0.001"], ["train.readout=false"]])
    if cell == "rnn":
        overrides.append(f"cell.activation={rng.choice(['tanh', 'relu', 'sigmoid'])}")
    else:
        gates = {"lstm": "ifo", "gru": "zr"}[cell]
        overrides += [f"cell.freeze_{gate}={rng.choice([0, 0.5, 1])}" for gate in gates if rng.random() < 0.15]
        bias = {"lstm": "forget_bias", "gru": "update_bias"}[cell]
        chrono = f"cell.chrono_t_max={rng.choice([3, 100, 100000])}"
        overrides.append(rng.choice([chrono, f"cell.{bias}={rng.choice([-20, -10, -5, 0, 5, 10, 20])}"]))
    if cell == "lstm":
        kinds = ["none", "no_input_gate", "no_forget_gate", "no_output_gate", "coupled_gates"]
        overrides.append(f"cell.ablation={rng.choice([*kinds, 'no_input_nonlinearity', 'no_output_nonlinearity'])}")
    return overrides


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(300))
def test_no_false_alarm_in_a_random_sweep(seed: int) -> None:
    rng = random.Random(seed)
    while True:
        overrides = random_overrides(rng)
        try:
            compose.experiment(overrides)
        except (compose.ConfigError, SettingError):  # a gate that is taken away cannot be held too
            continue
        break
    assert alarms(overrides) == [], " ".join(overrides)
