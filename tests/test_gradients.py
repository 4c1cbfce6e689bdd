"""Every per-timestep gradient of every cell against the definition, and against its own identities.

Any cell that is discovered runs through all of this without being named here.
"""

import copy

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Case, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.core.activations import Activation
from gradpath.core.finite_differences import (
    EPSILON,
    central_difference,
    per_step_gradients,
    pre_activations,
    relative_error,
    untied_differences,
    untied_loss,
)
from gradpath.core.losses import Loss, evaluate
from gradpath.core.network import Network
from gradpath.core.tape import Batch
from gradpath.instruments.grad_norm import GradNorm
from gradpath.instruments.param_grad_norm import ParamGradNorm
from gradpath.instruments.state_grad_norm import StateGradNorm


@pytest.mark.pairwise
def test_every_parameter_at_every_step_equals_untied_central_differences(case: Case) -> None:
    relu = getattr(case.network.cell, "activation", None) is Activation.relu
    reference = untied_differences(case.network, case.theta, case.batch, 1e-4 if relu else EPSILON)
    gradients = per_step_gradients(case.trace)
    assert gradients.keys() == reference.keys() == case.network.parameters(case.theta).keys()
    for name, expected in reference.items():
        for t in range(len(case.batch.mask)):
            assert relative_error(gradients[name][t], expected[t]) < 1e-7, (name, t)


@pytest.mark.pairwise
def test_the_untied_forward_pass_with_equal_copies_is_the_forward_pass(case: Case) -> None:
    thetas = np.tile(case.theta, (len(case.batch.mask), 1))
    assert untied_loss(case.network, thetas, case.batch) == pytest.approx(case.trace.tape.loss, rel=1e-13)


@pytest.mark.pairwise
def test_sum_over_time_is_the_gradient(case: Case) -> None:
    trace = case.trace
    total = case.network.parameters(trace.gradient.scaled.plain())
    for name, steps in per_step_gradients(trace).items():
        np.testing.assert_allclose(steps.sum(axis=0), total[name], rtol=1e-11, atol=1e-14 * np.abs(steps).max())


@pytest.mark.pairwise
def test_instruments_equal_a_naive_computation(case: Case) -> None:
    trace = case.trace
    measurement = ParamGradNorm().measure(case.network, trace)
    norms = GradNorm().measure(case.network, trace)
    with np.errstate(divide="ignore"):
        for name, steps in per_step_gradients(trace).items():
            naive = np.log10([np.linalg.norm(step) for step in steps])
            np.testing.assert_allclose(
                measurement.values[:, measurement.names.index(name)], naive, rtol=1e-12, atol=1e-12
            )
            naive_total = np.log10(np.linalg.norm(steps.sum(axis=0)))
            assert norms.values[norms.names.index(name)] == pytest.approx(naive_total, rel=1e-10, abs=1e-10)
    overall = np.log10(np.linalg.norm(trace.gradient.scaled.plain()))
    assert norms.values[norms.names.index("global")] == pytest.approx(overall, rel=1e-12)


