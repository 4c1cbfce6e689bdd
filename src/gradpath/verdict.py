"""The verdict on a run: one word, and the numbers and thresholds that gave it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

VANISHED = 3.0
"""Decades that ‖∂L/∂H_t‖ loses over the lag. What arrives at 10^-3 is lost in the noise that a minibatch of fewer than
10^6 sequences leaves in the rest, since that noise falls with 1/√B. In the studies, what solves loses at most 2."""
SPIKED = 1.0
"""Decades from the median to the largest gradient norm of training. Pascanu et al. (2013, section 3.2) put the clipping
threshold at half to ten times the average norm: what exceeds ten times it is no ordinary step."""
ROSE = 0.0
"""Decades that ‖∂L/∂H_t‖ gains over the lag where the gradient is largest. Explosion is of the long-term components,
which outgrow the short-term ones (section 2 there); a large gradient that falls with the lag is only a large loss."""
OUTGREW = 3.0
"""Decades gained there that count without a spike, as in a network that explodes at every step: VANISHED's mirror."""
SATURATED = 0.5
"""Share of gates and units on the flat part of their nonlinearity: more than half. A gate's flat part is an activation
< 0.1 or > 0.9 (Karpathy et al. 2015, section 4.2); in the studies 0.8 to 0.9 of an RNN's units after an explosion."""
FREE_ABOVE = ("F", "Z", "phi_prime")
"""Where > 0.9 is not saturation: a keeping gate at 1 is the highway itself, and φ′ at its largest passes everything."""
ORDER = ("solved", "healthy", "saturated", "vanishing", "exploding", "diverged", "unknown")
"""From good to bad; the report sorts by it."""

Readings = Mapping[str, tuple[Sequence[str], Sequence[int], Sequence[NDArray]]]
"""By instrument: the columns' names, the training steps of the readings, the readings."""


@dataclass(frozen=True)
class Verdict:
    """The word, and in one line why."""

    word: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """The numbers of a run that the verdict is made of; None where nothing was recorded. Norms are log10 and those of
    the raw gradient, before clipping; what is lost is ‖∂L/∂H_t‖ of the bottom layer, in decades over the lag: inf where
    a true zero arrives, negative where it rises.
    """

    lag: int
    """Longest lag of the task in steps."""
    score: str = ""
    """The task's score after training beside its criterion."""
    solved: bool = False
    diverged_at: int | None = None
    largest: float | None = None
    """Largest gradient norm of training."""
    median: float | None = None
    """Its median over the steps."""
    lost_at_init: float | None = None
    lost_at_largest: float | None = None
    """At the reading with the largest gradient norm."""
    lost: float | None = None
    """At the last reading."""
    scored_within: bool = False
    """Does the loss also read steps inside the lag? What it sends there hides what comes from the end."""
    last_alone: bool = False
    """Is ``lost`` that of the last scored step's loss alone, over the whole sequence? Where the loss reads steps within
    it is, if the instrument ``reach`` has read it."""
    saturated: float | None = None
    """Share at the last reading, over gates, layers, timesteps, sequences and units."""

    @property
    def spike(self) -> float:
        """Decades from the median to the largest gradient norm."""
        return 0.0 if self.largest is None or self.median is None else self.largest - self.median


def judge(e: Evidence) -> Verdict:
    """Diverged, solved, exploding, vanishing, saturated, healthy: the first that holds.

    Solved stands before the pathologies because a network that has learnt may forget what it does not need; exploding
    before vanishing because it comes first in time: its updates throw the network to where the gradient vanishes; and
    saturated after both because it is their cause, and of note by itself only without them. ``unknown`` where the
    instrument that tells them apart is missing; without ``gate_activation`` the verdict says so and stands.
    """
    if e.diverged_at is not None:
        return Verdict("diverged", _line(f"loss or gradient not finite at step {e.diverged_at}", _size(e)))
    if e.solved:
        return Verdict("solved", _line(e.score, _lost(e), _size(e)))
    if e.lost is None or e.lost_at_largest is None:
        return Verdict("unknown", "no reading of state_grad_norm to judge by")
    if _explodes(e):
        return Verdict("exploding", _line(_spike(e), f"in the end {_change(e)}"))
    vanishing = f"{_lost(e)} (vanishing above {VANISHED:g})"
    if e.lost > VANISHED:
        at_init = "" if e.lost_at_init is None or e.last_alone else f"{e.lost_at_init:.1f} at initialisation"
        return Verdict("vanishing", _line(vanishing, at_init))
    saturated = "saturation not judged, no reading of gate_activation"
    if e.saturated is not None:
        saturated = f"{e.saturated:.0%} of gates and units saturated (above {SATURATED:.0%})"
        if e.saturated > SATURATED:
            return Verdict("saturated", _line(saturated, _lost(e)))
    if e.scored_within and not e.last_alone:
        return Verdict("unknown", _line(_lost(e), "but the loss is read at steps in between, which would hide it"))
    return Verdict("healthy", _line(vanishing, _spike(e), saturated))


