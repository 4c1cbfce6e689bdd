"""One unit on its error surface: against the scalar recursion of Pascanu et al. (2013), eq. 8,
written out.
"""

import math

import matplotlib
import numpy as np
import pytest

from gradpath.cells.rnn import RNN
from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.figures.cliff import FLOOR, Cliff
from gradpath.inits.constant import Constant
from gradpath.instruments import Schedule
from gradpath.tracking import loader
from gradpath.training.loop import Step, train

STEPS = 15
STUDY = ["+experiment=cliff", "init.jitter=0", f"train.steps={STEPS}", "instruments.loss_surface.points=7"]


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def error(w: float, b: float) -> tuple[float, float, float]:
    """(σ(x_50) − 0.7)² for x_t = w σ(x_{t−1}) + b, x_0 = 0.5, and its derivatives by w and b, by
    the chain rule.
    """
    x, by_w, by_b = 0.5, 0.0, 0.0
    for _ in range(50):
        s = sigma(x)
        by_w, by_b = s + w * s * (1 - s) * by_w, 1 + w * s * (1 - s) * by_b
        x = w * s + b
    y = sigma(x)
    outer = 2 * (y - 0.7) * y * (1 - y)
    return (y - 0.7) ** 2, outer * by_w, outer * by_b


def descent(w: float, b: float, lr: float, max_norm: float, steps: int) -> list[tuple[float, float, float]]:
    """(w, b, loss) before each update of gradient descent, and after the last."""
    path = []
    for _ in range(steps + 1):
        loss, by_w, by_b = error(w, b)
        path.append((w, b, loss))
        scale = min(1.0, max_norm / math.hypot(by_w, by_b))
        w, b = w - lr * scale * by_w, b - lr * scale * by_b
    return path


def run(*overrides: str) -> list[Step]:
    return list(train(compose.experiment([*STUDY, *overrides])))


@pytest.mark.parametrize(("arm", "max_norm"), [("rnn", math.inf), ("clipped_rnn", 1.0)])
def test_training_is_scalar_gradient_descent(arm: str, max_norm: float) -> None:
    """From a point on the cliff, where the first gradient is above max_norm, so that clipping acts
    at once.
    """
    start = ["init.w=4.5", "init.b=-2.3011", "optimizer.lr=0.02"]
    expected = descent(4.5, -2.3011, 0.02, max_norm, STEPS)
    assert math.hypot(*error(4.5, -2.3011)[1:]) > 10
    steps = run(*start, f"arm={arm}")
    names = steps[0].measurements["parameter_value"].names
    w, b = names.index("W_hh"), names.index("b_h")
    trajectory = [(*s.measurements["parameter_value"].values[[w, b]], s.loss) for s in steps]
    np.testing.assert_allclose(trajectory, expected, rtol=1e-7, atol=1e-12)


def test_the_surface_is_the_scalar_recursion() -> None:
    surface = run("train.steps=0", "instruments.loss_surface.points=23")[0].measurements["loss_surface"]
    assert surface.names == ("W_hh", "b_h", "loss")
    assert surface.values.shape == (23 * 23, 3)
    assert np.ptp(surface.values, axis=0)[:2] == pytest.approx((3.5, 2.3))
    assert (surface.values[:23, 0] == np.linspace(3.0, 6.5, 23)).all(), "x runs fastest"
    expected = [error(w, b)[0] for w, b in surface.values[:, :2]]
    np.testing.assert_allclose(surface.values[:, 2], expected, rtol=1e-9, atol=1e-15)


def test_the_surface_in_several_passes_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    in_one_pass = run("train.steps=0")[0].measurements["loss_surface"].values
    monkeypatch.setattr("gradpath.instruments.loss_surface.CHUNK_ELEMENTS", 50 * 10)
    assert run("train.steps=0")[0].measurements["loss_surface"].values.tobytes() == in_one_pass.tobytes()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "rmsprop"])
