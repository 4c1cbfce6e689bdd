"""The clipping ledger against naive computation, by hand, and where the
plain gradient overflows.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import DIVERGES, UNREAD, make_case
from gradpath.cells.rnn import RNN
from gradpath.clippings.threshold import Threshold
from gradpath.commands import compose, report
from gradpath.commands.execute import execute
from gradpath.core.losses import Loss
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Gradient, Trace
from gradpath.instruments.clipping_ledger import NAMES, ClippingLedger
from gradpath.optimizers.sgd import SGD
from gradpath.tracking import loader
from gradpath.training.loop import train

SMALL = ["task.length=12", "cell.hidden_size=6", "train.batch_size=5", "train.eval_size=20"]
LEDGER = "instruments=[clip_scale,clipping_ledger]"
BASE = make_case(RNN(3), Loss.squared_error, 4, every_step=False)


def measured_ledger(values: NDArray, clip: Threshold, exponent: int = 0, **thresholds: float) -> dict[str, float]:
    """What the ledger says of a run's step with this gradient."""
    scaled = Scaled(values, np.asarray(exponent, np.int32))
    gradient = Gradient(scaled, float(scaled.log10_norm()), {})
    applied, scale = clip.apply(gradient)
    trace: Trace = replace(BASE.trace, gradient=gradient, clip_scale=scale, applied=applied)
    measured = ClippingLedger(**thresholds).measure(UNREAD, trace)
    assert measured.names == NAMES
    return dict(zip(measured.names, measured.values.tolist(), strict=True))


def test_by_hand() -> None:
    """(3, 4): by norm at 1 (0.6, 0.8); by value at 3 (3, 3), cosine (9 + 12) / (5 · 3√2)."""
    row = measured_ledger(np.array([3.0, 4.0]), Threshold(max_norm=2.5), max_norm=1.0, max_value=3.0)
    assert row["log10_raw_norm"] == pytest.approx(np.log10(5))
    assert row["log10_applied_norm"] == pytest.approx(np.log10(2.5))
    assert (row["engaged"], row["non_finite"]) == (1, 0)
    assert row["cosine"] == pytest.approx(1, abs=1e-15)
    assert row["norm_clip/cosine"] == pytest.approx(1, abs=1e-15)
    assert row["norm_clip/log10_norm"] == pytest.approx(0, abs=1e-15)
    assert row["value_clip/cosine"] == pytest.approx(21 / (15 * np.sqrt(2)), abs=1e-15)
    assert row["value_clip/log10_norm"] == pytest.approx(np.log10(np.sqrt(18)))
    assert row["value_clip/share"] == 0.5


def test_where_nothing_is_clipped_nothing_engages() -> None:
    row = measured_ledger(np.array([0.03, -0.04]), Threshold(max_norm=1.0))
    assert (row["engaged"], row["value_clip/share"]) == (0, 0)
    for norm in ("log10_raw_norm", "log10_applied_norm", "norm_clip/log10_norm", "value_clip/log10_norm"):
        assert row[norm] == pytest.approx(np.log10(0.05), abs=1e-14)
    assert row["cosine"] == row["norm_clip/cosine"] == row["value_clip/cosine"] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "clip", [Threshold(), Threshold(max_norm=0.7), Threshold(max_value=0.03)], ids=["none", "norm", "value"]
)
def test_against_naive_computation(clip: Threshold, dtype: type) -> None:
    rng = np.random.default_rng(0)
    raw = rng.standard_t(2, size=1000).astype(dtype) / dtype(20)
    row = measured_ledger(raw, clip, max_norm=0.5, max_value=0.1)
    g = raw.astype(np.float64)

    def cosine(vector: NDArray) -> float:
        return float(g @ vector / np.linalg.norm(g) / np.linalg.norm(vector))

    by_value = np.clip(g, -0.1, 0.1)
    applied = g * min(1, 0.7 / np.linalg.norm(g)) if clip.max_norm else np.clip(g, -0.03, 0.03) if clip.max_value else g
    expected = {
        "log10_raw_norm": np.log10(np.linalg.norm(g)),
        "log10_applied_norm": np.log10(np.linalg.norm(applied)),
        "engaged": float(applied is not g),
        "non_finite": 0.0,
        "cosine": cosine(applied),
        "norm_clip/cosine": 1.0,
        "norm_clip/log10_norm": np.log10(0.5),
        "value_clip/cosine": cosine(by_value),
        "value_clip/log10_norm": np.log10(np.linalg.norm(by_value)),
        "value_clip/share": float((np.abs(g) > 0.1).mean()),
    }
    assert row == pytest.approx(expected, abs=1e-6 if dtype is np.float32 else 1e-14)
    assert row["norm_clip/cosine"] == pytest.approx(1, abs=1e-13), "also in float32: the rounding is of second order"
    assert 0.5 < row["value_clip/cosine"] < 0.99
    assert (row["cosine"] < 0.99) == (clip.max_value is not None)


