"""The same networks written a second time, from the textbook, in PyTorch: autograd on untied copies
as the oracle.
"""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import INPUTS, Case, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.peephole_lstm import PeepholeLSTM
from gradpath.cells.rnn import RNN
from gradpath.core.activations import Activation
from gradpath.core.finite_differences import per_step_gradients, relative_error
from gradpath.core.losses import Loss
from gradpath.optimizers import Optimizer
from gradpath.optimizers.adam import Adam
from gradpath.optimizers.rmsprop import RMSProp
from gradpath.optimizers.sgd import SGD

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")


def rnn_step(phi: str) -> Callable:
    def step(x, states, p):
        (h,) = states
        return (getattr(torch, phi)(x @ p["W_xh"] + h @ p["W_hh"] + p["b_h"]),)

    return step


def lstm_step(ablation: str) -> Callable:
    missing = {"no_input_gate": "i", "no_forget_gate": "f", "no_output_gate": "o", "coupled_gates": "f"}.get(ablation)

    def step(x, states, p):
        h, c = states
        a = {g: x @ p[f"W_{g}x"] + h @ p[f"W_{g}h"] + p[f"b_{g}"] for g in "ifoc" if g != missing}
        a |= {g: a[g] + p[f"p_{g}"] * c for g in "if" if f"p_{g}" in p}
        i, f = (torch.sigmoid(a[g]) if g in a else 1.0 for g in "if")
        if ablation == "coupled_gates":
            f = 1 - i
        c = f * c + i * (a["c"] if ablation == "no_input_nonlinearity" else torch.tanh(a["c"]))
        peephole = p["p_o"] * c if "p_o" in p else 0.0
        o = torch.sigmoid(a["o"] + peephole) if "o" in a else 1.0
        return o * (c if ablation == "no_output_nonlinearity" else torch.tanh(c)), c

    return step


def gru_step(x, states, p):
    (h,) = states
    z, r = (torch.sigmoid(x @ p[f"W_{g}x"] + h @ p[f"W_{g}h"] + p[f"b_{g}"]) for g in "zr")
    n = torch.tanh(x @ p["W_nx"] + p["b_n"] + r * (h @ p["W_nh"] + p["b_q"]))
    return (z * h + (1 - z) * n,)


def autograd(case: Case, step: Callable, layers: int) -> tuple[dict[str, NDArray], dict[str, NDArray], float]:
    """∂L/∂θ_t of untied copies, total derivatives of the states by retained gradients of the
    unrolled graph, loss.
    """
    named = case.network.parameters(case.theta)
    steps, sequences = case.batch.mask.shape
    copies = [{k: torch.tensor(v, requires_grad=True) for k, v in named.items()} for _ in range(steps)]
    inputs = [torch.tensor(x) for x in case.batch.inputs]
    states_kept: dict[str, list] = {}
    for layer in range(layers):
        prefix = case.network.prefix(layer)
        width, names = case.network.cell.hidden_size, case.network.cell.states
        states = tuple(torch.zeros(sequences, width, dtype=inputs[0].dtype) for _ in names)
        outputs = []
        for t in range(steps):
            states = step(inputs[t], states, {k.removeprefix(prefix): v for k, v in copies[t].items()})
            for name, state in zip(names, states, strict=True):
                state.retain_grad()
                states_kept.setdefault(prefix + name, []).append(state)
            outputs.append(states[0])
        inputs = outputs
    y = torch.stack([h @ p["W_hy"] + p["b_y"] for h, p in zip(inputs, copies, strict=True)])
    mask = torch.tensor(case.batch.mask)
    target = torch.tensor(case.batch.targets)
    if case.network.loss is Loss.cross_entropy:
        loss = torch.nn.functional.cross_entropy(y[mask], target[mask])
    else:
        loss = ((y - target)[mask] ** 2).sum(dim=-1).mean()
    loss.backward()

    def grad(tensor) -> NDArray:
        return np.zeros(tensor.shape) if tensor.grad is None else tensor.grad.numpy()

    parameters = {k: np.stack([grad(p[k]) for p in copies]) for k in named}
    return parameters, {k: np.stack([grad(s) for s in v]) for k, v in states_kept.items()}, loss.item()


