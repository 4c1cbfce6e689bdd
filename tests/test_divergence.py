"""Every figure, with records that diverged or were damaged: what is not finite is drawn and named
as what it is.
"""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.text import Text
from numpy.typing import NDArray

from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.figures import CannotDrawError, Figure
from gradpath.figures._shared import arms, common, finite, palette
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.testing._runs import as_diverged
from gradpath.tracking.loader import Run, Series
from gradpath.tracking.mlflow_metrics import lag_curves, non_finite_points, non_finite_readings
from gradpath.training.loop import train

matplotlib.use("Agg")
FIGURES = discover(Figure)
STEPS = 4
SMALL = ["task.length=6", "cell.hidden_size=2", "train.batch_size=3", "train.eval_size=9", f"train.steps={STEPS}"]
SMALL += ["train.eval_every=2"]
EVERYTHING = f"instruments=[{','.join(sorted(set(discover(Instrument)) - {'loss_surface', 'parameter_value'}))}]"
ARMS = [[*SMALL, EVERYTHING, f"arm={arm}"] for arm in ("rnn", "lstm")]
SWEEPS = {
    "flow": ARMS[1:],
    "counterfactual": ARMS[1:],
    "ablation": [[*SMALL, f"arm={arm}"] for arm in ("lstm", "ablation/no_forget_gate", "rnn")],
    "forget_bias": [[*SMALL, f"arm=forget_bias/{b}"] for b in (1, 3)],
    "spectral_radius": [[*SMALL, "cell=rnn", "init=gaussian", f"init.gain={g}"] for g in (0.5, 1.3)],
    "cliff": [
        ["+experiment=cliff", f"train.steps={STEPS}", "instruments.loss_surface.points=5", f"arm={arm}"]
        for arm in ("rnn", "clipped_rnn")
    ],
}
UNTRAINED = {"spectral_radius"}
"""Draws the initialisation alone."""
DRAWN_UNMASKED = {"exploding", "clipping_ledger", "cliff", "counterfactual"}
"""Draw some readings as they are, so that what is not finite has marks; in the others a title tells
of it.
"""


@cache
def record(*overrides: str) -> Run:
    """A run as it would come back from MLflow, without MLflow."""
    e = compose.experiment(list(overrides))
    steps = list(train(e))
    readings_by_key: dict[str, list] = {}
    for step in steps:
        for name, measurement in step.measurements.items():
            readings_by_key.setdefault(name, []).append((step.step, measurement))
    series = {
        name: Series(
            tuple(readings[0][1].names), np.array([s for s, _ in readings]), np.stack([m.values for _, m in readings])
        )
        for name, readings in readings_by_key.items()
    }
    evaluated = [(s.step, s.evaluation) for s in steps if s.evaluation]
    return Run(
        run_id=str(e.seed),
        name=e.run_name,
        arm=e.arm,
        config=e.resolved(),
        tags={"solved": "false", "diverged": "false"},
        lag=np.arange(e.task.timesteps)[::-1],
        loss=Series(("loss",), np.arange(len(steps)), np.array([s.loss for s in steps])),
        evaluation=Series(
            ("loss", "score", "solved"),
            np.array([s for s, _ in evaluated]),
            np.array([[v.loss, v.score, v.solved] for _, v in evaluated], dtype=float).reshape(-1, 3),
        ),
        series=series,
        chance_loss=float(e.task.chance_loss),
        longest_lag=e.task.lags[1],
        roles=e.cell.roles,
    )


def healthy(figure: str) -> tuple[tuple[Run, ...], ...]:
    """(arms, seeds) of the sweep that a figure is drawn from."""
    return tuple(tuple(record(*arm, f"seed={s}") for s in (0, 1, 2)) for arm in SWEEPS.get(figure, ARMS))


def last_reading(run: Run, value: float) -> Run:
    """The run with every last reading, and its last evaluation, damaged; nothing says that it
    diverged.
    """

    def damage(series: Series) -> Series:
        values = series.values.astype(float).copy()
        values[-1].reshape(-1)[::2] = value
        return replace(series, values=values)

    readings = {n: s if n in ("loss_surface", "theory", "reach") else damage(s) for n, s in run.series.items()}
    return replace(run, series=readings, evaluation=damage(run.evaluation))


