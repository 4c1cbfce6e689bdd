"""What the UI draws is short and hides no explosion; the artifact has everything."""

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.core.trace import Measurement
from gradpath.tracking import loader
from gradpath.tracking.mlflow_metrics import POINTS, TrainingCurves, lag_curves, spacing
from gradpath.training.evaluation import Evaluation
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step, train

SMALL = ["task.length=4", "cell.hidden_size=2", "train.batch_size=2", "train.eval_size=5"]


def experiment(steps: int, *overrides: str) -> Experiment:
    return compose.experiment([*SMALL, f"train.steps={steps}", *overrides])


def step(number: int, loss: float, norm: float = 0.0, diverged: bool = False, **readings: float) -> Step:
    measurements = {name: Measurement((name,), np.array([value])) for name, value in readings.items()}
    return Step(number, loss, norm, measurements, None, diverged)


def curves_of(experiment: Experiment, steps: list[Step]) -> dict[str, dict[int, float]]:
    """Key → step → value."""
    curves, points = TrainingCurves(experiment), defaultdict(dict)
    for step in steps:
        for key, value, x in curves.points(step):
            assert x not in points[key], "one value a step"
            points[key][x] = value
    return dict(points)


@pytest.mark.parametrize("length", [1, 2, 319, 320, 321, 639, 640, 641, 1001, 20_001, 10**6])
def test_evenly_spaced_and_the_last_are_no_more_than_the_ui_shows(length: int) -> None:
    indices = {*range(0, length, spacing(length)), length - 1}
    assert len(indices) <= POINTS
    assert len(indices) >= min(length, POINTS / 2)


@pytest.mark.parametrize("steps", [319, 320, 1000, 1777])
def test_a_curve_is_short_and_has_its_first_and_last_point_exactly(steps: int) -> None:
    losses = np.random.default_rng(0).random(steps + 1).tolist()
    curves = curves_of(experiment(steps), [step(s, loss, clip_scale=loss / 2) for s, loss in enumerate(losses)])
    for key, scale in (("train/loss", 1.0), ("train/clip_scale", 0.5)):
        assert POINTS / 2 <= len(curves[key]) <= POINTS
        assert {0, steps} <= set(curves[key])
        assert curves[key] == {s: losses[s] * scale for s in curves[key]}
    assert set(curves["train/loss"]) == set(curves["train/clip_scale"])


@pytest.mark.parametrize("spike", [0, 1, 2, 3, 4, 997, 998, 999, 1000])
def test_no_spike_is_lost_wherever_it_is(spike: int) -> None:
    steps = [step(s, 9.0 if s == spike else 1.0, 3.0 if s == spike else -1.0) for s in range(1001)]
    curves = curves_of(experiment(1000), steps)
    for key, largest, typical in (("train/loss_max", 9.0, 1.0), ("train/log10_grad_norm_max", 3.0, -1.0)):
        (spike_step,) = [s for s, value in curves[key].items() if value == largest]
        assert spike <= spike_step < spike + spacing(1001), "where the window ends that it is in"
        assert set(curves[key].values()) == {largest, typical}
        assert set(curves[key]) == set(curves["train/loss"])


def test_an_explosion_that_ends_the_run_is_in_the_curve() -> None:
    """The last finite value lies between two points, and what follows is not finite."""
    steps = [step(s, 1.0, 0.0) for s in range(501)]
    steps += [step(501, 1e30, 12.0), step(502, math.nan, math.inf, diverged=True)]
    curves = curves_of(experiment(1000), steps)
    assert spacing(1001) == 4, "so 501 is not a point by itself"
    assert curves["train/loss_max"][502] == 1e30
    assert curves["train/log10_grad_norm_max"][502] == 12.0
    assert math.isnan(curves["train/loss"][502])


def test_a_short_run_has_every_step_and_no_maximum_beside_it() -> None:
    curves = curves_of(experiment(200), [step(s, float(s)) for s in range(201)])
    assert curves == {"train/loss": {s: float(s) for s in range(201)}}


def test_what_is_read_now_and_then_is_shown_at_every_reading() -> None:
    setup = experiment(1000, "instruments.clip_scale.schedule.every=7")
    reading_steps = sorted(setup.instruments["reach"].schedule.steps(1000))
    steps = [step(s, 1.0, **({"reach": s / 2} if s in reading_steps else {})) for s in range(1001)]
    assert curves_of(setup, steps)["train/reach"] == {s: s / 2 for s in reading_steps}
    steps = [step(s, 1.0, **({"clip_scale": s / 2} if s % 7 == 0 else {})) for s in range(1001)]
    assert curves_of(setup, steps)["train/clip_scale"] == {s: s / 2 for s in range(0, 1001, 7)}


def test_an_evaluation_is_shown() -> None:
    evaluated = replace(step(3, 1.0), evaluation=Evaluation(0.25, 0.5, False))
    curves = curves_of(experiment(1000), [evaluated])
    assert curves["test/loss"] == {3: 0.25}
    assert curves["test/mse"] == {3: 0.5}


@pytest.mark.parametrize("length", [2, 320, 321, 1000])
def test_a_curve_over_the_lag_is_short_and_has_both_its_ends(length: int) -> None:
    setup = experiment(10, f"task.length={length}")
    values = np.random.default_rng(0).normal(size=(length, 1))
    values[0] = -np.inf
    points, zeros = lag_curves(setup, {"state_grad_norm": (("H",), [0], [values])})
    by_lag = {lag: value for _, value, lag in points}
    if length == 2:  # a single finite point is no curve
        assert (points, zeros) == ([], {})
        return
    assert len(by_lag) == len(points) <= POINTS
    floor = np.floor(values[1:].min()) - 1
    assert by_lag == {lag: floor if lag == length - 1 else values[::-1, 0][lag] for lag in by_lag}
    assert {0, length - 1} <= set(by_lag)
    assert zeros == {"log10_state_grad_norm_by_lag/H": f"1 of {length} lags, drawn at {floor:g}"}


def test_mlflow_holds_the_short_curve_and_the_artifact_the_whole(home: Path) -> None:
    setup = experiment(700, "arm=rnn")
    recorder = execute(setup, "s")
    expected = list(train(setup))
    (run,) = loader.load(None, "gradpath", "s")
    assert run.loss.values.tolist() == [s.loss for s in expected]
    for name in ("grad_norm", "clip_scale"):
        assert run.series[name].values.tolist() == [s.measurements[name].values.tolist() for s in expected]
    histories = {
        key: {point.step: point.value for point in recorder.client.get_metric_history(recorder.run_id, key)}
        for key in recorder.client.get_run(recorder.run_id).data.metrics
    }
    assert max(map(len, histories.values())) <= POINTS
    shown_steps = sorted(histories["train/loss"])
    assert histories["train/loss"] == {s: expected[s].loss for s in shown_steps}
    windows = [range(previous + 1, current + 1) for previous, current in itertools.pairwise([-1, *shown_steps])]
    largest = {window[-1]: max(expected[s].log10_grad_norm for s in window) for window in windows}
    assert histories["train/log10_grad_norm_max"] == largest