def test_where_the_plain_gradient_overflows() -> None:
    """10^50 and more in float32: the plain gradient is ±inf, the ledger's numbers are not."""
    raw = np.array([0.3, -0.4, 0.2, 0.0], np.float32)
    row = measured_ledger(raw, Threshold(max_norm=1.0), exponent=170)
    size = np.linalg.norm(raw.astype(np.float64))
    assert row["log10_raw_norm"] == pytest.approx(np.log10(size) + 170 * np.log10(2), abs=1e-12)
    assert row["log10_raw_norm"] > 50
    assert (row["engaged"], row["non_finite"]) == (1, 0)
    assert row["log10_applied_norm"] == pytest.approx(0, abs=1e-7)
    assert row["cosine"] == row["norm_clip/cosine"] == pytest.approx(1, abs=1e-13)
    assert row["value_clip/cosine"] == pytest.approx(0.9 / size / np.sqrt(3), abs=1e-7), "three corners and a zero"
    assert row["value_clip/log10_norm"] == pytest.approx(np.log10(0.1 * np.sqrt(3)), abs=1e-7)
    assert row["value_clip/share"] == 0.75
    unclipped = measured_ledger(raw, Threshold(), exponent=170)
    assert (unclipped["engaged"], unclipped["non_finite"]) == (0, 1), "what would be applied is not finite"


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_squares_that_leave_float64(size: float) -> None:
    with np.errstate(over="ignore"):
        row = measured_ledger(
            np.array([3.0, 4.0]) * size, Threshold(max_value=2.0 * size), max_norm=10 * size, max_value=3 * size
        )
    assert row["log10_raw_norm"] == pytest.approx(np.log10(5) + np.log10(size))
    assert row["cosine"] == pytest.approx(7 / (5 * np.sqrt(2)))
    assert row["value_clip/cosine"] == pytest.approx(21 / (15 * np.sqrt(2)))
    assert row["value_clip/log10_norm"] == pytest.approx(np.log10(np.sqrt(18)) + np.log10(size))


def test_a_true_zero_has_no_direction() -> None:
    row = measured_ledger(np.zeros(3), Threshold(max_norm=1.0))
    assert row["log10_raw_norm"] == row["log10_applied_norm"] == row["norm_clip/log10_norm"] == -np.inf
    assert np.isnan([row["cosine"], row["norm_clip/cosine"], row["value_clip/cosine"]]).all()
    assert (row["engaged"], row["non_finite"], row["value_clip/share"]) == (0, 0, 0)


@pytest.mark.parametrize("values", [[np.inf, 1.0], [np.nan, 1.0]], ids=["inf", "nan"])
@pytest.mark.parametrize(
    "clip", [Threshold(), Threshold(max_norm=1.0), Threshold(max_value=1.0)], ids=["none", "norm", "value"]
)
def test_a_step_that_is_not_finite_is_counted_apart(values: list[float], clip: Threshold) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        row = measured_ledger(np.array(values), clip)
    assert (row.pop("engaged"), row.pop("non_finite")) == (0, 1)
    assert np.isnan(list(row.values())).all()


def test_outside_training_the_gradient_is_its_own_applied_one() -> None:
    measured = ClippingLedger().measure(UNREAD, BASE.trace)
    row = dict(zip(measured.names, measured.values.tolist(), strict=True))
    assert row["log10_applied_norm"] == pytest.approx(row["log10_raw_norm"], abs=1e-14)
    assert row["engaged"] == 0


