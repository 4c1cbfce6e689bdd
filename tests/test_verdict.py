"""The verdict: every word at both sides of its thresholds, by real training, in MLflow and in the
report.
"""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from conftest import DIVERGES, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM
from gradpath.cells.rnn import RNN
from gradpath.clippings.threshold import Threshold
from gradpath.commands import compose, report
from gradpath.commands.execute import execute
from gradpath.core.losses import Loss
from gradpath.core.roles import Roles
from gradpath.core.step_loss import trace_of_step
from gradpath.instruments.reach import Reach
from gradpath.instruments.state_grad_norm import StateGradNorm
from gradpath.tracking import loader
from gradpath.tracking.recorder import Recorder
from gradpath.tracking.summary import summary
from gradpath.tracking.verdict import (
    DIVERGED,
    HUGE,
    ORDER,
    OUTGREW,
    ROSE,
    SATURATED,
    SPIKED,
    UNTRAINED,
    VANISHED,
    Evidence,
    judge,
    weigh,
)
from gradpath.training.loop import train

SMALL = ["cell.hidden_size=16", "train.batch_size=8", "train.eval_size=200"]
NO_SPIKE = {
    "grown": 0.0,
    "grown_at_largest": 0.0,
    "spike_at": 50,
    "spike": 0.3,
    "grown_at_spike": 0.0,
    "rise_at_spike": 0.0,
}
UNREMARKABLE = {
    "lag": 99,
    "span": 99,
    "updates": 200,
    "largest": 0.5,
    "smallest_quarter": 0.0,
    "lost_at_init": 1.0,
    "lost": 1.0,
}
UNREMARKABLE |= NO_SPIKE | {"loss": 0.1, "first_loss": 1.2, "chance": 0.5}
HEALTHY = Evidence(**UNREMARKABLE, saturated=0.1)
TINY, INF = 1e-9, np.inf


def verdict_word(evidence: Evidence = HEALTHY, **changed) -> str:
    return judge(replace(evidence, **changed)).word


def reason(**changed) -> str:
    return judge(replace(HEALTHY, **changed)).reason


def test_vanishing_on_both_sides_of_its_threshold() -> None:
    assert verdict_word(lost=VANISHED) == "healthy"
    assert verdict_word(lost=VANISHED + TINY) == "vanishing"
    assert verdict_word(lost=np.inf) == "vanishing"
    assert "lost 21.7 decades over the 99 steps that the task needs (vanishing above 3)" in reason(lost=21.7)
    assert "a true zero" in reason(lost=np.inf)


def test_exploding_needs_a_spike_and_a_gradient_that_grows_more_over_the_lag_than_before() -> None:
    spike = {"spike": SPIKED, "rise_at_spike": ROSE, "grown_at_spike": 2.0}
    assert verdict_word(**spike) == "exploding"
    assert verdict_word(**spike | {"spike": SPIKED - TINY}) == "healthy"
    assert verdict_word(**spike | {"rise_at_spike": ROSE - TINY}) == "healthy", (
        "it has always grown that much: a large loss"
    )
    assert verdict_word(**spike, scored_within=True) == "unknown", "losses along the way add to the past by themselves"
    assert verdict_word(**spike, scored_within=True, last_alone=True) == "exploding"
    expected = "gradient norm at step 50 1.0 decades above the median of the steps before (exploding from 1), "
    grows = "where the gradient grows by up to 2.0 decades within the lag, 0.5 more than before (from 0.5)"
    assert expected + grows in reason(**spike)


def test_growth_within_the_lag_is_not_called_growth_over_it() -> None:
    """It may have risen half-way and fallen by decades until the end of the lag."""
    for changed in (
        {"spike": 1.5, "rise_at_spike": 1.2, "grown_at_spike": 1.2},
        {"smallest_quarter": 2.0, "grown": 1.2},
        {"largest": 4.0, "grown_at_largest": 3.2},
    ):
        reason_text = reason(**changed, lost=1050.0)
        assert verdict_word(**changed, lost=1050.0) == "exploding"
        assert re.search(r"grow(s|ing|ing there) by up to [13]\.2 decades within the lag", reason_text), reason_text
        assert "over the lag" not in reason_text
        assert "in the end lost 1050.0 decades" in reason_text


