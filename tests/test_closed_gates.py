"""Gates that are all but closed or open: what they give out and let back, right to rounding of its
own size.
"""

from dataclasses import replace

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from conftest import UNREAD, Case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.rnn import RNN
from gradpath.clippings.threshold import Threshold
from gradpath.core.activations import Activation, activate, complement, derivative, mend_slope, slope
from gradpath.core.cell import Cell
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.inits.gaussian import Gaussian
from gradpath.instruments.gate_activation import GateActivation
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.instruments.state_grad_norm import StateGradNorm
from gradpath.optimizers.sgd import SGD
from gradpath.tasks.adding import Adding
from gradpath.training.experiment import Experiment, Train
from gradpath.training.loop import train
from test_exactness import DTYPES, TOLERANCE, log10_norm, lstm_reference, run, sigma, tanh, to_mp

DIGITS = 400
"""1 − σ(200) in 400 digits has 300 left."""

EXACT = {
    "σ": lambda a: 1 / (1 + mpmath.exp(-a)),
    "1 − σ": lambda a: 1 / (1 + mpmath.exp(a)),
    "tanh": mpmath.tanh,
    "relu": lambda a: max(a, 0),
    "σ′": lambda a: 1 / (2 + 2 * mpmath.cosh(a)),
    "tanh′": lambda a: mpmath.sech(a) ** 2,
    "relu′": lambda a: int(a > 0),
}


def computed_at(name: str, x: np.ndarray) -> np.ndarray:
    kind = {"σ": Activation.sigmoid, "t": Activation.tanh, "r": Activation.relu, "1": Activation.sigmoid}[name[0]]
    y = np.empty_like(x)
    if name.startswith("1"):
        complement(x, y)
    elif name.endswith("′"):
        y = derivative(kind, x)
    else:
        activate(kind, x, y)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_nonlinearities_are_right_to_rounding_wherever_they_are_normal_numbers(name: str, dtype: type) -> None:
    mpmath.mp.dps = 60
    limits = np.finfo(dtype)
    x = np.concatenate([np.linspace(-700, 700, 701), np.linspace(-110, 110, 441), np.linspace(-3, 3, 31)])
    x = x.astype(dtype)
    with np.errstate(all="raise"):
        computed = computed_at(name, x)
    assert computed.dtype == dtype
    for argument, value in zip(x.tolist(), computed.tolist(), strict=True):
        reference = EXACT[name](mpf(argument))
        if abs(reference) >= limits.tiny:
            assert abs(mpf(value) / reference - 1) < 8 * limits.eps, argument
        else:  # neither negative nor more than the smallest normal number
            assert 0 <= value <= limits.tiny, argument


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [Activation.sigmoid, Activation.tanh], ids=lambda kind: kind.name)
def test_the_slopes_of_a_pass_are_those_of_the_argument(kind: Activation, dtype: type) -> None:
    """From the output where nothing cancels, to five bits; and the least of them, of which no zero
    may be hidden.
    """
    limit = -np.log(float(np.finfo(dtype).tiny)) / (1 if kind is Activation.sigmoid else 2)
    x = np.linspace(-limit + 1, limit - 1, 4001).astype(dtype)
    y = np.empty_like(x)
    activate(kind, x, y)
    reference = derivative(kind, x)
    slopes = slope(kind, x, y)
    np.testing.assert_allclose(slopes, reference, rtol=64 * np.finfo(dtype).eps, atol=0)
    assert mend_slope(kind, x, slopes) == reference.min() > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_has_blown_up_stays_so(dtype: type) -> None:
    x = np.array([-np.inf, np.inf, np.nan], dtype)
    np.testing.assert_array_equal(computed_at("σ", x), [0, 1, np.nan])
    np.testing.assert_array_equal(computed_at("1 − σ", x), [1, 0, np.nan])
    np.testing.assert_array_equal(computed_at("tanh′", x), [0, 0, np.nan])
    np.testing.assert_array_equal(computed_at("relu′", x), [0, 1, np.nan])


def test_a_relu_that_has_blown_up_is_not_shown_as_one_that_is_off() -> None:
    """Its φ′ was read as 0 everywhere, so that a network of NaN was drawn as 100 % saturated."""
    network = Network(RNN(2, activation=Activation.relu), 2, 1, Loss.squared_error)
    theta = np.full(network.size, 1e38, np.float32)
    network.parameters(theta)["W_hh"][1] = -1e38  # ∞ − ∞ in the second step
    batch = Adding(length=6).sample(np.random.default_rng(0), 2).astype(np.float32)
    measurement = GateActivation().measure(network, run(network, theta, batch))
    assert np.isnan(measurement.values[-1, measurement.names.index("phi_prime/mean")])


