"""Errors planted one at a time, in what is recorded, in what trains, in layouts and ranges that
only some sizes reach, and in what a cell declares: ``gradpath check`` catches each, and says where
it is.
"""

from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from gradpath import gradient_check
from gradpath.cells import peephole_lstm
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM
from gradpath.cells.peephole_lstm import PeepholeLSTM
from gradpath.clippings.threshold import Threshold
from gradpath.commands import compose
from gradpath.core import backward, bptt, network, norm_precision, scaled, theory, weight_gradients
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.step import Elementwise, Step, StepAdjoint
from gradpath.core.trace import Gradient, Measurement, Trace
from gradpath.engine.workspace import Workspace
from gradpath.gradient_check import Row, comparison, full_size, place, rescaled, small, table
from gradpath.instruments import Instrument, param_grad_norm
from gradpath.instruments import reach as reach_module
from gradpath.instruments.clipping_ledger import ClippingLedger
from gradpath.instruments.counterfactual import Counterfactual
from gradpath.instruments.credit import Credit
from gradpath.instruments.gate_activation import GateActivation
from gradpath.instruments.grad_norm import GradNorm
from gradpath.instruments.loss_surface import LossSurface
from gradpath.instruments.lyapunov_spectrum import LyapunovSpectrum
from gradpath.instruments.node_grad_norm import NodeGradNorm
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.instruments.path_grad_norm import PathGradNorm
from gradpath.instruments.reach import Reach
from gradpath.instruments.state_grad_norm import StateGradNorm
from gradpath.instruments.theory import Theory
from gradpath.optimizers.adam import Adam
from gradpath.optimizers.rmsprop import RMSProp
from gradpath.optimizers.sgd import SGD
from gradpath.training import loop
from gradpath.training.experiment import Dtype, Experiment

Patch = pytest.MonkeyPatch
READERS = {"param_grad_norm": {"credit"}}
"""Instruments that read another's reading."""
EXPENSIVE = {"credit", "counterfactual", "counterfactual_loss", "jacobian_log_singular_values", "lyapunov_spectrum"}
SMALL_SIZES = ["task.length=5", "train.batch_size=3", "cell.hidden_size=4"]


def failures_in(findings) -> list[Row]:
    return [row for finding in findings for row in finding.rows if not row.passed]


@cache
def _composed_once(*overrides: str) -> Experiment:
    return compose.experiment(list(overrides))


def composed(*overrides: str) -> Experiment:
    """A configuration that is composed once."""
    return deepcopy(_composed_once(*overrides))


def failed_rows(*overrides: str, reads: Collection[str] = ()) -> list[Row]:
    """What is wrong at the small size; of the instruments that compute much, ``reads`` alone."""
    all_instruments = gradient_check._readable_instruments

    def cheap(experiment: Experiment) -> dict[str, Instrument]:
        return {
            name: instrument
            for name, instrument in all_instruments(experiment).items()
            if name not in EXPENSIVE - {*reads}
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "_differences", lambda *_: None)  # they are what test_check.py tries
        patch.setattr(gradient_check, "_readable_instruments", cheap)
        return failures_in(small(composed(*SMALL_SIZES, *overrides)))


def names(rows: list[Row]) -> set[str]:
    return {row.quantity for row in rows}


