"""The instrument does not vanish before the gradient does: exact norms over a thousand decades,
against mpmath.
"""

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from conftest import UNREAD, cell_id, cells, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.rnn import RNN
from gradpath.clippings.threshold import Threshold
from gradpath.core import backward as backward_module
from gradpath.core.activations import Activation
from gradpath.core.backward import backward
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.engine.workspace import Workspace
from gradpath.inits.gaussian import Gaussian
from gradpath.inits.uniform import Uniform
from gradpath.instruments.grad_norm import GradNorm
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.instruments.state_grad_norm import StateGradNorm
from gradpath.tasks.adding import Adding
from independent_rnn import IndependentRNN

DTYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}
"""Relative, of a norm."""


def run(network: Network, theta: np.ndarray, batch: Batch) -> Trace:
    with np.errstate(over="ignore", invalid="ignore"):
        return network.backward(theta, network.forward(theta, batch))


def linear_rnn(factor: float, steps: int, dtype: type, layers: int = 1, every_step: bool = False) -> Trace:
    """A tanh RNN at rest (H = 0, φ′ = 1) whose adjoint is multiplied by ``factor`` at each step,
    exactly.
    """
    network = Network(RNN(hidden_size=3), 1, 2, Loss.squared_error, layers=layers)
    theta = np.zeros(network.size)
    for name, value in network.parameters(theta).items():
        if name.endswith("W_hh"):
            value[:] = factor * np.eye(3)
        elif value.ndim == 2:
            value[:] = np.random.default_rng(0).normal(size=value.shape)
    mask = np.zeros((steps, 2), bool)
    mask[-1] = True
    if every_step:
        mask[:] = True
    batch = Batch(np.zeros((steps, 2, 1)), np.full((steps, 2, 2), 0.5), mask).astype(dtype)
    return run(network, theta.astype(dtype), batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.3, 1 / 0.3])
def test_523_decades_over_a_thousand_steps_on_a_straight_line(factor: float, dtype: type) -> None:
    trace = linear_rnn(factor, 1001, dtype)
    measurement = StateGradNorm().measure(UNREAD, trace)
    curve = measurement.values[::-1, measurement.names.index("H")]
    slope = np.log10(float(dtype(factor)))
    np.testing.assert_allclose(
        curve, curve[0] + slope * np.arange(1001), rtol=0, atol=1e-3 if dtype is np.float32 else 1e-9
    )
    assert abs(curve[-1] - curve[0]) == pytest.approx(522.88, abs=0.01)
    bias = ParamGradNorm().measure(UNREAD, trace)
    assert np.isfinite(bias.values[:, bias.names.index("b_h")]).all()
    assert np.isneginf(bias.values[:, bias.names.index("W_xh")]).all(), "the input is 0: a true zero at every step"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [0.3, 1 / 0.3])
def test_per_step_losses_and_stacks_neither_under_nor_overflow(factor: float, dtype: type) -> None:
    trace = linear_rnn(factor, 600, dtype, layers=2, every_step=True)
    measurement = StateGradNorm().measure(UNREAD, trace)
    for state in ("layer1/H", "layer2/H"):
        assert np.isfinite(measurement.values[:, measurement.names.index(state)]).all()
    # With a loss at every step the top layer's adjoint is the geometric series Σ_k factor^k, times
    # one step's gradient.
    top_norms = measurement.values[::-1, measurement.names.index("layer2/H")]
    k = [mpmath.log10(sum((mpf(float(dtype(factor))) ** j for j in range(n + 1)), mpf(0))) for n in (0, 10, 599)]
    measured = top_norms[[0, 10, 599]] - top_norms[0]
    np.testing.assert_allclose(measured, [float(x) for x in k], atol=1e-3 if dtype is np.float32 else 1e-9)


