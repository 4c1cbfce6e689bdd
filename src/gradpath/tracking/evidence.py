"""What a verdict is made of: the numbers of a run, read off its instruments."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradpath.core import layer_names
from gradpath.core.roles import Roles
from gradpath.instruments import spike
from gradpath.instruments.reach import decades_lost
from gradpath.tasks import Task
from gradpath.training.evaluation import Evaluation

Readings = Mapping[str, tuple[Sequence[str], Sequence[int], Sequence[NDArray]]]
"""By instrument: the columns' names, the training steps of the readings, the readings."""
RECENT = 5
"""Readings that the growth over the lag is compared with."""


@dataclass(frozen=True)
class Evidence:
    """The numbers of a run that the verdict is made of; None where nothing was recorded. Norms are
    log10 and those of the raw gradient, before clipping. With a(l) = ‖∂L/∂s_{s−l}‖, s the carrier
    of the bottom layer (C of the LSTM, H of RNN and GRU), the derivative total, and lag 0 the last
    scored step:

        lost  = log10 a(0) / a(lag)     in decades; inf at a true zero, negative where it rises
        grown = max_{l ≤ lag} log10 a(l) / a(0)

    From a(0) on, since one step back from there is one step back like all others: for the RNN
    through φ′ and W_hh, for the GRU through its gates, for the LSTM through F. (Of the LSTM's H
    this is not true: δH_T comes through W_hy, δH_{T−1} has come through the gates.) Where the loss
    reads steps within the lag, a(l) is of the last one alone.
    """

    lag: int
    """Longest lag of the task in steps."""
    score: str = ""
    """The task's score after training beside its criterion."""
    solved: bool = False
    diverged_at: int | None = None
    loss: float | None = None
    """After training, on the evaluation set."""
    first_loss: float | None = None
    """Before training, on the first minibatch."""
    chance: float | None = None
    """What the best predictor scores that ignores the input."""
    updates: int | None = None
    span: int | None = None
    """The steps of the lag that there are: H_0, from which a sequence starts, has no reading."""
    largest: float | None = None
    """Largest gradient norm of training."""
    smallest_quarter: float | None = None
    """Of the medians of the gradient norm in each quarter of training the smallest."""
    spike_at: int | None = None
    """The reading with the largest spike in whose step the gradient also grows more over the lag
    than before; where there is none, the largest spike read.
    """
    spike: float | None = None
    """Decades from the median gradient norm of the steps before to that of this step."""
    grown_at_spike: float | None = None
    rise_at_spike: float | None = None
    """``grown`` less its median over the ``RECENT`` readings before."""
    grown_at_init: float | None = None
    grown_at_largest: float | None = None
    """At the reading with the largest gradient norm."""
    grown: float | None = None
    """Median over the readings."""
    lost_at_init: float | None = None
    lost: float | None = None
    """At the last reading."""
    not_finite: int = 0
    """Readings of the carrier's gradient that hold NaN or infinity, which do not count."""
    scored_within: bool = False
    """Does the loss also read steps inside the lag? What it sends there hides what comes from the
    end.
    """
    last_alone: bool = False
    """Are ``lost`` and ``grown`` those of the last scored step's loss alone, over the whole
    sequence? Where the loss reads steps within they are, if the instrument ``reach`` has read it.
    """
    saturated: float | None = None
    """Share at the last reading, over gates, layers, timesteps, sequences and units."""


def outcome(task: Task, first_loss: float, evaluation: Evaluation | None, diverged_at: int | None) -> Evidence:
    """What is known of a run without its instruments."""
    evidence = Evidence(task.lags[1], first_loss=first_loss, chance=task.chance_loss, diverged_at=diverged_at)
    if evaluation is None:
        return evidence
    score = f"{task.metric} {evaluation.score:.2g} (solved below {task.solved_below:g})"
    return replace(evidence, score=score, solved=evaluation.solved, loss=evaluation.loss)


def weigh(
    evidence: Evidence, readings: Readings, norms: Mapping[int, float], roles: Roles, min_rise: float = 0.5
) -> Evidence:
    """Adds to what is known of a run what its instruments have read; ``norms`` is the log10
    gradient norm of every training step, ``roles`` what its cell declares, ``min_rise`` the decades
    from which on ``grown`` has risen. What is not finite does not count.
    """
    numbers = vars(evidence).copy()
    steps = sorted(norms)
    if steps:
        numbers["updates"] = steps[-1]
    if finite := [norms[step] for step in steps if np.isfinite(norms[step])]:
        quarters = np.array_split(finite, min(4, len(finite)))
        numbers |= {"largest": max(finite), "smallest_quarter": min(float(np.median(part)) for part in quarters)}
    numbers |= _carrier_numbers(evidence.lag, readings, roles)
    if curves := numbers.pop("curves"):
        numbers |= _curve_numbers(curves, norms, min_rise)
    names, _, activations = _finite(readings, "gate_activation")
    if activations:
        numbers["saturated"] = _saturated(dict(zip(names, activations[-1].mean(axis=0).tolist(), strict=True)), roles)
    return Evidence(**numbers)


