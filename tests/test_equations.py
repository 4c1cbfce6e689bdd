"""Forward pass of the cells against the textbook's equations, written out here a second time."""

import numpy as np
import pytest

from conftest import make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.rnn import RNN
from gradpath.core.losses import Loss, evaluate


def sigma(x):
    return 1 / (1 + np.exp(-x))


def test_lstm() -> None:
    case = make_case(LSTM(hidden_size=3), Loss.squared_error, 5, True)
    p = case.network.parameters(case.theta)
    tape = case.network.forward(case.theta, case.batch).layers[0]
    h = c = np.zeros((3, 3))
    for t, x in enumerate(case.batch.inputs):
        i = sigma(x @ p["W_ix"] + h @ p["W_ih"] + p["b_i"])
        f = sigma(x @ p["W_fx"] + h @ p["W_fh"] + p["b_f"])
        o = sigma(x @ p["W_ox"] + h @ p["W_oh"] + p["b_o"])
        g = np.tanh(x @ p["W_cx"] + h @ p["W_ch"] + p["b_c"])
        c = f * c + i * g
        h = o * np.tanh(c)
        np.testing.assert_allclose(tape.states["C"][t + 1], c, rtol=1e-12)
        np.testing.assert_allclose(tape.states["H"][t + 1], h, rtol=1e-12)


@pytest.mark.parametrize("ablation", list(Ablation), ids=lambda a: a.name)
def test_ablations_of_the_lstm(ablation: Ablation) -> None:
    case = make_case(LSTM(hidden_size=3, ablation=ablation), Loss.squared_error, 5, True)
    p = case.network.parameters(case.theta)
    missing = {"no_input_gate": "i", "no_forget_gate": "f", "no_output_gate": "o", "coupled_gates": "f"}
    assert {name[2] for name in p if "y" not in name} == set("ifoc") - {missing.get(ablation.name)}
    tape = case.network.forward(case.theta, case.batch).layers[0]
    h = c = np.zeros((3, 3))
    for t, x in enumerate(case.batch.inputs):

        def a(gate: str, x=x, h=h):
            return x @ p[f"W_{gate}x"] + h @ p[f"W_{gate}h"] + p[f"b_{gate}"]

        i = 1 if ablation is Ablation.no_input_gate else sigma(a("i"))
        o = 1 if ablation is Ablation.no_output_gate else sigma(a("o"))
        f = {"coupled_gates": 1 - i, "no_forget_gate": 1}.get(ablation.name)
        f = sigma(a("f")) if f is None else f
        c = f * c + i * (a("c") if ablation is Ablation.no_input_nonlinearity else np.tanh(a("c")))
        h = o * (c if ablation is Ablation.no_output_nonlinearity else np.tanh(c))
        np.testing.assert_allclose(tape.states["C"][t + 1], c, rtol=1e-12)
        np.testing.assert_allclose(tape.states["H"][t + 1], h, rtol=1e-12)


def test_gru() -> None:
    case = make_case(GRU(hidden_size=3, initial_state=0.3), Loss.squared_error, 5, True)
    p = case.network.parameters(case.theta)
    tape = case.network.forward(case.theta, case.batch).layers[0]
    h = np.full((3, 3), 0.3)
    for t, x in enumerate(case.batch.inputs):
        z = sigma(x @ p["W_zx"] + h @ p["W_zh"] + p["b_z"])
        r = sigma(x @ p["W_rx"] + h @ p["W_rh"] + p["b_r"])
        n = np.tanh(x @ p["W_nx"] + p["b_n"] + r * (h @ p["W_nh"] + p["b_q"]))
        h = z * h + (1 - z) * n
        np.testing.assert_allclose(tape.states["H"][t + 1], h, rtol=1e-12)


def test_a_frozen_gate_is_constant_and_its_weights_get_no_gradient() -> None:
    case = make_case(LSTM(hidden_size=3, freeze_f=0.5), Loss.squared_error, 5, True)
    trace = case.trace
    tape = trace.tape.layers[0]
    np.testing.assert_allclose(
        tape.states["C"][1:], 0.5 * tape.states["C"][:-1] + tape.gates[..., 0, :] * tape.gates[..., 3, :], rtol=1e-12
    )
    assert trace.gradient.by_parameter["W_fx"] == trace.gradient.by_parameter["b_f"] == -np.inf


