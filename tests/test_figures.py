"""Figures are drawn from what MLflow holds and nothing else; the same runs give the same bytes."""

import re
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from conftest import settle
from gradpath.commands import compose, report
from gradpath.commands.execute import execute, execute_seeds
from gradpath.figures import Figure
from gradpath.figures._shared import common
from gradpath.figures.lyapunov import theory
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.tracking import loader, store
from gradpath.tracking.loader import Run

FIGURES = discover(Figure)
SMALL = ["task.length=12", "cell.hidden_size=5", "train.batch_size=4", "train.eval_size=20", "train.steps=6"]
ONE_UNIT = {"loss_surface", "parameter_value"}
EVERYTHING = f"instruments=[{','.join(set(discover(Instrument)) - ONE_UNIT)}]"
GRIDS = {"ablation", "cliff", "forget_bias", "spectral_radius"}
"""Figures of a sweep of their own, with tests of their own."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> list[Run]:
    with pytest.MonkeyPatch.context() as patch:
        settle(tmp_path_factory.mktemp("figures"), migrated_database, patch)
        for arm in ("rnn", "clipped_rnn", "lstm"):
            execute_seeds(compose.experiments([*SMALL, EVERYTHING, f"arm={arm}", "seed=[0,1]"]), "s")
        return loader.load(None, "gradpath", "s")


def test_the_report_draws_every_figure_twice_the_same(home: Path, capsys) -> None:
    execute_seeds(compose.experiments([*SMALL, EVERYTHING, "arm=lstm", "seed=[0,1]"]), "s")
    assert set(compose.report([]).figures) == set(FIGURES)
    assert report.write(compose.report([])) == 0
    left_out = capsys.readouterr().err
    assert all(f"{name} (" in left_out for name in GRIDS)
    folder = home / "reports" / "figures" / "gradpath"
    names = sorted(path.name for path in folder.iterdir())
    figures = set(FIGURES) - GRIDS
    assert names == sorted(["verdicts.md", *(f"{name}.{kind}" for name in figures for kind in ("png", "svg"))])
    first_contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(len(content) > 10_000 for name, content in first_contents.items() if name != "verdicts.md")
    # A PNG is drawn after the SVG and from the same canvas: the one tells of the other.
    assert report.write(compose.report(["formats=[svg]"])) == 0
    assert report.write(compose.report(["figures=[norm_by_lag,gates]"])) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first_contents


def test_the_files_are_of_the_formats_that_are_asked_for(home: Path, capsys) -> None:
    execute(compose.experiment([*SMALL, "arm=rnn"]), "s")
    folder, contents = home / "reports" / "figures" / "gradpath", []
    for formats in ("[pdf,svg]", "[svg,pdf]"):
        assert report.write(compose.report(["figures=[exploding]", f"formats={formats}"])) == 0
        assert capsys.readouterr().out.splitlines()[-1] == str(folder / f"exploding.{formats[1:4]}")
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0].keys() == {"verdicts.md", "exploding.pdf", "exploding.svg"}
    assert contents[0] == contents[1]
    assert contents[0]["exploding.pdf"].startswith(b"%PDF")


@pytest.mark.parametrize("formats", ["[gif]", "[]", "[png,png]", "svg", "null", "3"])
def test_other_formats_are_refused_in_one_line(formats: str) -> None:
    with pytest.raises(compose.ConfigError) as error:
        compose.report([f"formats={formats}"])
    assert str(error.value) == f"formats={formats}: must be a list of png, svg and pdf, each once"


def test_several_formats_without_brackets_are_told_of_them() -> None:
    with pytest.raises(compose.ConfigError, match=r"several go into brackets, as in formats=\[png,svg\]"):
        compose.report(["formats=png,svg"])


def higher(run: Run, seed: int) -> Run:
    """The run with another seed, and its states' gradients a decade larger."""
    norms = run.series["state_grad_norm"]
    series = run.series | {"state_grad_norm": replace(norms, values=norms.values + 1)}
    return replace(run, config=run.config | {"seed": seed}, series=series)