def test_a_reason_names_no_spike_as_one_that_its_word_denies() -> None:
    """A leap of the norm at which the gradient grows no more over the lag than before: why that is
    no explosion.
    """
    high = {"spike": 2.5, "grown_at_spike": 3.0}
    assert verdict_word(**high) == "healthy"
    spike_text = "gradient norm at step 50 2.5 decades above the median of the steps before, but there it grows "
    assert spike_text + "no more than before within the lag (exploding from 0.5)" in reason(**high)
    assert spike_text + "0.3 decades more than before within the lag (exploding from 0.5)" in reason(
        **high, rise_at_spike=0.3
    )


def test_a_number_is_not_rounded_across_its_threshold() -> None:
    assert "at step 50 0.97 decades above" in reason(spike=0.97)
    assert "at step 50 0.998 decades above" in reason(spike=0.9981)
    assert "lost 3.04 decades" in reason(lost=3.04)
    assert "lost 3.0 decades" in reason(lost=3.0)
    assert "lost 2.98 decades" in reason(lost=2.98)
    assert "50.4% of gates and units saturated" in reason(saturated=0.504)
    assert "10% of gates and units saturated" in reason(saturated=0.1)
    assert "10^2.2 or more throughout" in reason(smallest_quarter=2.27, grown=0.52)
    assert "by up to 0.52 decades" in reason(smallest_quarter=2.27, grown=0.52)


def test_a_single_step_is_a_step() -> None:
    assert "over the 1 step that the task needs" in reason(lag=1, span=1)
    assert "over the 1 step that there is" in reason(lag=2, span=1)
    assert "(1 update, trained from 10)" in reason(updates=1)


def test_exploding_at_every_step_needs_no_spike() -> None:
    throughout = {"smallest_quarter": HUGE, "grown": ROSE}
    assert verdict_word(**throughout) == "exploding"
    assert verdict_word(**throughout | {"smallest_quarter": HUGE - TINY}) == "healthy"
    assert verdict_word(**throughout | {"grown": ROSE - TINY}) == "healthy", "a large loss"


def test_a_start_that_explodes_needs_no_spike() -> None:
    start = {"largest": OUTGREW, "grown_at_largest": OUTGREW}
    assert verdict_word(**start) == "exploding"
    assert verdict_word(**start | {"largest": OUTGREW - TINY}) == "healthy", "a run that learns the mean of its output"
    assert verdict_word(**start | {"grown_at_largest": OUTGREW - TINY}) == "healthy"


def test_a_loss_that_left_all_measure_has_diverged_though_finite() -> None:
    assert verdict_word(loss=DIVERGED * 1.2) == "healthy"
    assert (
        verdict_word(loss=DIVERGED * 1.2 + TINY)
        == verdict_word(loss=1.8e60)
        == verdict_word(loss=np.inf)
        == verdict_word(loss=np.nan)
        == "diverged"
    )
    assert verdict_word(loss=1.8e60, lost=np.inf, spike=9.0, rise_at_spike=9.0, updates=3) == "diverged"
    assert "loss 1.8e+60 (1.2 before training, 0.5 by chance)" in reason(loss=1.8e60)
    assert "loss inf" in reason(loss=np.inf)
    assert verdict_word(chance=0.0, first_loss=1.0, loss=1.0) == "healthy", (
        "no chance loss to compare with, as in constant_target"
    )


def test_what_was_not_trained_is_not_judged_by_its_training() -> None:
    pathological = {"lost": 50.0, "lost_at_init": 50.0, "smallest_quarter": 5.0, "grown": 5.0, "saturated": 0.9}
    for updates in (0, 3, UNTRAINED - 1):
        verdict = judge(replace(HEALTHY, **pathological, updates=updates))
        assert verdict.word == "untrained"
        assert (
            f"nothing was trained ({updates} updates, trained from 10); at initialisation lost 50.0" in verdict.reason
        )
    assert verdict_word(**pathological, updates=UNTRAINED) == "exploding"
    solved = judge(replace(HEALTHY, updates=0, solved=True))
    assert solved.word == "solved"
    assert "nothing was trained" in solved.reason


def test_the_reason_says_nothing_of_what_is_not_there() -> None:
    assert "inf" not in reason(lost=5.0, lost_at_init=np.inf)
    assert "at initialisation nothing arrives (a true zero)" in reason(lost=5.0, lost_at_init=np.inf)
    for nothing in (0.0, -0.0, 0.04, -0.04):
        assert "lost nothing (0.0 decades)" in reason(lost=nothing)
    for growth in (0.0, -0.0, 0.04, -2.0):
        assert "no larger than the median of the steps before" in reason(spike=growth)
    assert "over the 49 steps that there are" in reason(lag=50, span=49)
    assert "2 with NaN or infinity" in reason(lost=None, not_finite=2)


