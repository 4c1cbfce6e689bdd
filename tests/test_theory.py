"""The theory lines against closed forms, Monte Carlo and the measurement; the bound as a property,
and its failing.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib
import mpmath
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import INPUTS, OUTPUTS, UNREAD, Case, make_case, random_batch
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.rnn import RNN
from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.core import theory
from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.figures import CannotDrawError
from gradpath.figures.norm_by_lag import NormByLag
from gradpath.figures.spectral_radius import SpectralRadius
from gradpath.inits.gaussian import Gaussian
from gradpath.inits.orthogonal import Orthogonal
from gradpath.instruments.state_grad_norm import StateGradNorm
from gradpath.instruments.theory import Theory
from gradpath.tasks.temporal_order import TemporalOrder
from gradpath.tracking import loader

LINES = ("sigma_max_bound", "spectral_radius", "mean_field")
MANY_EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def column(network: Network, trace: Trace, name: str) -> np.ndarray:
    measurement = Theory().measure(network, trace)
    return measurement.values[:, measurement.names.index(name)]


def state(trace: Trace, name: str = "H") -> np.ndarray:
    """Measured log10 ‖∂L/∂state_t‖ relative to the last step."""
    measurement = StateGradNorm().measure(UNREAD, trace)
    values = measurement.values[:, measurement.names.index(name)]
    return values - values[-1]


def small_case(
    cell: Cell, theta: np.ndarray, inputs: np.ndarray, outputs: int = 1, loss: Loss = Loss.squared_error
) -> Case:
    """A last-step loss with targets away from the outputs."""
    steps, sequences, size = inputs.shape
    mask = np.zeros((steps, sequences), bool)
    mask[-1] = True
    targets = np.full((steps, sequences, outputs), 3.0)
    network = Network(cell, size, outputs, loss, cell.layers, cell.initial_state)
    return Case(network, theta, Batch(inputs, targets, mask).astype(theta.dtype.type))


# --- the moments, the lines -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Activation))
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.1), (0.3, 1.0), (-2.0, 0.5), (1.0, 4.0), (0.0, 15.0)])
def test_gaussian_moments_equal_the_integrals(kind: Activation, mean: float, deviation: float) -> None:
    phi = {
        Activation.tanh: (mpmath.tanh, lambda u: mpmath.sech(u) ** 2),
        Activation.sigmoid: (lambda u: (1 + mpmath.tanh(u / 2)) / 2, lambda u: mpmath.sech(u / 2) ** 2 / 4),
        Activation.relu: (lambda u: max(u, 0), lambda u: u > 0),
    }[kind]
    edges = [mean - 12 * deviation, *sorted({mean, 0.0}), mean + 12 * deviation]
    edges = sorted({*edges, *(e for e in (-8.0, -2.0, 2.0, 8.0) if edges[0] < e < edges[-1])})
    for moment, f in zip(theory.gaussian_moments(kind, mean, deviation**2), phi, strict=True):
        expected = mpmath.quad(lambda u, f=f: f(u) ** 2 * mpmath.npdf(u, mean, deviation), edges)
        assert moment == pytest.approx(float(expected), rel=1e-12)


def test_without_variance_the_moments_are_those_of_the_mean() -> None:
    for kind in Activation:
        for mean, active in ((0.7, 0.7), (-0.7, 0.0)):
            second_moment, steepness = theory.gaussian_moments(kind, mean, 0.0)
            if kind is Activation.relu:
                assert (second_moment, steepness) == (active**2, float(active > 0))
            elif kind is Activation.tanh:
                assert (second_moment, steepness) == pytest.approx((np.tanh(mean) ** 2, (1 - np.tanh(mean) ** 2) ** 2))


def test_mean_field_of_relu_is_half_of_the_variance() -> None:
    """Without a mean half of the units are active: E[φ²] = q/2 and E[φ′²] = ½, so the slope is ½
    ln(g²/2) at any q.
    """
    w = np.random.default_rng(0).normal(size=(50, 50))
    slopes = theory.mean_field(w, Activation.relu, np.zeros(9), np.full(9, 0.3))
    np.testing.assert_allclose(slopes, 0.5 * np.log(np.square(w).sum() / 50 / 2), rtol=1e-14)


def test_mean_field_without_recurrence_or_input() -> None:
    w = np.zeros((4, 4))
    assert np.isneginf(theory.mean_field(w, Activation.tanh, np.zeros(3), np.ones(3))).all()
    log_slopes = theory.mean_field(np.eye(4) * 0.7, Activation.tanh, np.zeros(3), np.zeros(3))
    np.testing.assert_allclose(log_slopes, np.log(0.7), rtol=1e-14)


@pytest.mark.parametrize("kind", list(Activation))
def test_mean_field_recursion_equals_a_wide_network(kind: Activation) -> None:
    """One network of 3000 units, weights and inputs Gaussian, against the
    recursion, step by step.
    """
    rng, width, steps = np.random.default_rng(1), 3000, 8
    w = rng.normal(0, 1.5 * width**-0.5, (width, width))
    means, deviations = rng.normal(0, 0.3, steps), rng.uniform(0.2, 1.0, steps)
    input_terms = means[:, None] + deviations[:, None] * rng.normal(size=(steps, width))
    h, slopes = np.full(width, 0.4), []
    for part in input_terms:
        a = h @ w + part
        slope = {
            Activation.tanh: 1 - np.tanh(a) ** 2,
            Activation.sigmoid: 0.25 / np.cosh(a / 2) ** 2,
            Activation.relu: (a > 0).astype(float),
        }[kind]
        h = {Activation.tanh: np.tanh(a), Activation.sigmoid: 0.5 + 0.5 * np.tanh(a / 2), Activation.relu: a * (a > 0)}[
            kind
        ]
        slopes.append(0.5 * np.log(1.5**2 * np.mean(slope**2)))
    predicted = theory.mean_field(w, kind, means, deviations**2, 0.4)
    np.testing.assert_allclose(slopes, predicted, atol=0.05)
    assert np.abs(np.mean(slopes - predicted)) < 0.015


def test_all_lines_coincide_with_the_measurement_where_theory_is_exact() -> None:
    """W_hh a scaled orthogonal matrix and every relu active, here by inputs that outgrow the
    recurrent part: every singular value and every eigenvalue has the modulus g, and ‖∂L/∂H_t‖ falls
    by g a step.
    """
    cell = RNN(hidden_size=12, activation=Activation.relu)
    network = Network(cell, 1, 1, Loss.squared_error, cell.layers, cell.initial_state)
    for gain in (0.4, 1.0, 1.7):
        theta = Orthogonal(gain=gain).draw(np.random.default_rng(0), network, np.float64)
        network.parameters(theta)["W_xh"][:] = 1
        trace = small_case(cell, theta, np.tile(100.0 ** np.arange(7)[:, None, None], (1, 2, 1))).trace
        for name in LINES:
            np.testing.assert_allclose(column(network, trace, name), state(trace), atol=1e-13, err_msg=name)
        np.testing.assert_allclose(column(network, trace, "bound_margin")[:-1], 0, atol=1e-13)


def test_lines_are_straight_with_the_slopes_of_the_matrix() -> None:
    case = make_case(RNN(hidden_size=5, activation=Activation.sigmoid), Loss.squared_error, 6, False)
    w = case.network.parameters(case.theta)["W_hh"]
    for name, value in (
        ("sigma_max_bound", np.sqrt(np.linalg.eigvalsh(w.T @ w)[-1])),
        ("spectral_radius", np.abs(np.roots(np.poly(w))).max()),
    ):
        line = np.log10(value / 4) * np.arange(5, -1, -1)
        np.testing.assert_allclose(column(case.network, case.trace, name), line, rtol=1e-9)


def test_the_mean_field_line_adds_up_the_slopes() -> None:
    case = make_case(RNN(hidden_size=5, initial_state=0.8), Loss.squared_error, 6, False)
    p = case.network.parameters(case.theta)
    input_terms = case.batch.inputs @ p["W_xh"] + p["b_h"]
    slopes = theory.mean_field(
        p["W_hh"], Activation.tanh, input_terms.mean(axis=(1, 2)), input_terms.var(axis=(1, 2)), 0.8
    )
    expected = [slopes[t + 1 :].sum() / np.log(10) for t in range(6)]
    np.testing.assert_allclose(column(case.network, case.trace, "mean_field"), expected, rtol=1e-12, atol=1e-14)


GAINS = (0.5, 0.9, 1.0, 1.3, 1.8, 2.5)


@pytest.mark.parametrize("gain", GAINS)
def test_mean_field_is_within_2_percent_of_the_slope_of_400_units(gain: float) -> None:
    """The setting of the study ``spectral_radius``: each of three networks, by lags up to √H. And
    the folklore: at g = 1 and 1.3 the spectral radius exceeds 1 and the gradient vanishes; it
    explodes where the mean field says so.
    """
    task, lag = TemporalOrder(100), np.arange(100)[::-1]
    for seed in range(3):
        rng = np.random.default_rng(seed)
        network = Network(RNN(hidden_size=400), *task.sizes, task.loss)
        theta = Gaussian(gain=gain, input_gain=10.0).draw(rng, network, np.float32)
        batch = task.sample(rng, 32).astype(np.float32)
        trace = network.backward(theta, network.forward(theta, batch))
        measurement = Theory().measure(network, trace)
        lines = dict(zip(measurement.names, (measurement.values * np.log(10)).T, strict=True))
        measured = theory.slope(lag, state(trace) * np.log(10), 0, 20)
        slopes = {name: theory.slope(lag, lines[name], 0, 20) for name in LINES}
        assert slopes["mean_field"] == pytest.approx(measured, abs=0.02)
        assert measured < slopes["spectral_radius"] < slopes["sigma_max_bound"]
        assert slopes["spectral_radius"] == pytest.approx(np.log(gain), abs=0.06)
        if gain in (1.3, 1.8, 2.5):
            assert slopes["spectral_radius"] > 0
            assert np.sign(measured) == (-1 if gain == 1.3 else 1)


def test_slope_is_the_least_squares_fit() -> None:
    rng = np.random.default_rng(0)
    lag, curve = np.arange(30)[::-1], rng.normal(size=30)
    in_range = (lag >= 4) & (lag <= 17)
    assert theory.slope(lag, curve, 4, 17) == pytest.approx(np.polyfit(lag[in_range], curve[in_range], 1)[0], rel=1e-10)
    curve[lag == 5] = -np.inf
    assert np.isnan(theory.slope(lag, curve, 4, 17))
    assert np.isfinite(theory.slope(lag, curve, 6, 17))


# --- the bound ------------------------------------------------------------------------------------


@st.composite
def recurrent_cases(draw: st.DrawFn) -> Case:
    """A random stack of RNNs, steep or flat, with any loss at any steps, in either type."""
    cell = RNN(
        hidden_size=draw(st.integers(1, 8)),
        layers=draw(st.integers(1, 3)),
        activation=draw(st.sampled_from(list(Activation))),
        initial_state=draw(st.sampled_from([0.0, 0.5])),
    )
    loss, dtype = draw(st.sampled_from(list(Loss))), draw(st.sampled_from([np.float32, np.float64]))
    steps, sequences = draw(st.integers(1, 40)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    network = Network(cell, INPUTS, OUTPUTS, loss, cell.layers, cell.initial_state)
    init = draw(st.sampled_from([Gaussian, Orthogonal]))(gain=draw(st.sampled_from([1e-9, 0.3, 1.0, 3.0, 30.0])))
    theta = init.draw(rng, network, dtype)
    if draw(st.booleans()):  # a per-step loss that dwarfs what comes from later
        network.parameters(theta)["W_hy"][:] *= 1e6
    mask = rng.random((steps, sequences)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    mask[draw(st.integers(0, steps - 1)), 0] = True
    return Case(network, theta, random_batch(rng, loss, mask, dtype))


@MANY_EXAMPLES
@given(recurrent_cases())
def test_the_bound_holds_at_every_step_and_its_margin_is_that_of_plain_arithmetic(case: Case) -> None:
    network, cell = case.network, case.network.cell
    with np.errstate(over="ignore", invalid="ignore"):
        trace = case.trace
    measurement, tape = Theory().measure(network, trace), trace.tape
    epsilon = float(np.finfo(tape.theta.dtype).eps)
    for layer in range(cell.layers):
        margin = measurement.values[:, measurement.names.index(f"{network.prefix(layer)}bound_margin")]
        assert margin[-1] == np.inf
        w = network.parameters(tape.theta)[f"{network.prefix(layer)}W_hh"].astype(np.float64)
        total = trace.states[f"{network.prefix(layer)}H"]
        delta = trace.deltas[layer]
        for t in range(tape.length - 1):
            if not np.isfinite(total.array[t + 1]).all():  # the forward pass has blown up
                continue
            margins = []
            for b in range(tape.batch.mask.shape[1]):  # what both sides share of the exponent cancels
                carried = np.linalg.norm(delta.array[t + 1, b, 0].astype(np.float64) @ w.T)
                bound = np.linalg.norm(w, 2) * cell.activation.steepest * np.linalg.norm(total.array[t + 1, b])
                assert carried <= bound * (1 + 20 * epsilon)
                margins.append(np.log10(bound / carried) if carried else np.inf)
            assert margin[t] == pytest.approx(min(margins), abs=1e-6 if epsilon > 1e-10 else 1e-10)


def test_the_bound_holds_beside_far_larger_direct_parts() -> None:
    """What arrives directly, of size 10^5 … 10^150, is nearly all of the adjoint; its logarithm
    rounds by as much.
    """
    rng = np.random.default_rng(0)
    batch = random_batch(rng, Loss.squared_error, np.ones((40, 20), bool), np.float64)
    network = Network(RNN(hidden_size=1), INPUTS, OUTPUTS, Loss.squared_error)
    for size in 10.0 ** np.arange(5, 150, 5):
        theta = rng.normal(size=network.size)
        network.parameters(theta)["W_hh"][:] /= size
        scaled_batch = replace(batch, targets=batch.targets * size)
        Theory().measure(network, network.backward(theta, network.forward(theta, scaled_batch)))


def with_norm_changed(trace: Trace, quantity: str, t: int, factor: float) -> Trace:
    """A trace in which one sequence's adjoint at one step is too large."""
    if quantity == "states":
        array = trace.states["H"].array.copy()
        array[t, 1] *= factor
        return replace(trace, states=trace.states | {"H": Scaled(array, trace.states["H"].exponent)})
    array = trace.deltas[0].array.copy()
    array[t, 1] *= factor
    return replace(trace, deltas=(Scaled(array, trace.deltas[0].exponent),))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("quantity", ["states", "deltas"])