KINDS: dict[str, Callable[[tuple[Run, ...]], list[Run]]] = {
    "one of three": lambda runs: [*runs[:2], as_diverged(runs[2], 3)],
    "all, at once": lambda runs: [
        as_diverged(run, 1, value) for run, value in zip(runs, (np.nan, np.inf, np.nan), strict=True)
    ],
}
SLOW_KINDS: dict[str, Callable[[tuple[Run, ...]], list[Run]]] = {
    "all, torn, at the last step": lambda runs: [as_diverged(run, STEPS, np.inf, 2) for run in runs],
    "one at initialisation": lambda runs: [*runs[:2], as_diverged(runs[2], 0)],
    "all at initialisation": lambda runs: [as_diverged(run, 0) for run in runs],
    "at several steps": lambda runs: [
        as_diverged(run, step, np.nan, 3) for run, step in zip(runs, (1, 2, 3), strict=True)
    ],
    "readings alone, nan": lambda runs: [last_reading(run, np.nan) for run in runs],
    "readings alone, inf": lambda runs: [*runs[:2], last_reading(runs[2], np.inf)],
    "no reading but the first": lambda runs: [first_readings(run) for run in runs],
}


def first_readings(run: Run) -> Run:
    """The run with its first readings alone, as with ``schedule.last=false``."""
    return replace(run, series={n: Series(s.names, s.steps[:1], s.values[:1]) for n, s in run.series.items()})