def profile_from_columns(*columns: list[float]) -> np.ndarray:
    return np.array(columns, float).T


def test_the_carrier_is_read_and_not_the_output() -> None:
    """H falls by seven decades in its first step back, C is flat: the LSTM of 1997."""
    readings = {
        "state_grad_norm": (
            ("H", "C", "direct/H"),
            [0],
            [profile_from_columns([-7] * 3 + [0], [-2] * 4, [-INF] * 3 + [0])],
        )
    }
    evidence = weigh(Evidence(lag=3), readings, {0: 0.0}, LSTM().roles)
    assert (evidence.lost, evidence.grown, evidence.lost_at_init) == (0, 0, 0)


@pytest.mark.parametrize(
    ("states", "layers", "carrier"),
    [
        (("H",), 1, "H"),
        (("H", "C"), 1, "C"),
        (("H",), 2, "layer1/H"),
        (("H", "C"), 2, "layer1/C"),
        (("A", "B", "M"), 2, "layer1/M"),
    ],
    ids=str,
)
def test_the_carrier_is_that_of_the_bottom_layer(states: tuple[str, ...], layers: int, carrier: str) -> None:
    """Its reading decides, wherever its column stands."""
    roles = Roles("", "", layers, states, states[0], states[-1], {}, {}, {})
    assert roles.bottom_carrier == carrier
    all_names = [roles.prefix(layer) + state for layer in range(layers) for state in states]
    columns = [[4.0 * (name == carrier), 0, 0] for name in all_names]
    names = (*all_names, "direct/last")
    readings = {"state_grad_norm": (names, [0], [profile_from_columns(*columns, [-INF, -INF, 0])])}
    assert weigh(Evidence(lag=2), readings, {0: 0.0}, roles).lost == -4


@pytest.mark.parametrize("every_step", [False, True], ids=["last step", "every step"])
@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("cell", [RNN, GRU, LSTM])
def test_what_is_lost_is_the_adjoint_of_the_carrier_by_hand(
    cell: type, layers: int, length: int, every_step: bool
) -> None:
    """From the adjoints themselves: the carrier of the bottom layer, of the
    last step's loss alone.
    """
    case = make_case(cell(3, layers=layers), Loss.squared_error, length, every_step)
    trace = case.trace
    readings = {
        "state_grad_norm": (lambda measurement: (measurement.names, [0], [measurement.values]))(
            StateGradNorm().measure(case.network, trace)
        ),
        "reach": (lambda measurement: (measurement.names, [0], [measurement.values]))(
            Reach().measure(case.network, trace)
        ),
    }
    evidence = weigh(Evidence(lag=length - 1), readings, {0: 0.0}, case.network.cell.roles)
    name = case.network.prefix(0) + case.network.cell.states[-1]
    adjoint = trace_of_step(case.network, trace, len(trace.tape.scored) - 1).states[name]
    aligned = np.ldexp(adjoint.aligned_by_step.array, np.asarray(adjoint.aligned_by_step.exponent)[:, None, None])
    norms = np.sqrt((aligned**2).sum(axis=(1, 2)))
    assert evidence.lost == pytest.approx(np.log10(norms[-1] / norms[0]), abs=1e-12)
    assert evidence.last_alone == (every_step and length > 1)
    run = SimpleNamespace(task=SimpleNamespace(lags=(0, 0)), clip=Threshold(max_norm=None), cell=case.network.cell)
    metrics = {name: value for name, value, _ in summary(run, readings, 1, None)}
    assert metrics["decades_lost_at_init"] == pytest.approx(evidence.lost, abs=1e-12)


