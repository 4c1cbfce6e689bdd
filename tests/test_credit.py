"""Credit, alignment and reach: against central differences, naive vectors, closed forms and their
identities.
"""

import matplotlib
import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import DIVERGES, Case, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.commands import compose
from gradpath.commands.execute import execute
from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import assembled, per_step_gradients, relative_error, untied_differences
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.step_loss import trace_of_step
from gradpath.core.tape import Batch
from gradpath.core.trace import Measurement, Trace
from gradpath.figures import CannotDrawError
from gradpath.figures.credit import Credit as CreditFigure
from gradpath.inits.gaussian import Gaussian
from gradpath.instruments import credit
from gradpath.instruments.credit import Credit
from gradpath.instruments.reach import Reach, reach
from gradpath.tracking import loader
from gradpath.tracking.loader import Run
from gradpath.training.loop import train

matplotlib.use("Agg")
SMALL = ["task.length=12", "cell.hidden_size=5", "train.batch_size=4", "train.eval_size=20", "train.steps=4"]


def block(measurement: Measurement, kind: str) -> NDArray:
    """(T, s) the columns of one kind."""
    return measurement.values[:, [i for i, name in enumerate(measurement.names) if name.startswith(kind)]]


def vectors(trace: Trace) -> NDArray:
    """(T, P) ∂L/∂θ_t of all recurrent parameters, naively."""
    gradients = per_step_gradients(trace)
    return np.concatenate([g.reshape(len(g), -1) for name, g in gradients.items() if not name.endswith("y")], axis=1)


def scored_only(case: Case, s: int) -> tuple[Batch, float]:
    """The minibatch with step s alone scored, and the share of the scored
    positions that lie there.
    """
    mask = np.zeros_like(case.batch.mask)
    mask[s] = case.batch.mask[s]
    return Batch(case.batch.inputs, case.batch.targets, mask), mask.sum() / case.batch.mask.sum()


@pytest.mark.parametrize(
    ("cell", "loss"),
    [
        (RNN(2), Loss.squared_error),
        (LSTM(2), Loss.cross_entropy),
        (GRU(2), Loss.squared_error),
        (RNN(2, layers=2), Loss.cross_entropy),
    ],
    ids=str,
)
def test_credit_equals_untied_central_differences_of_the_steps_loss(cell: Cell, loss: Loss) -> None:
    case = make_case(cell, loss, 3, every_step=True)
    assert len({int(n) for n in case.batch.mask.sum(axis=1)}) > 1, "unequal numbers of scored sequences are the point"
    norms = block(Credit().measure(case.network, case.trace), "credit")
    rows = {int(s): row for row, s in enumerate(case.trace.tape.scored)}
    for s in range(3):
        if s not in rows:
            assert np.isneginf(norms[:, s]).all()
            continue
        batch, weight = scored_only(case, s)
        reference = untied_differences(case.network, case.theta, batch)
        part = per_step_gradients(trace_of_step(case.network, case.trace, rows[s]))
        for name, expected in reference.items():
            assert relative_error(part[name], weight * expected[: s + 1]) < 1e-7, (name, s)
        flat = np.concatenate([g.reshape(3, -1) for name, g in reference.items() if not name.endswith("y")], axis=1)
        np.testing.assert_allclose(10 ** norms[: s + 1, s], weight * np.linalg.norm(flat, axis=1)[: s + 1], rtol=1e-7)


@pytest.mark.parametrize("every_step", [False, True])
@pytest.mark.pairwise
def test_the_parts_add_up_to_the_whole(cell: Cell, loss: Loss, every_step: bool) -> None:
    case = make_case(cell, loss, 5, every_step)
    trace = case.trace
    parts = [trace_of_step(case.network, trace, row) for row in range(len(trace.tape.scored))]
    assert sum(part.tape.loss for part in parts) == pytest.approx(trace.tape.loss, rel=1e-13)
    total_vectors = vectors(trace)
    total = np.zeros_like(total_vectors)
    for part in parts:
        total[: part.tape.length] += vectors(part)
    np.testing.assert_allclose(total, total_vectors, rtol=1e-11, atol=1e-14 * np.abs(total_vectors).max())


