"""The figures of the paths, drawn from what MLflow holds."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from conftest import settle
from gradpath.commands import compose, report
from gradpath.commands.execute import execute
from gradpath.figures import CannotDrawError
from gradpath.figures.counterfactual import Counterfactual
from gradpath.figures.flow import Flow, _lags, _sizes
from gradpath.figures.paths import Paths, predicted, probes, read, recurrent_parts, share
from gradpath.tracking import loader
from gradpath.tracking.loader import Run

SMALL = ["task.length=12", "cell.hidden_size=5", "train.batch_size=4", "train.eval_size=20", "train.steps=6"]
SMALL += ["instruments=[state_grad_norm,path_grad_norm,node_grad_norm,counterfactual,counterfactual_loss]"]
FIGURES = ["figures=[paths,flow,counterfactual]"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Path]:
    """A home with the runs of three arms, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        folder = settle(tmp_path_factory.mktemp("paths"), migrated_database, patch)
        for arm in ("rnn", "lstm", "gru"):
            for seed in (0, 1):
                execute(compose.experiment([*SMALL, f"arm={arm}", f"seed={seed}"]), "s")
        yield folder


@pytest.fixture(scope="module")
def runs(results: Path) -> list[Run]:
    return loader.load(f"sqlite:///{results}/mlruns/mlflow.db", "gradpath", "s")


@pytest.fixture(scope="module")
def canvases(runs: list[Run]) -> dict[str, Figure]:
    """Each figure drawn once."""
    matplotlib.use("Agg")
    return {figure.__name__: figure().draw(runs) for figure in (Paths, Flow, Counterfactual)}


def runs_of_arm(runs: list[Run], arm: str) -> list[Run]:
    return [run for run in runs if run.arm == arm]


def test_they_say_how_many_seeds_and_name_the_theory(canvases: dict[str, Figure]) -> None:
    for canvas in canvases.values():
        text = " ".join(t.get_text() for t in canvas.texts).replace("\n", " ")
        assert "2 seeds" in text
        assert "Theory" in text


def test_paths_draws_the_stored_medians_and_the_predicted_line(runs: list[Run], canvases: dict[str, Figure]) -> None:
    grid = np.reshape(canvases["Paths"].axes, (6, 3))
    assert [axes.get_title().partition("\n")[0] for axes in grid[0]] == ["RNN", "LSTM", "GRU"]
    lstm = runs_of_arm(runs, "lstm")
    carousel = [run.series["path_grad_norm"].column("C/carousel") for run in lstm]
    lines = [line for line in grid[0, 1].lines if line.get_color() == "#000000" and line.get_marker() == "None"]
    for line, probe in zip(lines, (0, -1), strict=True):
        np.testing.assert_allclose(line.get_ydata(), np.median([s[probe] for s in carousel], axis=0)[:-1])
    (theory,) = [line for line in grid[0, 1].lines if line.get_linestyle() == ":"]
    slope = np.log10(1 / (1 + np.exp(-1.0)))
    np.testing.assert_allclose(np.diff(theory.get_ydata()) / np.diff(theory.get_xdata()), slope, rtol=1e-12)
    assert not any(line.get_linestyle() == ":" for line in grid[0, 0].lines), "the RNN has no gate that keeps"
    assert "no highway" in [text.get_text() for text in grid[0, 0].texts]


def test_shares_of_a_step_add_up_to_one(runs: list[Run]) -> None:
    for run in runs:
        for probe in (0, 1):
            paths = [*recurrent_parts(run), "direct"]
            np.testing.assert_allclose(sum(share(run, part, probe) for part in paths), 1, rtol=1e-5)
            lag = share(run, "carousel", probe) + share(run, "rest", probe)
            np.testing.assert_allclose(lag, 1, rtol=1e-5)


def test_the_predicted_line() -> None:
    def run(*overrides: str) -> Run:
        experiment = compose.experiment(["task.length=40", *overrides])
        empty = dict.fromkeys(("run_id", "name", "arm", "tags", "loss", "evaluation", "series", "chance_loss"))
        return Run(
            config=experiment.resolved(), roles=experiment.cell.roles, lag=np.arange(40)[::-1], longest_lag=39, **empty
        )  # type: ignore[arg-type]

    lag = np.arange(40)[::-1]
    np.testing.assert_allclose(predicted(run("cell.forget_bias=3")), lag * np.log10(1 / (1 + np.exp(-3))))
    np.testing.assert_allclose(predicted(run("cell=gru")), lag * np.log10(0.5))
    np.testing.assert_allclose(predicted(run("cell.freeze_f=0.25")), lag * np.log10(0.25))
    assert not predicted(run("cell.ablation=no_forget_gate")).any()
    u = np.random.default_rng(0).uniform(1, 49, 200_000)
    expected = 0.5 * np.log10(np.mean((u / (1 + u))[:, None] ** (2 * lag), axis=0))
    np.testing.assert_allclose(predicted(run("cell.chrono_t_max=50")), expected, atol=5e-3)
    assert predicted(run("cell=rnn")) is None


