"""The labelled collection of experiments/verdicts: what judge calls its runs."""

import dataclasses
import re

import numpy as np
import pytest

import collect
from gradpath.commands import compose
from gradpath.tracking.evidence import Evidence
from gradpath.tracking.verdict import ORDER, judge

RUNS, EVIDENCE = collect.collection(), collect.stored()
ALLOWED = 0.1
"""Share of a part that may be called something else than its label: those are named in the README.
"""


def mislabelled(part: str) -> list[str]:
    return [n for n, run in RUNS.items() if run["part"] == part and judge(EVIDENCE[n]).word != run["label"]]


def test_the_collection_holds_runs_of_every_kind_in_both_halves() -> None:
    assert list(RUNS) == list(EVIDENCE)
    assert len(RUNS) >= 60
    for part in collect.PARTS[:2]:
        assert {run["label"] for run in RUNS.values() if run["part"] == part} >= set(ORDER) - {"unknown"}
    assert {run["part"] for run in RUNS.values()} == set(collect.PARTS)
    assert all(run["why"].strip() for run in RUNS.values())


@pytest.mark.parametrize("part", collect.PARTS)
def test_the_verdicts_are_the_labels(part: str) -> None:
    size = sum(run["part"] == part for run in RUNS.values())
    assert len(mislabelled(part)) <= ALLOWED * size, [f"{n}: {judge(EVIDENCE[n])}" for n in mislabelled(part)]


def test_the_page_states_the_matrices_and_every_run_that_is_called_otherwise() -> None:
    page = (collect.FOLDER / "README.md").read_text(encoding="utf-8")
    for part in collect.PARTS:
        assert collect.matrix(RUNS, EVIDENCE, part) in page
        assert all(f"`{name}`" in page for name in mislabelled(part))


def test_no_reason_holds_a_number_that_is_not_one() -> None:
    """Infinity is said in words, and nothing is a minus nought."""
    for name, evidence in EVIDENCE.items():
        reason = judge(evidence).reason
        assert not re.search(r"\b(nan|inf|None)\b|-0\.0\b", reason), (name, reason)


QUICK = ["un_1997", "un_rnn3", "rnn_short", "relu_hot", "f_const"]


NUDGES = 6
"""Trainings whose weights begin a rounding of float32 or so beside, to see whether the last bits
decide a run.
"""


def difference(evidence: Evidence, expected: Evidence, label: str) -> str:
    """What two trainings of a run do not agree in; of one that explodes the word alone counts."""
    if judge(evidence).word != judge(expected).word:
        return f"{judge(evidence)} instead of {judge(expected)}"
    if label in ("exploding", "diverged"):
        return ""
    for key, value in dataclasses.asdict(expected).items():
        measured = getattr(evidence, key)
        if isinstance(value, float) and np.isfinite(value) and measured != pytest.approx(value, rel=0.02, abs=0.05):
            return f"{key}: {measured} instead of {value}"
    return ""


def agrees(name: str) -> None:
    """A training gives what is stored. The arithmetic's last bits differ between machines, and
    where they decide a run they do so on this machine too: then a training that begins a rounding
    beside differs from this one as well.
    """
    overrides, label = RUNS[name]["overrides"], RUNS[name]["label"]
    evidence = collect.observe(overrides)
    if not (message := difference(evidence, EVIDENCE[name], label)):
        return
    gain = compose.experiment(overrides.split()).init.gain
    nudged = (f"{overrides} init.gain={gain * (1 + k * 2.0**-22)!r}" for k in range(1, NUDGES + 1))
    assert any(difference(collect.observe(nudged_overrides), evidence, label) for nudged_overrides in nudged), message


@pytest.mark.parametrize("name", QUICK)
def test_the_evidence_is_what_training_gives(name: str) -> None:
    agrees(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in QUICK])
def test_the_evidence_is_what_training_gives_for_all(name: str) -> None:
    agrees(name)
