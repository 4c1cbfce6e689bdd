"""The figures ``ablation`` and ``forget_bias``, drawn from stored records of tiny runs, against
naive computations.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Rectangle

from conftest import settle
from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.figures import CannotDrawError
from gradpath.figures._shared import common
from gradpath.figures.ablation import Ablation
from gradpath.figures.forget_bias import ForgetBias
from gradpath.tracking import loader
from gradpath.tracking.loader import Run, Series

matplotlib.use("Agg")
SMALL = ["cell.hidden_size=4", "train.batch_size=3", "train.eval_size=20", "train.steps=4", "train.eval_every=2"]
ARMS = ("chrono_lstm", "ablation/no_forget_gate", "ablation/coupled_gates", "chrono_gru", "rnn")


@pytest.fixture(scope="module")
def results_home(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        settle(tmp_path_factory.mktemp("home"), migrated_database, patch)
        yield


def stored(sweep: str, points: list[list[str]]) -> list[Run]:
    for point in points:
        execute(compose.experiment([*SMALL, *point]), sweep)
    return loader.load(None, "gradpath", sweep)


@pytest.fixture(scope="module")
def ablated(results_home: None) -> list[Run]:
    return stored("a", [[f"arm={arm}", "task.length=12", f"seed={seed}"] for arm in ARMS for seed in (0, 1)])


@pytest.fixture(scope="module")
def biased(results_home: None) -> list[Run]:
    arms = ("forget_bias/1", "forget_bias/3", "chrono_lstm")
    points = [[f"arm={arm}", f"task.length={n}", f"seed={s}"] for arm in arms for n in (12, 24) for s in (0, 1)]
    return stored("b", points)


def caption(canvas: Canvas) -> str:
    return " ".join(canvas.texts[-1].get_text().split())


def with_outcome(run: Run, loss: float, solved: bool) -> Run:
    """The same run as if it had ended with this loss."""
    values = run.evaluation.values.copy()
    values[-1] = loss, loss, solved
    evaluation = Series(run.evaluation.names, run.evaluation.steps, values)
    return replace(run, evaluation=evaluation, tags=run.tags | {"solved": str(solved).lower()})


def carrier(run: Run) -> np.ndarray:
    """[probe, T] of the carrier, by hand."""
    series = run.series["state_grad_norm"]
    return series.values[:, :, series.names.index("C" if run.config["cell"]["name"] == "lstm" else "H")]


def test_ablation_has_two_panels_an_arm_with_the_stored_medians(ablated: list[Run]) -> None:
    canvas = Ablation().draw(ablated)
    titles = [axes.get_title() for axes in canvas.axes if axes.get_title()]
    assert titles == ["LSTM", "LSTM\ncoupled gates", "LSTM\nno forget gate", "RNN", "GRU"]
    arm_of_title = {"LSTM\nno forget gate": "lstm_no_forget_gate", "GRU": "gru", "RNN": "rnn"}
    for title, arm in arm_of_title.items():
        axes = next(axes for axes in canvas.axes if axes.get_title() == title)
        for lines, line_arm in ((axes.lines[:2], "lstm"), (axes.lines[2:4], arm)):
            for line, probe in zip(lines, (0, -1), strict=True):
                expected = np.median([carrier(run)[probe] for run in ablated if run.arm == line_arm], axis=0)
                np.testing.assert_allclose(line.get_ydata(), expected)
                assert line.get_xdata().tolist() == list(range(11, -1, -1))


def test_ablation_draws_loss_chance_and_who_has_solved(ablated: list[Run]) -> None:
    runs = [with_outcome(run, 0.001, True) if run.arm == "gru" and run.seed else run for run in ablated]
    canvas = Ablation().draw(runs)
    (gru,) = (canvas.axes[i + 5] for i, axes in enumerate(canvas.axes) if axes.get_title() == "GRU")
    assert gru.get_title(loc="right") == "1/2 solved"
    losses = [run.evaluation.values[:, 0] for run in runs if run.arm == "gru"]
    np.testing.assert_allclose(gru.lines[1].get_ydata(), np.median(np.log10(losses), axis=0))
    assert gru.lines[1].get_xdata().tolist() == [0, 2, 4]
    assert gru.lines[2].get_ydata()[0] == pytest.approx(np.log10(1 / 6))
    other_titles = [
        axes.get_title(loc="right") for axes in canvas.axes if axes is not gru and axes.get_title(loc="right")
    ]
    assert other_titles == ["0/2 solved"] * 4


def test_ablation_says_in_its_caption_what_the_runs_hold(ablated: list[Run]) -> None:
    text = caption(Ablation().draw(ablated))
    assert "2 seeds" in text
    for arm, label in (("lstm", "LSTM"), ("lstm_coupled_gates", "LSTM coupled gates"), ("rnn", "RNN")):
        before, after = (
            np.median([carrier(r)[probe][0] - carrier(r)[probe][-1] for r in ablated if r.arm == arm])
            for probe in (0, -1)
        )
        assert f"{label} {before:+.1f} → {after:+.1f}" in text


def test_a_seed_that_diverged_is_left_out_of_the_loss_where_it_has_none(ablated: list[Run]) -> None:
    run = next(run for run in ablated if run.arm == "gru")
    evaluation = Series(run.evaluation.names, run.evaluation.steps[:1], run.evaluation.values[:1])
    diverged = replace(run, evaluation=evaluation, tags=run.tags | {"diverged_at_step": "1", "solved": "true"})
    canvas = Ablation().draw([diverged if finished is run else finished for finished in ablated])
    (gru,) = (canvas.axes[i + 5] for i, axes in enumerate(canvas.axes) if axes.get_title() == "GRU")
    (finished,) = (r for r in ablated if r.arm == "gru" and r is not run)
    np.testing.assert_allclose(gru.lines[1].get_ydata()[1:], np.log10(finished.evaluation.values[1:, 0]))
    assert gru.get_title(loc="right") == "0/2 solved"


@pytest.mark.parametrize(("exponent", "label"), [(-30.0, "down to 10$^{-30}$"), (0.0, None), (9.0, "up to 10$^{9}$")])
def test_an_arm_that_leaves_the_axis_says_where_it_goes(ablated: list[Run], exponent: float, label: str | None) -> None:
    """The RNN as if it went from the LSTM's gradient at lag 0 to 10^end in a straight line."""
    start = np.median([carrier(run)[0][-1] for run in ablated if run.arm == "lstm"])

    def with_straight_line(run: Run) -> Run:
        series = run.series["state_grad_norm"]
        line = start + (exponent or 0) * run.lag / run.lag.max() - (start if exponent else 0) * run.lag / run.lag.max()
        values = np.broadcast_to(line[None, :, None], series.values.shape)
        return replace(run, series={"state_grad_norm": replace(series, values=values)})

    runs = [with_straight_line(run) if run.arm == "rnn" else run for run in ablated if run.arm != "gru"]
    texts = [text.get_text() for axes in Ablation().draw(runs).axes for text in axes.texts]
    assert texts == [label] * (label is not None)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        (("lstm", "rnn", "gru"), "no ablated cell among the runs; sweep cell.ablation"),
        (("lstm_coupled_gates", "rnn"), "needs one plain LSTM to compare with (cell.ablation=none); there is: none"),
    ],
)
def test_ablation_refuses_runs_without_comparison(ablated: list[Run], arms: tuple[str, ...], message: str) -> None:
    with pytest.raises(CannotDrawError) as error:
        Ablation().draw([run for run in ablated if run.arm in arms])
    assert str(error.value) == message


