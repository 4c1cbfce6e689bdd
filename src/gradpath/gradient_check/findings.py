"""What a check has found: errors by quantity and timestep, the rows that a person reads, the place
of what is wrong.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import Scaled
from gradpath.gradient_check.textbook import Stepwise, log10_norm, ratio

ALLOWED = {"float64": 1e-7, "float32": 1e-4}
"""Relative errors, in each type."""
BLAME = 30
"""So many times what uncertainty explains is allowed beside."""
NAMED = 12
"""Wrong quantities that the last line names."""


class Errors(NamedTuple):
    """Relative errors, at every timestep (T,) or of the whole (), and how much of them uncertainty
    explains.
    """

    relative: NDArray
    doubt: NDArray

    @property
    def excess(self) -> NDArray:
        with np.errstate(invalid="ignore"):
            excess = self.relative - BLAME * self.doubt
        return np.nan_to_num(excess, nan=np.inf, posinf=np.inf, neginf=-np.inf)

    @property
    def largest(self) -> "Errors":
        """Of the whole, the error that is furthest beyond its doubt."""
        index = np.unravel_index(self.excess.argmax(), self.excess.shape)
        return Errors(np.asarray(self.relative[index]), np.asarray(self.doubt[index]))


def certain(relative: NDArray | Sequence[float] | float) -> Errors:
    """Errors that no uncertainty explains."""
    return Errors(np.asarray(relative, np.float64), np.zeros(np.shape(relative)))


def worst(errors: Iterable[Errors]) -> Errors:
    """Of several, at every timestep the one that is furthest beyond its doubt."""
    candidates = list(errors)
    index = np.argmax([candidate.excess for candidate in candidates], axis=0)[None]
    relative, doubt = (np.take_along_axis(np.array(values), index, 0)[0] for values in zip(*candidates, strict=True))
    return Errors(relative, doubt)


@dataclass(frozen=True)
class Row:
    """One quantity: the largest error in it, relative to its norm at that timestep, or where it is
    wrong that of the latest wrong timestep, since from there it spreads to the earlier ones.
    """

    quantity: str
    part: str
    """Which part of it: a parameter, a column; empty where it has none."""
    case: str
    error: float
    allowed: float
    t: int | None
    """From 1; None where the quantity has no timestep."""
    layer: int | None
    """From the bottom, from 0."""
    carried: bool = True
    """Is an error in it carried from its place to earlier steps and lower layers, and from nowhere
    else to there?
    """

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed

    @property
    def place(self) -> str:
        name = f"{self.quantity} ({self.part})" if self.part else self.quantity
        return name if self.t is None else f"{name} at t = {self.t}"


@dataclass
class Findings:
    """The rows of one case: ``case`` says at which size and in which type."""

    case: str
    allowed: float
    rows: list[Row] = field(default_factory=list)

    def add(
        self, quantity: str, errors: Errors, layer: int | None = None, part: str = "", carried: bool = True
    ) -> None:
        """NaN is as wrong as infinity."""
        error = np.nan_to_num(errors.relative, nan=np.inf, posinf=np.inf)
        allowed = self.allowed + BLAME * np.nan_to_num(errors.doubt, nan=0.0, posinf=np.inf)
        t = None
        if error.ndim:
            wrong = np.flatnonzero(error > allowed)
            index = int(wrong[-1]) if wrong.size else int((error / allowed).argmax())
            t, error, allowed = index + 1, error[index], allowed[index]
        self.rows.append(Row(quantity, part, self.case, float(error), float(allowed), t, layer, carried))


def place(rows: list[Row]) -> Row | None:
    """Where the error enters: going backwards, the adjoint comes through the top layer first, and
    through each from the last timestep to the first. So of the first case that is wrong it is the
    latest wrong timestep of the topmost layer.
    """
    wrong = [row for row in rows if not row.passed]
    located = [row for row in wrong if row.case == wrong[0].case and row.t is not None and row.layer is not None]
    carried = [row for row in located if row.carried]
    return max(carried or located, key=lambda row: (row.layer, row.t), default=None)


def merged(rows: list[Row]) -> list[Row]:
    """One row a quantity: in the first case in which it is wrong the latest place, or else what
    comes nearest to it.
    """
    best: dict[str, Row] = {}
    for row in rows:
        current = best.setdefault(row.quantity, row)
        nearer = row.error / row.allowed > current.error / current.allowed
        later = row.case == current.case and ((row.layer or 0), (row.t or 0)) > ((current.layer or 0), (current.t or 0))
        if nearer if current.passed and row.passed else not row.passed and (current.passed or later):
            best[row.quantity] = row
    return list(best.values())


def table(rows: list[Row], layers: int) -> str:
    """The rows as a person reads them, and a verdict."""
    shown = merged(rows)
    width = max(len(row.quantity) for row in shown)
    lines = [f"{'quantity':<{width}}  {'error':>8}  {'allowed':>8}  {'at t':>4}  case"]
    for row in shown:
        t = "" if row.t is None else str(row.t)
        mark = "" if row.passed else "  WRONG"
        lines.append(f"{row.quantity:<{width}}  {row.error:>8.1e}  {row.allowed:>8.0e}  {t:>4}  {row.case}{mark}")
    wrong = [row for row in shown if not row.passed]
    if not wrong:
        return "\n".join([*lines, "all right"])
    origin, enters = place(rows), ""
    if origin is not None:
        layer_text = f" of layer {(origin.layer or 0) + 1}" if layers > 1 else ""
        enters = f" from t = {origin.t}{layer_text} back ({origin.case})"
    named = ", ".join(row.place for row in wrong[:NAMED])
    suffix = f" and {len(wrong) - NAMED} more" if wrong[NAMED:] else ""
    return "\n".join([*lines, f"wrong{enters}: {named}{suffix}"])


def adjoint_errors(claim: Scaled, reference: Stepwise) -> Errors:
    """(T,) relative error of an adjoint, where the reference is known: ‖claim − reference‖ /
    ‖reference‖.
    """
    exponent = claim.exponent.reshape(claim.exponent.shape + (1,) * (claim.array.ndim - claim.exponent.ndim))
    reference_exponent = reference.exponent.reshape(-1, *(1,) * (claim.array.ndim - 1))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values = np.ldexp(
            claim.array.astype(np.float64), np.clip(exponent - reference_exponent, -5000, 5000).astype(np.int32)
        )
        return value_errors(values, reference.values)


def value_errors(claim: NDArray, reference: NDArray) -> Errors:
    """(T,) relative error of ``claim`` (T, …) against the value and its moved twin (2, T, …)."""
    comparable = np.isfinite(reference).all(axis=0) | ~np.isfinite(claim)
    value, moved = (np.where(comparable, twin, 0) for twin in reference)
    claim = np.where(comparable, claim, 0)
    error, doubt, size = (log10_norm(x, 1) for x in (claim - value, moved - value, value))
    error = np.where(np.isfinite(claim).reshape(len(claim), -1).all(axis=1), error, np.inf)
    return Errors(ratio(error, size), ratio(doubt, size))


def log10_errors(claim: NDArray, expected: NDArray, doubt: NDArray | float = 0.0) -> Errors:
    """Relative error of a norm from its log10: |10^(claim − expected) − 1|; two true zeros are
    equal.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.expm1((claim - expected) * np.log(10)))
    error = np.where(claim == expected, 0.0, np.where(np.isneginf(expected), np.inf, error))
    return Errors(error, np.broadcast_to(np.asarray(doubt, np.float64), error.shape))
