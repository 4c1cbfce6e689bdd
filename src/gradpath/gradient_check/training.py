"""Compares the clipped gradient and the optimiser's arguments with the textbook's ∂L/∂θ and the
rules in the units' docstrings.
"""

import numpy as np
from numpy.typing import NDArray

from gradpath.clippings import Clipping
from gradpath.clippings.threshold import Threshold
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Gradient
from gradpath.gradient_check import updates
from gradpath.gradient_check.columns import total_gradient
from gradpath.gradient_check.findings import Errors, Findings, adjoint_errors, certain, log10_errors
from gradpath.gradient_check.reference import Reference
from gradpath.gradient_check.textbook import LOG10_2, Stepwise, log10_norm, ratio
from gradpath.gradient_check.watching import Watch


def check(watch: Watch, reference: Reference, findings: Findings) -> None:
    """Checks the gradient before clipping, after clipping and as the optimiser received it, and the
    updates.
    """
    trace = watch.trace
    values, exponent = total_gradient(reference, trace)
    norm = float(log10_norm(values[0], 0) + exponent * LOG10_2)
    doubt = float(ratio(log10_norm(values[1] - values[0], 0), log10_norm(values[0], 0)))
    findings.add("log10 ‖∂L/∂θ‖", log10_errors(np.asarray(trace.gradient.log10_norm), np.asarray(norm), doubt))
    if trace.trained is None or trace.applied is None:
        return
    claim = trace.trained
    if not watch.trains_readout:
        values, exponent = total_gradient(reference, trace, readout=False)
        norm = float(log10_norm(values[0], 0) + exponent * LOG10_2)
        doubt = float(ratio(log10_norm(values[1] - values[0], 0), log10_norm(values[0], 0)))
    claimed = Scaled(claim.scaled.array[None], np.reshape(claim.scaled.exponent, 1))
    findings.add(
        "gradient, as trained", adjoint_errors(claimed, Stepwise(values[:, None], np.array([exponent]))).largest
    )
    findings.add("gradient, norm as trained", log10_errors(np.asarray(claim.log10_norm), np.asarray(norm), doubt))
    expected, scale = _clipped(watch.clip, values, exponent, norm)
    findings.add("gradient, as applied", _applied(trace.applied, expected))
    findings.add(
        "clip_scale", Errors(np.asarray(abs(trace.clip_scale - scale) / max(scale, 1e-300)), np.asarray(doubt))
    )
    if watch.updates:
        findings.add("optimizer: what it gets", _applied(watch.updates[-1].gradient, expected))
        updates.check(watch.updates, findings)


def _clipped(clip: Clipping, values: NDArray, exponent: int, norm: float) -> tuple[Stepwise, float]:
    """The textbook's gradient, ``values`` (2, P) · 2^exponent, after clipping, and the factor of
    the clipping. A threshold on the norm scales all elements by one factor, a threshold on the
    value limits each element. Any other rule is called on the textbook's gradient; its factor is by
    definition a ratio of norms.
    """
    with np.errstate(over="ignore", under="ignore"):
        if isinstance(clip, Threshold) and clip.max_norm is not None:
            decades = min(0.0, np.log10(clip.max_norm) - norm) if norm > -np.inf else 0.0
            scale = 10.0 ** max(decades, -400.0)
            power = int(np.floor(decades / LOG10_2))
            return Stepwise(values[:, None] * 10.0 ** (decades - power * LOG10_2), np.array([exponent + power])), scale
        if isinstance(clip, Threshold):
            limit = np.inf if clip.max_value is None else clip.max_value
            cut = np.clip(np.ldexp(values, exponent), -limit, limit)
        else:
            raw = [Scaled(value, np.asarray(exponent, np.int32)) for value in values]
            cut = np.array([clip.apply(Gradient(scaled, float(scaled.log10_norm()), ()))[0] for scaled in raw])
        clips, clipped_norm = bool(clip.label), float(log10_norm(cut[0], 0))
        scale = min(1.0, 10.0 ** max(clipped_norm - norm, -400.0)) if clips and norm > -np.inf else 1.0
        return Stepwise(cut[:, None], np.array([0])), scale


def _applied(applied: NDArray, expected: Stepwise) -> Errors:
    """The error of a plain gradient; none where its norm is outside the range of its type."""
    size = float(log10_norm(expected.values[0, 0], 0) + expected.exponent[0] * LOG10_2)
    limits = np.finfo(applied.dtype)
    if not np.log10(float(limits.tiny)) + 6 < size < np.log10(float(limits.max)):
        return certain(0.0)
    return adjoint_errors(Scaled(applied[None], np.zeros(1, np.int32)), expected).largest
