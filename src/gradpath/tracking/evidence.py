"""The evidence for a verdict: the numbers of a run, from the readings of its instruments."""

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
"""For each instrument: the columns' names, the training steps of the readings, the readings."""
RECENT = 5
"""Number of preceding readings with whose median ``grown`` is compared."""


@dataclass(frozen=True)
class Evidence:
    """The numbers of a run from which the verdict is derived; None where nothing was recorded.
    Norms are log10 norms of the raw gradient, before clipping. Let S be the last scored step and
    a(l) = ‖∂L/∂c_{S−l}‖ the norm of the total derivative at lag l, where c is the carrier of the
    bottom layer (C of the LSTM, H of RNN and GRU):

        lost  = log10 a(0) / a(lag)     in decades; inf at a true zero, negative where a(l) rises
        grown = max_{l ≤ lag} log10 a(l) / a(0)

    The curve starts at a(0), because the step from lag 0 to lag 1 is of the same kind as all later
    ones: through φ′ and W_hh in the RNN, through the gates in the GRU, through F in the LSTM. (The
    H of the LSTM would not do: δH_T comes through W_hy, δH_{T−1} comes through the gates.) Where
    the loss reads several steps within the lag, a(l) belongs to the loss of the last one alone.
    """

    lag: int
    """Longest lag of the task in steps."""
    score: str = ""
    """The task's score after training and its criterion, in words."""
    solved: bool = False
    diverged_at: int | None = None
    loss: float | None = None
    """Loss after training, on the evaluation set."""
    first_loss: float | None = None
    """Loss before training, on the first minibatch."""
    chance: float | None = None
    """Loss of the best predictor that ignores the input."""
    updates: int | None = None
    span: int | None = None
    """Steps over which ``lost`` and ``grown`` are measured: a sequence may be no longer than the
    lag, and its initial state H_0 has no reading.
    """
    largest: float | None = None
    """Largest gradient norm of training."""
    smallest_quarter: float | None = None
    """The smallest of the four medians of the gradient norm, one for each quarter of training."""
    spike_at: int | None = None
    """Training step of the largest spike among the readings at which ``grown`` has risen too; where
    ``grown`` has risen at none of them, of the largest spike among all readings.
    """
    spike: float | None = None
    """Decades from the median gradient norm of the preceding steps to the norm at ``spike_at``."""
    grown_at_spike: float | None = None
    """``grown`` of the reading at ``spike_at``."""
    rise_at_spike: float | None = None
    """``grown_at_spike`` less the median of ``grown`` over the ``RECENT`` preceding readings."""
    grown_at_init: float | None = None
    grown_at_largest: float | None = None
    """``grown`` of the reading with the largest gradient norm."""
    grown: float | None = None
    """Median of ``grown`` over the readings."""
    lost_at_init: float | None = None
    lost: float | None = None
    """``lost`` of the last reading."""
    not_finite: int = 0
    """Number of readings of the carrier's gradient that hold NaN or infinity and are left out."""
    scored_within: bool = False
    """Does the loss also read steps inside the lag? The gradient that enters at these steps hides
    the gradient that comes from the last one.
    """
    last_alone: bool = False
    """Do ``lost`` and ``grown`` belong to the loss of the last scored step alone, over the whole
    sequence? They do where ``scored_within`` is true and the instrument ``reach`` has been read.
    """
    saturated: float | None = None
    """Saturated share of the gate activations at the last reading, over gates, layers, timesteps,
    sequences and units.
    """


def outcome(task: Task, first_loss: float, evaluation: Evaluation | None, diverged_at: int | None) -> Evidence:
    """The evidence of a run that needs no instrument."""
    evidence = Evidence(task.lags[1], first_loss=first_loss, chance=task.chance_loss, diverged_at=diverged_at)
    if evaluation is None:
        return evidence
    score = f"{task.metric} {evaluation.score:.2g} (solved below {task.solved_below:g})"
    return replace(evidence, score=score, solved=evaluation.solved, loss=evaluation.loss)


def weigh(
    evidence: Evidence, readings: Readings, norms: Mapping[int, float], roles: Roles, min_rise: float = 0.5
) -> Evidence:
    """The evidence of a run with the readings of its instruments added. ``norms`` holds the log10
    gradient norm of every training step and ``roles`` the declarations of the cell; ``min_rise`` is
    the number of decades from which on ``grown`` counts as risen. Values that are not finite are
    left out.
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
    training step. Empty where the loss reads several steps and ``reach`` has not followed the last
    one alone, because the sum of their gradients does not show the decay over the lag.
    """
    numbers = _carrier_numbers(len(readings["state_grad_norm"][2][0]), readings, roles)
    mixed = numbers.get("scored_within") and not numbers.get("last_alone")
    return {} if mixed else {step: lost for step, lost, _ in numbers["curves"]}


def _carrier_numbers(lag: int, readings: Readings, roles: Roles) -> dict:
    """``curves``, the (step, lost, grown) of every finite reading, and the other numbers of the
    carrier: ``span``, ``not_finite``, ``scored_within`` and ``last_alone``.
    """
    names, steps, profiles = readings.get("state_grad_norm", ((), (), ()))
    if not profiles:
        return {"curves": []}
    carrier = list(names).index(roles.bottom_carrier)
    direct = [column for column, name in enumerate(names) if name.startswith("direct/")]
    numbers: dict = {"curves": [], "span": min(lag, len(profiles[0]) - 1)}
    for step, profile in zip(steps, profiles, strict=True):
        source = (
            profile[:, direct[-1]] if direct else profile[:, carrier]
        )  # the loss enters the top layer, the last column
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
    if reach_curves and reach_curves[-1][0] == last:  # an older reading describes another network
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
    """(step, spike, grown, rise) of each reading except the first."""
    for index, (step, _, grown) in enumerate(curves):
        size = spike([norms[s] for s in range(step) if s in norms], norms.get(step, np.nan))
        if index and np.isfinite(size):
            recent = [value for _, _, value in curves[max(0, index - RECENT) : index]]
            yield step, size, grown, grown - float(np.median(recent))


def _grown(curve: NDArray) -> float:
    """Decades from the first value of the curve that is not a true zero to its largest value."""
    nonzero = curve[curve > -np.inf]
    return float(nonzero.max() - nonzero[0]) if nonzero.size else 0.0


def _finite(readings: Readings, name: str) -> tuple[Sequence[str], list[int], list[NDArray]]:
    """The readings of an instrument that hold neither NaN nor +inf (-inf is a true zero)."""
    names, steps, values = readings.get(name, ((), (), ()))
    finite = [i for i, value in enumerate(values) if not (np.isnan(value) | np.isposinf(value)).any()]
    return names, [steps[i] for i in finite], [values[i] for i in finite]


def _saturated(mean: Mapping[str, float], roles: Roles) -> float | None:
    """Mean over the gates of the share on a flat part, from the columns of ``gate_activation``;
    None where no gate can saturate. Slopes that are either 0 or 1 belong to piecewise linear units
    (ReLU), about half of which are off at any time by design, each at other inputs. They are left
    out unless all of them are off.
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