def replace_result(patch: Patch, owner: object, name: str, transform: Callable) -> None:
    """``change(result, *arguments)`` in the place of what a method gives."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *a, **k: transform(original(*a, **k), *a, **k))


# --- what instruments record ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (ParamGradNorm, "param_grad_norm"),
        (StateGradNorm, "state_grad_norm"),
        (GradNorm, "grad_norm"),
        (NodeGradNorm, "node_grad_norm"),
        (PathGradNorm, "path_grad_norm"),
        (GateActivation, "gate_activation"),
        (LyapunovSpectrum, "lyapunov_spectrum"),
        (Counterfactual, "counterfactual"),
        (ClippingLedger, "clipping_ledger"),
        (Credit, "credit"),
        (Theory, "theory"),
    ],
)
def test_a_reading_that_is_a_tenth_too_large(cls: type, name: str, monkeypatch: Patch) -> None:
    replace_result(monkeypatch, cls, "measure", lambda m, *_: Measurement(m.names, m.values + np.log10(1.1)))
    assert names(failed_rows(reads=(name,))) - READERS.get(name, set()) == {name}


def test_a_reach_that_is_a_tenth_too_large(monkeypatch: Patch) -> None:
    replace_result(monkeypatch, Reach, "measure", lambda m, *_: Measurement(m.names, m.values * 1.1))
    assert names(failed_rows()) == {"reach"}


def test_a_reach_that_is_one_lag_off(monkeypatch: Patch) -> None:
    replace_result(monkeypatch, reach_module, "reach", lambda result, *_: (result[0] + 1, result[1]))
    assert names(failed_rows()) == {"reach"}


def spoiled_reach(patch: Patch, carriers: Callable[[dict, Trace], dict]) -> None:
    replace_result(patch, reach_module, "states_of_step", lambda states, trace, _: states | carriers(states, trace))


def test_a_reach_of_h_where_the_carrier_is_c(monkeypatch: Patch) -> None:
    spoiled_reach(monkeypatch, lambda states, _: {"C": states["H"]})
    assert names(failed_rows()) == {"reach"}


@pytest.mark.parametrize(("layer", "read_layer"), [("layer1/C", "layer2/C"), ("layer2/C", "layer1/C")])
def test_a_reach_of_the_other_layer(layer: str, read_layer: str, monkeypatch: Patch) -> None:
    spoiled_reach(monkeypatch, lambda states, _: {layer: states[read_layer]})
    assert names(failed_rows("cell.layers=2")) == {"reach"}


def test_a_reach_of_all_losses(monkeypatch: Patch) -> None:
    spoiled_reach(monkeypatch, lambda _, trace: trace.states)
    assert names(failed_rows("task=copy", "cell=gru")) == {"reach"}


@pytest.mark.parametrize("name", ["log_bound", "log_radius", "mean_field"])
def test_a_line_of_theory_that_is_wrong(name: str, monkeypatch: Patch) -> None:
    """By a thousandth a step, and for the bound its margin with it."""
    replace_result(monkeypatch, theory, name, lambda result, *_: result + 1e-3)
    assert names(failed_rows("cell=rnn")) == {"theory"}


def test_a_carousel_that_is_wrong(monkeypatch: Patch) -> None:
    replace_result(monkeypatch, theory, "carousel", lambda result, *_: result * 1.001)
    assert names(failed_rows("cell=gru")) == {"theory"}


@pytest.mark.parametrize("column", [0, 2])
def test_a_wrong_loss_surface(column: int, monkeypatch: Patch) -> None:
    """x, and the loss in the last run of points alone."""

    def shift_corner(measurement: Measurement, *_: object) -> Measurement:
        measurement.values[-3:, column] *= 1.001
        return measurement

    replace_result(monkeypatch, LossSurface, "measure", shift_corner)
    surface = ["cell=rnn", "cell.hidden_size=1", "+instruments=loss_surface", "instruments.loss_surface.points=5"]
    assert names(failed_rows(*surface)) == {"loss_surface"}


def test_a_reading_that_is_wrong_in_training_alone(monkeypatch: Patch) -> None:
    original = loop._Seed.advance

    def advance(self, step, *arguments):
        step_result = original(self, step, *arguments)
        if step == 1:
            step_result.measurements["reach"].values[0] *= 1.1
        return step_result

    monkeypatch.setattr(loop._Seed, "advance", advance)
    assert names(failed_rows()) == {"reach", "reach, read again"}


def test_recorded_norms_times_1_1(monkeypatch: Patch) -> None:
    replace_result(monkeypatch, param_grad_norm, "log10_norms", lambda norms, *_: norms + np.log10(1.1))
    rows = {row.quantity: row for row in failed_rows(reads=("credit",))}
    assert rows.keys() == {"param_grad_norm", *READERS["param_grad_norm"]}
    assert rows["param_grad_norm"].t == 5, "the latest wrong timestep"


def test_columns_under_each_others_names(monkeypatch: Patch) -> None:
    replace_result(
        monkeypatch,
        ParamGradNorm,
        "measure",
        lambda m, *_: Measurement(m.names, m.values[:, [1, 0, *range(2, m.values.shape[1])]]),
    )
    assert names(failed_rows()) == {"param_grad_norm"}


def test_a_curve_that_is_one_lag_off(monkeypatch: Patch) -> None:
    replace_result(
        monkeypatch, StateGradNorm, "measure", lambda m, *_: Measurement(m.names, np.roll(m.values, 1, axis=0))
    )
    assert names(failed_rows()) == {"state_grad_norm"}


def test_a_parameter_left_out(monkeypatch: Patch) -> None:
    replace_result(monkeypatch, ParamGradNorm, "measure", lambda m, *_: Measurement(m.names[1:], m.values[:, 1:]))
    rows = failed_rows()
    assert names(rows) - READERS["param_grad_norm"] == {"param_grad_norm"}
    assert ("param_grad_norm", "names") in {(row.quantity, row.part) for row in rows}


@pytest.mark.parametrize("module", [scaled, norm_precision])
def test_the_logarithm_of_what_has_an_exponent(module: object, monkeypatch: Patch) -> None:
    """Where exponents are small nothing shows."""
    replace_result(
        monkeypatch, module, "log10_of_root", lambda logarithm, square, exponent: logarithm + 0.01 * (exponent < -60)
    )
    experiment = composed("cell=rnn")
    assert not failures_in(small(experiment))
    assert {"param_grad_norm", "state_grad_norm"} & names(failures_in(rescaled(experiment, Dtype.float64)))


# --- what trains ----------------------------------------------------------------------------------


def doubled(gradient: Gradient) -> Gradient:
    return replace(gradient, scaled=Scaled(2 * gradient.scaled.array, gradient.scaled.exponent))


def test_a_total_gradient_that_is_doubled(monkeypatch: Patch) -> None:
    replace_result(
        monkeypatch, network, "lay_end_to_end", lambda gradients, *_: [doubled(gradient) for gradient in gradients]
    )
    assert {"Σ_t ∂L/∂θ_t, end to end", "gradient, as applied", "optimizer: what it gets"} <= names(failed_rows())


def test_a_readout_that_is_left_out_of_the_total(monkeypatch: Patch) -> None:
    def zero_readout(gradients, *_):
        for gradient in gradients:
            gradient.scaled.array[-5:] = 0
        return gradients

    replace_result(monkeypatch, network, "lay_end_to_end", zero_readout)
    assert {"Σ_t ∂L/∂θ_t, end to end", "gradient, as applied"} <= names(failed_rows())


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (lambda applied, scale: (applied, scale**2), {"clip_scale"}),
        (lambda applied, scale: (2 * applied, scale), {"gradient, as applied", "optimizer: what it gets"}),
    ],
)
@pytest.mark.parametrize("clip", ["clip.max_norm=0.01", "clip.max_value=0.001"])
def test_wrong_clipping(transform: Callable, expected: set[str], clip: str, monkeypatch: Patch) -> None:
    replace_result(monkeypatch, Threshold, "apply", lambda result, *_: transform(*result))
    assert names(failed_rows(clip)) - {"clipping_ledger"} == expected


def test_the_norm_that_clipping_sees(monkeypatch: Patch) -> None:
    replace_result(
        monkeypatch,
        network,
        "lay_end_to_end",
        lambda gradients, *_: [replace(g, log10_norm=g.log10_norm + 1) for g in gradients],
    )
    assert {"log10 ‖∂L/∂θ‖", "gradient, norm as trained", "grad_norm"} <= names(failed_rows("clip.max_norm=0.01"))


def test_a_readout_that_is_held_and_trained(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Network, "without_readout", lambda self, trace: trace.gradient)
    assert {"gradient, as trained", "gradient, as applied"} <= names(failed_rows("train.readout=false"))


@pytest.mark.parametrize(("cls", "name"), [(SGD, "sgd"), (Adam, "adam")])
def test_an_optimiser_that_climbs(cls: type, name: str, monkeypatch: Patch) -> None:
    replace_result(monkeypatch, cls, "update", lambda update, self, theta, *_: (2 * theta - update[0], update[1]))
    assert names(failed_rows(f"optimizer={name}")) == {"optimizer: first step is downhill", "optimizer: update"}


def scaled_update(result: tuple, factor: float, theta: np.ndarray) -> tuple:
    return theta + factor * (result[0] - theta), result[1]


@pytest.mark.parametrize(("cls", "name"), [(SGD, "sgd"), (Adam, "adam"), (RMSProp, "rmsprop")])
def test_a_step_that_is_twice_as_large(cls: type, name: str, monkeypatch: Patch) -> None:
    replace_result(monkeypatch, cls, "update", lambda result, self, theta, *_: scaled_update(result, 2, theta))
    assert names(failed_rows(f"optimizer={name}")) == {"optimizer: update"}


def test_a_bias_correction_that_counts_one_step_less(monkeypatch: Patch) -> None:
    original = Adam.update
    monkeypatch.setattr(
        Adam, "update", lambda self, *arguments: original(self, *arguments[:-1], max(arguments[-1] - 1, 0))
    )
    assert names(failed_rows("optimizer=adam")) == {"optimizer: update"}


@pytest.mark.parametrize(
    "overrides", [["optimizer=sgd", "optimizer.momentum=0.9"], ["optimizer=rmsprop"], ["optimizer=adam"]]
)
def test_a_state_that_training_forgets(overrides: list[str], monkeypatch: Patch) -> None:
    original = loop._Seed.advance

    def advance(self, step, *arguments):
        self._state = self.experiment.optimizer.start(self.theta)
        return original(self, step, *arguments)

    monkeypatch.setattr(loop._Seed, "advance", advance)
    assert names(failed_rows(*overrides)) == {"optimizer: update"}


def test_an_optimiser_that_writes_to_theta(monkeypatch: Patch) -> None:
    original = SGD.update

    def update(self, theta, gradient, state, step):
        updated, state = original(self, theta, gradient, state, step)
        theta[:] = updated
        return theta, state

    monkeypatch.setattr(SGD, "update", update)
    assert "optimizer: arguments and type kept" in names(failed_rows("optimizer=sgd"))


def test_seeds_side_by_side(monkeypatch: Patch) -> None:
    """The second of two seeds gets the first one's gradient."""
    replace_result(monkeypatch, network, "lay_end_to_end", lambda gradients, *_: [gradients[0]] * len(gradients))
    rows = failed_rows()
    assert {row.case for row in rows} == {"small, float64, a second seed"}