def test_a_readout_that_is_held_stays_bit_for_bit_and_one_that_is_not_moves(optimizer: str) -> None:
    def final_parameters(*overrides: str) -> dict[str, float]:
        values = run("init.readout=0.3", f"optimizer={optimizer}", *overrides)[-1].measurements["parameter_value"]
        return dict(zip(values.names, values.values.tolist(), strict=True))

    fixed_readout, trained_readout = final_parameters(), final_parameters("train.readout=true")
    assert (fixed_readout["W_hy"], fixed_readout["b_y"]) == (0.3, 0.0)
    assert fixed_readout["W_hh"] != 5.5
    assert fixed_readout["b_h"] != -2.6
    assert trained_readout["W_hy"] != 0.3
    assert trained_readout["b_y"] != 0.0


def test_clipping_does_not_see_a_readout_that_is_held_but_the_instruments_do() -> None:
    """The gradient at b_y is 2(y − 0.7), above this max_norm, that at w and b below it: nothing is
    to be clipped.
    """
    start = ["init.w=1", "init.b=-5", "clip.max_norm=0.5", "train.steps=0"]
    fixed_readout, trained_readout = run(*start)[0].measurements, run(*start, "train.readout=true")[0].measurements
    assert fixed_readout["clip_scale"].values.tolist() == [1.0]
    assert trained_readout["clip_scale"].values.item() < 0.5
    assert fixed_readout["grad_norm"].values.tobytes() == trained_readout["grad_norm"].values.tobytes()
    assert 10 ** fixed_readout["grad_norm"].values[-1] > 1


def test_holding_a_readout_whose_gradient_is_far_larger_loses_nothing() -> None:
    """In one array with it, under one exponent, the cell's gradient would be a false zero in
    float32.
    """
    network = Network(RNN(hidden_size=1), 1, 1, Loss.squared_error)
    theta = np.array([0, 1e-3, 0, 1e-30, 1e25], np.float32)  # W_xh, W_hh, b_h, W_hy, b_y
    batch = compose.experiment(["task=constant_target", "task.length=2"]).task.sample(np.random.default_rng(0), 1)
    trace = network.backward(theta, network.forward(theta, batch.astype(np.float32)))
    gradient = network.without_readout(trace)
    b_h = gradient.scaled.array[2] * 2.0 ** int(gradient.scaled.exponent)
    assert b_h == pytest.approx(2 * 1e25 * 1e-30 * (1 + 1e-3), rel=1e-5)
    assert gradient.log10_norm == pytest.approx(math.log10(b_h), abs=1e-6)
    assert not gradient.scaled.array[3:].any()


def test_constant_initialisation() -> None:
    network = Network(RNN(hidden_size=3), 2, 4, Loss.squared_error)
    p = network.parameters(Constant(w=2, b=-1, gain=1.5).draw(np.random.default_rng(0), network, np.float64))
    assert {name: set(value.ravel().tolist()) for name, value in p.items()} == {
        "W_xh": {0.0},
        "W_hh": {3.0},
        "b_h": {-1.0},
        "W_hy": {1.0},
        "b_y": {0.0},
    }
    same_seed, other_seed = (
        network.parameters(Constant(w=2, b=-1, jitter=0.5).draw(np.random.default_rng(seed), network, np.float64))
        for seed in (0, 1)
    )
    for name, centre in (("W_hh", 2), ("b_h", -1)):
        assert (same_seed[name] != other_seed[name]).all()
        assert 0 < np.abs(same_seed[name] - centre).max() <= 0.5
    assert not same_seed["b_y"].any()