@pytest.mark.parametrize("every_step", [False, True])
def test_a_gradient_beyond_the_bound_is_refused(quantity: str, every_step: bool, dtype: type) -> None:
    """The trace spoiled just past its own margin raises, and just short of it does not."""
    case = make_case(RNN(hidden_size=6), Loss.squared_error, 12, every_step, dtype)
    trace, t = case.trace, 5
    Theory().measure(case.network, trace)
    if quantity == "states":  # of which the direct part may be any share
        total, direct = trace.states["H"].log10_norm()[:, 1], trace.direct["H"].log10_norm()[t, 1]
        w = case.network.parameters(case.theta)["W_hh"].astype(np.float64)
        slack = np.log10(10**direct + np.linalg.norm(w, 2) * 10 ** total[t + 1]) - total[t]
    else:
        w = case.network.parameters(case.theta)["W_hh"].astype(np.float64)
        carried = np.linalg.norm(trace.deltas[0].plain()[t, 1, 0].astype(np.float64) @ w.T)
        slack = np.log10(np.linalg.norm(w, 2)) + trace.states["H"].log10_norm()[t, 1] - np.log10(carried)
    assert slack > 0.01
    Theory().measure(case.network, with_norm_changed(trace, quantity, t, 10 ** (slack - 1e-4)))
    with pytest.raises(RuntimeError, match=r"‖∂L/∂H‖ .* sequence 1, exceeds the bound σ_max"):
        Theory().measure(case.network, with_norm_changed(trace, quantity, t, 10 ** (slack + 1e-4)))