# References in 400 digits, beside those of test_exactness.


def rnn_reference(p, x, y):
    h = [to_mp(np.zeros((len(y), 2)))]
    for x_t in x:
        h.append(sigma(x_t @ p["W_xh"] + h[-1] @ p["W_hh"] + p["b_h"]))
    d_h = 2 * (h[-1] @ p["W_hy"] + p["b_y"] - y) / len(y) @ p["W_hy"].T
    norms, states = {}, {"H": []}
    for t in range(len(x), 0, -1):
        states["H"].append(log10_norm(d_h))
        d_a = d_h * h[t] * (1 - h[t])
        for name, g in (("W_xh", x[t - 1].T @ d_a), ("W_hh", h[t - 1].T @ d_a), ("b_h", d_a.sum(axis=0))):
            norms.setdefault(name, []).append(g)
        d_h = d_a @ p["W_hh"].T
    return norms, states


def coupled_reference(p, x, y):
    """F = 1 − I = σ(−a_i): the LSTM whose W_f is −W_i. Its two gradients at a_i then are one."""
    parameters = p | {name.replace("_i", "_f"): -value for name, value in p.items() if "_i" in name}
    norms, states = lstm_reference(parameters, x, y)
    for name in ("W_ix", "W_ih", "b_i"):
        paired = norms.pop(name.replace("_i", "_f"))
        norms[name] = [of_i - of_f for of_i, of_f in zip(norms[name], paired, strict=True)]
    return norms, states


def gru_reference(p, x, y):
    h, gates = [to_mp(np.zeros((len(y), 2)))], []
    for x_t in x:
        z, r = (sigma(x_t @ p[f"W_{k}x"] + h[-1] @ p[f"W_{k}h"] + p[f"b_{k}"]) for k in "zr")
        q = h[-1] @ p["W_nh"] + p["b_q"]
        n = tanh(x_t @ p["W_nx"] + p["b_n"] + r * q)
        gates.append((z, r, q, n))
        h.append(z * h[-1] + (1 - z) * n)
    d_h = 2 * (h[-1] @ p["W_hy"] + p["b_y"] - y) / len(y) @ p["W_hy"].T
    norms, states = {}, {"H": []}
    for t in range(len(x), 0, -1):
        z, r, q, n = gates[t - 1]
        states["H"].append(log10_norm(d_h))
        d_n = d_h * (1 - z) * (1 - n * n)
        d = {"z": d_h * (h[t - 1] - n) * z * (1 - z), "r": d_n * q * r * (1 - r), "n": d_n, "q": d_n * r}
        of_h = {"W_zh": d["z"], "W_rh": d["r"], "W_nh": d["q"]}
        for k, d_a in d.items():
            norms.setdefault(f"b_{k}", []).append(d_a.sum(axis=0))
            if k != "q":
                norms.setdefault(f"W_{k}x", []).append(x[t - 1].T @ d_a)
        for name, d_a in of_h.items():
            norms.setdefault(name, []).append(h[t - 1].T @ d_a)
        d_h = z * d_h + sum((d_a @ p[name].T for name, d_a in of_h.items()), 0 * d_h)
    return norms, states


CELLS = {
    "LSTM": (LSTM(2), lstm_reference, ["b_f", "b_i", "b_o", "b_f b_i b_o"]),
    "coupled": (LSTM(2, ablation=Ablation.coupled_gates), coupled_reference, ["b_i", "b_o"]),
    "GRU": (GRU(2), gru_reference, ["b_z", "b_r"]),
    "sigmoid RNN": (RNN(2, activation=Activation.sigmoid), rnn_reference, ["b_h"]),
}