def decades_over_sequence(readings: Readings, roles: Roles) -> dict[int, float]:
    """Decades that the gradient of the bottom layer's carrier loses over the whole sequence, by
    training step; nothing where the loss reads several steps and nothing has followed the last one
    alone: their sum says nothing of the lag.
    """
    numbers = _carrier_numbers(len(readings["state_grad_norm"][2][0]), readings, roles)
    mixed = numbers.get("scored_within") and not numbers.get("last_alone")
    return {} if mixed else {step: lost for step, lost, _ in numbers["curves"]}


def _carrier_numbers(lag: int, readings: Readings, roles: Roles) -> dict:
    """``curves``: (step, lost, grown) of every finite reading; and what they are of."""
    names, steps, profiles = readings.get("state_grad_norm", ((), (), ()))
    if not profiles:
        return {"curves": []}
    carrier = list(names).index(roles.bottom_carrier)
    direct = [column for column, name in enumerate(names) if name.startswith("direct/")]
    numbers: dict = {"curves": [], "span": min(lag, len(profiles[0]) - 1)}
    for step, profile in zip(steps, profiles, strict=True):
        source = (
            profile[:, direct[-1]] if direct else profile[:, carrier]
        )  # the loss sends into the top layer, the last
        scored = np.flatnonzero(source > -np.inf)
        if not scored.size:  # NaN, or a loss whose gradient is a true zero
            numbers["not_finite"] = numbers.get("not_finite", 0) + int(np.isnan(source).any())
            continue
        end = int(scored[-1])
        if direct and len(scored) > 1 and scored[-2] >= end - lag:
            numbers["scored_within"] = True
        curve = profile[end::-1, carrier][: lag + 1]
        if np.isnan(curve).any() or np.isposinf(curve).any():
            numbers["not_finite"] = numbers.get("not_finite", 0) + 1
            continue
        numbers["curves"].append((step, decades_lost(curve), _grown(curve)))
    if not numbers.get("scored_within"):
        return numbers
    last = numbers["curves"][-1][0] if numbers["curves"] else None
    names, steps, values = readings.get("reach", ((), (), ()))
    decades = [
        (step, float(value[list(names).index("decades_lost")])) for step, value in zip(steps, values, strict=True)
    ]
    reach_curves = [(step, value, max(-value, 0.0)) for step, value in decades if not np.isnan(value)]
    if reach_curves and reach_curves[-1][0] == last:  # an older reading is of another network
        return numbers | {"curves": reach_curves, "last_alone": True, "span": len(profiles[0]) - 1}
    return numbers


def _curve_numbers(curves: list[tuple[int, float, float]], norms: Mapping[int, float], min_rise: float) -> dict:
    largest = max(curves, key=lambda curve: norms.get(curve[0], -np.inf))
    numbers: dict = {"lost": curves[-1][1], "grown_at_largest": largest[2]}
    numbers["grown"] = float(np.median([grown for _, _, grown in curves]))
    if curves[0][0] == 0:
        numbers |= {"lost_at_init": curves[0][1], "grown_at_init": curves[0][2]}
    spikes = list(_spikes(curves, norms))
    if spikes:
        step, size, grown, rise = max(spikes, key=lambda candidate: (candidate[3] >= min_rise, candidate[1]))
        numbers |= {"spike_at": step, "spike": size, "grown_at_spike": grown, "rise_at_spike": rise}
    return numbers


def _spikes(
    curves: list[tuple[int, float, float]], norms: Mapping[int, float]
) -> Iterator[tuple[int, float, float, float]]:
    """(step, spike, grown, rise) of each reading that others came before."""
    for index, (step, _, grown) in enumerate(curves):
        size = spike([norms[s] for s in range(step) if s in norms], norms.get(step, np.nan))
        if index and np.isfinite(size):
            recent = [value for _, _, value in curves[max(0, index - RECENT) : index]]
            yield step, size, grown, grown - float(np.median(recent))


def _grown(curve: NDArray) -> float:
    """Decades from lag 0, or the first lag at which something has arrived, to the largest value at
    any lag.
    """
    nonzero = curve[curve > -np.inf]
    return float(nonzero.max() - nonzero[0]) if nonzero.size else 0.0


def _finite(readings: Readings, name: str) -> tuple[Sequence[str], list[int], list[NDArray]]:
    """The readings of an instrument that hold neither NaN nor +inf (-inf is a true zero)."""
    names, steps, values = readings.get(name, ((), (), ()))
    finite = [i for i, value in enumerate(values) if not (np.isnan(value) | np.isposinf(value)).any()]
    return names, [steps[i] for i in finite], [values[i] for i in finite]


def _saturated(mean: Mapping[str, float], roles: Roles) -> float | None:
    """Mean over the gates of the share on a flat part, from the columns of ``gate_activation``;
    None where none of them saturates. Slopes that are 0 or 1 and nothing between are those of
    piecewise linear units (ReLU): half of them are off at any time by design, each on another
    input. All off they are saturated as all others.
    """
    gates = [name.removesuffix("/mean") for name in mean if name.endswith("/mean")]
    shares = []
    for gate in gates:
        share_below, share_above = mean[f"{gate}/below_0.1"], mean[f"{gate}/above_0.9"]
        name = layer_names.split(gate)[1]
        low, high = roles.saturates(name)
        piecewise_linear = (
            roles.is_slope(name) and np.isclose(mean[f"{gate}/mean"], share_above) and 0 < share_below < 1
        )
        if not piecewise_linear or share_below + share_above < 1 - 1e-9:
            shares.append(share_below * low + share_above * high)
    return float(np.mean(shares)) if shares else None