# --- the place ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 1])
def test_an_error_in_one_layer_at_one_step_is_placed(layer: int, monkeypatch: Patch) -> None:
    """At t = 3 of one of two layers; from there it goes back to t = 1, and from the second layer
    down to the first.
    """
    original, calls = backward.backward, []

    def wrong_pass(cell, weights, *arguments, **named):
        adjoint = original(cell, weights, *arguments, **named)
        calls.append(None)
        if weights.x.shape[1] == (2 if layer == 0 else 4):
            adjoint.delta.array[:3] *= 1.01
        return adjoint

    monkeypatch.setattr(backward, "backward", wrong_pass)
    location = place(failed_rows("cell.layers=2"))
    assert calls
    assert location is not None
    assert (location.layer, location.t) == (layer, 3)


def test_the_latest_wrong_step_and_not_the_worst(monkeypatch: Patch) -> None:
    original = backward.backward

    def wrong_pass(*arguments, **named):
        adjoint = original(*arguments, **named)
        adjoint.delta.array[1] *= 2
        adjoint.delta.array[3] *= 1.001
        return adjoint

    monkeypatch.setattr(backward, "backward", wrong_pass)
    location = place(failed_rows("cell=rnn"))
    assert location is not None
    assert location.t == 4


@pytest.mark.parametrize("gate", ["i", "f", "o", "c"])
@pytest.mark.parametrize(("cell", "cls"), [("lstm", LSTM), ("peephole_lstm", PeepholeLSTM)])
def test_a_wrong_sign_is_named_by_its_gate(cell: str, cls: type[LSTM], gate: str, monkeypatch: Patch) -> None:
    """With peepholes, an error of the output gate reaches C and the other gates at the same t."""
    original = cls.step_backward

    def wrong_sign(self: LSTM, s: Step, d: StepAdjoint) -> None:
        sigmoid_slopes, tanh_slope, *other_slopes = s.slopes
        signs = np.array([-1 if name == gate else 1 for name in "ifoc"])
        slopes = [sigmoid_slopes * signs[:3, None], tanh_slope * signs[3], *other_slopes]
        original(self, s._replace(slopes=slopes), d)

    monkeypatch.setattr(cls, "step_backward", wrong_sign)
    rows = failed_rows(f"cell={cell}")
    location = place(rows)
    assert location is not None
    assert location.place == f"∂L/∂a (a_{gate}) at t = {location.t}"
    assert f"back (small, float64): {location.place}, " in table(rows, 1).splitlines()[-1]


