"""The verdict on a run: one word, and the numbers and thresholds that gave it.

Where a threshold says "measured", that is on the training half of the labelled collection in
experiments/verdicts, which says how it does on the other half.
"""

from dataclasses import dataclass
from math import floor

import numpy as np

from gradpath.tracking.evidence import Evidence, Readings, weigh

__all__ = ["ORDER", "Evidence", "Readings", "Verdict", "judge", "weigh"]

UNTRAINED = 10
"""Updates from which on something was trained. Adam's step is about the learning rate at most, in
every parameter (Kingma & Ba 2015, section 2.1), so that fewer leave it within ten of them of where
it was drawn.
"""
DIVERGED = 10.0
"""How many times the loss before training and that of chance (the larger) the loss after it must
be. Measured: what is thrown by an explosion ends near chance, at most at 1.01 times the larger of
both; what has diverged at 184 or more.
"""
VANISHED = 3.0
"""Decades that the carrier's gradient loses over the lag. What arrives at 10^-3 is lost in the
noise that a minibatch of fewer than 10^6 sequences leaves in the rest, since that noise falls with
1/√B.
"""
SPIKED = 1.0
"""Decades from the median gradient norm of the steps before to that of the spike. Pascanu et al.
(2013, section 3.2) put the clipping threshold at half to ten times the average norm: what exceeds
ten times it is no ordinary step.
"""
ROSE = 0.5
"""Decades that the gradient grows over the lag, at a spike beyond what it grew before. Explosion is
of the long-term components, which outgrow the short-term ones (section 2 there); a large gradient
that grows no more over the lag than before is only a large loss. Measured: 0.58 and more at spikes
of explosions.
"""
HUGE = 1.0
"""Log10 of the gradient norm, as the median of each quarter of training, of what explodes at every
step: ten times the usual max_norm of 1, as for SPIKED. Measured: 0.72 at most where nothing
explodes.
"""
OUTGREW = 3.0
"""Log10 of the largest norm that is an explosion without a spike, as where training starts with it,
if the gradient also grows by as many decades over the lag: VANISHED's mirror.
"""
SATURATED = 0.5
"""Share of gates and units on the flat part of their nonlinearity: more than half. A gate's flat
part is an activation < 0.1 or > 0.9 (Karpathy et al. 2015, section 4.2).
"""
ORDER = ("solved", "healthy", "saturated", "vanishing", "exploding", "diverged", "untrained", "unknown")
"""From good to bad, and then what says nothing of training; the report sorts by it."""


@dataclass(frozen=True)
class Verdict:
    """The word, and in one line why."""

    word: str
    reason: str


def judge(e: Evidence) -> Verdict:
    """Diverged, solved, untrained, exploding, vanishing, saturated, healthy: the first that holds.

    Solved stands before the pathologies because a network that has learnt may forget what it does
    not need; exploding before vanishing because it comes first in time: its updates throw the
    network to where the gradient vanishes; and saturated after both because it is their cause, and
    of note by itself only without them. ``unknown`` where the instrument that tells them apart is
    missing; without ``gate_activation`` the verdict says so and stands.
    """
    if e.diverged_at is not None:
        return Verdict("diverged", _line(f"loss or gradient not finite at step {e.diverged_at}", _largest(e)))
    if _lost_control(e):
        return Verdict(
            "diverged", _line(_loss(e), f"diverged above {DIVERGED:g} times the larger of these", _largest(e))
        )
    untrained = e.updates is not None and e.updates < UNTRAINED
    updates = f"nothing was trained ({_count(e.updates or 0, 'update')}, trained from {UNTRAINED})" if untrained else ""
    if e.solved:
        return Verdict("solved", _line(updates, e.score, _lost(e), _largest(e)))
    if untrained:
        return Verdict("untrained", _line(updates, _at_init(e), _saturated(e), _loss(e)))
    if e.lost is None:
        return Verdict("unknown", _line(_unread(e), _loss(e)))
    if explosion := _explosion(e):
        return Verdict("exploding", _line(explosion, f"in the end {_change(e.lost)}", _loss(e)))
    vanishing = f"{_lost(e)} (vanishing above {VANISHED:g})"
    if e.lost > VANISHED:
        return Verdict("vanishing", _line(vanishing, _at_init(e), _loss(e)))
    if e.saturated is not None and e.saturated > SATURATED:
        return Verdict("saturated", _line(_saturated(e), _lost(e), _loss(e)))
    if e.scored_within and not e.last_alone:
        return Verdict("unknown", _line(_lost(e), "but the loss is read at steps in between, which would hide it"))
    return Verdict("healthy", _line(vanishing, _spike(e), _saturated(e), _loss(e)))


def _lost_control(e: Evidence) -> bool:
    """Is the loss after training finite or not, of another order of magnitude than it could be
    without any training?
    """
    if e.loss is None:
        return False
    return not np.isfinite(e.loss) or e.loss > DIVERGED * max(e.first_loss or 0.0, e.chance or 0.0, 1e-300)