@pytest.mark.parametrize("cell", [RNN(3), LSTM(3), GRU(3, layers=2)], ids=str)
def test_the_loss_of_a_step_does_not_reach_what_comes_after_it(cell: Cell) -> None:
    case = make_case(cell, Loss.squared_error, 6, every_step=True)
    mask = np.ones_like(case.batch.mask)
    mask[2] = False
    batch = Batch(case.batch.inputs, case.batch.targets, mask)
    trace = case.network.backward(case.theta, case.network.forward(case.theta, batch))
    norms = block(Credit().measure(case.network, trace), "credit")
    reaches = np.tri(6, dtype=bool).T
    reaches[:, 2] = False
    assert (np.isfinite(norms) == reaches).all()
    assert np.isneginf(norms[~reaches]).all()


def test_alignment_equals_the_cosines_of_naive_vectors(cell: Cell, every_step: bool) -> None:
    case = make_case(cell, Loss.cross_entropy, 6, every_step)
    trace = case.trace
    measurement = Credit().measure(case.network, trace)
    cosines, norms, naive = block(measurement, "alignment"), measurement.values[:, -1], vectors(trace)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.testing.assert_allclose(norms, np.log10(np.linalg.norm(naive, axis=1)), rtol=1e-12, atol=1e-12)
        unit = naive / np.linalg.norm(naive, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, np.nan_to_num(unit @ unit.T), rtol=0, atol=1e-13)
    np.testing.assert_array_equal(cosines, cosines.T)
    np.testing.assert_allclose(np.diag(cosines), np.isfinite(norms), rtol=0, atol=1e-15)


def squared_norm(measurement: Measurement) -> float:
    """Σ_s Σ_t cos(g_s, g_t) ‖g_s‖ ‖g_t‖."""
    sizes = 10 ** measurement.values[:, -1]
    return float(sizes @ block(measurement, "alignment") @ sizes)


def test_alignment_and_norms_add_up_to_the_squared_norm_of_the_gradient(cell: Cell, every_step: bool) -> None:
    case = make_case(cell, Loss.squared_error, 6, every_step)
    trace = case.trace
    total = case.network.parameters(trace.gradient.scaled.plain())
    expected = sum(float(np.sum(g**2)) for name, g in total.items() if not name.endswith("y"))
    assert squared_norm(Credit().measure(case.network, trace)) == pytest.approx(expected, rel=1e-12)


def vanishing_case(cell: Cell) -> Case:
    """A small Gaussian network on random inputs: far more than 308 decades lost over 500 steps."""
    network = Network(cell, 2, 1, Loss.squared_error, cell.layers, cell.initial_state)
    rng = np.random.default_rng(1)
    theta = Gaussian(gain=0.05).draw(rng, network, np.float64)
    mask = np.zeros((500, 2), bool)
    mask[-1] = True
    return Case(network, theta, Batch(rng.normal(size=(500, 2, 2)), np.ones((500, 2, 1)), mask))


def case_at_rest(gain: float, length: int, scored: NDArray, activation: Activation = Activation.tanh) -> Case:
    """An RNN whose adjoint is permuted and multiplied by ``gain`` at each step: tanh at H = 0, or
    relu with H > 0.
    """
    network = Network(RNN(4, activation=activation), 1, 2, Loss.squared_error)
    rng = np.random.default_rng(0)
    theta = rng.normal(size=network.size)
    named = network.parameters(theta)
    named["W_hh"][:] = gain * np.roll(np.eye(4), 1, axis=1)  # orthogonal, and no state becomes negative
    named["b_h"][:] = 0.0 if activation is Activation.tanh else 1.0
    mask = np.zeros((length, 3), bool)
    mask[scored] = True
    return Case(network, theta, Batch(np.zeros((length, 3, 1)), rng.normal(size=(length, 3, 2)), mask))