def test_a_spike_is_measured_against_what_came_before_it() -> None:
    """A run that starts with 100 times the gradient of its plateau; then a spike of it, at which
    the far past rises.
    """
    norms = dict(enumerate([2.0] * 5 + [0.0] * 45 + [1.5] + [0.0] * 49))
    flat, rising = (profile_from_columns([near] * 4, [-INF] * 3 + [0]) for near in (0, 1))
    rising[0, 0] = 3.0

    def evidence_of(**profiles) -> Evidence:
        steps = [int(step[1:]) for step in profiles]
        return weigh(
            Evidence(lag=3),
            {"state_grad_norm": (("H", "direct/H"), steps, list(profiles.values()))},
            norms,
            RNN().roles,
        )

    no_spike = evidence_of(s0=rising, s20=flat, s99=flat)
    assert no_spike.spike == 0.0
    assert no_spike.smallest_quarter == 0.0
    assert judge(no_spike).word == "healthy"
    late_spike = evidence_of(s0=rising, s20=flat, s50=rising, s99=flat)
    assert (late_spike.spike_at, late_spike.spike, late_spike.grown_at_spike, late_spike.rise_at_spike) == (
        50,
        1.5,
        2.0,
        1.0,
    )
    assert judge(late_spike).word == "exploding"
    repeated_spikes = evidence_of(s0=rising, s10=rising, s20=rising, s50=rising, s99=flat)
    assert repeated_spikes.rise_at_spike == 0.0
    assert judge(repeated_spikes).word == "healthy", "it grows no more than it always did"


def test_growth_is_that_of_the_highest_lag_on_the_way() -> None:
    readings = {"state_grad_norm": (("H", "direct/H"), [0], [profile_from_columns([-2, 5, 1, 0], [-INF] * 3 + [0])])}
    evidence = weigh(Evidence(lag=3), readings, {0: 0.0}, RNN().roles)
    assert (evidence.lost, evidence.grown) == (2.0, 5.0)
    assert weigh(Evidence(lag=1), readings, {0: 0.0}, RNN().roles).grown == 1.0


@pytest.mark.parametrize("not_finite", [np.nan, np.inf])
def test_readings_that_are_not_finite_are_counted_and_named(not_finite: float) -> None:
    profile = profile_from_columns([not_finite, 0, 0], [-INF] * 2 + [0])
    evidence = weigh(
        Evidence(lag=2, first_loss=1.0, loss=0.9),
        {"state_grad_norm": (("H", "direct/H"), [50], [profile])},
        {50: 0.0},
        RNN().roles,
    )
    assert (evidence.lost, evidence.not_finite) == (None, 1)
    assert judge(evidence).word == "unknown"
    assert "no finite reading of state_grad_norm to judge by, 1 with NaN or infinity" in judge(evidence).reason


def test_a_loss_that_sends_nothing_says_nothing_of_the_lag() -> None:
    zero_profile = profile_from_columns([-INF] * 3, [-INF] * 3)
    evidence = weigh(
        Evidence(lag=2), {"state_grad_norm": (("H", "direct/H"), [50], [zero_profile])}, {50: -INF}, RNN().roles
    )
    assert evidence.lost is None
    assert judge(evidence).word == "unknown"


def test_where_the_loss_reads_steps_within_the_last_loss_alone_decides() -> None:
    profile = np.zeros((100, 2))

    def word_for(lost: float, step: int = 50):
        readings = {
            "state_grad_norm": (("H", "direct/H"), [50], [profile]),
            "reach": (("reach", "reach_censored", "decades_lost"), [step], [np.array([2.0, 0.0, lost])]),
        }
        return judge(weigh(Evidence(lag=99), readings, {50: 0.0}, RNN().roles))

    assert word_for(VANISHED).word == "healthy"
    assert word_for(VANISHED + TINY).word == "vanishing"
    assert word_for(np.inf).word == "vanishing"
    assert "the last step's loss alone lost 4.2 decades over the sequence (vanishing above 3)" in word_for(4.2).reason
    assert word_for(4.2, step=0).word == "unknown", "an older reading is of another network"


def test_a_last_step_that_is_not_scored_is_passed_over() -> None:
    profile = np.array([[-5.0], [-1.0], [0.0], [-np.inf]])
    evidence = weigh(Evidence(lag=3), {"state_grad_norm": (("H",), [0], [profile])}, {0: 0.0}, RNN().roles)
    assert evidence.lost == 5.0


def test_saturated_on_both_sides_of_its_threshold() -> None:
    assert verdict_word(saturated=SATURATED) == "healthy"
    assert verdict_word(saturated=SATURATED + TINY) == "saturated"


def test_what_stands_before_what() -> None:
    everything = {
        "saturated": 0.9,
        "lost": 50.0,
        "spike": 3.0,
        "rise_at_spike": 2.0,
        "updates": 3,
        "solved": True,
        "diverged_at": 7,
    }
    order = []
    for key in ("diverged_at", "solved", "updates", "spike", "lost", "saturated"):
        order.append(verdict_word(**everything))
        everything[key] = {"diverged_at": None, "solved": False}.get(key, UNREMARKABLE.get(key, 0.1))
    assert order == ["diverged", "solved", "untrained", "exploding", "vanishing", "saturated"]
    assert verdict_word(**everything) == "healthy"


