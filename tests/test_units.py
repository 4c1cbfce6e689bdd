"""Initialisations, clipping and schedules: the numbers their docstrings promise."""

import numpy as np
import pytest

from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.clippings.threshold import Threshold
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Gradient
from gradpath.inits import Init
from gradpath.inits.constant import Constant
from gradpath.inits.gaussian import Gaussian
from gradpath.inits.identity import Identity
from gradpath.inits.orthogonal import Orthogonal
from gradpath.inits.pascanu_basic_tanh import PascanuBasicTanh
from gradpath.inits.pascanu_sigmoid import PascanuSigmoid
from gradpath.inits.pascanu_smart_tanh import PascanuSmartTanh
from gradpath.inits.uniform import Uniform
from gradpath.instruments import Schedule
from gradpath.optimizers.adam import Adam
from gradpath.optimizers.rmsprop import RMSProp
from gradpath.optimizers.sgd import SGD
from gradpath.schema.discovery import discover
from gradpath.schema.settings import SettingError


def draw_parameters(init: Init, cell: RNN | LSTM | None = None, seed: int = 0) -> dict[str, np.ndarray]:
    cell = cell or RNN(hidden_size=200)
    network = Network(cell, 3, 2, Loss.squared_error, layers=cell.layers)
    return network.parameters(init.draw(np.random.default_rng(seed), network, np.float64))


def radius(matrix: np.ndarray) -> float:
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def test_uniform_is_within_one_over_root_h() -> None:
    p = draw_parameters(Uniform())
    for name in ("W_xh", "W_hh", "W_hy", "b_h"):
        assert np.abs(p[name]).max() <= 200**-0.5
    assert np.abs(p["W_hh"]).max() > 0.99 * 200**-0.5


def test_gaussian_gain_is_the_spectral_radius() -> None:
    assert radius(draw_parameters(Gaussian(gain=1.3))["W_hh"]) == pytest.approx(1.3, rel=0.06)


def test_orthogonal() -> None:
    w = draw_parameters(Orthogonal(gain=1.5))["W_hh"]
    np.testing.assert_allclose(w @ w.T, 1.5**2 * np.eye(200), atol=1e-12)


def test_identity() -> None:
    p = draw_parameters(Identity(gain=0.5))
    assert (p["W_hh"] == 0.5 * np.eye(200)).all()
    assert p["W_xh"].std() == pytest.approx(0.001, rel=0.1)
    assert not p["b_h"].any()


@pytest.mark.parametrize(
    ("init", "std"), [(PascanuSigmoid(), 0.01), (PascanuBasicTanh(), 0.1)], ids=["sigmoid", "tanh"]
)
def test_pascanu_gaussian(init: Init, std: float) -> None:
    p = draw_parameters(init)
    for name in ("W_xh", "W_hh", "W_hy"):
        assert p[name].std() == pytest.approx(std, rel=0.1)
    assert not p["b_h"].any()


def test_pascanu_smart_tanh() -> None:
    p = draw_parameters(PascanuSmartTanh())
    assert ((p["W_hh"] != 0).sum(axis=1) == 15).all()
    assert radius(p["W_hh"]) == pytest.approx(0.95, rel=1e-9)
    assert p["W_xh"].std() == pytest.approx(0.01, rel=0.1)


def test_forget_bias_and_chrono() -> None:
    assert (draw_parameters(Uniform(), LSTM(hidden_size=5, forget_bias=3.0))["b_f"] == 3.0).all()
    p = draw_parameters(Uniform(), LSTM(hidden_size=2000, chrono_t_max=100))
    assert (p["b_i"] == -p["b_f"]).all()
    spans = np.exp(p["b_f"])
    assert 1 <= spans.min() < 1.5
    assert 97 < spans.max() <= 99
    assert np.median(spans) == pytest.approx(50, abs=3)


def test_every_init_in_a_stack_draws_each_block_anew() -> None:
    for name, cls in discover(Init).items():
        constant = cls is Constant  # draws only the recurrent weights and biases, and only with jitter
        p = draw_parameters(cls(jitter=0.1) if constant else cls(), LSTM(hidden_size=20, layers=2))
        assert all(np.isfinite(value).all() for value in p.values()), name
        source = "h" if constant else "x"
        assert (p[f"layer1/W_i{source}"] != p[f"layer1/W_f{source}"]).any(), name
        assert (p["layer2/b_f"] == 1.0).all(), name


