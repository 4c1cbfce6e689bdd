"""``gradpath check`` passes what is right, for every unit, and catches classic errors by parameter
and timestep. What is planted elsewhere than in a gradient is in ``test_check_planted.py``.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.cells.lstm import LSTM
from gradpath.commands import cli, compose
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.gradient_check import Row, cases, check, nonfinite, unmerged
from gradpath.inits.uniform import Uniform
from gradpath.schema.discovery import discover


def shrunk(network: Network) -> tuple[NDArray, Batch, Generator]:
    """θ, minibatch and generator at the size at which differences are taken."""
    experiment, rng = cases.small(compose.experiment(["cell=lstm", "task.length=6"])), np.random.default_rng(0)
    theta = experiment.init.draw(rng, network, np.float64)
    return theta, experiment.task.sample(rng, cases.SEQUENCES), rng


def latest_failures(rows: list[Row], network: Network) -> dict[str, int | None]:
    """Parameter → timestep of what is wrong."""
    names = network.parameters(np.zeros(network.size))
    return {row.quantity: row.t for row in rows if not row.passed and row.quantity in names}


def broken_rows(network: Network) -> dict[str, int | None]:
    """What the check finds wrong in a network that stands in for the LSTM's."""
    return latest_failures(check(network, *shrunk(network)), network)


def network(cell: LSTM | None = None, cls: type[Network] = Network) -> Network:
    return cls(cell or LSTM(hidden_size=4), 2, 1, compose.experiment([]).task.loss)


def with_changed_factors(trace: Trace, transform) -> Trace:
    """A trace whose factors are wrong, though what they are computed from is right."""
    changed = replace(trace)
    changed.__dict__["factors"] = tuple(transform(factor) for factor in trace.factors)
    return changed


def test_the_right_lstm_passes() -> None:
    assert broken_rows(network()) == {}


def test_unshifted_h() -> None:
    class Unshifted(Network):
        def backward(self, theta, tape):
            leaving = tape.layers[0].states["H"][1:]
            trace = super().backward(theta, tape)
            return with_changed_factors(trace, lambda f: replace(f, inputs=leaving) if "W_ih" in f.names else f)

    failures = broken_rows(network(cls=Unshifted))
    assert set(failures) == {"W_ih", "W_fh", "W_oh", "W_ch"}


def test_skipped_first_step() -> None:
    class Skipped(Network):
        def backward(self, theta, tape):
            def skip(factor):
                if "W_ix" not in factor.names:
                    return factor
                array = factor.delta.array.copy()
                array[0] = 0
                return replace(factor, delta=Scaled(array, factor.delta.exponent))

            return with_changed_factors(super().backward(theta, tape), skip)

    failures = broken_rows(network(cls=Skipped))
    assert {"W_ix", "W_ox", "W_cx"} <= set(failures)
    assert set(failures.values()) == {1}


def test_accumulated_instead_of_returned() -> None:
    class Accumulating(Network):
        totals: dict = {}

        def backward(self, theta, tape):
            def add(factor):
                total = self.totals.get(factor.names, 0) + factor.delta.array
                self.totals[factor.names] = total
                return replace(factor, delta=Scaled(total, factor.delta.exponent))

            return with_changed_factors(super().backward(theta, tape), add)

    assert len(broken_rows(network(cls=Accumulating))) == 14


def test_wrong_gates_bias() -> None:
    class Swapped(Network):
        def backward(self, theta, tape):
            def swap_biases(factor):
                if "b_i" not in factor.names:
                    return factor
                return replace(factor, delta=Scaled(factor.delta.array[:, :, [1, 0, 2, 3]], factor.delta.exponent))

            return with_changed_factors(super().backward(theta, tape), swap_biases)

    assert set(broken_rows(network(cls=Swapped))) == {"b_i", "b_f"}


def test_missing_o_times_one_minus_tanh_squared_c() -> None:
    @dataclass
    class Missing(LSTM):
        def step_backward(self, s, d):
            *other_slopes, output_slope = s.slopes
            super().step_backward(s._replace(slopes=[*other_slopes, output_slope * 0]), d)

    failures = broken_rows(network(Missing(hidden_size=4)))
    assert {"W_ix", "W_fx", "W_cx", "W_ih", "W_fh", "W_ch", "b_i", "b_f", "b_c"} <= set(failures)
    assert "W_hy" not in failures


def test_buffer_overwritten_before_use() -> None:
    @dataclass
    class Overwriting(LSTM):
        def activations_used(self, tape):
            np.tanh(tape.states["C"], out=tape.states["C"])  # a taped state, used again below
            return super().activations_used(tape)

    failures = broken_rows(network(Overwriting(hidden_size=4)))
    assert {"W_fx", "W_fh", "b_f"} <= set(failures), "δa_f uses C_{t-1}"
    assert not {"W_hy", "b_y"} & set(failures)