@pytest.mark.parametrize(
    "case",
    [vanishing_case(RNN(3)), vanishing_case(RNN(3, layers=2)), case_at_rest(5.0, 500, np.array([499]))],
    ids=["falls", "falls in a stack", "rises"],
)
def test_alignment_over_more_decades_than_float64_has(case: Case) -> None:
    """The identity holds for the whole sum, and for that of the hundred farthest steps."""
    trace = case.trace
    measurement = Credit(max_steps=500).measure(case.network, trace)
    cosines, norms = block(measurement, "alignment"), measurement.values[:, -1]
    assert np.isfinite(norms).all()
    assert np.ptp(norms) > 308
    np.testing.assert_allclose(np.diag(cosines), 1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(block(measurement, "credit")[:, -1], norms, rtol=0, atol=1e-12)
    for rows in (slice(None), slice(0, 100)):
        largest_log = norms[rows].max()
        sizes = 10 ** (norms[rows] - largest_log)
        log_norm = largest_log + np.log10(sizes @ cosines[rows, rows] @ sizes) / 2
        assert log_norm == pytest.approx(log10_norm_of_sum(trace, rows), rel=0, abs=1e-12)


def log10_norm_of_sum(trace: Trace, rows: slice) -> float:
    """log10 ‖Σ_{t in rows} g_t‖ over the recurrent parameters, one common
    power of two taken out.
    """
    gradients = [assembled(factor, trace.tape.length) for factor in trace.factors[:-2]]
    parts = [(np.reshape(w.array, (len(w.array), -1))[rows], w.exponent[rows]) for w in gradients]
    power = max(int((np.frexp(np.abs(a).max(axis=1))[1] + e).max()) for a, e in parts)
    total = [np.ldexp(a, (e - power)[:, None]).sum(axis=0) for a, e in parts]
    return float(np.log10(np.linalg.norm(np.concatenate(total))) + power * np.log10(2))


def test_gradients_formed_a_column_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(LSTM(5, layers=2), Loss.squared_error, 7, every_step=True)
    trace = case.trace
    in_one_pass = Credit().measure(case.network, trace).values
    columns = []
    original = credit._flat
    monkeypatch.setattr(credit, "_flat", lambda step, size: columns.append(step.array.size) or original(step, size))
    monkeypatch.setattr(credit, "CHUNK_ELEMENTS", 1)
    np.testing.assert_allclose(Credit().measure(case.network, trace).values, in_one_pass, rtol=1e-13, atol=1e-14)
    assert max(columns) == 7 * 4 * 5, "T·n·H numbers, one column of the input"


def test_beyond_max_steps_evenly_spaced_columns_remain() -> None:
    case = make_case(LSTM(3), Loss.squared_error, 9, every_step=True)
    trace = case.trace
    all_columns, selected_columns = (
        Credit().measure(case.network, trace),
        Credit(max_steps=5).measure(case.network, trace),
    )
    names = [f"{kind}/{s}" for kind in ("credit", "alignment") for s in (1, 3, 5, 7, 9)] + ["norm"]
    assert list(selected_columns.names) == names
    columns = all_columns.values[:, [all_columns.names.index(name) for name in names]]
    np.testing.assert_allclose(selected_columns.values, columns, rtol=1e-14, atol=1e-15)
    assert Credit(max_steps=1).measure(case.network, trace).names == ("credit/9", "alignment/9", "norm")


def test_the_names_do_not_depend_on_what_a_minibatch_scores() -> None:
    last_step_case, every_step_case = (
        make_case(RNN(2), Loss.squared_error, 6, every_step) for every_step in (False, True)
    )
    assert (
        Credit().measure(last_step_case.network, last_step_case.trace).names
        == Credit().measure(every_step_case.network, every_step_case.trace).names
    )


@pytest.mark.parametrize("gain", [0.3, 0.8, 0.95])
@pytest.mark.parametrize("scored", [[59], [20, 40, 59], list(range(60)), [7, 50]], ids=str)
@pytest.mark.parametrize("activation", [Activation.tanh, Activation.relu])
def test_reach_of_an_exponential_is_its_time_constant(gain: float, scored: list[int], activation: Activation) -> None:
    """Whatever else is scored: the last scored step's loss alone is followed."""
    case = case_at_rest(gain, 60, np.array(scored), activation)
    measurement = Reach().measure(case.network, case.trace)
    assert measurement.names == ("reach", "reach_censored", "decades_lost")
    assert measurement.values == pytest.approx([-1 / np.log(gain), 0, -max(scored) * np.log10(gain)], rel=1e-12)


@pytest.mark.parametrize(("gain", "length", "scored"), [(1.0, 30, [29]), (0.99, 30, [5, 20]), (0.1, 1, [0])])
def test_a_reach_beyond_the_sequence_is_censored_at_its_largest_lag(gain: float, length: int, scored: list) -> None:
    case = case_at_rest(gain, length, np.array(scored))
    assert Reach().measure(case.network, case.trace).values[:2].tolist() == [scored[-1], 1]


@pytest.mark.parametrize("layers", [1, 2])
def test_reach_of_a_carousel_alone_is_that_of_its_forget_gate(layers: int) -> None:
    """Without recurrent weights δC_{t−1} = F ∘ δC_t. The loss of size from H to C would shorten the
    reach of both.
    """
    network = Network(LSTM(3), 2, 3, Loss.squared_error, layers=layers)
    theta = np.random.default_rng(0).normal(size=network.size)
    for name, value in network.parameters(theta).items():
        if not name.endswith("y"):
            value[:] = 3 * name.endswith("b_f")
    batch = make_case(LSTM(3), Loss.squared_error, 80, every_step=True).batch
    trace = network.backward(theta, network.forward(theta, batch))
    constant = 1 / np.log1p(np.exp(-3))
    assert Reach().measure(network, trace).values[:2] == pytest.approx([constant, 0], rel=1e-10)
    states = trace_of_step(network, trace, len(trace.tape.scored) - 1).states
    state_norms = [states[network.prefix(layers - 1) + name].aligned_by_step.log10_norm() for name in "HC"]
    joint_reach, _ = reach(np.log10(np.hypot(*np.power(10, state_norms)))[::-1])
    assert joint_reach == pytest.approx((1 - np.log(5) / 2) * constant, rel=1e-10)


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0, -0.2, -0.6], (1 + (np.log10(np.e) - 0.2) / 0.4, 0)),
        ([5, 6, 5.2, 4.4], (2 + (np.log10(np.e) + 0.2) / 0.8, 0)),
        ([-400, -400.4, -401, -300], (1 + (np.log10(np.e) - 0.4) / 0.6, 0)),
        ([0, -0.1, -np.inf, -np.inf], (1, 0)),
        ([0, -0.1, -0.2], (2, 1)),
        ([0, 1, np.inf, np.nan], (np.nan, 0)),
        ([-np.inf, -np.inf], (np.nan, 0)),
        ([np.nan, 1], (np.nan, 0)),
    ],
    ids=str,
)
def test_reach_of_a_curve(curve: list[float], expected: tuple[float, int]) -> None:
    """Interpolated; after a rise; far below float64; to a true zero; censored; diverged; nothing to
    follow.
    """
    assert reach(np.array(curve, float)) == pytest.approx(expected, rel=1e-10, nan_ok=True)