def gradient(values: list[float], exponent: int = 0, dtype: type = np.float64) -> Gradient:
    scaled = Scaled(np.array(values, dtype), np.asarray(exponent, np.int32))
    return Gradient(scaled, float(scaled.log10_norm()), {})


def test_clipping_by_norm() -> None:
    clipped, scale = Threshold(max_norm=1.0).apply(gradient([3.0, 4.0]))
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-15)
    assert scale == pytest.approx(0.2)
    unchanged, scale = Threshold(max_norm=10.0).apply(gradient([3.0, 4.0]))
    assert unchanged.tolist() == [3.0, 4.0]
    assert scale == 1.0


def test_clipping_by_norm_where_the_gradient_overflows_its_type() -> None:
    clipped, scale = Threshold(max_norm=2.0).apply(gradient([0.3, -0.4], exponent=400, dtype=np.float32))
    np.testing.assert_allclose(clipped, [1.2, -1.6], rtol=1e-6)
    assert clipped.dtype == np.float32
    assert scale == pytest.approx(2.0 / 0.5 / 2.0**400)


def test_clipping_by_value_and_none() -> None:
    clipped, scale = Threshold(max_value=1.0).apply(gradient([3.0, -0.5]))
    assert clipped.tolist() == [1.0, -0.5]
    assert scale == pytest.approx(np.hypot(1, 0.5) / np.hypot(3, 0.5))
    assert Threshold().apply(gradient([3.0, 4.0]))[0].tolist() == [3.0, 4.0]
    with pytest.raises(SettingError, match="choose one"):
        Threshold(max_norm=1.0, max_value=1.0)


def test_updates_by_hand() -> None:
    """One update from rest, worked out on paper."""
    theta, g = np.array([1.0]), np.array([0.5])
    after_one, state = SGD(0.1, 0.9).update(theta, g, SGD().start(theta), 0)
    after_two, _ = SGD(0.1, 0.9).update(after_one, g, state, 1)
    assert (after_one.item(), after_two.item()) == pytest.approx((0.95, 0.95 - 0.1 * 0.95))
    assert RMSProp(0.1, 0.99).update(theta, g, RMSProp().start(theta), 0)[0].item() == pytest.approx(0.0, abs=1e-6)
    assert Adam(0.1).update(theta, g, Adam().start(theta), 0)[0].item() == pytest.approx(0.9)
    assert theta.item() == 1.0


def test_schedule() -> None:
    assert Schedule(every=4).steps(10) == {0, 4, 8, 10}
    assert Schedule(every=4, first=False, last=False).steps(10) == {4, 8}
    assert Schedule(first=True, last=True).steps(10) == {0, 10}
    spaced = sorted(Schedule(log_spaced=4).steps(1000))
    assert spaced == [0, 1, 10, 100, 1000]


@pytest.mark.parametrize("invalid", [0, -1])
def test_ranges_hold_for_direct_construction_too(invalid: int) -> None:
    with pytest.raises(SettingError, match="≥ 1"):
        LSTM(hidden_size=invalid)
    with pytest.raises(SettingError, match="> 0"):
        Threshold(max_norm=float(invalid))
    with pytest.raises(SettingError, match="> 0"):
        Adam(lr=float("nan"))


@pytest.mark.parametrize("optimizer", [RMSProp(0.1), Adam(0.1)], ids=["rmsprop", "adam"])
def test_one_huge_gradient_does_not_freeze_a_parameter_for_ever(optimizer: RMSProp | Adam) -> None:
    """In float32 the square of 1e21 is infinite, and an infinite mean square would stop every later
    update.
    """
    theta = np.zeros(2, np.float32)
    state = optimizer.start(theta)
    theta, state = optimizer.update(theta, np.array([1e21, 1], np.float32), state, 0)
    assert np.isfinite(theta).all()
    assert all(np.isfinite(value).all() for value in state.values())
    assert theta.dtype == np.float32