def test_true_zeros_and_a_loss_before_the_end_neither_raise_nor_warn() -> None:
    case = make_case(RNN(hidden_size=4, activation=Activation.relu), Loss.squared_error, 8, False)
    mask = np.zeros_like(case.batch.mask)
    mask[4, 0] = True
    named = case.network.parameters(case.theta)
    for zero_weights in (False, True):
        if zero_weights:
            named["b_h"][:] = -1e3  # no unit is ever active
        trace = replace(case, batch=replace(case.batch, mask=mask)).trace
        margin, line = (column(case.network, trace, name) for name in ("bound_margin", "mean_field"))
        assert (margin[4:] == np.inf).all()
        assert (margin[:4] == np.inf).all() == zero_weights
        assert line[4] == 0
        assert np.isneginf(line[5:]).all()


def test_a_network_without_recurrence_keeps_nothing() -> None:
    case = make_case(RNN(hidden_size=4), Loss.squared_error, 5, False)
    case.network.parameters(case.theta)["W_hh"][:] = 0
    measurement = Theory().measure(case.network, case.trace)
    for name in LINES:
        assert measurement.values[:, measurement.names.index(name)].tolist() == [-np.inf] * 4 + [0.0]
    assert (measurement.values[:, measurement.names.index("bound_margin")] == np.inf).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["W_hh", "W_xh", "b_h", "W_hy"])