CELLS = [(RNN(4, n, activation=kind), rnn_step(kind.name)) for n in (1, 2, 3) for kind in Activation]
CELLS += [(LSTM(4, n), lstm_step("none")) for n in (1, 2, 3)]
CELLS += [(LSTM(4, ablation=kind), lstm_step(kind.name)) for kind in Ablation if kind is not Ablation.none]
CELLS += [(PeepholeLSTM(4, n), lstm_step("none")) for n in (1, 2, 3)]
CELLS += [(PeepholeLSTM(4, ablation=kind), lstm_step(kind.name)) for kind in Ablation if kind is not Ablation.none]
CELLS += [(GRU(4, n), gru_step) for n in (1, 2, 3)]


@pytest.mark.parametrize("every_step", [False, True], ids=["last-step", "every-step"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("loss", list(Loss), ids=lambda loss: loss.name)
@pytest.mark.parametrize(("cell", "step"), CELLS, ids=[str(cell) for cell, _ in CELLS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-9), (np.float32, 1e-4)], ids=["f64", "f32"])
def test_every_quantity_equals_autograd(cell, step, loss, steps, every_step, dtype, tolerance) -> None:
    case = make_case(cell, loss, steps, every_step, np.float64, seed=3)
    parameters, states, value = autograd(case, step, cell.layers)
    trace = make_case(cell, loss, steps, every_step, dtype, seed=3).trace
    assert trace.tape.loss == pytest.approx(value, rel=tolerance)
    gradients = per_step_gradients(trace)
    for name, expected in parameters.items():
        for t in range(steps):
            assert relative_error(gradients[name][t], expected[t]) < tolerance, (name, t)
    for name, expected in states.items():
        for t in range(steps):
            assert relative_error(trace.states[name].plain()[t], expected[t]) < tolerance, (name, t)


def test_the_gru_is_that_of_pytorch() -> None:
    """The same numbers as nn.GRU, its two biases of the gates being our one."""
    case = make_case(GRU(4), Loss.squared_error, 6, True)
    p = {name: torch.tensor(value) for name, value in case.network.parameters(case.theta).items()}
    torch_gru = torch.nn.GRU(INPUTS, 4).double()
    zero = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        torch_gru.weight_ih_l0[:] = torch.cat([p["W_rx"], p["W_zx"], p["W_nx"]], 1).T
        torch_gru.weight_hh_l0[:] = torch.cat([p["W_rh"], p["W_zh"], p["W_nh"]], 1).T
        torch_gru.bias_ih_l0[:] = torch.cat([p["b_r"], p["b_z"], p["b_n"]])
        torch_gru.bias_hh_l0[:] = torch.cat([zero, zero, p["b_q"]])
        expected = torch_gru(torch.tensor(case.batch.inputs))[0].numpy()
    np.testing.assert_allclose(case.trace.tape.layers[0].states["H"][1:], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "torch_optimizer"),
    [
        (SGD(0.1, 0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (RMSProp(0.01, 0.9, 1e-8), lambda p: torch.optim.RMSprop(p, 0.01, alpha=0.9, eps=1e-8)),
        (Adam(0.01, 0.9, 0.99, 1e-8), lambda p: torch.optim.Adam(p, 0.01, betas=(0.9, 0.99), eps=1e-8)),
    ],
    ids=["sgd", "rmsprop", "adam"],
)
def test_updates_equal_pytorch(optimizer: Optimizer, torch_optimizer: Callable) -> None:
    rng = np.random.default_rng(0)
    theta = rng.normal(size=7)
    parameter = torch.tensor(theta, requires_grad=True)
    reference, state = torch_optimizer([parameter]), optimizer.start(theta)
    for step in range(20):
        gradient = rng.normal(size=7)
        parameter.grad = torch.tensor(gradient)
        reference.step()
        theta, state = optimizer.update(theta, gradient, state, step)
        np.testing.assert_allclose(theta, parameter.detach().numpy(), rtol=1e-12)


def test_norm_clipping_equals_pytorch() -> None:
    from gradpath.clippings.threshold import Threshold

    case = make_case(LSTM(hidden_size=3), Loss.squared_error, 5, True)
    gradient = case.trace.gradient
    raw = torch.zeros(len(gradient.scaled.array), dtype=torch.float64)
    raw.grad = torch.tensor(gradient.scaled.plain())
    limit = 10**gradient.log10_norm / 3
    total = torch.nn.utils.clip_grad_norm_([raw], limit)
    clipped, scale = Threshold(max_norm=limit).apply(gradient)
    assert total.item() == pytest.approx(10**gradient.log10_norm, rel=1e-12)
    # PyTorch adds 1e-6 to the norm that it divides by.
    np.testing.assert_allclose(clipped, raw.grad.numpy() * (1 + 1e-6 / total.item()), rtol=1e-9)
    assert scale == pytest.approx(1 / 3, rel=1e-12)