# --- the adjoint ----------------------------------------------------------------------------------


def test_a_wrong_adjoint_of_the_carrier(monkeypatch: Patch) -> None:
    original = LSTM.step_backward

    def without_forget_gate(self, s, d):
        original(self, s, d)
        np.multiply(d.leaving[1], 1, out=d.entering[1])

    monkeypatch.setattr(LSTM, "step_backward", without_forget_gate)
    rows = failed_rows()
    assert {"∂L/∂C", "state_grad_norm", "path_grad_norm", "W_fh"} <= names(rows)
    assert place(rows).t == 4, "C_5 receives directly, C_4 from C_5"


def test_a_wrong_direct_part(monkeypatch: Patch) -> None:
    def scale_direct(result, *_):
        adjoints, directs = result
        return adjoints, [Scaled(3 * direct.array, direct.exponent) for direct in directs]

    replace_result(monkeypatch, Network, "_adjoints", scale_direct)
    assert {"∂⁺L/∂H", "state_grad_norm", "path_grad_norm"} <= names(failed_rows())


def test_a_loss_whose_gradient_is_of_the_sum(monkeypatch: Patch) -> None:
    from gradpath.core import readout

    replace_result(monkeypatch, readout, "evaluate", lambda result, *_: (result[0], 3 * result[1]))
    assert "∂L/∂Y" in names(failed_rows())