def test_what_is_not_finite_is_not_a_violation(name: str, value: float) -> None:
    case = make_case(RNN(hidden_size=4), Loss.squared_error, 5, True)
    case.network.parameters(case.theta)[name][0] = value
    with np.errstate(all="ignore"):
        trace = case.trace
    measurement = Theory().measure(case.network, trace)
    assert measurement.values.shape == (5, 4)
    if name == "W_hh":
        assert np.isnan(measurement.values).all()


def test_a_product_of_a_thousand_steps_leaves_floating_point_and_not_the_line() -> None:
    cell = RNN(hidden_size=6)
    network = Network(cell, INPUTS, 1, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Orthogonal(gain=0.3).draw(np.random.default_rng(0), network, np.float32)
    trace = small_case(cell, theta, np.random.default_rng(1).normal(size=(1500, 2, INPUTS))).trace
    measurement = Theory().measure(network, trace)
    assert np.isfinite(measurement.values[:-1]).all()
    assert measurement.values[0, measurement.names.index("sigma_max_bound")] == pytest.approx(
        1499 * np.log10(0.3), rel=1e-6
    )
    assert (measurement.values[:-1, measurement.names.index("bound_margin")] >= -1e-6).all()


# --- the carousel ---------------------------------------------------------------------------------


def carousel_case(cell: Cell, steps: int = 60) -> Case:
    """No recurrent weights, a gate that sees its bias alone, nothing stored: every unit's adjoint
    is multiplied by its own gate and starts from the same value.
    """
    network = Network(cell, INPUTS, 1, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Orthogonal().draw(np.random.default_rng(3), network, np.float64)
    for name, value in network.parameters(theta).items():
        if name == "W_hy":
            value[:] = 0.5
        elif name.startswith("W"):
            value[:] = 0
    return small_case(cell, theta, np.random.default_rng(4).normal(size=(steps, 3, INPUTS)))


@pytest.mark.parametrize(
    "cell",
    [
        LSTM(hidden_size=7, forget_bias=-2.0),
        LSTM(hidden_size=7, forget_bias=4.0),
        LSTM(hidden_size=7, chrono_t_max=50),
        LSTM(hidden_size=7, chrono_t_max=50, ablation=Ablation.coupled_gates),
        LSTM(hidden_size=7, ablation=Ablation.no_forget_gate),
        LSTM(hidden_size=7, freeze_f=0.8),
        LSTM(hidden_size=7, freeze_f=0.0),
        GRU(hidden_size=7, update_bias=2.0),
        GRU(hidden_size=7, chrono_t_max=50),
    ],
    ids=str,
)
def test_the_carousel_is_the_measured_gradient_where_nothing_else_is_left(cell: Cell) -> None:
    case = carousel_case(cell)
    measured = state(case.trace, cell.states[-1])
    np.testing.assert_allclose(column(case.network, case.trace, "carousel"), measured, rtol=0, atol=1e-12)


def test_the_carousel_line_of_each_layer_has_its_own_biases() -> None:
    case = make_case(LSTM(hidden_size=5, layers=2, chrono_t_max=30), Loss.squared_error, 20, False)
    measurement = Theory().measure(case.network, case.trace)
    assert measurement.names == ("layer1/carousel", "layer2/carousel")
    for k, line in enumerate(measurement.values.T):
        bias = case.network.parameters(case.theta)[f"layer{k + 1}/b_f"]
        f = 1 / (1 + np.exp(-bias))
        expected = [np.log10(np.sqrt(np.mean(f ** (2 * lag)))) for lag in range(19, -1, -1)]
        np.testing.assert_allclose(line, expected, rtol=1e-12)


def test_carousel_over_many_decades() -> None:
    lags = np.array([0, 1, 10**4])
    carousel = theory.carousel(np.log(np.array([0.5, 0.1])), lags)
    assert carousel[0] == 0
    assert carousel[1] == pytest.approx(0.5 * np.log((0.25 + 0.01) / 2))
    assert carousel[2] == pytest.approx(10**4 * np.log(0.5) - 0.5 * np.log(2), rel=1e-12)
    assert np.isneginf(theory.carousel(np.array([-np.inf]), lags)[1:]).all()


def test_horizon_and_keep() -> None:
    """After the horizon σ(b)^l is 1/e; no cancellation where σ(b) rounds to 1, and no overflow."""
    for bias in (-3.0, 0.0, 1.0, 5.0):
        assert (1 / (1 + np.exp(-bias))) ** theory.horizon(bias) == pytest.approx(np.exp(-1), rel=1e-12)
    with mpmath.workdps(400):
        for bias in (-700.0, 40.0, 100.0):
            reference = 1 / mpmath.log(1 + mpmath.exp(-mpmath.mpf(bias)))
            assert float(theory.horizon(bias)) == pytest.approx(float(reference), rel=1e-14)
    assert theory.horizon(1e6) == np.inf
    assert theory.horizon(np.array([[0.0, 1.0]])).shape == (1, 2)
    assert theory.log_keep(np.log(3.0)) == pytest.approx(np.log(0.75), rel=1e-14)


# --- the figures ----------------------------------------------------------------------------------

SMALL = ["task.length=30", "cell.hidden_size=9", "train.batch_size=4", "train.eval_size=5", "train.steps=0"]
SMALL += ["instruments=[param_grad_norm,state_grad_norm,grad_norm,theory]"]


def recorded(*points: list[str]) -> list[loader.Run]:
    for point in points:
        execute(compose.experiment([*SMALL, *point]), "s")
    return loader.load(None, "gradpath", "s")


def test_spectral_radius_draws_the_stored_slopes_and_states_the_residual(home: Path) -> None:
    matplotlib.use("Agg")
    gains = (0.5, 1.5)
    runs = recorded(*([f"init.gain={g}", f"seed={s}", "cell=rnn", "init=gaussian"] for g in gains for s in (0, 1, 2)))
    canvas = SpectralRadius().draw(runs)
    lag = np.arange(30)[::-1]

    def slopes(instrument: str, name: str) -> np.ndarray:
        by_gain = [[r.series[instrument].column(name)[0] for r in runs if r.config["init"]["gain"] == g] for g in gains]
        fitted = [[np.polyfit(lag[lag <= 3], c[lag <= 3] * np.log(10), 1)[0] for c in curves] for curves in by_gain]
        return np.array(fitted)

    measured = slopes("state_grad_norm", "H")
    lines_by_label = {line.get_label(): line for line in canvas.axes[0].lines}
    for label, name in zip(lines_by_label, LINES, strict=False):
        assert lines_by_label[label].get_xdata().tolist() == list(gains)
        np.testing.assert_allclose(
            lines_by_label[label].get_ydata(), np.median(slopes("theory", name), axis=1), rtol=1e-10
        )
    (points,) = canvas.axes[0].containers
    np.testing.assert_allclose(points.lines[0].get_ydata(), np.median(measured, axis=1), rtol=1e-10)
    residuals = slopes("theory", "mean_field") - measured
    caption = " ".join(t.get_text() for t in canvas.texts).replace("\n", " ")
    assert f"at most {max(np.median(residuals, axis=1), key=abs):+.3f} in the median" in caption
    assert f"{max(residuals.ravel(), key=abs):+.3f} in a single network" in caption
    assert "lags 0 to 3 (grey)" in caption
    assert "3 seeds" in caption
    assert "lags 0 to 9 (grey)" in SpectralRadius(longest=9).draw(runs).texts[0].get_text().replace("\n", " ")


def test_spectral_radius_says_what_it_cannot_draw(home: Path) -> None:
    (single_run,) = recorded(["cell=rnn", "init=gaussian"])
    with pytest.raises(CannotDrawError, match=r"more than one init\.gain"):
        SpectralRadius().draw([single_run])
    execute(compose.experiment([*SMALL, "cell=lstm"]), "t")
    with pytest.raises(CannotDrawError, match="no spectral radius"):
        SpectralRadius().draw([single_run, *loader.load(None, "gradpath", "t")])
    execute(compose.experiment([*SMALL, "cell=rnn", "init=gaussian", "init.gain=2", "task.length=40"]), "u")
    with pytest.raises(CannotDrawError, match="differ in more"):
        SpectralRadius().draw([single_run, *loader.load(None, "gradpath", "u")])
    execute(compose.experiment([*SMALL, "cell=rnn", "init=gaussian", "cell.activation=relu", "init.gain=1e30"]), "v")
    with pytest.raises(CannotDrawError, match="no finite"):
        SpectralRadius().draw([single_run, *loader.load(None, "gradpath", "v")])


def test_norm_by_lag_shows_theory_where_it_was_recorded(home: Path) -> None:
    matplotlib.use("Agg")
    runs = recorded(["arm=rnn"], ["arm=clipped_rnn"], ["arm=lstm"])
    canvas = NormByLag().draw(runs)
    caption = " ".join(t.get_text() for t in canvas.texts).replace("\n", " ")
    by_arm = {run.arm: run for run in runs}
    lag = by_arm["rnn"].lag
    for label, arm, name, legend_text, carrier in (
        ("RNN", "rnn", "mean_field", "mean field", "H"),
        ("LSTM", "lstm", "carousel", "carousel", "C"),
    ):
        line = by_arm[arm].series["theory"].column(name)[0]
        measured = by_arm[arm].series["state_grad_norm"].column(carrier)[0]
        residual = theory.slope(lag, line - measured, 2, 27)
        assert f"{label} {legend_text} {residual:+.3f}" in caption
        dotted = [y.get_ydata() for y in canvas.axes[0].lines if y.get_linestyle() == ":"]
        assert any(np.allclose(y[-5:], (line + measured[-1])[-5:]) for y in dotted), legend_text
    assert "clipped RNN mean field" not in caption, "it starts as the RNN does"
    without_theory = [replace(run, series={k: v for k, v in run.series.items() if k != "theory"}) for run in runs]
    assert "Thin lines" not in " ".join(t.get_text() for t in NormByLag().draw(without_theory).texts)