@pytest.mark.pairwise
def test_total_state_derivatives_equal_central_differences(case: Case) -> None:
    """Perturb one element of a state where it leaves step t, and let the rest of the sequence
    follow.
    """
    trace, batch = case.trace, case.batch
    epsilon = 1e-4 if getattr(case.network.cell, "activation", None) is Activation.relu else EPSILON
    cell, steps = case.network.cell, len(batch.mask)
    for layer in range(cell.layers):
        for row, state in enumerate(cell.states):
            adjoint = trace.states[case.network.prefix(layer) + state].plain()
            for t in {0, steps // 2, steps - 1}:
                units = np.eye(adjoint[t].size).reshape(-1, *adjoint[t].shape)
                reference = central_difference(
                    lambda displacement, position=(layer, row, t), units=units: _losses_with_state_moved(
                        case, *position, displacement * units
                    ),
                    epsilon,
                )
                assert relative_error(adjoint[t], reference.reshape(adjoint[t].shape)) < 1e-7, (layer, state, t)


def _losses_with_state_moved(case: Case, layer: int, row: int, step: int, displacements: NDArray) -> NDArray:
    """The losses (N,) of textbook forward passes in which one state is moved by ``displacements``
    (N, B, H) as it leaves step ``step``.

    A cell whose H_t is computed from another state must see that state moved. Here those are the
    LSTMs: H_t = O_t ∘ tanh(C_t).
    """
    cell, network = case.network.cell, case.network
    inputs = case.batch.inputs
    for k, weights in enumerate(network.layer_weights(case.theta)):
        states = [np.zeros((inputs.shape[-2], cell.hidden_size)) for _ in cell.states]
        states[0] += network.initial_state
        outputs = []
        for t in range(inputs.shape[-3]):
            pre = pre_activations(cell, weights, inputs[..., t, :, :], states[0])
            states = [np.broadcast_to(state, (*pre.shape[:-2], cell.hidden_size)) for state in states]
            elementwise = weights.elementwise_by_name(cell)
            pre, gates, _, leave, *_ = cell.new_step(pre, states, elementwise)
            if (k, t) == (layer, step):
                leave[row] = leave[row] + displacements
                if cell.states[row] == "C":
                    linear = cell.variant == "no_output_nonlinearity"
                    leave[0] = leave[1] if linear else np.tanh(leave[1])
                    if "o" in cell.blocks:
                        o = gates[..., list(cell.blocks).index("o"), :]
                        if cell.elementwise:
                            a_o = pre[..., list(cell.blocks).index("o"), :] + elementwise["p_o"] * displacements
                            o = 1 / (1 + np.exp(-a_o))
                        leave[0] = o * leave[0]
            states = leave
            outputs.append(states[0])
        inputs = np.stack(np.broadcast_arrays(*outputs), axis=-3)
    w_hy, b_y = network.packed(case.theta)[-2:]
    y, count = inputs @ w_hy + b_y, len(displacements)
    targets, mask = (np.broadcast_to(array, (count, *array.shape)) for array in (case.batch.targets, case.batch.mask))
    return evaluate(network.loss, np.broadcast_to(y, (count, *y.shape[-3:])), targets, mask)[0]


def test_direct_derivative_of_a_last_step_loss_is_zero_before_the_end() -> None:
    case = make_case(LSTM(hidden_size=3), Loss.squared_error, 6, every_step=False)
    trace = case.trace
    direct, total = trace.direct["H"].plain(), trace.states["H"].plain()
    assert not direct[:-1].any()
    assert direct[-1].any()
    assert all(total[t].any() for t in range(6))
    measurement = StateGradNorm().measure(case.network, trace)
    assert np.isneginf(measurement.values[:-1, measurement.names.index("direct/H")]).all()
    assert np.isfinite(measurement.values[:, measurement.names.index("H")]).all()


def test_total_and_direct_derivative_of_doubling() -> None:
    """x_t = 2 x_{t-1} over three steps, loss x_3: the total derivatives are 4, 2, 1, the direct
    ones 0, 0, 1.
    """
    network = Network(RNN(hidden_size=1, activation=Activation.relu), 1, 1, Loss.squared_error)
    theta = np.zeros(network.size)
    named = network.parameters(theta)
    named["W_xh"][:], named["W_hh"][:], named["W_hy"][:] = 1, 2, 1
    inputs = np.array([1.0, 0, 0]).reshape(3, 1, 1)
    mask = np.array([[False], [False], [True]])
    targets = np.full((3, 1, 1), 3.5)  # the output is 4, so ∂L/∂y = 2 (4 − 3.5) = 1
    trace = network.backward(theta, network.forward(theta, Batch(inputs, targets, mask)))
    assert trace.tape.outputs.item() == 4
    assert trace.states["H"].plain().ravel().tolist() == [4, 2, 1]
    assert trace.direct["H"].plain().ravel().tolist() == [0, 0, 1]


@pytest.mark.pairwise
def test_pure_and_repeatable(case: Case) -> None:
    """A second pass is bit-equal and no argument is written to."""
    theta, batch = case.theta.copy(), copy.deepcopy(case.batch)
    tape = case.network.forward(case.theta, case.batch)
    original = copy.deepcopy(tape)
    first, second = (case.network.backward(case.theta, tape) for _ in range(2))
    assert first.gradient.scaled.array.tobytes() == second.gradient.scaled.array.tobytes()
    for first_factor, second_factor in zip(first.factors, second.factors, strict=True):
        assert first_factor.delta.array.tobytes() == second_factor.delta.array.tobytes()
    assert theta.tobytes() == case.theta.tobytes()
    assert batch.inputs.tobytes() == case.batch.inputs.tobytes()
    assert batch.targets.tobytes() == case.batch.targets.tobytes()
    for layer_before, layer_after in zip(original.layers, tape.layers, strict=True):
        assert layer_before.gates.tobytes() == layer_after.gates.tobytes()
        for name in layer_before.states:
            assert layer_before.states[name].tobytes() == layer_after.states[name].tobytes()
    assert original.loss_gradient.tobytes() == tape.loss_gradient.tobytes()


@pytest.mark.parametrize(
    "cell", [RNN(hidden_size=4), GRU(hidden_size=4), LSTM(hidden_size=4), LSTM(hidden_size=4, layers=2)], ids=str
)
@pytest.mark.parametrize("loss", list(Loss))
def test_float32_stays_float32_and_is_right(cell: RNN | GRU | LSTM, loss: Loss) -> None:
    case32, case64 = (make_case(cell, loss, 12, True, dtype) for dtype in (np.float32, np.float64))
    trace = case32.trace
    arrays = [trace.gradient.scaled.array, trace.tape.outputs, trace.tape.loss_gradient]
    arrays += [s.array for s in (*trace.states.values(), *trace.direct.values())]
    arrays += [f.delta.array for f in trace.factors] + [layer.gates for layer in trace.tape.layers]
    arrays += [s for layer in trace.tape.layers for s in (*layer.states.values(), *layer.saved.values())]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    reference = per_step_gradients(case64.trace)
    for name, gradient in per_step_gradients(trace).items():
        for t in range(12):
            assert relative_error(gradient[t], reference[name][t]) < 1e-4, (name, t)