def test_a_run_records_them(home) -> None:
    chosen = ["instruments=[credit,reach,grad_norm]", "task=copy", "train.dtype=float64"]
    execute(compose.experiment([*SMALL, *chosen]), "s")
    (run,) = loader.load(None, "gradpath", "s")
    series = run.series["credit"]
    assert series.steps.tolist() == [0, 4]
    assert series.values.shape == (2, 32, 65)
    norms = run.series["grad_norm"]
    for probe, step in enumerate(series.steps):
        measurement = Measurement(series.names, series.values[probe])
        recurrent = [i for i, name in enumerate(norms.names) if not name.endswith("y") and name != "global"]
        expected = np.sum(100 ** norms.values[norms.steps == step][0, recurrent])
        assert squared_norm(measurement) == pytest.approx(expected, rel=1e-12)
    from gradpath.tracking import store

    metrics = store.connect(None).get_run(run.run_id).data.metrics
    lag = run.series["reach"].column("reach")[-1]
    assert metrics["train/reach"] == lag
    assert metrics["summary/reach_over_needed_lag"] == lag / run.longest_lag
    assert not [key for key in metrics if "credit" in key or "alignment" in key or "censored" in key]


def test_a_network_that_blows_up_is_read_without_an_error() -> None:
    run = list(train(compose.experiment([*SMALL, *DIVERGES, "train.steps=30", "instruments=[credit,reach]"])))
    assert run[-1].diverged
    assert np.isfinite(run[0].measurements["reach"].values).all()
    assert {"credit", "reach"} <= run[-1].measurements.keys()