@pytest.mark.parametrize("arm", ["rnn", "clipped_rnn", "value_clipped_rnn"])
def test_what_is_applied_is_what_the_optimiser_gets_and_training_does_not_change(
    arm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [*SMALL, f"arm={arm}", "optimizer=sgd", "init.gain=3", "train.steps=8"]
    without_ledger = list(train(compose.experiment([*overrides, "instruments=[]"])))
    applied_norms: list[float] = []
    original_update = SGD.update

    def spy(self, theta, gradient, state, step):
        applied_norms.append(float(np.log10(np.linalg.norm(gradient.astype(np.float64)))))
        return original_update(self, theta, gradient, state, step)

    monkeypatch.setattr(SGD, "update", spy)
    steps = list(train(compose.experiment([*overrides, LEDGER])))
    assert [s.loss for s in steps] == [s.loss for s in without_ledger]
    ledger = np.array([s.measurements["clipping_ledger"].values for s in steps])
    np.testing.assert_allclose(ledger[:-1, NAMES.index("log10_applied_norm")], applied_norms, rtol=0, atol=1e-12)
    scales = np.array([s.measurements["clip_scale"].values[0] for s in steps])
    by_ledger = ledger[:, NAMES.index("log10_applied_norm")] - ledger[:, NAMES.index("log10_raw_norm")]
    np.testing.assert_allclose(np.log10(scales), by_ledger, rtol=0, atol=1e-6)
    assert (ledger[:, NAMES.index("engaged")] == (scales < 1)).all()
    assert (ledger[:, NAMES.index("engaged")] > 0).any() == (arm != "rnn")


def test_how_often_and_how_hard_in_mlflow(home: Path) -> None:
    base = [*SMALL, "init.gain=3", "train.steps=20"]
    summaries = {}
    for arm in ("rnn", "clipped_rnn"):
        recorder = execute(compose.experiment([*base, f"arm={arm}", LEDGER]), "s")
        summaries[arm] = recorder.client.get_run(recorder.run_id).data.metrics
    recorder = execute(compose.experiment([*SMALL, *DIVERGES, "train.steps=30", LEDGER]), "t")
    diverged_metrics = recorder.client.get_run(recorder.run_id).data.metrics
    run = next(run for run in loader.load(None, "gradpath", "s") if run.arm == "clipped_rnn")
    scales = run.series["clip_scale"].column("clip_scale")
    assert 0 < (scales < 1).sum() <= len(scales)
    assert summaries["clipped_rnn"]["summary/clipped_share"] == (scales < 1).mean()
    assert summaries["clipped_rnn"]["summary/clip_scale_median"] == np.median(scales[scales < 1])
    assert "train/log10_applied_norm" in summaries["clipped_rnn"]
    assert "train/value_clip_cosine" in summaries["clipped_rnn"]
    assert "summary/clipped_share" not in summaries["rnn"], "nothing could engage"
    assert [m["summary/non_finite_steps"] for m in (summaries["rnn"], summaries["clipped_rnn"], diverged_metrics)] == [
        0,
        0,
        1,
    ]
    (diverged_run,) = loader.load(None, "gradpath", "t")
    ledger = diverged_run.series["clipping_ledger"]
    assert ledger.column("non_finite").tolist() == [0] * (len(ledger.steps) - 1) + [1]
    assert np.isnan(ledger.column("norm_clip/cosine")[-1])


def test_the_step_that_blew_up_is_in_no_share(home: Path) -> None:
    clipped = [*DIVERGES, "clip.max_norm=1e-6", "optimizer.lr=1e30", "train.steps=30"]
    recorder = execute(compose.experiment([*SMALL, *clipped, LEDGER]), "s")
    metrics = recorder.client.get_run(recorder.run_id).data.metrics
    (run,) = loader.load(None, "gradpath", "s")
    assert run.diverged_at is not None
    assert metrics["summary/non_finite_steps"] == 1
    assert metrics["summary/clipped_share"] == 1.0


def test_the_figure_tells_norm_from_value_clipping_and_counts_what_is_not_finite(home: Path) -> None:
    from gradpath.figures.clipping_ledger import ClippingLedger as Drawn

    base = [*SMALL, "cell=rnn", "init.gain=3", "train.steps=20", LEDGER]
    for clip in ("clip.max_norm=null", "clip.max_norm=1", "clip.max_value=0.1"):
        for seed in (0, 1):
            execute(compose.experiment([*base, clip, f"seed={seed}"]), "s")
    runs = loader.load(None, "gradpath", "s")
    canvas = Drawn().draw(runs)
    norm_panels, value_panels = canvas.subfigs
    titles = [axes.get_title() for axes in norm_panels.axes]
    assert titles == ["RNN", "clipped RNN", "value-clipped RNN"]
    share, factor, cosine = value_panels.axes
    by_value = [run.series["clipping_ledger"] for run in runs if run.config["clip"]["max_value"]]
    engaged = np.mean([series.column("engaged") for series in by_value], axis=0)
    np.testing.assert_allclose(share.lines[2].get_ydata(), engaged, err_msg="21 steps in 21 windows")
    assert factor.lines[2].get_ydata()[-1] == pytest.approx(engaged.mean())
    median_cosine = np.median([series.column("value_clip/cosine") for series in by_value], axis=0)
    np.testing.assert_allclose(cosine.lines[2].get_ydata(), median_cosine)
    execute(compose.experiment([*SMALL, *DIVERGES, "train.steps=30", LEDGER]), "t")
    text = " ".join(t.get_text() for t in Drawn().draw(loader.load(None, "gradpath", "t")).texts).replace("\n", " ")
    assert "1 non-finite step, solved by 0 of 1" in text
    execute(
        compose.experiment([*SMALL, "cell=rnn", "cell.activation=relu", "init=gaussian", "init.gain=1e30", LEDGER]), "u"
    )
    assert report.write(compose.report(["figures=[clipping_ledger]"])) == 1


def test_what_a_sweep_cannot_draw_is_one_line(home: Path, capsys) -> None:
    execute(compose.experiment([*SMALL, "arm=rnn", "train.steps=2", "instruments=[gate_activation]"]), "s")
    assert report.write(compose.report([])) == 0
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()[-1:]
    assert line.startswith("not drawn: ")
    assert "norm_by_lag (needs grad_norm, param_grad_norm, state_grad_norm)" in line
    assert "exploding (needs clip_scale, grad_norm)" in line
    assert "gates.png" in captured.out
    assert report.write(compose.report([]), named=True) == 1
    assert report.write(compose.report(["figures=[exploding]"])) == 1
