"""The verdict on a run: one word, and the numbers and thresholds that led to it.

A threshold that is called "measured" was measured on the training half of the labelled collection
in experiments/verdicts, which also reports its results on the other half.
"""

from dataclasses import dataclass
from math import floor

import numpy as np

from gradpath.tracking.evidence import Evidence, Readings, weigh

__all__ = ["ORDER", "Evidence", "Readings", "Verdict", "judge", "weigh"]

UNTRAINED = 10
"""Number of updates from which on a network counts as trained. A step of Adam is about the learning
rate at most, in every parameter (Kingma & Ba 2015, section 2.1), so that fewer updates leave a
parameter within ten learning rates of its initial value.
"""
DIVERGED = 10.0
"""A run has diverged if its loss after training exceeds both the loss before training and that of
chance by this factor. Measured: after an explosion the loss ends near chance, at most at 1.01 times
the larger of the two; in runs that diverged it is 184 times as large or more.
"""
VANISHED = 3.0
"""Decades that the carrier's gradient must lose over the lag to count as vanished. A part of 10^-3
is lost in the noise that a minibatch of fewer than 10^6 sequences leaves in the rest, since that
noise falls with 1/√B.
"""
SPIKED = 1.0
"""Decades from the median gradient norm of the preceding steps to that of a spike. Pascanu et al.
(2013, section 3.2) put the clipping threshold at half to ten times the average norm; a norm of more
than ten times the average is no ordinary step.
"""
ROSE = 0.5
"""Decades by which the gradient must grow over the lag at a spike, beyond its growth before. In an
explosion the long-term components outgrow the short-term ones (section 2 there); a large gradient
that grows no more over the lag than before only means a large loss. Measured: 0.58 and more at the
spikes of explosions.
"""
HUGE = 1.0
"""Log10 of the gradient norm that, as the median of each quarter of training, means an explosion at
every step: ten times the usual max_norm of 1, as for SPIKED. Measured: 0.72 at most where nothing
explodes.
"""
OUTGREW = 3.0
"""Log10 of the largest norm that counts as an explosion without a spike, as where training starts
with one, if the gradient also grows by as many decades over the lag; the counterpart of VANISHED.
"""
SATURATED = 0.5
"""Share of gates and units on the flat part of their nonlinearity that counts as saturated: more
than half. A gate's flat part is an activation < 0.1 or > 0.9 (Karpathy et al. 2015, section 4.2).
"""
ORDER = ("solved", "healthy", "saturated", "vanishing", "exploding", "diverged", "untrained", "unknown")
"""From good to bad, followed by the verdicts that do not describe training; the report sorts by
this order.
"""


@dataclass(frozen=True)
class Verdict:
    """The verdict in one word, and its reason in one line."""

    word: str
    reason: str


def judge(e: Evidence) -> Verdict:
    """Diverged, solved, untrained, exploding, vanishing, saturated, healthy: the first that holds.

    Solved precedes the pathologies, because a network that has learnt may forget what it does not
    need. Exploding precedes vanishing, because it comes first in time: its updates throw the
    network to where the gradient vanishes. Saturated follows both, because it is their cause, and
    is noteworthy by itself only without them. The verdict is ``unknown`` where the instrument that
    tells these apart is missing; without ``gate_activation`` the verdict says so and stands.
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
    """Is the loss after training not finite, or of another order of magnitude than without any
    training?
    """
    if e.loss is None:
        return False
    return not np.isfinite(e.loss) or e.loss > DIVERGED * max(e.first_loss or 0.0, e.chance or 0.0, 1e-300)


def _explosion(e: Evidence) -> str:
    """The kind of explosion, with its numbers and their thresholds; empty where there was none."""
    if e.scored_within and not e.last_alone:
        return ""  # losses along the sequence add to the past gradient by themselves
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
    """A value rounded with as many more digits as keep it on its side of the limit and off the
    limit itself.
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
    """The loss beside the values with which it can be compared."""
    if e.loss is None:
        return ""
    references = {"before training": e.first_loss, "by chance": e.chance}
    comparisons = ", ".join(f"{loss:.3g} {label}" for label, loss in references.items() if loss is not None)
    return f"loss {e.loss:.3g}" + (f" ({comparisons})" if comparisons else "")


def _line(*clauses: str) -> str:
    return "; ".join(clause for clause in clauses if clause)