def test_an_initial_state_that_is_ignored(monkeypatch: Patch) -> None:
    original = bptt.forward

    def ignoring(cell, weights, inputs, workspace, initial_state):
        return original(cell, weights, inputs, workspace, 0.0)

    monkeypatch.setattr(bptt, "forward", ignoring)
    assert "step: gates and states" in names(failed_rows("cell.initial_state=0.4"))


# --- layouts, types and ranges that only some sizes reach -----------------------------------------


def spoil_step(patch: Patch, condition: Callable[..., bool], cls: type = LSTM) -> None:
    original = cls.step_backward

    def step_backward(self, s, d):
        original(self, s, d)
        if condition(d.pre):
            pre = d.pre
            pre *= pre.dtype.type(1.001)

    patch.setattr(cls, "step_backward", step_backward)


def test_float32_alone(monkeypatch: Patch) -> None:
    spoil_step(monkeypatch, lambda delta: delta.dtype == np.float32)
    experiment = composed(*SMALL_SIZES)
    assert not failures_in(small(experiment))
    assert not failures_in([full_size(experiment, Dtype.float64)])
    assert {"∂L/∂a", "param_grad_norm"} <= names(failures_in([full_size(experiment, Dtype.float32)]))


def test_wide_layers_alone(monkeypatch: Patch) -> None:
    spoil_step(monkeypatch, lambda delta: delta.shape[-1] >= 96)
    experiment = composed("cell.hidden_size=96", "train.batch_size=3")
    assert not failures_in(small(experiment))
    assert {"∂L/∂a", "param_grad_norm"} <= names(failures_in([full_size(experiment, Dtype.float64)]))