@pytest.mark.parametrize("cell", cells(), ids=cell_id)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.pairwise
def test_bit_identical_to_the_plain_recursion_where_that_stays_in_range(
    cell: Cell, dtype: type, every_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T takes the adjoint out of the band that triggers rescaling and leaves it within float32's
    range.
    """
    falls_fast = getattr(cell, "activation", None) is Activation.sigmoid or isinstance(cell, IndependentRNN)
    steps = 24 if falls_fast else 60
    case = make_case(cell, Loss.squared_error, steps, every_step, dtype)
    theta = (case.theta * dtype(0.6)).astype(dtype)
    scaled = run(case.network, theta, case.batch)
    rescaled = any(np.ptp(factor.delta.exponent) for factor in scaled.factors)
    monkeypatch.setattr(backward_module, "renormalise", lambda adjoint, exponent: None)
    unscaled = run(case.network, theta, case.batch)
    assert not any(np.ptp(factor.delta.exponent) for factor in unscaled.factors)
    smallest = min(np.abs(f.delta.array[f.delta.array != 0]).min(initial=1) for f in unscaled.factors)
    assert smallest > np.finfo(dtype).tiny, "the plain recursion is meant to stay in range here"
    if type(cell) is RNN and not every_step and cell.activation is not Activation.relu:
        assert rescaled, "this case is meant to rescale"
    for scaled_factor, unscaled_factor in zip(scaled.factors, unscaled.factors, strict=True):
        assert scaled_factor.delta.plain().tobytes() == unscaled_factor.delta.plain().tobytes()
    assert scaled.gradient.scaled.plain().tobytes() == unscaled.gradient.scaled.plain().tobytes()
    for instrument in (StateGradNorm(), GradNorm()):
        assert (
            instrument.measure(case.network, scaled).values.tobytes()
            == instrument.measure(case.network, unscaled).values.tobytes()
        )
    # Squares that leave the range of the type are taken in float64, on the one side and not on the
    # other.
    norms = [ParamGradNorm().measure(case.network, trace).values for trace in (scaled, unscaled)]
    np.testing.assert_allclose(*norms, rtol=0, atol=TOLERANCE[dtype] / np.log(10))


# An independent reference in 60 digits: the textbook recursions on lists of mpf, from the same
# binary parameters.


def reference(network: Network, theta: np.ndarray, batch: Batch) -> tuple[dict[str, list], dict[str, list]]:
    """log10 ‖∂L/∂θ_t‖ and log10 ‖∂L/∂H_t‖ (C_t) of a one-layer net with a squared error at the last
    step.
    """
    mpmath.mp.dps = 60
    p = {k: to_mp(v) for k, v in network.parameters(theta.astype(np.float64)).items()}
    x = [to_mp(row) for row in batch.inputs.astype(np.float64)]
    y = to_mp(batch.targets[-1].astype(np.float64))
    return (lstm_reference if "W_fx" in p else rnn_reference)(p, x, y)


def to_mp(array: np.ndarray) -> np.ndarray:
    return np.vectorize(mpf, otypes=[object])(array)


tanh, sigma = np.frompyfunc(mpmath.tanh, 1, 1), np.frompyfunc(lambda a: 1 / (1 + mpmath.exp(-a)), 1, 1)


def log10_norm(a: np.ndarray) -> float:
    square = sum((v * v for v in a.ravel()), mpf(0))
    return float(mpmath.log10(square) / 2) if square else -np.inf


def rnn_reference(p, x, y):
    h = [to_mp(np.zeros((len(y), p["W_hh"].shape[0])))]
    for x_t in x:
        h.append(tanh(x_t @ p["W_xh"] + h[-1] @ p["W_hh"] + p["b_h"]))
    d_y = 2 * (h[-1] @ p["W_hy"] + p["b_y"] - y) / len(y)
    d_h, norms, states = d_y @ p["W_hy"].T, {}, {"H": []}
    for t in range(len(x), 0, -1):
        states["H"].append(log10_norm(d_h))
        d_a = d_h * (1 - h[t] ** 2)
        for name, g in (("W_xh", x[t - 1].T @ d_a), ("W_hh", h[t - 1].T @ d_a), ("b_h", d_a.sum(axis=0))):
            norms.setdefault(name, []).append(g)
        d_h = d_a @ p["W_hh"].T
    return norms, states


def lstm_reference(p, x, y):
    zero = to_mp(np.zeros((len(y), p["W_ih"].shape[0])))
    h, c, gates = [zero], [zero], []
    for x_t in x:
        i, f, o = (sigma(x_t @ p[f"W_{k}x"] + h[-1] @ p[f"W_{k}h"] + p[f"b_{k}"]) for k in "ifo")
        g = tanh(x_t @ p["W_cx"] + h[-1] @ p["W_ch"] + p["b_c"])
        c.append(f * c[-1] + i * g)
        h.append(o * tanh(c[-1]))
        gates.append((i, f, o, g))
    d_y = 2 * (h[-1] @ p["W_hy"] + p["b_y"] - y) / len(y)
    d_h, d_c, norms, states = d_y @ p["W_hy"].T, zero, {}, {"H": [], "C": []}
    for t in range(len(x), 0, -1):
        i, f, o, g = gates[t - 1]
        d_c = d_c + d_h * o * (1 - tanh(c[t]) ** 2)
        states["H"].append(log10_norm(d_h))
        states["C"].append(log10_norm(d_c))
        d = {"i": d_c * g * i * (1 - i), "f": d_c * c[t - 1] * f * (1 - f)}
        d |= {"o": d_h * tanh(c[t]) * o * (1 - o), "c": d_c * i * (1 - g * g)}
        for k, d_a in d.items():
            for name, gradient in (
                (f"W_{k}x", x[t - 1].T @ d_a),
                (f"W_{k}h", h[t - 1].T @ d_a),
                (f"b_{k}", d_a.sum(axis=0)),
            ):
                norms.setdefault(name, []).append(gradient)
        d_h = sum((d[k] @ p[f"W_{k}h"].T for k in d), zero)
        d_c = d_c * f
    return norms, states


def tiny(cell: Cell, gain: float, steps: int, dtype: type) -> tuple[Network, np.ndarray, Batch]:
    network = Network(cell, 2, 1, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Gaussian(gain=gain).draw(np.random.default_rng(1), network, dtype)
    return network, theta, Adding(length=steps).sample(np.random.default_rng(2), 2).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("cell", "gain"), [(RNN(2), 0.5), (RNN(2), 0.05), (LSTM(2), 0.5), (LSTM(2, forget_bias=-1.0), 0.1)], ids=str
)
def test_norms_equal_arbitrary_precision_over_500_steps(cell: Cell, gain: float, dtype: type) -> None:
    network, theta, batch = tiny(cell, gain, 500, dtype)
    gradients, states = reference(network, theta, batch)
    trace = run(network, theta, batch)
    parameters, adjoints = ParamGradNorm().measure(network, trace), StateGradNorm().measure(network, trace)
    tolerance = TOLERANCE[dtype] / np.log(10)
    lowest = 0.0
    for measurement, expected in (
        (parameters, {name: [log10_norm(g) for g in values] for name, values in gradients.items()}),
        (adjoints, states),
    ):
        for name, values in expected.items():
            measured = measurement.values[::-1, measurement.names.index(name)]
            zero = np.isneginf(values)
            assert (np.isneginf(measured) == zero).all(), name
            np.testing.assert_allclose(measured[~zero], np.array(values)[~zero], rtol=0, atol=tolerance, err_msg=name)
            lowest = min(lowest, np.array(values)[~zero].min())
    assert lowest < -45, "this case leaves float32"


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipping_an_overflowing_gradient_keeps_norm_and_direction(dtype: type) -> None:
    """At rest (H = 0, φ′ = 1) the adjoint grows by 3 a step: 10^238 at T =
    500, 10^382 at T = 800.
    """
    steps = 500 if dtype is np.float32 else 800
    network = Network(RNN(2), 2, 1, Loss.squared_error)
    theta = np.zeros(network.size, dtype)
    named = network.parameters(theta)
    named["W_hh"][:] = [[2.9, 0.3], [-0.2, 2.7]]
    named["W_hy"][:] = [[0.7], [-0.4]]
    batch = Batch(np.zeros((steps, 2, 2)), np.full((steps, 2, 1), 0.3), Adding(length=steps).sample(
        np.random.default_rng(0), 2).mask).astype(dtype)  # fmt: skip
    gradients, _ = reference(network, theta, batch)
    exact = np.concatenate([sum(gradients[name]).ravel() for name in ("W_xh", "W_hh", "b_h")])
    size = mpmath.sqrt(sum(v * v for v in exact))
    assert size > np.finfo(dtype).max
    gradient = run(network, theta, batch).gradient
    assert gradient.log10_norm == pytest.approx(float(mpmath.log10(size)), abs=1e-4 if dtype is np.float32 else 1e-9)
    clipped, scale = Threshold(max_norm=0.5).apply(gradient)
    assert np.isfinite(clipped).all()
    assert np.linalg.norm(clipped.astype(np.float64)) == pytest.approx(0.5, rel=1e-6)
    direction = np.array([float(v / size) for v in exact])
    recurrent = clipped[: len(direction)].astype(np.float64)
    assert recurrent @ direction / np.linalg.norm(recurrent) >= 1 - 1e-6
    assert scale == pytest.approx(float(mpf(0.5) / size), rel=1e-3)


def exact_norms(trace: Trace) -> dict[str, list[float]]:
    """log10 ‖Σ_b entered_{t,b}ᵀ delta_{t,b}‖ from the trace's own factors, in 60 digits."""
    mpmath.mp.dps = 60
    norms: dict[str, list[float]] = {}
    for factor in trace.factors:
        for block, name in enumerate(factor.names):
            values = [-np.inf] * trace.tape.length
            for row, t in enumerate(factor.times):
                power = np.vectorize(lambda e: mpf(2) ** int(e), otypes=[object])(factor.delta.exponent[row])
                delta = to_mp(factor.delta.array[row, :, block].astype(np.float64)) * power[:, None]
                if factor.inputs is None:
                    values[t] = log10_norm(delta.sum(axis=0))
                else:
                    values[t] = log10_norm(to_mp(factor.inputs[row].astype(np.float64)).T @ delta)
            norms[name] = values
    return norms


def assert_norms_exact(trace: Trace, dtype: type) -> None:
    measurement, expected = ParamGradNorm().measure(UNREAD, trace), exact_norms(trace)
    for name, values in expected.items():
        measured = measurement.values[:, measurement.names.index(name)]
        assert not np.isnan(measured).any()
        zero = np.isneginf(values)
        assert (np.isneginf(measured) == zero).all(), name
        np.testing.assert_allclose(
            measured[~zero], np.array(values)[~zero], rtol=0, atol=TOLERANCE[dtype] / np.log(10), err_msg=name
        )


def adversarial(kind: str, cell: Cell, dtype: type) -> Trace:
    rng = np.random.default_rng(5)
    sequences, steps = {"B = 1": (1, 9), "B >> H": (40, 4), "H >> B": (2, 4)}.get(kind, (4, 9))
    if kind == "H >> B":
        cell = type(cell)(hidden_size=24)
    network = Network(cell, 2, 2, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Uniform(gain=1.5).draw(rng, network, np.float64)
    inputs, targets = rng.normal(size=(steps, sequences, 2)), rng.normal(size=(steps, sequences, 2))
    mask = np.zeros((steps, sequences), bool)
    mask[-1] = True
    named = network.parameters(theta)
    if kind == "cancelling":
        # Equal inputs in pairs, so equal outputs; opposite errors, but for a millionth.
        inputs[:, 1::2] = inputs[:, ::2]
        tape = network.forward(theta.astype(dtype), Batch(inputs, targets, mask).astype(dtype))
        error = rng.normal(size=(sequences // 2, 2))
        targets[-1, ::2] = tape.outputs[0, ::2] - error
        targets[-1, 1::2] = tape.outputs[0, 1::2] + error * (1 + 1e-6)
    elif kind == "constant inputs":
        inputs[:] = 1.0
    elif kind == "saturated":
        for name, value in named.items():
            if name.startswith("b_") and name != "b_y":
                value[:] = 12.0 if dtype is np.float32 else 25.0
    elif kind == "nothing scored in the middle":
        mask[:] = rng.random(mask.shape) < 0.5
        mask[3:6] = False
        mask[-1, 0] = True
    return run(network, theta.astype(dtype), Batch(inputs, targets, mask).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "cell",
    [RNN(3), RNN(3, 1, activation=Activation.relu), LSTM(3), LSTM(3, ablation=Ablation.no_forget_gate), GRU(3)],
    ids=cell_id,
)
@pytest.mark.parametrize(
    "kind",
    ["cancelling", "B = 1", "B >> H", "H >> B", "constant inputs", "saturated", "nothing scored in the middle"],
)
@pytest.mark.pairwise
def test_norms_are_exact_on_adversarial_batches(kind: str, cell: Cell, dtype: type) -> None:
    assert_norms_exact(adversarial(kind, cell, dtype), dtype)


def test_the_cancelling_batch_cancels() -> None:
    trace = adversarial("cancelling", LSTM(3), np.float64)
    (factor,) = (f for f in trace.factors if "b_c" in f.names)
    norm_of_sum = np.sqrt(np.square(factor.delta.plain().sum(axis=1)).sum(axis=(1, 2)))
    norm_of_parts = np.sqrt(np.square(factor.delta.plain()).sum(axis=(1, 2, 3)))
    assert (norm_of_sum / norm_of_parts < 1e-5).all()
    assert (norm_of_sum > 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_dead_relu_units_are_true_zeros(dtype: type) -> None:
    network = Network(RNN(4, 1, activation=Activation.relu), 2, 1, Loss.squared_error)
    theta = Uniform().draw(np.random.default_rng(0), network, dtype)
    network.parameters(theta)["b_h"][:] = -100
    trace = run(network, theta, Adding(length=8).sample(np.random.default_rng(0), 3).astype(dtype))
    measurement = ParamGradNorm().measure(network, trace)
    for name in ("W_xh", "W_hh", "b_h", "W_hy"):
        assert np.isneginf(measurement.values[:, measurement.names.index(name)]).all(), name
    assert np.isfinite(measurement.values[-1, measurement.names.index("b_y")])
    assert GradNorm().measure(network, trace).values[-1] > -10


def test_a_squared_norm_below_float64_is_not_a_false_zero() -> None:
    """Elements of 1e-170 in float64: the square is below 1e-308."""
    from gradpath.core.scaled import Scaled

    values = np.full((2, 3), 1e-170)
    assert Scaled(values, np.zeros(2, np.int32)).log10_norm() == pytest.approx(-170 + np.log10(3) / 2)
    values32 = np.full((2, 3), 1e-30, np.float32)
    assert Scaled(values32, np.zeros(2, np.int32)).log10_norm() == pytest.approx(-30 + np.log10(3) / 2)
    zero = Scaled(np.zeros((2, 3)), np.array([5, -3], np.int32)).log10_norm()
    assert np.isneginf(zero).all()


def test_a_sequence_that_vanishes_beside_another_is_kept() -> None:
    """The second sequence's loss is 2^-600 of the first's; both adjoints are carried, each with its
    own exponent.
    """
    network = Network(RNN(2), 1, 1, Loss.squared_error)
    theta = Uniform().draw(np.random.default_rng(0), network, np.float64)
    batch = Batch(np.zeros((3, 2, 1)), np.zeros((3, 2, 1)), np.array([[False] * 2, [False] * 2, [True] * 2]))
    trace = run(network, theta, batch)
    direct = trace.direct["H"].array.copy()
    direct[-1, 1] *= 2.0**-600
    from gradpath.core.scaled import Scaled

    weights, tape = next(network.layer_weights(theta[None])), trace.tape.layers[0].with_seed_axis()
    received = Scaled(direct[:, None], trace.direct["H"].exponent[:, None])
    adjoint = backward(network.cell, weights, tape, received, workspace=Workspace()).states["H"].seed(0)
    first, second = (adjoint.array[0, b] for b in range(2))
    powers = adjoint.exponent[0]
    np.testing.assert_allclose(first * 2.0 ** (powers[0] - powers[1] - 600), second, rtol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Activation.tanh, Activation.sigmoid], ids=lambda kind: kind.name)
def test_derivatives_of_saturated_units_are_right_and_not_zero(kind: Activation, dtype: type) -> None:
    """From the output they would be 0 at x = 9 (tanh, float32), 17 (σ, float32), 19 (tanh,
    float64).
    """
    from gradpath.core.activations import derivative

    mpmath.mp.dps = 60
    reach = (40 if kind is Activation.tanh else 80) * (1 if dtype is np.float32 else 8)
    x = np.linspace(-reach, reach, 401).astype(dtype)
    slopes = derivative(kind, x)
    assert slopes.dtype == dtype
    for argument, value in zip(x.tolist(), slopes.tolist(), strict=True):
        reference = mpmath.sech(argument) ** 2 if kind is Activation.tanh else 1 / (2 + 2 * mpmath.cosh(argument))
        assert abs(value / reference - 1) < 8 * np.finfo(dtype).eps * max(1, abs(argument) / 8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", list(Activation), ids=lambda kind: kind.name)
def test_slopes_from_the_output_lose_five_bits_at_most(kind: Activation, dtype: type) -> None:
    """Also where σ itself is off by ε/σ for x far below 0: there the slope
    comes from the argument.
    """
    from gradpath.core.activations import activate, derivative, slope

    x = np.linspace(-60, 60, 4001).astype(dtype)
    y = np.empty_like(x)
    activate(kind, x, y)
    np.testing.assert_allclose(slope(kind, x, y), derivative(kind, x), rtol=64 * np.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_relus_slope_is_0_or_1_even_where_the_network_has_blown_up(dtype: type) -> None:
    from gradpath.core.activations import activate, slope

    x = np.array([-np.inf, -1, 0, 1e-30, 5, np.inf, np.nan], dtype)
    y = np.empty_like(x)
    activate(Activation.relu, x, y)
    assert slope(Activation.relu, x, y).tolist() == [0, 0, 0, 1, 1, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_of_one_sequence_does_not_spoil_the_slopes_of_another(dtype: type) -> None:
    from gradpath.core.activations import derivative, slope

    x = np.array([9.5 if dtype is np.float32 else 19.5, np.nan, 0.1], dtype)
    slopes = slope(Activation.tanh, x, np.tanh(x))
    np.testing.assert_allclose(slopes[[0, 2]], derivative(Activation.tanh, x)[[0, 2]], rtol=64 * np.finfo(dtype).eps)
    assert np.isnan(slopes[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", [0.05, 30.0])
def test_the_summed_gradient_has_no_false_zero_where_one_small_step_is_all_there_is(dtype: type, weight: float) -> None:
    """An input at t = 1 only, the loss at the end: ∂L/∂W_xh is that of t = 1, however small beside
    the other δ.
    """
    network = Network(RNN(2, activation=Activation.relu), 1, 1, Loss.squared_error)
    theta = np.full(network.size, 0.5, dtype)
    network.parameters(theta)["W_hh"][:] = np.eye(2) * weight
    steps = 500 if weight < 1 else 25
    inputs, mask = np.zeros((steps, 1, 1)), np.zeros((steps, 1), bool)
    inputs[0], mask[-1] = 1, True
    trace = run(network, theta, Batch(inputs, np.zeros((steps, 1, 1)), mask).astype(dtype))
    measurement = ParamGradNorm().measure(network, trace)
    first_norm = measurement.values[0, measurement.names.index("W_xh")]
    assert np.isfinite(first_norm)
    assert trace.gradient.by_parameter["W_xh"] == pytest.approx(first_norm, abs=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saturated_network_is_measured_and_not_a_true_zero(dtype: type) -> None:
    """b_h = 15: φ′ = 4e-13 a step, below what 1 − tanh² can hold in float32."""
    network, theta, batch = tiny(RNN(2), 0.5, 30, dtype)
    network.parameters(theta)["b_h"][:] = 15
    gradients, states = reference(network, theta, batch)
    trace = run(network, theta, batch)
    measurement = StateGradNorm().measure(network, trace)
    np.testing.assert_allclose(measurement.values[::-1, measurement.names.index("H")], states["H"], rtol=0, atol=1e-3)
    parameters = ParamGradNorm().measure(network, trace)
    expected = [log10_norm(g) for g in gradients["b_h"]]
    np.testing.assert_allclose(parameters.values[::-1, parameters.names.index("b_h")], expected, rtol=0, atol=1e-3)
    assert min(expected) < -300


def test_clipping_where_the_readouts_gradient_overflows() -> None:
    """H at 4^40 with errors of its size: ∂L/∂W_hy is 10^49, beyond float32, though forward pass and
    loss are finite.
    """
    network = Network(RNN(2, 1, activation=Activation.relu), 1, 1, Loss.squared_error)
    results = {}
    for dtype in DTYPES:
        theta = np.zeros(network.size, dtype)
        named = network.parameters(theta)
        named["W_xh"][:], named["W_hh"][:], named["W_hy"][:] = 1, 4 * np.eye(2), [[1], [0.5]]
        mask = np.zeros((40, 3), bool)
        mask[-1] = True
        batch = Batch(np.ones((40, 3, 1)), np.zeros((40, 3, 1)), mask).astype(dtype)
        gradient = run(network, theta, batch).gradient
        results[dtype] = gradient.log10_norm, Threshold(max_norm=1.0).apply(gradient)[0].astype(np.float64)
    assert results[np.float32][0] == pytest.approx(results[np.float64][0], abs=1e-5)
    assert results[np.float64][0] > 38.6
    for _, clipped in results.values():
        assert np.linalg.norm(clipped) == pytest.approx(1, rel=1e-6)
    assert results[np.float32][1] @ results[np.float64][1] >= 1 - 1e-6
