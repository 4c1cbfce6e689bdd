"""Identities that hold for every cell, shape, mask, type and depth, on whatever hypothesis thinks
of.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import INPUTS, OUTPUTS, UNREAD, cells, random_batch
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.clippings.threshold import Threshold
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import assembled, per_step_gradients
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.tape import Batch
from gradpath.core.trace import Trace
from gradpath.inits.gaussian import Gaussian
from gradpath.inits.uniform import Uniform
from gradpath.instruments.grad_norm import GradNorm
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.instruments.state_grad_norm import StateGradNorm


@st.composite
def traces(draw: st.DrawFn, dtypes: tuple[type, ...] = (np.float32, np.float64)) -> Trace:
    """A trace of a random network on a random minibatch with a random mask."""
    base = draw(st.sampled_from(cells()))
    cell = replace(base, hidden_size=draw(st.integers(1, 6)), layers=draw(st.integers(1, 3)))
    loss, dtype = draw(st.sampled_from(list(Loss))), draw(st.sampled_from(dtypes))
    steps, sequences = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    network = Network(cell, INPUTS, OUTPUTS, loss, cell.layers, cell.initial_state)
    theta = Gaussian(gain=draw(st.sampled_from([0.01, 0.5, 1.5]))).draw(rng, network, dtype)
    mask = rng.random((steps, sequences)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    mask[draw(st.integers(0, steps - 1)), 0] = True
    batch = random_batch(rng, loss, mask, dtype)
    with np.errstate(over="ignore"):
        return network.backward(theta, network.forward(theta, batch))


TOLERANCE = {np.float32: 1e-4, np.float64: 1e-9}
"""Relative, of a norm."""

MANY_EXAMPLES = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@MANY_EXAMPLES
@given(traces())
def test_sum_over_time_is_the_gradient(trace: Trace) -> None:
    """To the rounding of a sum, which is that of its terms: of every sequence and step, before any
    of them cancel.
    """
    epsilon = float(np.finfo(trace.gradient.scaled.array.dtype).eps)
    sums, terms = {}, {}
    for factor in trace.factors:
        sizes = Scaled(np.abs(factor.delta.array), factor.delta.exponent)
        entered_sizes = None if factor.inputs is None else np.abs(factor.inputs)
        sum_of_sizes = (
            assembled(replace(factor, inputs=entered_sizes, delta=sizes), trace.tape.length).plain().sum(axis=0)
        )
        terms |= {name: sum_of_sizes[block] for block, name in enumerate(factor.names)}
    for packed in trace.packed:
        for part, total in packed.totals:
            values = total.plain()[0] if part.reads else total.plain()[0, 0]
            sums |= {name: values[..., k, :] for k, name in enumerate(part.names)}
    for name, steps in per_step_gradients(trace).items():
        total = sums[name]
        bound = 200 * epsilon * terms[name].max(initial=1e-30)
        np.testing.assert_allclose(steps.sum(axis=0), total, rtol=0, atol=bound, err_msg=name)


@MANY_EXAMPLES
@given(traces((np.float64,)))
def test_squared_norm_is_the_sum_of_all_inner_products(trace: Trace) -> None:
    """‖∂L/∂θ‖² = Σ_{s,t} ⟨∂L/∂θ_s, ∂L/∂θ_t⟩."""
    norms = GradNorm().measure(UNREAD, trace)
    for name, steps in per_step_gradients(trace).items():
        flat = steps.reshape(len(steps), -1)
        total = 10 ** (2 * norms.values[norms.names.index(name)])
        assert (flat @ flat.T).sum() == pytest.approx(total, rel=1e-9, abs=1e-13 * max(1.0, np.square(flat).sum()))


@MANY_EXAMPLES
@given(traces())
def test_norms_equal_those_of_the_gradients_themselves(trace: Trace) -> None:
    measurement = ParamGradNorm().measure(UNREAD, trace)
    assert not np.isnan(measurement.values).any()
    assert not np.isposinf(measurement.values).any()
    for name, steps in per_step_gradients(trace).items():
        with np.errstate(divide="ignore"):
            naive = np.log10([np.linalg.norm(step) for step in steps])
        tolerance = TOLERANCE[trace.gradient.scaled.array.dtype.type] / np.log(10)
        np.testing.assert_allclose(measurement.values[:, measurement.names.index(name)], naive, rtol=0, atol=tolerance)


@MANY_EXAMPLES
@given(traces())
def test_states_before_the_first_loss_count_and_after_the_last_do_not(trace: Trace) -> None:
    measurement, last_scored = StateGradNorm().measure(UNREAD, trace), int(trace.tape.scored[-1])
    for column, _ in enumerate(measurement.names):
        assert np.isneginf(measurement.values[last_scored + 1 :, column]).all()
    parameters = ParamGradNorm().measure(UNREAD, trace)
    assert np.isneginf(parameters.values[last_scored + 1 :]).all()


@MANY_EXAMPLES
@given(traces(), st.floats(1e-6, 1e6))
def test_clipping_is_one_scalar(trace: Trace, limit: float) -> None:
    raw, scale_none = Threshold().apply(trace.gradient)
    clipped, scale = Threshold(max_norm=limit).apply(trace.gradient)
    assert scale_none == 1.0
    epsilon = float(np.finfo(raw.dtype).eps)
    np.testing.assert_allclose(clipped, raw * raw.dtype.type(scale), rtol=8 * epsilon, atol=1e-37)
    norm = float(np.linalg.norm(clipped.astype(np.float64)))
    assert norm <= limit * (1 + 8 * epsilon)
    if scale < 1:
        assert norm == pytest.approx(limit, rel=1e-6)
    else:
        assert clipped.tobytes() == raw.tobytes()


@MANY_EXAMPLES
@given(st.floats(-8, 8), st.integers(2, 60), st.integers(1, 5), st.integers(0, 1000))
def test_the_slope_of_the_cell_gradient_is_log_sigma_of_the_forget_bias(
    bias: float, steps: int, hidden: int, seed: int
) -> None:
    """Recurrent weights 0 and F constant: ∂L/∂C_{t-1} = σ(b_f) ∂L/∂C_t, to 1e-12."""
    trace = carousel(LSTM(hidden_size=hidden, forget_bias=bias), steps, seed)
    measurement = StateGradNorm().measure(UNREAD, trace)
    curve = measurement.values[::-1, measurement.names.index("C")]
    np.testing.assert_allclose(np.diff(curve), -np.log1p(np.exp(-bias)) / np.log(10), rtol=0, atol=1e-12)


@MANY_EXAMPLES
@given(st.integers(2, 80), st.integers(1, 5), st.booleans(), st.integers(0, 1000))
def test_the_cell_of_1997_has_slope_exactly_zero(steps: int, hidden: int, float32: bool, seed: int) -> None:
    """F ≡ 1 and the gradient truncated to the cell: the constant error carousel, with any recurrent
    weights.
    """
    cell = LSTM(hidden_size=hidden, ablation=Ablation.no_forget_gate, truncate=True)
    trace = carousel(cell, steps, seed, recurrent=True, dtype=np.float32 if float32 else np.float64)
    measurement = StateGradNorm().measure(UNREAD, trace)
    curve = measurement.values[:, measurement.names.index("C")]
    assert np.isfinite(curve).all()
    assert (curve == curve[0]).all()


def carousel(cell: Cell, steps: int, seed: int, recurrent: bool = False, dtype: type = np.float64) -> Trace:
    """A last-step loss on a cell whose forget gate sees nothing but its bias."""
    rng = np.random.default_rng(seed)
    network = Network(cell, INPUTS, 1, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Uniform().draw(rng, network, dtype)
    for name, value in network.parameters(theta).items():
        if (name.endswith("h") and name.startswith("W") and not recurrent) or name == "W_fx":
            value[:] = 0
        elif "c" in name:
            value *= 0.05  # C sums up over the sequence; where tanh C rounds to 1, δC would be 0
    mask = np.zeros((steps, 3), bool)
    mask[-1] = True
    batch = Batch(rng.normal(size=(steps, 3, INPUTS)), rng.normal(size=(steps, 3, 1)) + 3, mask).astype(dtype)
    return network.backward(theta, network.forward(theta, batch))