def every_unit_once(*groups: str) -> list[list[str]]:
    """Overrides that choose each unit of the groups at least once, in as few as that takes; copy,
    whose sequences are the longest, comes last and with the RNN, which is the quickest.
    """
    units_of = [sorted(discover(compose.GROUPS[group]), key=lambda name: name in ("rnn", "copy")) for group in groups]
    names = [[f"{group}={name}" for name in units] for group, units in zip(groups, units_of, strict=True)]
    count = max(map(len, names))
    return [[choices[i if i < len(choices) else 0] for choices in names] for i in range(count)]


@pytest.mark.parametrize(
    "overrides",
    every_unit_once("cell", "task", "init")
    + [["cell=rnn", f"cell.activation={kind}", "cell.layers=2"] for kind in ("relu", "sigmoid")],
    ids=" ".join,
)
def test_every_unit_passes(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    length = 2 if "task=copy" in overrides else 12  # the sequences of copy are 20 steps longer
    sizes = ["cell.hidden_size=5", "train.batch_size=3", f"task.length={length}"]
    assert cli.check([*overrides, *sizes]) == 0
    out = capsys.readouterr().out
    assert "untied differences" in out
    assert out.rstrip().endswith("all right")


def test_what_is_wrong_is_named_and_the_exit_status_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LSTM.step_backward

    def wrong_step_backward(self, s, d):
        sigmoid_slopes, *other_slopes = s.slopes
        original(self, s._replace(slopes=[sigmoid_slopes * np.array([1, 1, 1.01])[:, None], *other_slopes]), d)

    monkeypatch.setattr(LSTM, "step_backward", wrong_step_backward)
    assert cli.check(["cell=lstm", "cell.hidden_size=5", "train.batch_size=3"]) == 1
    out = capsys.readouterr().out
    assert "W_ox at t = " in out.splitlines()[-1]
    assert "W_hy at t" not in out


class Spoiled(LSTM):
    """An LSTM whose step makes of ordinary numbers none."""

    def step(self, s):
        super().step(s)
        h = s.leaving[0]
        np.multiply(h, np.nan, out=h)


class SpoiledSaved(LSTM):
    """One whose loss is finite all the same."""

    def step(self, s):
        super().step(s)
        np.multiply(s.saved[0], np.nan, out=s.saved[0])


class Rooted(LSTM):
    def step(self, s):
        super().step(s)
        np.sqrt(s.leaving[0], out=s.leaving[0])


@pytest.mark.parametrize("cell", [Spoiled, Rooted, SpoiledSaved])
def test_a_step_that_yields_nan_is_wrong(cell: type[LSTM]) -> None:
    rows = check(network(cell(hidden_size=4)), *shrunk(network()))
    saved = cell is SpoiledSaved
    names = ["step: gates and states"] if saved else [nonfinite.NOT_FINITE, nonfinite.NOTHING]
    assert {row.quantity for row in rows if not row.passed} >= {*names}


def test_where_nothing_is_compared_nothing_is_right(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that blow up are no error of the step, but nothing has been checked of it."""
    monkeypatch.setattr(
        Uniform, "feedforward", lambda self, rng, rows, columns, hidden: np.full((rows, columns), 1e300)
    )
    sizes = ["cell.hidden_size=5", "train.batch_size=3", "task.length=8"]
    assert cli.check(["cell=lstm", "train.dtype=float64", *sizes]) == 1
    out = capsys.readouterr().out
    assert nonfinite.NOT_FINITE not in out
    assert nonfinite.NOTHING in out.splitlines()[-1]


def test_a_truncated_gradient_is_not_checked_against_the_loss() -> None:
    with pytest.raises(compose.ConfigError, match="truncated"):
        cli.check(["arm=lstm_1997"])


def test_the_textbook_sees_what_differences_cannot() -> None:
    """With σ = 0.01 everywhere the gradient loses two decades a step; at T = 20 differences see
    only rounding.
    """
    from gradpath.cells.rnn import RNN
    from gradpath.inits.pascanu_sigmoid import PascanuSigmoid
    from gradpath.tasks.adding import Adding

    class Off(Network):
        def backward(self, theta, tape):
            def scale_factor(factor):
                array = factor.delta.array.copy()
                if "W_hh" in factor.names:
                    array[1] *= 1.001
                return replace(factor, delta=Scaled(array, factor.delta.exponent))

            return with_changed_factors(super().backward(theta, tape), scale_factor)

    rng, task = np.random.default_rng(0), Adding(length=20)
    correct, scaled = (cls(RNN(hidden_size=4), 2, 1, task.loss) for cls in (Network, Off))
    theta, batch = PascanuSigmoid().draw(rng, correct, np.float64), task.sample(rng, 3)
    assert all(row.passed for row in check(correct, theta, batch, rng))
    failed_rows = [row for row in check(scaled, theta, batch, rng) if not row.passed]
    assert [(row.quantity, row.t) for row in failed_rows] == [("W_hh", 2)]
    w_hh_rows = [row for row in unmerged(scaled, theta, batch, rng) if row.quantity == "W_hh"]
    (by_differences,) = (row for row in w_hh_rows if "untied" in row.case)
    assert by_differences.error < 1e-7 < failed_rows[0].error