def test_missing_instruments_are_said() -> None:
    nothing = Evidence(lag=99, updates=50, largest=0.0)
    assert judge(nothing).word == "unknown"
    assert "state_grad_norm" in judge(nothing).reason
    assert judge(replace(nothing, solved=True)).word == "solved"
    assert judge(replace(nothing, diverged_at=3)).word == "diverged"
    without_gates = judge(replace(HEALTHY, saturated=None))
    assert without_gates.word == "healthy"
    assert "saturation not judged, no reading of gate_activation" in without_gates.reason
    assert verdict_word(scored_within=True) == "unknown"


def test_the_numbers_are_those_of_the_readings() -> None:
    """Five steps, lag 3: from t = 5 back to t = 2; the last reading but one is the largest, one has
    blown up.
    """
    names = ("H", "C", "direct/H")
    profiles = [np.full((5, 3), -np.inf) for _ in range(4)]
    for profile, column in zip(
        profiles, ([9, -2, 0, 0, 1], [9, 4, 0, 0, 2], [9, -9, 0, 0, 0], [np.nan] * 5), strict=True
    ):
        profile[:, 1] = column
        profile[4, 2] = 0
    gates = ("I/mean", "I/below_0.1", "I/above_0.9", "layer2/F/mean", "layer2/F/below_0.1", "layer2/F/above_0.9")
    shares = np.array([[0.5, 0.2, 0.1, 0.9, 0.3, 0.6], [0.5, 0.4, 0.3, 0.9, 0.1, 0.9]])
    readings = {"state_grad_norm": (names, [0, 3, 9, 10], profiles), "gate_activation": (gates, [10], [shares])}
    norms = {0: 0.5, 1: 7.0, 3: 6.0, 9: -1.0, 10: np.nan, 11: -np.inf}
    roles = LSTM().roles
    evidence = weigh(Evidence(lag=3), readings, norms, roles)
    assert (evidence.lost_at_init, evidence.lost, evidence.not_finite, evidence.updates) == (3.0, 9.0, 1, 11)
    assert (evidence.largest, evidence.grown_at_largest, evidence.grown) == (7.0, 2.0, 0.0)
    assert (evidence.spike_at, evidence.spike, evidence.rise_at_spike) == (3, 6.0 - 3.75, 2.0)
    assert evidence.saturated == pytest.approx(((0.2 + 0.1 + 0.4 + 0.3) / 2 + (0.3 + 0.1) / 2) / 2), "F at 1 is free"
    assert not evidence.scored_within
    profiles[2][2, 2] = -4.0
    assert weigh(Evidence(lag=3), readings, norms, roles).scored_within
    profiles[2][1, 1] = -np.inf
    assert weigh(Evidence(lag=3), readings, norms, roles).lost == np.inf


def test_units_that_are_on_or_off_are_not_saturated() -> None:
    """Half of a ReLU network is off at any time."""
    names = ("phi_prime/mean", "phi_prime/below_0.1", "phi_prime/above_0.9")
    cases = [([0.4, 0.6, 0.4], None), ([0.41, 0.6, 0.4], 0.6), ([0.5, 0.6, 0.3], 0.6), ([1, 0, 1], 0), ([0, 1, 0], 1)]
    for shares, expected in cases:
        readings = {"gate_activation": (names, [10], [np.array([shares])])}
        assert weigh(Evidence(lag=3), readings, {10: 0.0}, RNN().roles).saturated == expected


REAL_TRAININGS = {
    "vanishing": ["arm=rnn", "task.length=40", "train.steps=12"],
    "exploding": ["arm=rnn", "init=orthogonal", "init.gain=2", "task.length=40", "train.steps=12"],
    "saturated": ["arm=rnn", "init.gain=10", "task.length=6", "train.steps=12"],
    "healthy": ["arm=chrono_lstm", "task.length=40", "train.steps=12"],
    "diverged": [*DIVERGES, "task.length=12", "train.steps=30"],
    "solved": ["arm=lstm", "task.length=4", "optimizer.lr=0.02", "train.steps=300"],
    "unknown": ["arm=lstm", "task=copy", "task.length=20", "train.steps=12", "instruments=[state_grad_norm]"],
    "untrained": ["arm=rnn", "init.gain=3", "task.length=40", "train.steps=2"],
}


