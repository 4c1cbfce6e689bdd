"""The verdict: every word at both sides of its thresholds, by real training, in MLflow and in the report."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import DIVERGES
from gradpath import config, loader, report
from gradpath.recorder import Recorder
from gradpath.run import execute
from gradpath.training import train
from gradpath.verdict import ORDER, OUTGREW, ROSE, SATURATED, SPIKED, VANISHED, Evidence, judge, weigh

SMALL = ["cell.hidden_size=16", "train.batch_size=8", "train.eval_size=200"]
EASY = {"lag": 99, "largest": 0.5, "median": 0.0, "lost_at_init": 1.0, "lost_at_largest": 1.0, "lost": 1.0}
HEALTHY = Evidence(**EASY, saturated=0.1)
TINY = 1e-9


def word(evidence: Evidence = HEALTHY, **changed) -> str:
    return judge(replace(evidence, **changed)).word


def test_vanishing_on_both_sides_of_its_threshold() -> None:
    assert word(lost=VANISHED) == "healthy"
    assert word(lost=VANISHED + TINY) == "vanishing"
    assert word(lost=np.inf) == "vanishing"
    assert (
        "lost 21.7 decades over the 99 steps that the task needs (vanishing above 3)"
        in judge(replace(HEALTHY, lost=21.7)).reason
    )
    assert "a true zero" in judge(replace(HEALTHY, lost=np.inf)).reason


def test_exploding_needs_a_spike_and_a_profile_that_rises() -> None:
    spike = {"largest": SPIKED, "lost_at_largest": -ROSE}
    assert word(**spike) == "exploding"
    assert word(**spike | {"largest": SPIKED - TINY}) == "healthy"
    assert word(**spike | {"lost_at_largest": TINY}) == "healthy", "a large gradient that falls with the lag"
    assert word(**spike, scored_within=True) == "unknown", "losses along the way add to the past by themselves"


def test_exploding_at_every_step_needs_no_spike() -> None:
    assert word(lost_at_largest=-OUTGREW) == "exploding"
    assert word(lost_at_largest=-OUTGREW + TINY) == "healthy"
    assert word(lost_at_largest=-OUTGREW, scored_within=True) == "exploding"


def test_where_the_loss_reads_steps_within_the_last_loss_alone_decides() -> None:
    profile = np.zeros((100, 2))

    def judged(lost: float, step: int = 5):
        readings = {
            "state_grad_norm": (("H", "direct/H"), [5], [profile]),
            "reach": (("reach", "reach_censored", "decades_lost"), [step], [np.array([2.0, 0.0, lost])]),
        }
        return judge(weigh(Evidence(lag=99), readings, {5: 0.0}))

    assert judged(VANISHED).word == "healthy"
    assert judged(VANISHED + TINY).word == "vanishing"
    assert judged(np.inf).word == "vanishing"
    assert "the last step's loss alone lost 4.2 decades over the sequence (vanishing above 3)" in judged(4.2).reason
    assert judged(4.2, step=0).word == "unknown", "an older reading is of another network"


def test_a_last_step_that_is_not_scored_is_passed_over() -> None:
    profile = np.array([[-5.0], [-1.0], [0.0], [-np.inf]])
    found = weigh(Evidence(lag=3), {"state_grad_norm": (("H",), [0], [profile])}, {0: 0.0})
    assert found.lost == 5.0


def test_saturated_on_both_sides_of_its_threshold() -> None:
    assert word(saturated=SATURATED) == "healthy"
    assert word(saturated=SATURATED + TINY) == "saturated"


def test_what_stands_before_what() -> None:
    worst = {"saturated": 0.9, "lost": 50.0, "largest": 3.0, "lost_at_largest": -2.0, "solved": True, "diverged_at": 7}
    words = []
    for key in ("diverged_at", "solved", "largest", "lost", "saturated"):
        words.append(word(**worst))
        worst[key] = {"diverged_at": None, "solved": False}.get(key, EASY.get(key, 0.1))
    assert words == ["diverged", "solved", "exploding", "vanishing", "saturated"]
    assert word(**worst) == "healthy"


def test_missing_instruments_are_said() -> None:
    nothing = Evidence(lag=99, largest=0.0, median=0.0)
    assert judge(nothing).word == "unknown"
    assert "state_grad_norm" in judge(nothing).reason
    assert judge(replace(nothing, solved=True)).word == "solved"
    assert judge(replace(nothing, diverged_at=3)).word == "diverged"
    without_gates = judge(replace(HEALTHY, saturated=None))
    assert without_gates.word == "healthy"
    assert "saturation not judged, no reading of gate_activation" in without_gates.reason
    assert word(scored_within=True) == "unknown"


def test_the_numbers_are_those_of_the_readings() -> None:
    """Five steps, lag 3: from t = 5 back to t = 2; the last reading but one is the largest, one has blown up."""
    names = ("H", "C", "direct/H")
    profiles = [np.full((5, 3), -np.inf) for _ in range(4)]
    for profile, column in zip(
        profiles, ([9, -2, 0, 0, 1], [9, 4, 0, 0, 2], [9, -9, 0, 0, 0], [np.nan] * 5), strict=True
    ):
        profile[:, 0] = column
        profile[4, 2] = 0
    gates = ("I/mean", "I/below_0.1", "I/above_0.9", "layer2/F/mean", "layer2/F/below_0.1", "layer2/F/above_0.9")
    shares = np.array([[0.5, 0.2, 0.1, 0.9, 0.3, 0.6], [0.5, 0.4, 0.3, 0.9, 0.1, 0.9]])
    readings = {"state_grad_norm": (names, [0, 3, 9, 10], profiles), "gate_activation": (gates, [10], [shares])}
    norms = {0: 0.5, 1: 7.0, 3: 6.0, 9: -1.0, 10: np.nan, 11: -np.inf}
    found = weigh(Evidence(lag=3), readings, norms)
    assert (found.lost_at_init, found.lost_at_largest, found.lost) == (3.0, -2.0, 9.0)
    assert (found.largest, found.median, found.spike) == (7.0, 3.25, 3.75)
    assert found.saturated == pytest.approx(((0.2 + 0.1 + 0.4 + 0.3) / 2 + (0.3 + 0.1) / 2) / 2), "F at 1 is free"
    assert not found.scored_within
    profiles[2][2, 2] = -4.0
    assert weigh(Evidence(lag=3), readings, norms).scored_within
    profiles[2][1, 0] = -np.inf
    assert weigh(Evidence(lag=3), readings, norms).lost == np.inf


REAL = {
    "vanishing": ["arm=rnn", "task.length=40", "train.steps=2"],
    "exploding": ["arm=rnn", "init=orthogonal", "init.gain=2", "task.length=40", "train.steps=0"],
    "saturated": ["arm=rnn", "init.gain=10", "task.length=6", "train.steps=0"],
    "healthy": ["arm=chrono_lstm", "task.length=40", "train.steps=2"],
    "diverged": [*DIVERGES, "task.length=12", "train.steps=30"],
    "solved": ["arm=lstm", "task.length=4", "optimizer.lr=0.02", "train.steps=300"],
    "unknown": ["arm=lstm", "task=copy", "task.length=20", "train.steps=2", "instruments=[state_grad_norm]"],
}


def test_a_task_that_starts_from_its_state_is_judged_too(home: Path) -> None:
    """Its lag is T, of which H_1 is the furthest row that there is."""
    recorder = execute(config.experiment(["arm=rnn", "task=constant_target", "task.length=5", "train.steps=2"]), "s")
    assert recorder.client.get_run(recorder.run_id).data.tags["verdict"] in ORDER


def test_every_word_by_real_training_is_tag_parameter_and_line_of_the_report(home: Path, capsys) -> None:
    assert set(REAL) == set(ORDER)
    for overrides in REAL.values():
        recorder = execute(config.experiment([*SMALL, *overrides]), "s")
    found = recorder.client.search_runs([recorder.experiment_id], order_by=["attributes.start_time"])
    assert [run.data.tags["verdict"] for run in found] == list(REAL)
    assert [run.data.params["verdict"] for run in found] == list(REAL), "the UI sorts by parameters, not by tags"
    asked = recorder.client.search_runs([recorder.experiment_id], order_by=["params.verdict"])
    assert [run.data.params["verdict"] for run in asked] == sorted(REAL)
    by_word = {run.data.params["verdict"]: run.data.tags["verdict_reason"] for run in found}
    assert "(solved below 0.01); lost" in by_word["solved"]
    diverged = next(run for run in loader.load(None, "gradpath", "s") if run.diverged_at is not None)
    assert f"not finite at step {diverged.diverged_at};" in by_word["diverged"]
    assert report.write(config.report(["figures=[]"])) == 0
    lines = capsys.readouterr().out.splitlines()[-len(REAL) :]
    assert [line.split()[0] for line in lines] == list(ORDER)
    assert all(by_word[line.split()[0]] in line for line in lines)
    page = (home / "reports" / "figures" / "gradpath" / "verdicts.md").read_text()
    assert [row.split(" | ")[1] for row in page.splitlines()[4:]] == list(ORDER)
    assert report.write(config.report(["figures=[]"])) == 0
    assert (home / "reports" / "figures" / "gradpath" / "verdicts.md").read_text() == page


def test_a_run_that_did_not_come_to_its_end_has_no_verdict(home: Path) -> None:
    experiment = config.experiment([*SMALL, "task.length=12", "train.steps=9"])
    with pytest.raises(KeyboardInterrupt), Recorder(experiment, {"sweep_id": "s"}) as recorder:
        recorder.record(next(train(experiment)))
        raise KeyboardInterrupt
    data = recorder.client.get_run(recorder.run_id).data
    assert "verdict" not in data.tags
    assert "verdict" not in data.params


def test_a_run_without_instruments_says_that_it_cannot_be_judged(home: Path) -> None:
    recorder = execute(config.experiment([*SMALL, "instruments=[]", "task.length=12", "train.steps=2"]), "s")
    tags = recorder.client.get_run(recorder.run_id).data.tags
    assert tags["verdict"] == "unknown"
    assert "state_grad_norm" in tags["verdict_reason"]


def test_many_runs_are_one_line_a_group(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arm in ("rnn", "lstm"):
        for seed in range(3):
            execute(config.experiment([*SMALL, f"arm={arm}", f"seed={seed}", "task.length=40", "train.steps=0"]), "s")
    words = {"rnn": ("vanishing", "exploding", "vanishing"), "lstm": ("solved", "healthy", "healthy")}
    runs = loader.load(None, "gradpath", "s")
    told = [
        replace(run, tags=run.tags | {"verdict": words[run.arm][run.seed], "verdict_reason": f"why {run.seed}"})
        for run in runs
    ]
    assert [line.split()[0] for line in report.verdicts(told)] == sorted(words["lstm"] + words["rnn"], key=ORDER.index)
    monkeypatch.setattr(report, "LINES", 5)
    assert report.verdicts(told) == [
        "  1 solved, 2 healthy       LSTM  best: why 0",
        "  2 vanishing, 1 exploding  RNN   best: why 0",
    ]
    untold = [replace(run, tags={}) for run in runs]
    assert report.verdicts(untold)[0] == "  3 unknown  RNN   best: recorded without a verdict"