def closed(cell: Cell, biases: str, value: float, dtype: type, zero_recurrence: bool = False) -> Case:
    """A network with some biases held at ``value``; if ``zero_recurrence``, W_·h = 0, so that the
    gradient flows through the carousel alone.
    """
    network = Network(cell, 2, 1, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Gaussian(gain=0.7).draw(np.random.default_rng(1), network, dtype)
    for name, parameter in network.parameters(theta).items():
        if name in biases.split():
            parameter[:] = value
        elif zero_recurrence and name.startswith("W_") and name.endswith("h"):
            parameter[:] = 0
    steps = 12 if zero_recurrence else 4
    return Case(network, theta, Adding(length=steps).sample(np.random.default_rng(2), 2).astype(dtype))


def assert_right(case: Case, reference, dtype: type) -> None:
    """Every norm at every lag; and ∂L/∂θ itself where float64 can hold a product of two of its
    factors.
    """
    mpmath.mp.dps = DIGITS
    trace = run(case.network, case.theta, case.batch)
    tape = trace.tape
    p = {k: to_mp(v) for k, v in case.network.parameters(tape.theta.astype(np.float64)).items()}
    x = [to_mp(row) for row in tape.batch.inputs.astype(np.float64)]
    gradients, states = reference(p, x, to_mp(tape.batch.targets[-1].astype(np.float64)))
    tolerance = TOLERANCE[dtype] / np.log(10)
    expected = {name: [log10_norm(g) for g in values] for name, values in gradients.items()}
    for measurement, norms in (
        (ParamGradNorm().measure(UNREAD, trace), expected),
        (StateGradNorm().measure(UNREAD, trace), states),
    ):
        for name, values in norms.items():
            measured = measurement.values[::-1, measurement.names.index(name)]
            assert (np.isneginf(measured) == np.isneginf(values)).all(), name
            nonzero = ~np.isneginf(values)
            np.testing.assert_allclose(
                measured[nonzero], np.array(values)[nonzero], rtol=0, atol=tolerance, err_msg=name
            )
    for name, values in gradients.items():
        total = log10_norm(sum(values))
        if total > -280:
            assert trace.gradient.by_parameter[name] == pytest.approx(total, abs=tolerance), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-200, -100, -20, -10, 20, 60])
@pytest.mark.parametrize(("name", "biases"), [(name, b) for name, (*_, each) in CELLS.items() for b in each])
@pytest.mark.pairwise
def test_norms_with_closed_and_open_gates_equal_arbitrary_precision(
    name: str, biases: str, value: float, dtype: type
) -> None:
    """Also where a gate is no float32 at all: σ(−100) = 10^-43.4, σ(−200) = 10^-86.9."""
    cell, reference, _ = CELLS[name]
    assert_right(closed(replace(cell), biases, value, dtype), reference, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [-200, -100, -20, -10, 17])
def test_a_carousel_alone_keeps_what_its_gate_keeps(value: float, dtype: type) -> None:
    """W_·h = 0: ∂L/∂C_{t-1} is F ∘ ∂L/∂C_t. At b_f = −20 it was a true zero two steps from the end
    in float32.
    """
    assert_right(closed(LSTM(2), "b_f", value, dtype, zero_recurrence=True), lstm_reference, dtype)


def test_only_who_needs_float64_gets_it_and_a_neighbours_bits_do_not_change() -> None:
    network = Network(LSTM(2), 2, 1, Loss.squared_error)
    thetas = np.stack([Gaussian().draw(np.random.default_rng(s), network, np.float32) for s in range(3)])
    network.parameters(thetas[1])["b_f"][:] = -100
    batches = [Adding(length=6).sample(np.random.default_rng(s), 2).astype(np.float32) for s in range(3)]
    batched_traces = network.backward_seeds(thetas, *network.forward_seeds(thetas, batches))
    assert [trace.tape.theta.dtype for trace in batched_traces] == [np.float32, np.float64, np.float32]
    for theta, batch, trace in zip(thetas, batches, batched_traces, strict=True):
        single_trace = run(network, theta, batch)
        assert (
            ParamGradNorm().measure(network, single_trace).values.tobytes()
            == ParamGradNorm().measure(network, trace).values.tobytes()
        )
        assert single_trace.gradient.scaled.array.tobytes() == trace.gradient.scaled.array.tobytes()
        assert network.state_adjoints(theta, network.forward(theta, batch))["C"].array.tobytes() == (
            trace.states["C"].array.tobytes()
        )


def test_training_in_float32_stays_in_float32_with_a_closed_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = Experiment(
        cell=LSTM(2, forget_bias=-100.0),
        task=Adding(length=6),
        init=Gaussian(),
        optimizer=SGD(),
        clip=Threshold(),
        train=Train(steps=2, batch_size=2, eval_size=4),
    )
    types, original = [], SGD.update
    monkeypatch.setattr(SGD, "update", lambda *arguments: types.append(arguments[1].dtype) or original(*arguments))
    steps = list(train(experiment))
    assert types == [np.float32] * 2
    assert all(np.isfinite(step.log10_grad_norm) and not step.diverged for step in steps)