def test_norm_by_lag_draws_the_stored_medians(runs: list[Run]) -> None:
    matplotlib.use("Agg")
    runs = [*runs, *(higher(run, seed=2) for run in runs if run.seed == 1)]  # of two the median is the mean
    canvas = FIGURES["norm_by_lag"]().draw(runs)
    titles = [axes.get_title() for axes in canvas.axes[:4]]
    assert [title.partition("\n")[0] for title in titles] == ["carrier", "RNN", "clipped RNN", "LSTM"]
    state = canvas.axes[0]
    rnn = next(line for line in state.lines if line.get_label() == "RNN")
    expected = np.median([r.series["state_grad_norm"].column("H")[0] for r in runs if r.arm == "rnn"], axis=0)
    np.testing.assert_allclose(rnn.get_ydata(), expected)
    assert rnn.get_xdata().tolist() == list(range(11, -1, -1))
    lstm = canvas.axes[3]
    curves = [line for line in lstm.lines if line.get_marker() == "None"]
    assert len(curves) == 12, "one line a parameter"
    crosses = [line for line in lstm.lines if line.get_marker() == "x"]
    assert len(crosses) == 6, "W_fx, b_f and the four W_·h have a true zero at t = 1"
    assert all(line.get_xdata().tolist() == [11] for line in crosses)


def test_lyapunov_draws_the_stored_medians_and_the_theory(runs: list[Run]) -> None:
    matplotlib.use("Agg")
    canvas = FIGURES["lyapunov"]().draw(runs)
    spectrum, values = canvas.axes[2], canvas.axes[5]
    lstm = [run for run in runs if run.arm == "lstm"]
    medians = np.median([run.series["lyapunov_spectrum"].values for run in lstm], axis=0)
    curves = {line.get_linestyle(): line.get_ydata() for line in spectrum.lines if len(line.get_xdata()) > 2}
    np.testing.assert_allclose(curves["--"], medians[0])
    np.testing.assert_allclose(curves["-"], medians[-1])
    np.testing.assert_allclose(curves[":"], [np.log(1 / (1 + np.exp(-1)))] * 5)
    assert values.lines[0].get_xdata().tolist() == [1, 2, 3, 4, 5, 6, 7, 9, 11]
    largest = [run.series["jacobian_log_singular_values"].column("lag=9/sigma_1")[0] for run in lstm]
    assert values.lines[0].get_ydata()[-2] == pytest.approx(np.median(largest))


def test_lyapunov_theory(home: Path) -> None:
    """Of a random matrix: ln of the moduli of its eigenvalues. Of chrono gates: ln σ of the biases
    as they are drawn. Nothing where no formula holds.
    """

    def expected(*overrides: str) -> np.ndarray:
        experiment = compose.experiment([*overrides, "cell.hidden_size=400"])
        return theory(Run("", "", "", experiment.resolved(), {}, *[None] * 6, experiment.cell.roles))  # type: ignore[arg-type]

    rng = np.random.default_rng(0)
    moduli = np.abs(np.linalg.eigvals(rng.normal(size=(400, 400)) / 20))
    gaussian = expected("cell=rnn", "init=gaussian", "init.gain=0.7")
    np.testing.assert_allclose(gaussian[:200], np.sort(np.log(0.7 * moduli))[::-1][:200], atol=0.05)
    chrono = np.log(rng.uniform(1, 99, 400))
    np.testing.assert_allclose(
        expected("cell=lstm", "cell.chrono_t_max=100")[:350], -np.sort(np.log1p(np.exp(-chrono)))[:350], rtol=0.15
    )
    np.testing.assert_allclose(expected("cell=gru", "cell.update_bias=2"), -np.log1p(np.exp(-2)))
    for without_theory in (
        ["cell=lstm", "cell.freeze_f=1"],
        ["cell=rnn", "cell.activation=relu"],
        ["cell=rnn", "init=gaussian"],
        ["cell=rnn", "init=identity", "init.gain=0.5"],
    ):
        assert not expected(*without_theory).size


def test_the_caption_states_the_seeds(runs: list[Run]) -> None:
    lstm = [run for run in runs if run.arm == "lstm"]
    for name in set(FIGURES) - GRIDS:
        text = " ".join(t.get_text() for t in FIGURES[name]().draw(lstm).texts)
        assert "2 seeds" in text.replace("\n", " "), name


def test_a_number_of_a_caption_is_the_median_of_those_that_are_finite() -> None:
    assert common.number([1.0, 2.0, 9.0], ".1f") == "2.0"
    assert common.number([1.0, np.nan], ".1f") == "1.0"
    assert common.number([np.nan], ".1f") == "not finite"


