"""The contract of a clipping."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from gradpath.clippings import Clipping
from gradpath.core.scaled import Scaled
from gradpath.core.trace import Gradient
from gradpath.testing._arrays import differ, unchanged
from gradpath.testing._unit import UnitContract
from gradpath.training.loop import train

SIZES = [1e-12, 1e-3, 1.0, 1e3, 1e12]
"""Norms of the gradients that are clipped."""


class ClippingContract(UnitContract):
    """The properties of a clipping on which gradpath relies. ``variants`` are settings with which
    it engages, where it does not with those of its YAML file.
    """

    group = "clip"
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ()

    def clippings(self) -> list[Clipping]:
        """The clipping with the settings of its YAML file, and its variants."""
        return [self.configured(), *(self.unit_class(**settings) for settings in self.variants)]

    def applied(self, dtype: type) -> list[tuple[Clipping, NDArray, NDArray, float]]:
        """(clipping, raw, applied, ratio) for gradients of every size. A clipping whose ratio is 1
        for all of them does not engage.
        """
        results = []
        for clipping in self.clippings():
            for size in SIZES:
                gradient = _gradient(size, dtype)
                with unchanged("apply", gradient=gradient):
                    applied, ratio = clipping.apply(gradient)
                results.append((clipping, gradient.scaled.plain(), applied, ratio))
        return results

    @pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
    def test_shape_and_type_stay_and_nothing_given_is_written_to(self, dtype: type) -> None:
        for clipping, raw, applied, _ in self.applied(dtype):
            assert applied.shape == raw.shape, f"{clipping}: applied {applied.shape}, raw {raw.shape}"
            assert applied.dtype == raw.dtype, f"{clipping}: applied {applied.dtype}, raw {raw.dtype}"

    @pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
    def test_the_ratio_is_that_of_the_norms(self, dtype: type) -> None:
        for clipping, raw, applied, ratio in self.applied(dtype):
            sizes = [float(np.linalg.norm(array.astype(np.float64))) for array in (applied, raw)]
            expected = min(1.0, sizes[0] / sizes[1])
            if ratio != pytest.approx(expected, rel=1e-5):
                pytest.fail(f"{clipping}: returns {ratio:.6g}, but ‖applied‖ / ‖raw‖ = {expected:.6g}")

    def test_it_never_lengthens_the_gradient(self) -> None:
        for clipping, raw, applied, _ in self.applied(np.float64):
            longer = np.linalg.norm(applied) > np.linalg.norm(raw) * (1 + 1e-12)
            assert not longer, f"{clipping}: makes a gradient of norm {np.linalg.norm(raw):.3g} longer"

    def test_a_gradient_that_is_not_clipped_comes_back_bit_for_bit(self) -> None:
        for clipping, raw, applied, ratio in self.applied(np.float32):
            if ratio == 1:
                assert not differ(raw, applied), f"{clipping}: changes a gradient and returns a ratio of 1"

    def test_it_engages_and_its_label_says_so(self) -> None:
        """At least one of the variants engages."""
        engaged: dict[str, bool] = {}
        for clipping, _, _, ratio in self.applied(np.float64):
            engaged[str(clipping)] = engaged.get(str(clipping), False) or ratio < 1
            if ratio < 1:
                assert clipping.label, f"{clipping}: clips, and its label is empty; an arm of it would look unclipped"
        assert any(engaged.values()), f"clips no gradient of norm {SIZES[0]:g} to {SIZES[-1]:g}; give variants"

    def test_a_true_zero_stays_zero(self) -> None:
        for clipping in self.clippings():
            applied, ratio = clipping.apply(_gradient(0.0, np.float64))
            assert not applied.any(), f"{clipping}: makes something of a gradient of 0"
            assert ratio == 1, f"{clipping}: a gradient of 0 is not clipped, and the ratio is {ratio}"

    def test_two_training_steps_run(self) -> None:
        for step in train(self.experiment("instruments=[clip_scale]")):
            (scale,) = step.measurements["clip_scale"].values
            assert 0 < scale <= 1, f"clip_scale is {scale}"


def _gradient(size: float, dtype: type) -> Gradient:
    values = np.random.default_rng(0).normal(size=20)
    values *= size / np.linalg.norm(values)
    scaled = Scaled(values.astype(dtype), np.asarray(0, np.int32))
    return Gradient(scaled, float(scaled.log10_norm()), ())
