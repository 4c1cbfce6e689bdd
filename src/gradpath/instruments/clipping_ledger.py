"""The clipping ledger: the effect of clipping at every step, and the effect that both kinds of
clipping would have had.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.clippings.threshold import Threshold
from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument
from gradpath.schema.settings import setting

NAMES = (
    "log10_raw_norm",
    "log10_applied_norm",
    "engaged",
    "non_finite",
    "cosine",
    "norm_clip/cosine",
    "norm_clip/log10_norm",
    "value_clip/cosine",
    "value_clip/log10_norm",
    "value_clip/share",
)


@dataclass
class ClippingLedger(Instrument):
    """The effect of the run's own clipping: log10 ‖g‖ raw and as applied, ``engaged`` (0 or 1) and
    the cosine between the two gradients; ``non_finite`` (0 or 1): the loss, the raw or the applied
    gradient is not finite, and all other columns are NaN.

    And the effect that both kinds would have had on the same minibatch. ``norm_clip``, g · min(1,
    max_norm / ‖g‖), keeps the direction (Pascanu et al. 2013, algorithm 1). ``value_clip``, max(−v,
    min(v, g_i)) elementwise (Mikolov 2012), turns the gradient towards a corner of the cube;
    ``share`` is the share of the elements that are cut. Cosines are taken with the raw gradient and
    are NaN where it is a true zero. The exponent of the scaled gradient is kept throughout, so that
    all columns are right where the plain gradient overflows. (10,)
    """

    max_norm: float = setting(1.0, "the norm at which ``norm_clip`` would cut", gt=0)
    max_value: float = setting(0.1, "the element size at which ``value_clip`` would cut", gt=0)

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        gradient = trace.gradient if trace.trained is None else trace.trained
        plain = gradient.scaled.plain()
        applied = plain if trace.applied is None else trace.applied
        finite = np.isfinite(trace.tape.loss) and gradient.log10_norm < np.inf and np.isfinite(applied).all()
        if not finite:
            row = dict.fromkeys(NAMES, np.nan) | {"engaged": 0.0, "non_finite": 1.0}
            return Measurement(NAMES, np.array(list(row.values())))
        clips = (Threshold(max_norm=self.max_norm), Threshold(max_value=self.max_value))
        by_norm, by_value = (clip.apply(gradient)[0] for clip in clips)
        raw = gradient.scaled.array
        actual, norm_clip, value_clip = _against(raw, applied, by_norm, by_value)
        row = {
            "log10_raw_norm": gradient.log10_norm,
            "log10_applied_norm": actual[1],
            "engaged": float(trace.clip_scale < 1),
            "non_finite": 0.0,
            "cosine": actual[0],
            "norm_clip/cosine": norm_clip[0],
            "norm_clip/log10_norm": norm_clip[1],
            "value_clip/cosine": value_clip[0],
            "value_clip/log10_norm": value_clip[1],
            "value_clip/share": np.count_nonzero(np.abs(plain) > self.max_value) / plain.size,
        }
        return Measurement(NAMES, np.array(list(row.values())))

    def metric(self, name: str) -> str | None:
        shown = {"log10_applied_norm": "log10_applied_norm", "value_clip/cosine": "value_clip_cosine"}
        return f"train/{shown[name]}" if name in shown else None


def _against(raw: NDArray, *vectors: NDArray) -> list[tuple[float, float]]:
    """The cosine to ``raw`` and the log10 norm of each vector, in float64, which holds the squares
    after division by the largest element; (NaN, -inf) for a zero.
    """
    direction, length, _ = _scaled(raw)
    pairs = []
    for vector in vectors:
        scaled, norm, largest = _scaled(vector)
        if not (length and norm):
            pairs.append((np.nan, -np.inf))
            continue
        pairs.append((float(direction @ scaled) / (length * norm), float(np.log10(norm) + np.log10(largest))))
    return pairs


def _scaled(vector: NDArray) -> tuple[NDArray, float, float]:
    """A vector divided by its largest element, the norm of the quotient, and the largest
    element.
    """
    largest = float(np.abs(vector).max())
    scaled = vector.astype(np.float64) / (largest or 1.0)
    return scaled, float(np.sqrt(scaled @ scaled)), largest
