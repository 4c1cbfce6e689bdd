"""Forward pass of the cells against the textbook's equations, written out here a second time."""

import numpy as np
import pytest

from conftest import make_case
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.losses import Loss, evaluate


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


def test_rnn_stack_feeds_each_layer_with_the_one_below() -> None:
    case = make_case(RNN(hidden_size=3, layers=2), Loss.squared_error, 4, True)
    p = case.network.parameters(case.theta)
    tape = case.network.forward(case.theta, case.batch)
    below, above = np.zeros((3, 3)), np.zeros((3, 3))
    for t, x in enumerate(case.batch.inputs):
        below = np.tanh(x @ p["layer1/W_xh"] + below @ p["layer1/W_hh"] + p["layer1/b_h"])
        above = np.tanh(below @ p["layer2/W_xh"] + above @ p["layer2/W_hh"] + p["layer2/b_h"])
        np.testing.assert_allclose(tape.layers[1].states["H"][t + 1], above, rtol=1e-12)


def test_names_of_the_twelve_parameters() -> None:
    case = make_case(LSTM(hidden_size=3), Loss.squared_error, 2, True)
    cell = ["W_ix", "W_fx", "W_ox", "W_cx", "W_ih", "W_fh", "W_oh", "W_ch", "b_i", "b_f", "b_o", "b_c"]
    assert list(case.network.parameters(case.theta)) == [*cell, "W_hy", "b_y"]


def test_sigmoid_of_huge_arguments_neither_overflows_nor_is_clipped() -> None:
    from gradpath.nonlinearities import Activation, activate

    x = np.array([-1e4, -700.0, -5.0, 0.0, 5.0, 1e4])
    with np.errstate(all="raise"):
        y = x.copy()
        activate(Activation.sigmoid, y)
    np.testing.assert_allclose(y[2:5], sigma(x[2:5]), rtol=1e-13)
    assert (y[0], y[-1]) == (0, 1)


def test_losses_are_means_over_scored_positions() -> None:
    rng = np.random.default_rng(0)
    y, mask = rng.normal(size=(2, 3, 4)), np.array([[True, False, True], [False, False, True]])
    symbols = rng.integers(0, 4, (2, 3))
    p = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    expected = -np.mean([np.log(p[t, b, symbols[t, b]]) for t, b in np.argwhere(mask)])
    np.testing.assert_allclose(evaluate(Loss.cross_entropy, y, symbols, mask)[0], expected, rtol=1e-13)
    numbers = rng.normal(size=(2, 3, 4))
    expected = np.mean([((y - numbers)[t, b] ** 2).sum() for t, b in np.argwhere(mask)])
    np.testing.assert_allclose(evaluate(Loss.squared_error, y, numbers, mask)[0], expected, rtol=1e-13)


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
    rest = 2 * np.exp(-margin)
    assert loss == pytest.approx(np.log1p(rest), rel=1e-6)
    each = np.exp(-margin) / (1 + rest)
    np.testing.assert_allclose(gradient[0, 0], [-2 * each, each, each], rtol=1e-6)


@pytest.mark.parametrize("kind", list(Loss))
def test_a_position_that_is_not_scored_has_gradient_zero_whatever_its_output(kind: Loss) -> None:
    outputs = np.array([[[np.inf, 1.0], [0.5, 1.0]]])
    targets = np.array([[0, 1]]) if kind is Loss.cross_entropy else np.zeros((1, 2, 2))
    loss, gradient = evaluate(kind, outputs, targets, np.array([[False, True]]))
    alone, expected = evaluate(kind, outputs[:, 1:], targets[:, 1:], np.array([[True]]))
    assert loss == alone
    assert gradient[0, 0].tolist() == [0, 0]
    assert gradient[0, 1].tolist() == expected[0, 0].tolist()
