"""Singular values of a product of triangular matrices that spans any number of decades.

The product is kept as R = D U, D diagonal as logarithms and U unit upper trapezoidal, which stays
of moderate size. LAPACK's SVD would find its singular values to 16 digits of the *largest*;
one-sided Jacobi rotations (Hestenes 1958) find each to nearly 16 digits of its own (Demmel &
Veselić 1992), and they need D as ratios only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PRECONDITION = 4
"""QR decompositions before the rotations, which need half as many sweeps then (Drmač & Veselić
2008).
"""
SWEEPS = 60
"""Upper limit, not reached in practice: the sweeps converge quadratically, in three to eight."""
TOLERANCE = 1e-13
"""Largest cosine of the angle between two rows that count as orthogonal."""


@dataclass(frozen=True)
class Graded:
    """diag(exp(``log_scale``)) · ``unit``, (r,) and (r, n), in natural logarithm; n − r singular
    values are 0.
    """

    log_scale: NDArray
    unit: NDArray

    @classmethod
    def identity(cls, size: int) -> "Graded":
        return cls(np.zeros(size), np.eye(size))

    def times(self, factor: NDArray) -> "Graded":
        """``factor`` (r′, r), upper trapezoidal with a positive diagonal, times this product: with
        R = diag(R) V,

            D′ = diag(R) D        U′ = D⁻¹ V D U

        D falls along the diagonal, apart from its first few factors, so that D⁻¹ V D is not large.
        """
        diagonal = np.diagonal(factor)
        rank = len(diagonal)
        ratio = np.exp(np.triu(self.log_scale[None, :] - self.log_scale[:rank, None]))
        unit = (factor / diagonal[:, None] * ratio) @ self.unit
        return Graded(self.log_scale[:rank] + np.log(diagonal), unit)

    def log_singular_values(self) -> NDArray:
        """ln σ_k (n,) in decreasing order; -inf for a true zero.

        The rows d_i u_i are rotated in pairs until all are orthogonal; their lengths are the
        singular values then. With d_i ≥ d_j, r = d_j/d_i and g = ⟨u_i, u_j⟩, the rotation by arctan
        t that makes a pair orthogonal has

            τ = t/r = −2g / (1 − r² + √((1 − r²)² + 4r²g²))
            u_i ← u_i − t r u_j      u_j ← u_j + τ u_i

        times the cosine 1/√(1 + t²). r underflows to 0 without harm: what is left is a step of
        Gram–Schmidt.
        """
        rows, size = self.unit.shape
        product = self
        for _ in range(PRECONDITION):
            product = product._transposed()
        scale, unit = product._rows()
        for _ in range(SWEEPS):
            if np.abs(np.triu(unit @ unit.T, 1)).max(initial=0) <= TOLERANCE:
                break
            for first, second in _round_robin(rows):
                _rotate(scale, unit, first, second)
        return np.sort(np.concatenate([scale, np.full(size - rows, -np.inf)]))[::-1]

    def _rows(self) -> tuple[NDArray, NDArray]:
        """The log lengths and the unit vectors of the rows, the longest row first."""
        length = np.linalg.norm(self.unit, axis=1)
        scale = self.log_scale + np.log(length)
        order = np.argsort(-scale, kind="stable")
        return scale[order], self.unit[order] / length[order, None]

    def _transposed(self) -> "Graded":
        """The transpose of R in its QR decomposition: it has the same singular values, and rows
        that are nearer to orthogonal.
        """
        scale, unit = self._rows()
        _, r = np.linalg.qr(unit.T)
        return Graded(scale, np.eye(len(r))).times(r * np.where(np.diagonal(r) < 0, -1.0, 1.0)[:, None])


def _rotate(scale: NDArray, unit: NDArray, first: NDArray, second: NDArray) -> None:
    """Makes the disjoint pairs (``first``, ``second``) of rows orthogonal, in place."""
    g = np.vecdot(unit[first], unit[second])
    oblique = np.abs(g) > TOLERANCE / 4
    if not oblique.any():
        return
    first, second, g = first[oblique], second[oblique], g[oblique]
    swap = scale[first] < scale[second]
    large, small = np.where(swap, second, first), np.where(swap, first, second)
    u, v = unit[large], unit[small]
    log_ratio = scale[small] - scale[large]
    r, gap = np.exp(log_ratio), -np.expm1(2 * log_ratio)
    tau = -2 * g / (gap + np.hypot(gap, 2 * r * g))
    t = tau * r
    log_cosine = -0.5 * np.log1p(t**2)
    for rows, turned in ((large, u - (t * r)[:, None] * v), (small, v + tau[:, None] * u)):
        length = np.sqrt(np.vecdot(turned, turned))
        unit[rows] = turned / length[:, None]
        scale[rows] += np.log(length) + log_cosine


def _round_robin(size: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Rounds of disjoint pairs of 0 … size − 1, in which each pair occurs once; if ``size`` is odd,
    one index is unpaired in each round.
    """
    players = np.arange(size + size % 2)
    for _ in range(len(players) - 1):
        first, second = np.split(players, 2)
        second = second[::-1]
        real = (first < size) & (second < size)
        if real.any():
            yield first[real], second[real]
        players = np.concatenate([players[:1], np.roll(players[1:], 1)])


def products(factors: Iterable[NDArray]) -> Iterator[Graded]:
    """R_1, R_2 R_1, R_3 R_2 R_1 …"""
    product: Graded | None = None
    for factor in factors:
        product = (product or Graded.identity(factor.shape[1])).times(factor)
        yield product