def test_ablation_refuses_runs_of_several_lengths_and_several_plain_lstms(ablated, biased) -> None:
    with pytest.raises(CannotDrawError, match=r"there is: LSTM, .*forget_bias=1.*; LSTM, .*forget_bias=3"):
        Ablation().draw([*ablated, *biased])
    longer = [run for run in biased if len(run.lag) == 24 and run.config["cell"]["chrono_t_max"]]
    with pytest.raises(CannotDrawError, match="one length; there are 12, 24 timesteps"):
        Ablation().draw([run for run in ablated if run.arm != "lstm"] + longer)


def naive_slope(run: Run) -> float:
    """Covariance over variance of lag and log10 ‖∂L/∂C_t‖ at initialisation."""
    lag = np.arange(len(run.lag))[::-1].astype(float)
    return float(np.cov(lag, carrier(run)[0], bias=True)[0, 1] / lag.var())


def slope_at(runs: list[Run], bias: float | None, length: int) -> float:
    """The median over the seeds at one point of the grid; bias None is chrono."""
    setting = (bias, length)
    cells = [(run, run.config["cell"]) for run in runs]
    matching = [r for r, c in cells if (None if c["chrono_t_max"] else c["forget_bias"], len(r.lag)) == setting]
    assert len(matching) == 2
    return float(np.median([naive_slope(run) for run in matching]))


