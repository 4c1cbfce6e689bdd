"""Clipping at a threshold: the whole gradient by its norm, or each element by its value."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradpath.clippings import Clipping, ratio
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Gradient
from gradpath.schema.settings import SettingError, setting


@dataclass
class Threshold(Clipping):
    """g ← g · max_norm / ‖g‖ where ‖g‖ > max_norm, over all parameters together (Pascanu et al.
    2013, algorithm 1); or g ← max(−v, min(v, g)) elementwise (Mikolov 2012). Neither set: no
    clipping.
    """

    max_norm: float | None = setting(None, "largest global gradient norm; null for no norm clipping", gt=0)
    max_value: float | None = setting(None, "largest element of the gradient; null for no value clipping", gt=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_norm is not None and self.max_value is not None:
            raise SettingError("max_value", self.max_value, "null where clip.max_norm is set: choose one of the two")

    @property
    def label(self) -> str:
        return "clipped" if self.max_norm is not None else "value_clipped" if self.max_value is not None else ""

    def apply(self, gradient: Gradient) -> tuple[NDArray, float]:
        """The factor is min(1, max_norm / ‖g‖) for clipping by the norm. That norm is the scaled
        one, so a gradient that overflows its type is still clipped to max_norm exactly, in the
        right direction. A gradient that is not clipped comes back bit for bit.
        """
        scaled = gradient.scaled
        if self.max_norm is not None and gradient.log10_norm > np.log10(self.max_norm):
            # ‖array · 2^e‖ > max_norm: the exponent cancels between the gradient and its norm.
            mantissa_norm = np.linalg.norm(scaled.array.astype(np.float64))
            clipped = (scaled.array * (self.max_norm / mantissa_norm)).astype(scaled.array.dtype)
            return clipped, ratio(np.log10(self.max_norm) - gradient.log10_norm)
        plain = scaled.plain()
        if self.max_value is None:
            return plain, 1.0
        clipped = np.clip(plain, -self.max_value, self.max_value)
        norm = float(Scaled(clipped, np.asarray(0, np.int32)).log10_norm())
        return clipped, ratio(norm - gradient.log10_norm) if norm > -np.inf else 1.0