def draw_figure(figure: str, runs: list[Run]) -> Canvas:
    """Draws to the end, with every warning an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        canvas = FIGURES[figure]().draw(runs)
        canvas.draw_without_rendering()
    return canvas


def texts(canvas: Canvas) -> list[str]:
    return [" ".join(text.get_text().split()) for text in canvas.findobj(Text)]


def mark_ids(canvas: Canvas) -> set[str]:
    return {artist.get_gid() for artist in canvas.findobj() if artist.get_gid()}


def every_point_is_marked(canvas: Canvas) -> None:
    """What a line holds that is not finite has a mark in the same panel, of its kind and at its
    place.
    """
    for axes in canvas.axes:
        if axes.name == "3d":
            continue
        marks = {kind: [ln for ln in axes.lines if ln.get_gid() == kind.words] for kind in finite.KINDS}
        for line in axes.lines:
            if line.get_gid() or line.get_transform() != axes.transData:
                continue
            x, y = (np.ma.asarray(v, dtype=float) for v in line.get_data(orig=True))
            for kind, lines_of_kind in marks.items():
                for is_not_finite, coordinate, axis in ((kind.test(y), x, 0), (kind.test(x), y, 1)):
                    missing = np.ma.getdata(coordinate)[
                        np.ma.filled(is_not_finite, False) & np.isfinite(np.ma.filled(coordinate, np.nan))
                    ]
                    marked_coordinates = (
                        np.concatenate([ln.get_data()[axis] for ln in lines_of_kind]) if lines_of_kind else np.zeros(0)
                    )
                    assert np.isin(missing, marked_coordinates).all(), (axes.get_title(), kind.words)


def check(figure: str, kind: str, transform: Callable[[tuple[Run, ...]], list[Run]]) -> None:
    arms = healthy(figure)
    damaged_arms = arms[:1] if kind.startswith("one") else arms
    runs = [run for arm in damaged_arms for run in transform(arm)] + [
        run for arm in arms[len(damaged_arms) :] for run in arm
    ]
    diverged = [run for run in runs if run.diverged_at is not None]
    if kind == "all at initialisation" and figure not in {"exploding", "gradient_atlas"}:
        with pytest.raises(CannotDrawError, match="finite"):
            draw_figure(figure, runs)
        return
    canvas = draw_figure(figure, runs)
    drawn_texts = texts(canvas)
    text = " ".join(drawn_texts)
    for group in common.groups(runs):
        diverged_seeds = [run for run in group.runs if run.diverged_at is not None]
        if diverged_seeds and figure != "cliff":
            assert f"{group.label}: {len(diverged_seeds)} of {len(group.runs)} seeds diverged at step" in text
            remark = {0: "", 1: ", the other was trained to the end", 2: ", the other 2 were trained to the end"}
            assert remark[len(group.runs) - len(diverged_seeds)] in text
    assert bool(diverged) == ("diverged at step" in text)
    assert not re.search(r"(?<![\w-])[-+]?(nan|inf)\b", text), "a caption's numbers are not made from what is none"
    every_point_is_marked(canvas)
    if len(diverged) == len(runs):
        assert "after training" not in text
        if figure in DRAWN_UNMASKED | {"gradient_atlas"}:
            assert mark_ids(canvas), "the readings themselves are drawn"
        if figure not in DRAWN_UNMASKED | UNTRAINED | {"gradient_atlas", "forget_bias"}:
            assert "last finite reading, step" in text or "diverged at step 0: not finite" in text
    if kind == "no reading but the first" and figure not in UNTRAINED | {"forget_bias", "exploding", "cliff"}:
        titles = " ".join(texts(canvas))
        assert "last reading, step 0 of 4" in titles or figure in ("clipping_ledger", "gradient_atlas")
    if "solved" in text and diverged and figure in ("exploding", "clipping_ledger"):
        solved = f"solved by {sum(run.tags['solved'] == 'true' and run.diverged_at is None for run in runs[:3])} of 3"
        assert solved in text, "what diverged in the end has solved nothing"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_tells_of_a_divergence(figure: str, kind: str) -> None:
    check(figure, kind, KINDS[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW_KINDS)
@pytest.mark.parametrize("figure", FIGURES)
def test_every_figure_tells_of_every_damage(figure: str, kind: str) -> None:
    check(figure, kind, SLOW_KINDS[kind])


def test_a_healthy_sweep_has_no_mark_and_no_word_of_it() -> None:
    canvas = draw_figure("norm_by_lag", [run for arm in healthy("norm_by_lag") for run in arm])
    assert not mark_ids(canvas)
    assert "diverged" not in " ".join(texts(canvas))
    assert "after training gradient norm" in texts(canvas)


def lines(axes, color: str) -> list[NDArray]:
    return [ln.get_ydata() for ln in axes.lines if ln.get_color() == color and ln.get_marker() == "None"]


def test_norm_by_lag_says_of_which_step_a_reading_is_and_who_is_missing() -> None:
    rnn, lstm = healthy("norm_by_lag")
    runs = [*rnn[:2], as_diverged(rnn[2], 3), *(as_diverged(run, 3) for run in lstm)]
    canvas = draw_figure("norm_by_lag", runs)
    grid = np.reshape(canvas.axes[:9], (3, 3))
    assert [axes.get_title() for axes in grid[2, 1:]] == [
        "1 of 3 seeds diverged",
        "last finite reading, step 2 of 4;\ndiverged at step 3",
    ]
    assert grid[2, 0].get_ylabel().startswith("at the last finite reading")
    survivors = np.median([run.series["state_grad_norm"].column("H")[-1] for run in rnn[:2]], axis=0)
    np.testing.assert_allclose(lines(grid[2, 0], "#D55E00")[0], survivors, err_msg="of those that were trained")
    last_finite = [as_diverged(run, 3).series["state_grad_norm"].column("C")[-2] for run in lstm]
    np.testing.assert_allclose(lines(grid[2, 0], "#0072B2")[0], np.median(last_finite, axis=0))


def test_the_atlas_tells_true_zero_overflow_and_no_number_apart() -> None:
    (run, *_), _ = healthy("gradient_atlas")
    diverged = as_diverged(run, 3)
    values = diverged.series["param_grad_norm"].values
    values[-1, 0], values[-1, 1], values[-1, 2] = -np.inf, np.inf, np.nan
    canvas = draw_figure("gradient_atlas", [diverged])
    base, *covers = canvas.axes[0].images
    probes = len(values)
    rows = slice(probes - 1, None, probes)
    colors = {cover.get_gid(): cover.get_array()[rows] for cover in covers}
    assert colors.keys() == {kind.words for kind in finite.KINDS}
    for kind, column in ((finite.OVERFLOW, -2), (finite.NO_NUMBER, -3)):
        assert (colors[kind.words][:, column] == to_rgba(kind.color)).all()
        assert not colors[kind.words][:, -1, 3].any(), "over a true zero lies nothing"
    assert base.get_array().mask[rows, -1].all(), "and its colour is the map's for what has no logarithm"
    assert to_rgba(base.get_cmap().get_bad()) == to_rgba(palette.TRUE_ZERO)
    legend = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert legend == [kind.words for kind in finite.KINDS]
    assert "diverged at step 3" in canvas.axes[0].get_title()


def test_the_cliff_draws_a_surface_that_is_not_finite_as_such() -> None:
    unclipped, clipped = healthy("cliff")
    surface = unclipped[0].series["loss_surface"]
    values = surface.values.copy()
    values[0, 3, 2], values[0, 7, 2] = np.inf, np.nan
    damaged = replace(unclipped[0], series=unclipped[0].series | {"loss_surface": replace(surface, values=values)})
    canvas = draw_figure("cliff", [as_diverged(damaged, 3, np.inf), as_diverged(clipped[0], 2)])
    cells = {c.get_gid(): c.get_array() for axes in canvas.axes for c in axes.collections if c.get_gid()}
    assert {kind: int((~np.ma.getmaskarray(cell)).sum()) for kind, cell in cells.items()} == {
        finite.OVERFLOW.words: 1,
        finite.NO_NUMBER.words: 1,
    }
    assert "diverges at step 3, not solved" in " ".join(texts(canvas))


def test_a_curve_marks_every_seed_that_is_not_finite_and_not_what_was_not_read() -> None:
    from matplotlib import pyplot

    axes = pyplot.figure().subplots()
    x = np.arange(4)
    first_seed, second_seed = np.array([1.0, np.inf, 1.0, -np.inf]), np.array([3.0, 3.0, np.nan, -np.inf])
    common.curve(axes, x, [first_seed, second_seed, np.ma.masked_all(4)], floor=-5.0, color="red")
    line, zero, overflow, no_number = axes.lines
    assert np.ma.filled(line.get_ydata(orig=True), -1).tolist() == [2.0, -1, 1.0]
    assert (zero.get_xdata().tolist(), zero.get_ydata().tolist()) == ([3], [-5.0])
    assert (overflow.get_gid(), overflow.get_xdata().tolist()) == (finite.OVERFLOW.words, [1])
    assert (no_number.get_gid(), no_number.get_xdata().tolist()) == (finite.NO_NUMBER.words, [2])
    assert axes.get_ylim()[1] < 4, "a mark at the edge does not stretch the axis"


def test_a_number_without_a_neighbour_is_seen() -> None:
    """The loss before a divergence at the first update; what arrives at lag 0 alone. A line of one
    point shows none.
    """
    (run, *_), _ = healthy("exploding")
    canvas = draw_figure("exploding", [as_diverged(run, 1, np.inf)])
    (dot,) = [line for line in canvas.axes[0].lines if line.get_marker() == "."]
    assert dot.get_xydata().tolist() == [[0.0, np.log10(run.loss.values[0])]]
    values = run.series["state_grad_norm"].values.copy()
    values[-1, :-1, :] = -np.inf
    state = replace(run.series["state_grad_norm"], values=values)
    canvas = draw_figure("norm_by_lag", [replace(run, series=run.series | {"state_grad_norm": state})])
    row = canvas.axes[2 * len(canvas.axes) // 3]
    (dot,) = [line for line in row.lines if line.get_marker() == "."]
    assert dot.get_xydata().tolist() == [[0.0, values[-1, -1, 0]]]


@pytest.mark.parametrize("bias", [4, 100])
def test_an_infinite_time_constant_is_marked_as_such(bias: int) -> None:
    """σ(100) rounds to 1: its time constant was drawn as 10^12 steps, on an
    axis without a number.
    """
    canvas = draw_figure("gates", [record(*SMALL, "arm=lstm", f"cell.forget_bias={bias}")])
    (axes,) = [a for a in canvas.axes if a.get_ylabel().startswith("time constant")]
    assert (mark_ids(canvas) == {finite.OVERFLOW.words}) == (bias == 100)
    constants = np.concatenate([line.get_ydata() for line in axes.lines if line.get_marker() == "None"])
    assert np.nanmax(constants[constants < np.inf]) < 1000
    canvas.draw_without_rendering()
    assert [label.get_text() for label in axes.get_yticklabels() if label.get_text()]


def test_the_axis_of_time_constants_has_numbers_over_many_decades() -> None:
    run = record(*SMALL, "arm=lstm")
    series = run.series["gate_activation"]
    values = series.values.copy()
    values[-1, :, series.names.index("F/q90")] = 1 - 1e-10
    gates = replace(series, values=values)
    canvas = draw_figure("gates", [replace(run, series=run.series | {"gate_activation": gates})])
    (axes,) = [a for a in canvas.axes if a.get_ylabel().startswith("time constant")]
    low, high = axes.get_ylim()
    assert high > 1e9
    assert sum(low <= tick <= high for tick in axes.get_yticks()) >= 3


def test_a_median_with_what_is_not_finite() -> None:
    nan, inf = np.nan, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        middle, low, high = common.median_band(np.array([[nan, 1, -inf, 1, nan], [nan, inf, inf, 3, 5]]))
    np.testing.assert_array_equal(middle, [nan, inf, nan, 2, 5])
    np.testing.assert_array_equal(low, [nan, 1, -inf, 1, 5])
    np.testing.assert_array_equal(high, [nan, inf, inf, 3, 5])


def test_text_from_a_store_is_drawn_as_it_is() -> None:
    """Dollars are no mathematics, a newline no second line, and long names that differ at the end
    stay apart.
    """
    assert arms.shortened(["a", "a", "b", "a"]) == ["a", "a (2)", "b", "a (3)"]
    names = ["$\\frac", "a$_b$^2", "two\nlines", "_hidden", "x" * 4000, "x" * 4000 + "y"]
    rnn, _ = healthy("norm_by_lag")
    runs = [replace(rnn[0], arm=name, config=rnn[0].config | {"arm": name}) for name in names]
    labels = [group.label for group in common.groups(runs)]
    assert len(set(labels)) == len(names)
    assert max(map(len, labels)) < 120
    odd_names = ["$\\frac a$_b$^2\ntwo lines", *names[-2:]]
    runs = [replace(rnn[0], arm=name, config=rnn[0].config | {"arm": name}) for name in odd_names]
    for figure in sorted(set(FIGURES) - SWEEPS.keys() - {"flow", "counterfactual"}):
        canvas = draw_figure(figure, [as_diverged(run, 3) for run in runs])
        box = canvas.get_tightbbox()
        assert box.width < 1.5 * canvas.get_figwidth(), figure
        assert any(r"\frac" in text for text in texts(canvas)), figure


@pytest.mark.parametrize(("rate", "suffix"), [("1e100", "_last_finite"), ("1e300", "_at_init")])
def test_mlflow_shows_no_reading_before_a_divergence_as_that_of_a_trained_network(home, rate: str, suffix: str) -> None:
    e = compose.experiment([*SMALL, "arm=rnn", "optimizer=sgd", f"optimizer.lr={rate}", "train.dtype=float64"])
    recorder = execute(e, "s")
    run = recorder.client.get_run(recorder.run_id)
    keys = {key.partition("/")[0] for key in run.data.metrics if "_by_lag" in key}
    assert run.data.tags["diverged"] == "true"
    assert "log10_state_grad_norm_by_lag" not in keys
    assert "log10_grad_norm_by_lag" not in keys
    assert f"log10_grad_norm_by_lag{suffix}" in keys
    step = run.data.tags["diverged_at_step"]
    assert re.search(rf"train/loss: (NaN|\+inf) at step {step}", run.data.tags["not_finite"])


def test_curves_name_what_is_not_finite_by_key() -> None:
    e = compose.experiment([*SMALL, "arm=rnn"])
    finite_values, broken_values = np.zeros((6, 1)), np.array([[np.nan], [np.inf], [np.inf], [0], [-np.inf], [0]])
    readings = {"state_grad_norm": (("H",), [0, 3], [finite_values, broken_values])}
    assert non_finite_readings(e, readings) == {
        "log10_state_grad_norm_by_lag/H": "+inf at 2 of 6 lags, NaN at 1 of 6 lags at step 3"
    }
    points, zeros = lag_curves(e, readings, 3)
    assert {key for key, _, _ in points} == {"log10_state_grad_norm_by_lag_at_init/H"}
    assert not zeros
    finite_readings = {"state_grad_norm": (("H",), [0, 3], [finite_values, finite_values])}
    assert not non_finite_readings(e, finite_readings)
    assert {key for key, _, _ in lag_curves(e, finite_readings)[0]} == {"log10_state_grad_norm_by_lag/H"}
    assert {key for key, _, _ in lag_curves(e, finite_readings, 3)[0]} == {"log10_state_grad_norm_by_lag_last_finite/H"}
    dropped_points = [("train/loss", np.inf, 2), ("train/loss", np.nan, 3), ("train/loss", np.nan, 4)]
    assert non_finite_points(dropped_points) == {"train/loss": "+inf at step 2, NaN at 2 points from step 3"}


def test_a_mark_in_a_legend_is_the_mark_in_the_panel() -> None:
    rnn, _ = healthy("exploding")
    canvas = draw_figure("exploding", [as_diverged(rnn[0], 3), as_diverged(rnn[1], 2, np.inf)])
    assert mark_ids(canvas) == {kind.words for kind in finite.KINDS}
    panel = {ln.get_gid(): ln for ln in canvas.axes[0].lines if ln.get_gid()}
    assert panel[finite.NO_NUMBER.words].get_xdata().tolist() == [3]
    assert panel[finite.OVERFLOW.words].get_xdata().tolist() == [2]
    handles = {h.get_label(): h for h in canvas.legends[0].legend_handles if isinstance(h, Line2D)}
    assert {k: h.get_marker() for k, h in handles.items()} == {k: ln.get_marker() for k, ln in panel.items()}