def test_forget_bias_counts_and_colours_the_outcomes(biased: list[Run]) -> None:
    def with_loss(run: Run) -> Run:
        if run.config["cell"]["chrono_t_max"]:
            return with_outcome(run, 0.001, True)
        if run.config["cell"]["forget_bias"] == 3 and len(run.lag) == 12:
            return with_outcome(run, 0.001, True) if run.seed else with_outcome(run, 0.5 * run.chance_loss, False)
        return with_outcome(run, run.chance_loss, False)

    axes = ForgetBias().draw([with_loss(run) for run in biased]).axes[0]
    squares = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    shares = {}
    for square, text in zip(squares, axes.texts, strict=True):
        x, y = square.get_center()
        assert text.get_position() == pytest.approx((x, y))
        shares[float(x), round(float(2**y))] = text.get_text(), matplotlib.colors.to_hex(square.get_facecolor())
    chance, learnt, solved = ("#f3e3d7", "#7fb2d6", "#0b4f8a")
    assert shares.keys() == {(x, n) for x in (1.0, 3.0, 4.5) for n in (12, 24)}
    assert [shares[1.0, 12], shares[1.0, 24], shares[3.0, 24]] == [("0/2", chance)] * 3
    assert [shares[4.5, 12], shares[4.5, 24]] == [("2/2", solved)] * 2
    count, color = shares[3.0, 12]
    assert count == "1/2"
    midway = np.mean([matplotlib.colors.to_rgb(end) for end in (learnt, solved)], axis=0)
    np.testing.assert_allclose(matplotlib.colors.to_rgb(color), midway, atol=0.01)


def test_forget_bias_draws_the_predicted_horizon_and_slope(biased: list[Run]) -> None:
    upper, lower = ForgetBias().draw(biased).axes
    b, t = upper.lines[0].get_data()
    np.testing.assert_allclose(2**t, -1 / np.log(1 / (1 + np.exp(-b))), rtol=1e-9)
    line = next(line for line in lower.lines if "carousel" in str(line.get_label()))
    np.testing.assert_allclose(line.get_ydata(), -np.log10(1 + np.exp(-line.get_xdata())), rtol=1e-9)
    assert [label.get_text() for label in lower.get_xticklabels()] == ["1", "3", "chrono"]
    assert [label.get_text() for label in upper.get_yticklabels()] == ["12", "24"]


def test_forget_bias_draws_the_measured_horizon(biased: list[Run]) -> None:
    """Where the gradient does not fall with the lag there is none, and the line leaves through the
    top.
    """
    runs = []
    for run in biased:
        series = run.series["state_grad_norm"]
        rise = 1.0 * run.lag if run.config["cell"]["forget_bias"] == 3 else 0.0 * run.lag
        values = series.values + rise[None, :, None]
        runs.append(replace(run, series={"state_grad_norm": replace(series, values=values)}))
    axes = ForgetBias().draw(runs).axes[0]
    b, t = axes.lines[1].get_data()
    falling_slope, rising_slope = slope_at(runs, 1, 24), slope_at(runs, 3, 24)
    assert falling_slope < 0 < rising_slope
    assert list(b) == [1, 3]
    assert 2 ** t[0] == pytest.approx(-1 / (falling_slope * np.log(10)), rel=1e-9)
    assert axes.get_ylim()[1] < t[1] < np.inf


def test_forget_bias_measures_the_slope_and_compares_it_with_the_carousel(biased: list[Run]) -> None:
    canvas = ForgetBias().draw(biased)
    text = caption(canvas)
    assert "2 seeds" in text
    for points, length in zip(canvas.axes[1].containers, (12, 24), strict=True):
        assert points.get_label() == f"T = {length}"
        x, y = points.lines[0].get_data()
        np.testing.assert_allclose(x, [1, 3, 4.5], atol=0.1)
        np.testing.assert_allclose(y, [slope_at(biased, bias, length) for bias in (1, 3, None)], rtol=1e-9)
    excess = [slope_at(biased, bias, 24) + np.log10(1 + np.exp(-bias)) for bias in (1, 3)]
    assert "At T = 24 the measured slope lies above the carousel's" in text
    assert f"1: {excess[0]:+.3f}, 3: {excess[1]:+.3f}." in text


