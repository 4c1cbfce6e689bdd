"""The factor by which clipping scaled the gradient."""

from dataclasses import dataclass

import numpy as np

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument


@dataclass
class ClipScale(Instrument):
    """‖gradient as applied‖ / ‖raw gradient‖: min(1, max_norm / ‖∂L/∂θ‖) for norm clipping (Pascanu
    et al. 2013, algorithm 1), 1 without clipping. Clipping multiplies the whole profile by this
    factor and changes no ratio within the profile. (1,)
    """

    per_timestep = False

    def measure(self, network: Network, trace: Trace) -> Measurement:
        return Measurement(("clip_scale",), np.array([trace.clip_scale]))

    def metric(self, name: str) -> str | None:
        return "train/clip_scale"