def weigh(evidence: Evidence, readings: Readings, norms: Mapping[int, float]) -> Evidence:
    """Adds to what is known of a run what its instruments have read; ``norms`` is the log10 gradient norm of every
    training step. Readings with NaN (training had blown up) do not count, nor norms that are not finite.
    """
    found = vars(evidence).copy()
    if finite := [norm for norm in norms.values() if np.isfinite(norm)]:
        found |= {"largest": max(finite), "median": float(np.median(finite))}
    names, steps, profiles = _whole(readings, "state_grad_norm")
    if profiles:
        hidden = bottom_hidden(names)
        lost = [_over(evidence.lag, profile[:, hidden]) for profile in profiles]
        largest = max(range(len(steps)), key=lambda i: norms.get(steps[i], -np.inf))
        found |= {"lost": lost[-1], "lost_at_largest": lost[largest]}
        found["lost_at_init"] = lost[0] if steps[0] == 0 else None
        if direct := [i for i, name in enumerate(names) if name.startswith("direct/")]:  # the top layer's is the last
            found["scored_within"] = bool((profiles[-1][-1 - evidence.lag : -1, direct[-1]] > -np.inf).any())
    names, reached, reaches = _whole(readings, "reach")
    if reaches and found["scored_within"] and reached[-1] == steps[-1]:
        found |= {"lost": float(reaches[-1][list(names).index("decades_lost")]), "last_alone": True}
    names, _, activations = _whole(readings, "gate_activation")
    if activations:
        found["saturated"] = _saturated(dict(zip(names, activations[-1].mean(axis=0).tolist(), strict=True)))
    return Evidence(**found)


def bottom_hidden(names: Sequence[str]) -> int:
    """The column of H in the bottom layer: the first of that name."""
    return next(column for column, name in enumerate(names) if name.rpartition("/")[2] == "H")


def _whole(readings: Readings, name: str) -> tuple[Sequence[str], list[int], list[NDArray]]:
    """The readings of an instrument that hold no NaN."""
    names, steps, values = readings.get(name, ((), (), ()))
    whole = [i for i, value in enumerate(values) if not np.isnan(value).any()]
    return names, [steps[i] for i in whole], [values[i] for i in whole]


def _over(lag: int, profile: NDArray) -> float:
    """Decades that a profile (T,) loses from the last step at which it is not 0 to ``lag`` steps before the end, or to
    H_1 where the task asks for more (H_0, which it starts from, has no row).
    """
    far = float(profile[max(-1 - lag, -len(profile))])
    near = profile[profile > -np.inf]
    return np.inf if far == -np.inf or not near.size else float(near[-1]) - far


def _saturated(mean: Mapping[str, float]) -> float:
    """Mean over the gates of the share on a flat part, from the columns of ``gate_activation``."""
    gates = [name.removesuffix("/mean") for name in mean if name.endswith("/mean")]
    above = {gate: 0.0 if gate.rpartition("/")[2] in FREE_ABOVE else mean[f"{gate}/above_0.9"] for gate in gates}
    return float(np.mean([mean[f"{gate}/below_0.1"] + above[gate] for gate in gates]))


def _explodes(e: Evidence) -> bool:
    rose = -np.inf if e.lost_at_largest is None else -e.lost_at_largest
    # Losses along the way add to the past by themselves: then a small rise says nothing.
    return rose >= OUTGREW or (rose >= ROSE and e.spike >= SPIKED and not e.scored_within)


def _size(e: Evidence) -> str:
    if e.largest is None:
        return ""
    return f"largest gradient norm 10^{e.largest:.1f}, {e.spike:.1f} decades above the median"


def _spike(e: Evidence) -> str:
    """The two numbers of an explosion, each with its threshold."""
    rose = 0.0 if e.lost_at_largest is None else -e.lost_at_largest
    bound = ROSE if e.spike >= SPIKED and not e.scored_within else OUTGREW
    profile = f"{'rising' if rose >= 0 else 'falling'} there by {abs(rose):.1f} over the {e.lag} steps"
    return f"{_size(e)} (exploding from {SPIKED:g}), {profile} (from +{bound:g})"


def _lost(e: Evidence) -> str:
    if e.last_alone:
        return f"the last step's loss alone {_change(e)} over the sequence"
    return "" if e.lost is None else f"{_change(e)} over the {e.lag} steps that the task needs"


def _change(e: Evidence) -> str:
    if e.lost is None or e.lost == np.inf:
        return "nothing arrives (a true zero)"
    return f"gained {-e.lost:.1f} decades" if e.lost < 0 else f"lost {e.lost:.1f} decades"


def _line(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause)