def test_a_gate_left_at_its_bias_has_the_predicted_slope(results_home: None) -> None:
    """With next to no weights the forget gate is σ(b_f) and the gradient is the carousel alone."""
    point = ["init=identity", "init.gain=1e-9", "init.std=1e-6", "task.length=24", "train.dtype=float64"]
    runs = stored("c", [[*point, f"arm=forget_bias/{b}", f"seed={s}"] for b in (1, 3) for s in (0, 1)])
    canvas = ForgetBias().draw(runs)
    (points,) = canvas.axes[1].containers
    b, slope = points.lines[0].get_data()
    np.testing.assert_allclose(b, [1, 3])
    np.testing.assert_allclose(slope, -np.log10(1 + np.exp(-b)), rtol=1e-5)
    assert "1: +0.000, 3: +0.000" in caption(canvas).replace("-0.000", "+0.000")


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        (lambda cell, length: cell["forget_bias"] == 3, "needs two initial biases of the keeping gate or more"),
        (lambda cell, length: cell["chrono_t_max"], "needs two initial biases of the keeping gate or more"),
        (
            lambda cell, length: cell["chrono_t_max"] or cell["forget_bias"] == 1 or length == 12,
            "the grid has holes: bias 3 at T=24",
        ),
        (lambda cell, length: not cell["chrono_t_max"] or length == 24, "the grid has holes: chrono at T=12"),
    ],
)
def test_forget_bias_refuses_what_is_no_grid(biased: list[Run], selected, message: str) -> None:
    with pytest.raises(CannotDrawError) as error:
        ForgetBias().draw([run for run in biased if selected(run.config["cell"], len(run.lag))])
    assert str(error.value).startswith(message)


def test_forget_bias_refuses_other_cells_and_other_settings(ablated: list[Run], biased: list[Run]) -> None:
    with pytest.raises(CannotDrawError, match="RNN: has no keeping gate that starts at a bias"):
        ForgetBias().draw([*biased, *(run for run in ablated if run.arm == "rnn")])
    other_rate = [
        replace(run, config=run.config | {"optimizer": run.config["optimizer"] | {"lr": 0.5}}) for run in biased
    ]
    with pytest.raises(
        CannotDrawError, match=r"more than the keeping gate's bias and length varies: .*lr=0\.001.* and .*lr=0\.5"
    ):
        ForgetBias().draw([*biased, *other_rate])


def test_the_carrier_is_that_of_the_bottom_layer_and_readings_with_nan_are_passed_over(results_home: None) -> None:
    (run,) = stored("d", [["arm=lstm", "cell.layers=2", "task.length=12"]])
    series = run.series["state_grad_norm"]
    np.testing.assert_array_equal(common.carrier_gradient(run, -1), series.column("layer1/C")[-1])
    values = series.values.copy()
    values[-1] = np.nan
    with_nan = replace(run, series={"state_grad_norm": replace(series, values=values)})
    np.testing.assert_array_equal(common.carrier_gradient(with_nan, -1), series.column("layer1/C")[-2])
    values[:] = np.nan
    with pytest.raises(CannotDrawError, match="no finite reading at initialisation"):
        common.carrier_gradient(with_nan, 0)


def test_labels_and_colours_of_ablations_and_the_gru(ablated: list[Run]) -> None:
    colors = {group.label: group.color for group in common.groups(ablated)}
    assert colors.keys() == {"RNN", "LSTM", "GRU", "LSTM, coupled gates", "LSTM, no forget gate"}
    assert len(set(colors.values())) == 5
    assert (colors["GRU"], colors["LSTM"]) == ("#009E73", "#0072B2")
    coupled = next(run for run in ablated if run.arm == "lstm_coupled_gates")
    assert common.arm_label(replace(coupled, arm="clipped_lstm_coupled_gates")) == "clipped LSTM, coupled gates"
    gru = next(run for run in ablated if run.arm == "gru")
    assert common.arm_label(replace(gru, arm="value_clipped_gru")) == "value-clipped GRU"
    custom = replace(gru, arm="my_cell", roles=replace(gru.roles, label="my_cell"))
    assert common.arm_label(custom) == "my_cell"