def test_labels_are_derived_from_the_configuration(home: Path) -> None:
    execute(compose.experiment([*SMALL, "arm=lstm"]), "s")
    execute(compose.experiment([*SMALL, "arm=lstm", "cell.forget_bias=3"]), "s")
    execute(compose.experiment([*SMALL, "arm=lstm", "cell=rnn"]), "s")
    groups = common.groups(loader.load(None, "gradpath", "s"))
    assert [group.label for group in groups] == ["RNN", "LSTM, forget_bias=1.0", "LSTM, forget_bias=3.0"]
    assert len({group.color for group in groups}) == 3


def test_units_that_differ_are_named_by_their_section(home: Path) -> None:
    for overrides in (["init=orthogonal", "optimizer=sgd"], ["init=uniform", "optimizer=adam"]):
        execute(compose.experiment([*SMALL, "arm=rnn", *overrides]), "s")
    groups = common.groups(loader.load(None, "gradpath", "s"))
    assert {group.label for group in groups} == {
        "RNN, init=orthogonal, optimizer=sgd",
        "RNN, init=uniform, optimizer=adam",
    }
    text = common.setting_text(groups)
    assert "init orthogonal or uniform" in text
    assert "sgd or adam lr 0.01 or 0.001" in text


def test_the_settings_of_a_task_are_in_the_caption(home: Path) -> None:
    for overrides in (["task=temporal_order", "task.variant=paper"], ["task=constant_target", "task.target=0.25"]):
        execute(compose.experiment([*SMALL, "arm=rnn", *overrides]), "s")
    text = common.setting_text(common.groups(loader.load(None, "gradpath", "s")))
    assert re.match("(.*) T = [0-9]+, (variant paper, target 0.25|target 0.25, variant paper), H = ", text), text


def test_a_run_that_diverged_at_once_is_named_and_the_other_figures_are_drawn(home: Path, capsys) -> None:
    diverging = ["cell=rnn", "cell.activation=relu", "init=gaussian", "init.gain=1e30"]
    execute(compose.experiment([*SMALL, *diverging]), "s")
    assert report.write(compose.report(["formats=[png]"])) == 0
    captured = capsys.readouterr()
    assert "not drawn: norm_by_lag (rnn · adding T=12 · seed 0 has no finite reading" in captured.err
    assert "exploding.png" in captured.out


def test_a_stack_is_drawn(home: Path) -> None:
    execute(compose.experiment([*SMALL, "arm=lstm", "cell.layers=2", "task=copy"]), "s")
    assert report.write(compose.report(["formats=[svg]"])) == 0


def test_a_median_over_true_zeros_stays_one() -> None:
    zero, finite_twice = np.array([-np.inf, -np.inf, 1.0]), np.array([-np.inf, -3.0, 3.0])
    middle, low, high = common.median_band([zero, finite_twice])
    assert middle.tolist() == [-np.inf, -np.inf, 2.0]
    assert low.tolist() == [-np.inf, -np.inf, 1.0]
    assert high.tolist() == [-np.inf, -3.0, 3.0]


def test_holes_and_doubles_are_named(home: Path) -> None:
    for _ in range(2):
        execute(compose.experiment([*SMALL, "arm=rnn", "seed=1"]), "s")
    with pytest.raises(store.StoreError, match="more than once: rnn · adding T=12 · seed 1"):
        report.write(compose.report([]))
    with pytest.raises(ZeroDivisionError):
        _crash(compose.experiment([*SMALL, "arm=lstm", "seed=7"]))
    with pytest.raises(store.StoreError, match="did not finish: lstm · adding T=12 · seed 7"):
        report.write(compose.report(["sweep=t"]))


def _crash(experiment) -> None:
    from gradpath.tracking.recorder import Recorder

    execute(compose.experiment([*SMALL, "arm=lstm"]), "t")
    with Recorder(experiment, {"sweep_id": "t"}):
        raise ZeroDivisionError


def test_nothing_to_report_says_what_to_do(home: Path) -> None:
    with pytest.raises(store.StoreError, match="gradpath run"):
        report.write(compose.report([]))
    with pytest.raises(store.StoreError, match="study=nope: no such MLflow experiment"):
        report.write(compose.report(["study=nope"]))