def test_rnn_stack_feeds_each_layer_with_the_one_below() -> None:
    case = make_case(RNN(hidden_size=3, layers=2), Loss.squared_error, 4, True)
    p = case.network.parameters(case.theta)
    tape = case.network.forward(case.theta, case.batch)
    lower_h, upper_h = np.zeros((3, 3)), np.zeros((3, 3))
    for t, x in enumerate(case.batch.inputs):
        lower_h = np.tanh(x @ p["layer1/W_xh"] + lower_h @ p["layer1/W_hh"] + p["layer1/b_h"])
        upper_h = np.tanh(lower_h @ p["layer2/W_xh"] + upper_h @ p["layer2/W_hh"] + p["layer2/b_h"])
        np.testing.assert_allclose(tape.layers[1].states["H"][t + 1], upper_h, rtol=1e-12)


def test_names_of_the_twelve_parameters() -> None:
    case = make_case(LSTM(hidden_size=3), Loss.squared_error, 2, True)
    cell = ["W_ix", "W_fx", "W_ox", "W_cx", "W_ih", "W_fh", "W_oh", "W_ch", "b_i", "b_f", "b_o", "b_c"]
    assert list(case.network.parameters(case.theta)) == [*cell, "W_hy", "b_y"]


def test_sigmoid_of_huge_arguments_neither_overflows_nor_is_clipped() -> None:
    from gradpath.core.activations import Activation, activate

    x = np.array([-1e4, -700.0, -5.0, 0.0, 5.0, 1e4])
    with np.errstate(all="raise"):
        y = np.empty_like(x)
        activate(Activation.sigmoid, x, y)
    np.testing.assert_allclose(y[2:5], sigma(x[2:5]), rtol=1e-13)
    assert (y[0], y[-1]) == (0, 1)


def test_losses_are_means_over_scored_positions() -> None:
    rng = np.random.default_rng(0)
    y, mask = rng.normal(size=(2, 3, 4)), np.array([[True, False, True], [False, False, True]])
    symbols = rng.integers(0, 4, (2, 3))
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    expected = -np.mean([np.log(p[t, b, symbols[t, b]]) for t, b in np.argwhere(mask)])
    np.testing.assert_allclose(evaluate(Loss.cross_entropy, y, symbols, mask)[0], expected, rtol=1e-13)
    values = rng.normal(size=(2, 3, 4))
    expected = np.mean([((y - values)[t, b] ** 2).sum() for t, b in np.argwhere(mask)])
    np.testing.assert_allclose(evaluate(Loss.squared_error, y, values, mask)[0], expected, rtol=1e-13)


def test_cross_entropy_of_huge_outputs_is_finite() -> None:
    loss, gradient = evaluate(
        Loss.cross_entropy, np.array([[[1e4, -1e4]]], np.float32), np.array([[1]]), np.array([[True]])
    )
    assert loss == 2e4
    np.testing.assert_allclose(gradient, [[[1, -1]]])


@pytest.mark.parametrize("margin", [0.5, 15.0, 18.0, 40.0])
def test_cross_entropy_of_a_confident_network_does_not_cancel(margin: float) -> None:
    """float32: 1 − p by subtraction is 27 % off at a margin of 15 and of the wrong sign at 18."""
    logits = np.array([[[margin, 0, 0]]], np.float32)
    loss, gradient = evaluate(Loss.cross_entropy, logits, np.array([[0]]), np.array([[True]]))
    others_mass = 2 * np.exp(-margin)
    assert loss == pytest.approx(np.log1p(others_mass), rel=1e-6)
    probability = np.exp(-margin) / (1 + others_mass)
    np.testing.assert_allclose(gradient[0, 0], [-2 * probability, probability, probability], rtol=1e-6)


@pytest.mark.parametrize("kind", list(Loss))
def test_a_position_that_is_not_scored_has_gradient_zero_whatever_its_output(kind: Loss) -> None:
    outputs = np.array([[[np.inf, 1.0], [0.5, 1.0]]])
    targets = np.array([[0, 1]]) if kind is Loss.cross_entropy else np.zeros((1, 2, 2))
    loss, gradient = evaluate(kind, outputs, targets, np.array([[False, True]]))
    scored_only, expected = evaluate(kind, outputs[:, 1:], targets[:, 1:], np.array([[True]]))
    assert loss == scored_only
    assert gradient[0, 0].tolist() == [0, 0]
    assert gradient[0, 1].tolist() == expected[0, 0].tolist()
