"""The result of a check: relative errors by quantity and timestep, the rows of the printed table,
and the place at which an error enters.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradpath.core.scaled import Scaled
from gradpath.gradient_check.textbook import Stepwise, log10_norm, ratio

ALLOWED = {"float64": 1e-7, "float32": 1e-4}
"""Largest allowed relative error, by the type of the pass."""
BLAME = 30
"""An error may exceed ``ALLOWED`` by this many times the uncertainty of the reference."""
NAMED = 12
"""Number of wrong quantities that the last line names."""


class Errors(NamedTuple):
    """Relative errors, one for every timestep (T,) or one for the whole quantity (), and the part
    of each that the uncertainty of the reference explains.
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
        """The error with the largest excess over its doubt."""
        index = np.unravel_index(self.excess.argmax(), self.excess.shape)
        return Errors(np.asarray(self.relative[index]), np.asarray(self.doubt[index]))


def certain(relative: NDArray | Sequence[float] | float) -> Errors:
    """Errors against an exact reference: none of them is explained by uncertainty."""
    return Errors(np.asarray(relative, np.float64), np.zeros(np.shape(relative)))


def worst(errors: Iterable[Errors]) -> Errors:
    """At every timestep, the error of the candidate with the largest excess over its doubt."""
    candidates = list(errors)
    index = np.argmax([candidate.excess for candidate in candidates], axis=0)[None]
    relative, doubt = (np.take_along_axis(np.array(values), index, 0)[0] for values in zip(*candidates, strict=True))
    return Errors(relative, doubt)


@dataclass(frozen=True)
class Row:
    """One quantity and its error, relative to the norm of the quantity at that timestep: the
    largest error, or, if the quantity is wrong, the error at the latest wrong timestep, from which
    an error spreads to the earlier ones.
    """

    quantity: str
    part: str
    """A parameter or a column of the quantity; empty where the quantity has no parts."""
    case: str
    error: float
    allowed: float
    t: int | None
    """Timestep, counted from 1; None where the quantity has no timestep."""
    layer: int | None
    """Layer, counted from 0 at the bottom."""
    carried: bool = True
    """Does an error of this quantity spread to earlier steps and lower layers only? True of the
    backward pass; a recorded column may be wrong at any step.
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
    """The row at which the error enters. The backward pass runs through the top layer first, and
    through each layer from the last timestep to the first. The error therefore enters at the latest
    wrong timestep of the topmost wrong layer, in the first case that is wrong.
    """
    wrong = [row for row in rows if not row.passed]
    located = [row for row in wrong if row.case == wrong[0].case and row.t is not None and row.layer is not None]
    return max(located, key=_precedence, default=None)


def _precedence(row: Row) -> tuple[bool, int, int, float]:
    """Largest for the wrong row at which the error enters. At equal timesteps this is the row with
    the largest error: in a consequence, correct summands dilute it. Errors that only rounding
    distinguishes are equal, so that the adjoint, which is compared first, precedes its products.
    """
    return row.carried, row.layer or 0, row.t or 0, round(math.log10(row.error), 3)


def merged(rows: list[Row]) -> list[Row]:
    """One row for every quantity: of a wrong quantity, the row at which the error enters it in the
    first case that is wrong; of all others, the row that is nearest to its allowed error.
    """
    best: dict[str, Row] = {}
    for row in rows:
        if _replaces(row, best.setdefault(row.quantity, row)):
            best[row.quantity] = row
    return list(best.values())


def _replaces(row: Row, current: Row) -> bool:
    """Does the row stand for its quantity in the place of an earlier one?"""
    if row.passed:
        return current.passed and row.error / row.allowed > current.error / current.allowed
    return current.passed or (row.case == current.case and _precedence(row) > _precedence(current))


def table(rows: list[Row], layers: int) -> str:
    """The printed table of the rows, and a last line that names what is wrong."""
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
        wrong.sort(key=lambda row: (row.case == origin.case and row.t is not None, _precedence(row)), reverse=True)
    named = ", ".join(row.place for row in wrong[:NAMED])
    suffix = f" and {len(wrong) - NAMED} more" if wrong[NAMED:] else ""
    return "\n".join([*lines, f"wrong{enters}: {named}{suffix}"])


def adjoint_errors(claim: Scaled, reference: Stepwise) -> Errors:
    """(T,) relative error of an adjoint, ‖claim − reference‖ / ‖reference‖, over the elements whose
    reference is finite.
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
    """Relative error of a norm, |10^(claim − expected) − 1|, from the log10 of the claimed and the
    expected norm; two true zeros are equal.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.abs(np.expm1((claim - expected) * np.log(10)))
    error = np.where(claim == expected, 0.0, np.where(np.isneginf(expected), np.inf, error))
    return Errors(error, np.broadcast_to(np.asarray(doubt, np.float64), error.shape))