def test_the_flow_is_the_stored_gradient_relative_to_lag_zero(runs: list[Run], canvases: dict[str, Figure]) -> None:
    (run, _) = runs_of_arm(runs, "lstm")
    series, nodes = run.series["path_grad_norm"], run.series["node_grad_norm"]
    sizes = _sizes(run, 1, 3)
    start = series.column("C/total")[-1, -1]
    assert sizes["carrier"] == pytest.approx(series.column("C/total")[-1, -4] - start)
    assert sizes["highway"] == pytest.approx(series.column("C/highway")[-1, -5] - start)
    assert sizes["O"] == pytest.approx(nodes.column("O")[-1, -4] - start)
    # What comes through H before T is everything but the highway: for a last-step loss, the gates.
    gates = 10 ** np.array([sizes[name] for name in ("input_gate", "forget_gate", "output_gate", "internal_node")])
    assert 0 < 10 ** sizes["through_H_before"] <= gates.sum() * (1 + 1e-6)
    assert _lags(12) == [1, 3, 6, 10]
    assert _lags(2) == [0]
    figure = Flow()
    assert figure._width(0.0) == 1
    assert figure._width(-2.0) == 0.5
    assert figure._width(-np.inf) == figure._width(-4.0) == 0
    texts = [text.get_text() for axes in canvases["Flow"].axes for text in axes.texts]
    assert {"F", "I", "G", "O", "Z", "R", "N", "$C_{t-1}$"} <= set(texts)


def test_the_counterfactuals_are_drawn_relative_to_lag_zero(runs: list[Run], canvases: dict[str, Figure]) -> None:
    axes = canvases["Counterfactual"].axes
    assert [a.get_title() for a in axes[:2]] == ["LSTM", "GRU"]
    half_forget = [run.series["counterfactual"].column("F=0.5/C")[-1] for run in runs_of_arm(runs, "lstm")]
    expected = np.median([curve - curve[-1] for curve in half_forget], axis=0)
    (line,) = [line for line in axes[2].lines if line.get_color() == "#56B4E9" and line.get_marker() == "None"]
    np.testing.assert_allclose(line.get_ydata(), expected)
    losses = [run.series["counterfactual_loss"].column("F=0.5")[-1] for run in runs_of_arm(runs, "lstm")]
    assert losses in [list(line.get_xdata()) for line in axes[4].lines]
    assert axes[4].get_yticklabels()[0].get_text() == "factual"


def test_stacks_ablations_and_arms_without_gates(home: Path, capsys) -> None:
    for task, cell in (("s", ["cell.layers=2"]), ("t", ["cell.ablation=coupled_gates"]), ("u", ["cell=rnn"])):
        execute(compose.experiment([*SMALL, "task=copy", *cell]), task)
        assert report.write(
            compose.report([*FIGURES, "formats=[svg]", f"sweep={task}", "study=gradpath"]), named=True
        ) == (task == "u")
    captured = capsys.readouterr()
    assert "flow (no run of a cell with gates" in captured.err
    assert "counterfactual (no run of a cell with gates" in captured.err
    assert "paths.svg" in captured.out


def test_readings_of_a_diverged_network_are_passed_over(runs: list[Run]) -> None:
    run = runs[0]
    series = run.series["path_grad_norm"]
    values = series.values.copy()
    values[-1, 2, 0] = np.nan
    diverged = replace(run, series=run.series | {"path_grad_norm": replace(series, values=values)})
    assert probes(diverged, "path_grad_norm") == (0, len(series.steps) - 2)
    np.testing.assert_array_equal(read(diverged, "total", 1), series.column("H/total")[-2])
    values[:] = np.nan
    with pytest.raises(CannotDrawError, match="no finite reading at initialisation"):
        probes(diverged, "path_grad_norm")