def test_the_second_half_alone(monkeypatch: Patch) -> None:
    """Of a minibatch that is cut at the full length, and at the length that is checked would not
    be.
    """
    original = Workspace.for_each

    def for_each(self, work, parts):
        original(self, lambda index, part: work(index, part) if not index else None, parts)

    experiment = composed(
        "cell=rnn", "task.length=1000", "train.batch_size=64", "cell.hidden_size=32", "train.threads=2"
    )
    assert not failures_in([full_size(experiment, Dtype.float64)])
    monkeypatch.setattr(Workspace, "for_each", for_each)
    assert not failures_in(small(experiment))
    assert failures_in([full_size(experiment, Dtype.float64)])


def test_the_second_run_of_steps_alone(monkeypatch: Patch) -> None:
    """Slopes of a run of steps: of all but the last, which is the first to be computed."""
    original = backward.BackwardSweep.step_views

    def step_views(self, start, stop, slopes):
        if stop < len(self.delta):
            slopes = [slope * 1.001 for slope in slopes]
        return original(self, start, stop, slopes)

    experiment = composed("task.length=1000", "cell.hidden_size=16", "train.batch_size=32")
    assert not failures_in([full_size(experiment, Dtype.float64)])
    monkeypatch.setattr(backward.BackwardSweep, "step_views", step_views)
    assert not failures_in(small(experiment))
    assert "∂L/∂a" in names(failures_in([full_size(experiment, Dtype.float64)]))


@pytest.mark.parametrize("overrides", [["cell=rnn"], ["cell=lstm"], ["cell=gru"]])
def test_rescaling(overrides: list[str], monkeypatch: Patch) -> None:
    """An exponent that is one too large once the adjoint has left its band."""
    original = backward.renormalise

    def rescale(adjoint, exponent):
        previous_exponent = exponent.copy()
        original(adjoint, exponent)
        exponent += exponent != previous_exponent

    monkeypatch.setattr(backward, "renormalise", rescale)
    experiment = composed(*overrides)
    assert not failures_in(small(experiment))
    assert {"∂L/∂H", "state_grad_norm"} <= names(failures_in(rescaled(experiment, Dtype.float64)))


def test_sums_under_several_exponents(monkeypatch: Patch) -> None:
    replace_result(monkeypatch, weight_gradients, "_row_scales", lambda scale, *_: scale * 2)
    experiment = composed("cell=lstm")
    assert not failures_in(small(experiment))
    assert "Σ_t ∂L/∂θ_t, each parameter" in names(failures_in(rescaled(experiment, Dtype.float32)))


# --- what a cell declares -------------------------------------------------------------------------


def with_entries_swapped(first_name: str, second_name: str) -> Callable:
    return lambda entries, *_: entries | {first_name: entries[second_name], second_name: entries[first_name]}