def test_a_task_that_starts_from_its_state_is_judged_too(home: Path) -> None:
    """Its lag is T, of which H_1 is the furthest row that there is."""
    recorder = execute(compose.experiment(["arm=rnn", "task=constant_target", "task.length=5", "train.steps=2"]), "s")
    assert recorder.client.get_run(recorder.run_id).data.tags["verdict"] in ORDER


def test_every_word_by_real_training_is_tag_parameter_and_line_of_the_report(home: Path, capsys) -> None:
    assert set(REAL_TRAININGS) == set(ORDER)
    for overrides in REAL_TRAININGS.values():
        recorder = execute(compose.experiment([*SMALL, *overrides]), "s")
    runs = recorder.client.search_runs([recorder.experiment_id], order_by=["attributes.start_time"])
    assert [run.data.tags["verdict"] for run in runs] == list(REAL_TRAININGS)
    assert [run.data.params["verdict"] for run in runs] == list(REAL_TRAININGS), (
        "the UI sorts by parameters, not by tags"
    )
    sorted_runs = recorder.client.search_runs([recorder.experiment_id], order_by=["params.verdict"])
    assert [run.data.params["verdict"] for run in sorted_runs] == sorted(REAL_TRAININGS)
    by_word = {run.data.params["verdict"]: run.data.tags["verdict_reason"] for run in runs}
    assert "(solved below 0.01); gained 0.1 decades" in by_word["solved"]
    diverged = next(run for run in loader.load(None, "gradpath", "s") if run.diverged_at is not None)
    assert f"not finite at step {diverged.diverged_at};" in by_word["diverged"]
    assert report.write(compose.report(["figures=[]"])) == 0
    lines = capsys.readouterr().out.splitlines()[-len(REAL_TRAININGS) :]
    assert [line.split()[0] for line in lines] == list(ORDER)
    assert all(by_word[line.split()[0]] in line for line in lines)
    page = (home / "reports" / "figures" / "gradpath" / "verdicts.md").read_text()
    assert [row.split(" | ")[1] for row in page.splitlines()[4:]] == list(ORDER)
    assert report.write(compose.report(["figures=[]"])) == 0
    assert (home / "reports" / "figures" / "gradpath" / "verdicts.md").read_text() == page


def test_a_run_that_did_not_come_to_its_end_has_no_verdict(home: Path) -> None:
    experiment = compose.experiment([*SMALL, "task.length=12", "train.steps=9"])
    with pytest.raises(KeyboardInterrupt), Recorder(experiment, {"sweep_id": "s"}) as recorder:
        recorder.record(next(train(experiment)))
        raise KeyboardInterrupt
    data = recorder.client.get_run(recorder.run_id).data
    assert "verdict" not in data.tags
    assert "verdict" not in data.params


def test_a_run_without_instruments_says_that_it_cannot_be_judged(home: Path) -> None:
    recorder = execute(compose.experiment([*SMALL, "instruments=[]", "task.length=12", "train.steps=12"]), "s")
    tags = recorder.client.get_run(recorder.run_id).data.tags
    assert tags["verdict"] == "unknown"
    assert "state_grad_norm" in tags["verdict_reason"]


def test_many_runs_are_one_line_a_group(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arm in ("rnn", "lstm"):
        for seed in range(3):
            execute(compose.experiment([*SMALL, f"arm={arm}", f"seed={seed}", "task.length=40", "train.steps=0"]), "s")
    verdicts_by_arm = {"rnn": ("vanishing", "exploding", "vanishing"), "lstm": ("solved", "healthy", "healthy")}
    runs = loader.load(None, "gradpath", "s")
    judged_runs = [
        replace(
            run, tags=run.tags | {"verdict": verdicts_by_arm[run.arm][run.seed], "verdict_reason": f"why {run.seed}"}
        )
        for run in runs
    ]
    assert [line.split()[0] for line in report.verdicts(judged_runs)] == sorted(
        verdicts_by_arm["lstm"] + verdicts_by_arm["rnn"], key=ORDER.index
    )
    monkeypatch.setattr(report, "LINES", 5)
    assert report.verdicts(judged_runs) == [
        "  1 solved, 2 healthy       LSTM  best: why 0",
        "  2 vanishing, 1 exploding  RNN   best: why 0",
    ]
    unjudged_runs = [replace(run, tags={}) for run in runs]
    assert report.verdicts(unjudged_runs)[0] == "  3 unknown  RNN   best: recorded without a verdict"