def test_the_elements_of_theta_by_name() -> None:
    network = Network(RNN(hidden_size=2), 1, 1, Loss.squared_error)
    names = ("W_xh[0,0]", "W_xh[0,1]", "W_hh[0,0]", "W_hh[0,1]", "W_hh[1,0]", "W_hh[1,1]", "b_h[0]", "b_h[1]")
    assert network.elements == (*names, "W_hy[0,0]", "W_hy[1,0]", "b_y")
    theta = np.arange(11.0)
    assert network.parameters(theta)["W_hh"][1, 0] == theta[network.elements.index("W_hh[1,0]")]
    lstm = compose.experiment(["cell=lstm", "cell.hidden_size=1", "instruments=[parameter_value]", "train.steps=0"])
    values = next(iter(train(lstm))).measurements["parameter_value"]
    assert dict(zip(values.names, values.values, strict=True))["b_f"] == 1.0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            "cell.hidden_size=8",
            "instruments.parameter_value.network=89 parameters: must be at most 64; try cell=rnn cell.hidden_size=1",
        ),
        ("instruments.loss_surface.x=W_h", "instruments.loss_surface.x=W_h: must be one of W_xh, W_hh, b_h, W_hy, b_y"),
        ("instruments.loss_surface.y=W_hh", "instruments.loss_surface.y=W_hh: must be another element than x"),
        ("instruments.loss_surface.x_to=3", "instruments.loss_surface.x_to=3.0: must be > x_from=3.0"),
        ("instruments.loss_surface.points=1", "instruments.loss_surface.points=1: must be ≥ 2 and ≤ 150"),
        ("train.readout=[1]", "train.readout=[1]: must be true or false"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: str, message: str) -> None:
    with pytest.raises(compose.ConfigError) as error:
        compose.experiment([*STUDY, overrides])
    assert str(error.value) == message


def test_the_first_reading_of_a_run_of_no_steps_is_not_lost() -> None:
    assert Schedule(first=True, last=False).steps(0) == {0}
    assert Schedule(first=False, last=True).steps(0) == {0}
    assert Schedule(every=1, first=False, last=False).steps(3) == {1, 2}


def test_the_figure_draws_the_stored_trajectories(home) -> None:
    """From a start on the cliff at a rate that throws the unclipped run out of the frame; NaN
    nowhere.
    """
    matplotlib.use("Agg")
    start = ["init.w=4.5", "init.b=-2.3011"]
    for arm in ("rnn", "clipped_rnn"):
        for lr in (0.1, 0.2):
            overrides = [*STUDY, *start, f"arm={arm}", f"optimizer.lr={lr}", "tracking.experiment=cliff"]
            execute(compose.experiment(overrides), "s")
    runs = loader.load(None, "cliff", "s")
    assert runs[0].series["loss_surface"].values.shape == (1, 49, 3)
    canvas = Cliff().draw(runs)
    view = {axes.get_title(): axes for axes in canvas.axes}
    unclipped, clipped = (
        next(r for r in runs if r.arm == arm and r.config["optimizer"]["lr"] == 0.2) for arm in ("rnn", "clipped_rnn")
    )
    lines = {
        line.get_color(): line
        for line in view["the same from above, all steps"].lines
        if len(line.get_xdata()) == STEPS + 1
    }
    for run, color in ((unclipped, "#D55E00"), (clipped, "#E69F00")):
        np.testing.assert_array_equal(lines[color].get_xdata(), run.series["parameter_value"].column("W_hh"))
        np.testing.assert_array_equal(lines[color].get_ydata(), run.series["parameter_value"].column("b_h"))
    norms = {line.get_label(): line.get_ydata() for line in view["along these trajectories"].lines}
    expected_norm = math.log10(math.hypot(*error(*(unclipped.series["parameter_value"].values[0][[1, 2]]))[1:]))
    assert norms["RNN"][0] == pytest.approx(expected_norm, abs=1e-9), "of w and b alone, as clipping sees it"
    assert norms["RNN"].min() >= FLOOR
    text = " ".join(canvas.texts[-1].get_text().split())
    assert "1 seed a learning rate" in text
    last_point = unclipped.series["parameter_value"].values[-1]
    assert last_point[2] > -1.2, "thrown out of the frame"
    assert f"ends at W_hh = {last_point[1]:,.4g}, b_h = {last_point[2]:,.4g}" in text