@pytest.mark.parametrize(
    ("cls", "method", "transform", "expected"),
    [
        (LSTM, "carrier_gain", lambda result, *_: 1 - result, "carrier_gain"),
        (GRU, "carrier_gain", lambda result, *_: 1 - result, "carrier_gain"),
        (LSTM, "output_wrt_carrier", lambda result, *_: result * 1.01, "output_wrt_carrier"),
        (GRU, "output_wrt_carrier", lambda result, *_: result * 1.01, "output_wrt_carrier"),
        (LSTM, "nodes", with_entries_swapped("I", "F"), "nodes"),
        (LSTM, "nodes", lambda result, *_: result | {"G": 2 * result["G"]}, "nodes"),
        (GRU, "nodes", with_entries_swapped("Z", "N"), "nodes"),
        (LSTM, "activations", with_entries_swapped("I", "O"), "activations"),
        (GRU, "activations", with_entries_swapped("Z", "R"), "activations"),
        (LSTM, "activations", lambda result, *_: result | {"F": 2 * result["F"]}, "activations"),
        (LSTM, "counterfactuals", lambda result, *_: result | {"F=1": LSTM(4, freeze_f=0.9)}, "counterfactuals"),
    ],
)
def test_a_wrong_declaration(cls: type, method: str, transform: Callable, expected: str, monkeypatch: Patch) -> None:
    replace_result(monkeypatch, cls, method, transform)
    assert expected in names(failed_rows(f"cell={'lstm' if cls is LSTM else 'gru'}"))


def test_a_nonlinearity_of_another_value(monkeypatch: Patch) -> None:
    replace_result(
        monkeypatch,
        LSTM,
        "activations_used",
        lambda nonlinearities, *_: [
            nonlinearities[0],
            (nonlinearities[1][0], nonlinearities[1][1] * 1.01, nonlinearities[1][2]),
        ],
    )
    assert "activations_used" in names(failed_rows())


def test_h_that_passes_outside_the_gates_unsaid(monkeypatch: Patch) -> None:
    monkeypatch.setattr(GRU, "has_skip_to_h", False)
    assert "has_skip_to_h" in names(failed_rows("cell=gru"))


@pytest.mark.parametrize(
    "paths", [{"i": "x", "f": "x", "o": "o", "c": "c"}, {"i": "highway", "f": "f", "o": "o", "c": "c"}]
)
def test_paths_that_share_a_name(paths: dict[str, str], monkeypatch: Patch) -> None:
    monkeypatch.setattr(LSTM, "paths", paths)
    assert "paths: a name for each block that reads a state" in names(failed_rows())


# --- elementwise parameters -----------------------------------------------------------------------

PEEPHOLES = ["cell=peephole_lstm", "cell.hidden_size=4", "train.batch_size=3", "task.length=12"]


def test_a_peephole_whose_adjoint_is_forgotten(monkeypatch: Patch) -> None:
    monkeypatch.setattr(PeepholeLSTM, "step_backward", LSTM.step_backward)
    assert {"∂L/∂a", "param_grad_norm", "state_grad_norm", "path_grad_norm"} <= names(failed_rows(*PEEPHOLES))


def test_a_peephole_that_is_said_to_read_what_enters(monkeypatch: Patch) -> None:
    monkeypatch.setitem(peephole_lstm.PEEPHOLES, "o", (Elementwise("p_o", "C"),))
    assert {"a_t = X_t W + H_{t-1} W + b", "∂L/∂a"} <= names(failed_rows(*PEEPHOLES))


def test_the_gradient_of_a_peephole_by_the_wrong_state(monkeypatch: Patch) -> None:
    original = weight_gradients.elementwise_gradients

    def shifted(workspace, parameters, times, states, delta):
        return original(workspace, parameters, times, [(gate, np.roll(s, 1, 0)) for gate, s in states], delta)

    monkeypatch.setattr(weight_gradients, "elementwise_gradients", shifted)
    assert {"p_i", "p_f", "p_o", "param_grad_norm", "Σ_t ∂L/∂θ_t, each parameter"} <= names(failed_rows(*PEEPHOLES))
