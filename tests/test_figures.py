"""Figures are drawn from what MLflow holds and nothing else; the same runs give the same bytes."""

from pathlib import Path

import matplotlib
import numpy as np
import pytest

from gradpath import config, loader, report, store
from gradpath.discovery import discover
from gradpath.figures import Figure, style
from gradpath.instruments import Instrument
from gradpath.loader import Run
from gradpath.run import execute

SMALL = ["task.length=12", "cell.hidden_size=5", "train.batch_size=4", "train.eval_size=20", "train.steps=6"]
FIGURES = discover(Figure)
EVERYTHING = f"instruments=[{','.join(discover(Instrument))}]"


@pytest.fixture
def runs(home: Path) -> list[Run]:
    for arm in ("rnn", "clipped_rnn", "lstm"):
        for seed in (0, 1):
            execute(config.experiment([*SMALL, EVERYTHING, f"arm={arm}", f"seed={seed}"]), "s")
    return loader.load(None, "gradpath", "s")


def test_the_report_draws_every_figure_twice_the_same(runs: list[Run], home: Path, capsys) -> None:
    every = config.report([f"figures=[{','.join(FIGURES)}]"])
    assert report.write(every) == 0
    folder = home / "reports" / "figures" / "gradpath"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(["verdicts.md", *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "svg"))])
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert all(len(content) > 10_000 for name, content in first.items() if name != "verdicts.md")
    assert report.write(every) == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_norm_by_lag_draws_the_stored_medians(runs: list[Run]) -> None:
    matplotlib.use("Agg")
    canvas = FIGURES["norm_by_lag"]().draw(runs)
    titles = [axes.get_title() for axes in canvas.axes[:4]]
    assert [title.partition("\n")[0] for title in titles] == ["state", "RNN", "clipped RNN", "LSTM"]
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


def test_the_caption_states_the_seeds(runs: list[Run]) -> None:
    for name, figure in FIGURES.items():
        text = " ".join(t.get_text() for t in figure().draw(runs).texts)
        assert "2 seeds" in text.replace("\n", " "), name


def test_labels_are_derived_from_the_configuration(home: Path) -> None:
    execute(config.experiment([*SMALL, "arm=lstm"]), "s")
    execute(config.experiment([*SMALL, "arm=lstm", "cell.forget_bias=3"]), "s")
    execute(config.experiment([*SMALL, "arm=lstm", "cell=rnn"]), "s")
    found = style.groups(loader.load(None, "gradpath", "s"))
    assert [group.label for group in found] == ["RNN", "LSTM, forget_bias=1.0", "LSTM, forget_bias=3.0"]
    assert len({group.color for group in found}) == 3


def test_units_that_differ_are_named_by_their_section(home: Path) -> None:
    for overrides in (["init=orthogonal", "optimizer=sgd"], ["init=uniform", "optimizer=adam"]):
        execute(config.experiment([*SMALL, "arm=rnn", *overrides]), "s")
    found = style.groups(loader.load(None, "gradpath", "s"))
    assert {group.label for group in found} == {
        "RNN, init=orthogonal, optimizer=sgd",
        "RNN, init=uniform, optimizer=adam",
    }
    text = style.setting_text(found)
    assert "init orthogonal or uniform" in text
    assert "sgd or adam lr 0.01 or 0.001" in text


def test_a_run_that_diverged_at_once_is_named_and_the_other_figures_are_drawn(home: Path, capsys) -> None:
    wild = ["cell=rnn", "cell.activation=relu", "init=gaussian", "init.gain=1e30"]
    execute(config.experiment([*SMALL, *wild]), "s")
    assert report.write(config.report([])) == 0
    said = capsys.readouterr()
    assert "not drawn: norm_by_lag (rnn · adding T=12 · seed 0 has no finite reading" in said.err
    assert "exploding.png" in said.out


def test_a_stack_is_drawn(home: Path) -> None:
    execute(config.experiment([*SMALL, "arm=lstm", "cell.layers=2", "task=copy"]), "s")
    assert report.write(config.report([])) == 0


def test_a_median_over_true_zeros_stays_one() -> None:
    zero, one = np.array([-np.inf, -np.inf, 1.0]), np.array([-np.inf, -3.0, 3.0])
    middle, low, high = style.median_band([zero, one])
    assert middle.tolist() == [-np.inf, -np.inf, 2.0]
    assert low.tolist() == [-np.inf, -np.inf, 1.0]
    assert high.tolist() == [-np.inf, -3.0, 3.0]


def test_holes_and_doubles_are_named(runs: list[Run]) -> None:
    execute(config.experiment([*SMALL, EVERYTHING, "arm=rnn", "seed=1"]), "s")
    with pytest.raises(store.StoreError, match="more than once: rnn · adding T=12 · seed 1"):
        report.write(config.report([]))
    with pytest.raises(ZeroDivisionError):
        _crash(config.experiment([*SMALL, "arm=lstm", "seed=7"]))
    with pytest.raises(store.StoreError, match="did not finish: lstm · adding T=12 · seed 7"):
        report.write(config.report(["sweep=t"]))


def _crash(experiment) -> None:
    from gradpath.recorder import Recorder

    execute(config.experiment([*SMALL, "arm=lstm"]), "t")
    with Recorder(experiment, {"sweep_id": "t"}):
        raise ZeroDivisionError


def test_nothing_to_report_says_what_to_do(home: Path) -> None:
    with pytest.raises(store.StoreError, match="gradpath run"):
        report.write(config.report([]))
    with pytest.raises(store.StoreError, match="study=nope: no such MLflow experiment"):
        report.write(config.report(["study=nope"]))