def _explosion(e: Evidence) -> str:
    """Which explosion it was, with its numbers and their thresholds; empty where it was none."""
    if e.scored_within and not e.last_alone:
        return ""  # losses along the way add to the past by themselves
    grown, rise = e.grown_at_spike or 0.0, e.rise_at_spike or 0.0
    if e.spike is not None and e.spike >= SPIKED and rise >= ROSE:
        return (
            f"{_spike(e)}, where the gradient grows by up to {grown:.1f} decades within the lag, "
            f"{_rounded(rise, ROSE)} more than before (from {ROSE:g})"
        )
    if (e.smallest_quarter or 0.0) >= HUGE and (e.grown or 0.0) >= ROSE:
        least = floor(10 * (e.smallest_quarter or 0.0)) / 10
        return (
            f"gradient norm 10^{least:.1f} or more throughout, as the median of each quarter of training "
            f"(exploding from 10^{HUGE:g}), growing by up to {_rounded(e.grown or 0.0, ROSE)} decades within the lag "
            f"(from {ROSE:g})"
        )
    if (e.largest or 0.0) >= OUTGREW and (e.grown_at_largest or 0.0) >= OUTGREW:
        return (
            f"{_largest(e)} (exploding from 10^{OUTGREW:g}), growing there by up to "
            f"{_rounded(e.grown_at_largest or 0.0, OUTGREW)} decades within the lag (from {OUTGREW:g})"
        )
    return ""


def _spike(e: Evidence) -> str:
    if e.spike is None:
        return ""
    subject = f"gradient norm at step {e.spike_at}"
    if e.spike <= 0.05:
        return f"{subject} no larger than the median of the steps before (exploding from +{SPIKED:g} decade)"
    comparison = f"{subject} {_rounded(e.spike, SPIKED)} decades above the median of the steps before"
    rise = e.rise_at_spike or 0.0
    if e.spike < SPIKED or rise >= ROSE:
        return f"{comparison} (exploding from {SPIKED:g})"
    growth = f"{_rounded(rise, ROSE)} decades more than before" if rise >= 0.05 else "no more than before"
    return f"{comparison}, but there it grows {growth} within the lag (exploding from {ROSE:g})"


def _largest(e: Evidence) -> str:
    return "" if e.largest is None else f"largest gradient norm 10^{e.largest:.1f}"


def _lost(e: Evidence) -> str:
    if e.lost is None:
        return ""
    if e.last_alone:
        return f"the last step's loss alone {_change(e.lost)} over the sequence"
    if e.span is not None and e.span < e.lag:
        return f"{_change(e.lost)} over the {_count(e.span, 'step')} that there {'is' if e.span == 1 else 'are'}"
    return f"{_change(e.lost)} over the {_count(e.lag, 'step')} that the task needs"


def _at_init(e: Evidence) -> str:
    if e.lost_at_init is None:
        return ""
    growth = e.grown_at_init or 0.0
    suffix = f", growing by {growth:.1f} on the way" if growth >= 0.05 and e.lost_at_init > -0.05 else ""
    return f"at initialisation {_change(e.lost_at_init)}{suffix}"


def _change(lost: float) -> str:
    if lost == np.inf:
        return "nothing arrives (a true zero)"
    if abs(lost) < 0.05:
        return "lost nothing (0.0 decades)"
    return f"gained {-lost:.1f} decades" if lost < 0 else f"lost {_rounded(lost, VANISHED)} decades"


def _rounded(value: float, limit: float, digits: int = 1) -> str:
    """Rounded, but never to the other side of its limit, nor onto it: with as many more digits as
    that takes.
    """
    text = f"{value:.{digits}f}"
    same_side = np.sign(float(text) - limit) == np.sign(value - limit)
    return text if same_side or digits > 15 else _rounded(value, limit, digits + 1)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _saturated(e: Evidence) -> str:
    if e.saturated is None:
        return "saturation not judged, no reading of gate_activation, or of ReLU alone"
    share = _rounded(100 * e.saturated, 100 * SATURATED, digits=0)
    return f"{share}% of gates and units saturated (saturated above {SATURATED:.0%})"


def _unread(e: Evidence) -> str:
    if e.not_finite:
        return f"no finite reading of state_grad_norm to judge by, {e.not_finite} with NaN or infinity"
    return "no reading of state_grad_norm to judge by"


def _loss(e: Evidence) -> str:
    """The loss beside what it can be compared with."""
    if e.loss is None:
        return ""
    references = {"before training": e.first_loss, "by chance": e.chance}
    comparisons = ", ".join(f"{loss:.3g} {label}" for label, loss in references.items() if loss is not None)
    return f"loss {e.loss:.3g}" + (f" ({comparisons})" if comparisons else "")


def _line(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause)