def recorded(arms: list[str], *task: str) -> list[Run]:
    for arm in arms:
        for seed in range(3):
            chosen = ["instruments=[credit,reach,grad_norm]", f"arm={arm}", f"seed={seed}", "train.steps=1"]
            execute(compose.experiment([*SMALL, *chosen, *task]), "s")
    return loader.load(None, "gradpath", "s")


def kind(run: Run, probe: int, prefix: str) -> NDArray:
    return block(Measurement(run.series["credit"].names, run.series["credit"].values[probe]), prefix)


def test_the_figure_of_a_loss_at_every_step_is_four_rows_of_maps(home) -> None:
    runs = recorded(["rnn"], "task=copy", "task.length=3", "train.dtype=float64")
    canvas = CreditFigure().draw(runs)
    maps = [axes.images[0] for axes in canvas.axes[:4]]
    for image, probe in zip(maps[:2], (0, 1), strict=True):
        credit = np.median([kind(run, probe, "credit") for run in runs], axis=0)
        np.testing.assert_allclose(image.get_array().filled(-np.inf), credit.T)
    for image, probe in zip(maps[2:], (0, 1), strict=True):
        mean = np.mean([kind(run, probe, "alignment") for run in runs], axis=0)
        np.testing.assert_allclose(image.get_array().filled(np.nan), mean.T)
    assert {image.get_clim() for image in maps[2:]} == {(-1, 1)}
    (needed,) = canvas.axes[0].lines
    assert (needed.get_ydata() - needed.get_xdata()).tolist() == [13, 13], "the task's lag"
    lag = np.median([run.series["reach"].column("reach")[0] for run in runs])
    assert [text.get_text() for text in canvas.axes[0].texts] == [f"reach {lag:.3g}"]
    text = " ".join(t.get_text() for t in canvas.texts).replace("\n", " ")
    assert "median over 3 seeds" in text
    assert float(text.rpartition("it holds to ")[2].rstrip(".")) < 1e-12


def test_the_figure_of_a_loss_at_the_last_step_is_a_row_of_curves_and_two_of_maps(home) -> None:
    runs = recorded(["rnn", "lstm"], "task=adding")
    canvas = CreditFigure(decades=3).draw(runs)
    assert [len(axes.images) for axes in canvas.axes[:6]] == [0, 0, 1, 1, 1, 1]
    for axes, arm in zip(canvas.axes[:2], ("rnn", "lstm"), strict=True):
        for line, probe in zip(axes.lines, (0, 1), strict=False):
            credit = np.median([kind(run, probe, "credit")[:, -1] for run in runs if run.arm == arm], axis=0)
            np.testing.assert_allclose(line.get_ydata(), credit)


def test_the_figure_names_a_run_that_has_nothing_to_draw(home) -> None:
    diverging = ["cell=rnn", "cell.activation=relu", "init=gaussian", "init.gain=1e30"]
    execute(compose.experiment([*SMALL, *diverging, "instruments=[credit,reach,grad_norm]"]), "s")
    with pytest.raises(CannotDrawError, match="rnn · adding T=12 · seed 0 has no finite reading"):
        CreditFigure().draw(loader.load(None, "gradpath", "s"))
