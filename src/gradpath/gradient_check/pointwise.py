"""The derivative of a cell's step, found from ``cell.step`` alone; the textbook pass consists of
these derivatives.

A step is pointwise: in each unit, the k states that leave are functions of m = n + k inputs, the
pre-activations and the states that enter. Their Jacobian (k, m) is computed for all units at once
by a *complex step*, f′(x) = Im f(x + ih) / h (Squire & Trapp 1998). A complex step takes no
difference in which digits could cancel, and is therefore right for saturated units too. It is done
in extended precision where the machine has it, so that the rounding of the step in its own type
shows as uncertainty. Where the complex step does not agree with central differences, for example
because a cell takes an absolute value, the differences count: those of the two step sizes that
agree best, with their disagreement as the uncertainty.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradpath.core.bptt import LayerWeights
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import central_difference
from gradpath.core.tape import LayerTape

STEPS, SIDE = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), 1e-6
SEVERAL = 4
"""Number of sequences in which the complex step is compared with differences."""
IMAGINARY: dict[type[np.complexfloating], float] = {np.clongdouble: 1e-20, np.complex128: 1e-20, np.complex64: 1e-6}
"""h, so small that h² is below rounding beside 1, and that h times a slope of 10^-288 (10^-32) is
still a number.
"""
HELD = float(np.finfo(np.float64).tiny)
"""The smallest derivative that float64 must represent. σ(a) = 1/(1 + e^-a) is 0 where e^-a
overflows, at σ < HELD / 4. A product that underflows rounds by 2^-1074; beside an adjoint that has
not been rescaled yet this is 2^-1074 · 2^40 = HELD / 2^12.
"""
StepResult = tuple[NDArray, NDArray, NDArray]


class Derivative:
    """The local Jacobians of one layer's steps, at the points that lie on its tape. The complex
    step and differences are compared at both ends and in the middle, unless ``exact`` says already
    whether the complex step is right.
    """

    def __init__(self, cell: Cell, tape: LayerTape, weights: LayerWeights, exact: bool | None = None) -> None:
        self._cell, self._tape = cell, tape
        self._elementwise = {
            name: w.astype(np.float64).reshape(1, -1) for name, w in weights.elementwise_by_name(cell).items()
        }
        self._single = tape.pre.dtype == np.float32
        self._eps = 4 * float(np.finfo(tape.pre.dtype).eps)
        self._rng = np.random.default_rng(0)
        steps = len(tape.pre)
        ends = sorted({0, steps // 2, steps - 1}) if exact is None else []
        points = [[value[:SEVERAL] for value in self.point(t)] for t in ends]
        comparisons = [self._compared(point) for point in points]
        self.exact = all(agree for agree, _ in comparisons) if exact is None else exact
        self.pointwise = all(self._is_pointwise(point, j) for point, (_, j) in zip(points, comparisons, strict=True))
        """Is every unit of a step independent of the other units' inputs, except through the
        matrices?
        """

    def jacobian(self, t: int) -> NDArray:
        """∂(states that leave)/∂(pre-activations, states that enter) (2, k, m, B, H) of step t: the
        value, and a twin moved at random within its uncertainty. The uncertainty has three parts:
        the last digits of the point, which count where a cell subtracts nearly equal numbers; the
        rounding of the step in the tape's own type; and the disagreement of differences. The inputs
        that a gate reads through elementwise parameters are part of its pre-activation, which is
        fixed.
        """
        return self._step_slice(self._jacobians, t)

    def with_elementwise(self, jacobian: NDArray) -> NDArray:
        """The local Jacobian of ``jacobian`` for the whole step, in which pre-activations change
        with the states that gates read through elementwise parameters.
        """
        states = self._cell.states
        for gate, read in self._cell.elementwise:
            if read.leaving:
                to_gate = self._elementwise[read.name] * jacobian[:, states.index(read.state)]
                jacobian = jacobian + jacobian[:, :, gate, None] * to_gate[:, None]
        for gate, read in self._cell.elementwise:
            if not read.leaving:
                entering = len(self._cell.blocks) + states.index(read.state)
                jacobian = jacobian.copy()
                jacobian[:, :, entering] += self._elementwise[read.name] * jacobian[:, :, gate]
        return jacobian

    def gate_slopes(self, t: int) -> NDArray:
        """∂(gate)/∂(its own pre-activation) (n, B, H)."""
        return self._step_slice(self._gate_slopes, t)

    def _step_slice(self, stacked: NDArray, t: int) -> NDArray:
        batch = self._tape.pre.shape[1]
        return stacked[..., t * batch : (t + 1) * batch, :]

    @cached_property
    def _jacobians(self) -> NDArray:
        """The Jacobians of all steps side by side, as if the steps were sequences: (2, k, m, T·B,
        H).
        """
        point = self._points
        if self.exact:
            jacobian = self._by_complex_step(point, self._leaving, np.clongdouble)
            moved = [self._by_complex_step(p, self._leaving, np.complex128) for p in (point, *self._perturbed(point))]
            error = np.zeros_like(jacobian)
            if self._single:
                error += np.abs(self._by_complex_step(point, self._leaving, np.complex64) - jacobian)
        else:
            jacobian, error = self._by_differences(point, self._leaving)
            moved = [self._by_differences(perturbed, self._leaving)[0] for perturbed in self._perturbed(point)]
        error = error + np.max([np.abs(twin - jacobian) for twin in moved], axis=0)
        xi = self._signs((2, *jacobian.shape))
        underflow = np.where(jacobian == 0, 0, HELD * xi[1])  # of random sizes, because equal ones cancel in a sum
        return np.stack([jacobian, jacobian * (1 + self._eps * xi[0]) + error * np.sign(xi[1]) + underflow])

    @cached_property
    def _gate_slopes(self) -> NDArray:
        if self.exact:
            slopes = self._by_complex_step(self._points, self._gates, np.complex128)
        else:
            slopes = self._by_differences(self._points, self._gates)[0]
        return np.stack([slopes[block, block] for block in range(len(self._cell.blocks))])

    @property
    def _points(self) -> list[NDArray]:
        """The inputs of all steps, (T·B, H) each."""
        return [np.concatenate(steps) for steps in zip(*map(self.point, range(len(self._tape.pre))), strict=True)]

    def _perturbed(self, point: list[NDArray]) -> Iterator[list[NDArray]]:
        """The point with its last digits moved: all inputs of a unit in one direction, and its
        states in the other, so that the rounding of sums shows as well as that of differences.
        """
        xi, state_count = self._eps * self._signs(point[0].shape), len(self._cell.states)
        for sign in (1, -1):
            yield [v * (1 + (sign if i >= len(point) - state_count else 1) * xi) for i, v in enumerate(point)]

    def _signs(self, shape: tuple[int, ...]) -> NDArray:
        """Random numbers of size ½ … 1 with random signs."""
        return self._rng.uniform(0.5, 1, shape) * self._rng.choice([-1, 1], shape)

    def point(self, t: int) -> list[NDArray]:
        """The m inputs (B, H) of step t, in float64."""
        pre = np.moveaxis(self._tape.pre[t], -2, 0)
        return [value.astype(np.float64) for value in (*pre, *(s[t] for s in self._tape.states.values()))]

    def step(self, point: Sequence[NDArray]) -> StepResult:
        """The result of one step from a point: the states that leave (k, B, H), the gates (B, n, H)
        and the saved arrays.
        """
        state_count = len(self._cell.states)
        with np.errstate(all="ignore"):
            pre, entering = np.stack(point[:-state_count], axis=-2), [np.array(state) for state in point[-state_count:]]
            held = {name: np.zeros_like(w) for name, w in self._elementwise.items()}
            s = self._cell.new_step(pre, entering, held)
        return np.stack(s.leaving), s.gates, np.array(s.saved)

    def _leaving(self, point: Sequence[NDArray]) -> NDArray:
        return self.step(point)[0]

    def _gates(self, point: Sequence[NDArray]) -> NDArray:
        return np.moveaxis(self.step(point)[1], -2, 0)

    def _by_complex_step(
        self,
        point: list[NDArray],
        f: Callable[[list[NDArray]], NDArray],
        kind: type[np.complexfloating],
        scale: float = 1.0,
    ) -> NDArray:
        """Im f(x + ih) / h (…, m, B, H) for each of the inputs; NaN where a step does not take
        complex numbers.
        """
        h = IMAGINARY[kind]
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("error")  # NumPy warns when it discards an imaginary part
            try:
                result = f(_moved([value.astype(kind) for value in point], 1j * h))
            except Exception:  # a plugin's step may raise anything when it meets a complex number
                return np.full((len(self._cell.states), len(point), *point[0].shape), np.nan)
        return np.asarray((result.imag / np.asarray(h, result.imag.dtype)).astype(np.float64))

    def _by_differences(self, point: list[NDArray], f: Callable[[list[NDArray]], NDArray]) -> tuple[NDArray, NDArray]:
        """The Jacobian (…, m, B, H) by central differences, and its uncertainty."""
        return _best_difference(lambda change: f(_moved(point, change)))

    def _compared(self, point: list[NDArray]) -> tuple[bool, NDArray]:
        """Do the complex step and the differences agree? And the Jacobian, by the complex step if
        they agree, otherwise by differences.
        """
        by_complex = self._by_complex_step(point, self._leaving, np.complex128)
        agree, by_difference = _agrees(lambda change: self._leaving(_moved(point, change)), by_complex)
        return agree, by_complex if agree else by_difference

    def _is_pointwise(self, point: list[NDArray], jacobian: NDArray) -> bool:
        """Moves every unit by a step of its own, and compares the result with the units' own
        Jacobians.
        """
        direction = [self._rng.uniform(-1, 1, value.shape) for value in point]
        expected = np.einsum("oibh,ibh->obh", jacobian, np.array(direction))

        def along(change: float) -> NDArray:
            return self._leaving([value + change * d for value, d in zip(point, direction, strict=True)])

        return _agrees(along, expected)[0]


def _agrees(f: Callable[[float], NDArray], derivative: NDArray) -> tuple[bool, NDArray]:
    """Is ``derivative`` equal to df/dx at 0, elementwise? Compared with central differences and
    with those of each side, because near a corner, such as that of relu, the derivative is that of
    one side. And the value of the central differences.
    """
    difference, error = _best_difference(f)
    deviation = np.abs(difference - derivative)
    close = deviation <= 1e-6 * np.abs(difference) + 10 * error + 1e-9
    if not close.all():
        start, (forward, backward) = f(0.0), (f(SIDE), f(-SIDE))
        sides = np.array([(forward - start) / SIDE, (start - backward) / SIDE])
        close |= (np.abs(sides - derivative) <= 1e-4 * (1 + np.abs(derivative))).any(axis=0)
    return bool(close.all()), difference


def _moved(point: list[NDArray], change: complex) -> list[NDArray]:
    """The inputs (m, B, H) of m steps side by side; in the i-th, the i-th input is moved."""
    moved = [np.repeat(value[None], len(point), axis=0) for value in point]
    for index, value in enumerate(moved):
        value[index] += change
    return moved


def _best_difference(f: Callable[[float], NDArray]) -> tuple[NDArray, NDArray]:
    """df/dx at 0, for each element by the step size that suits it, and its uncertainty: rounding,
    plus the difference from the result of the next step size.
    """
    size = np.abs(f(0.0))
    differences = np.array([central_difference(f, step) for step in STEPS])
    rounding = np.array([4 * np.finfo(np.float64).eps * size / step for step in STEPS])
    disagreement = np.abs(np.diff(differences, axis=0)) + rounding[:-1]
    best = disagreement.argmin(axis=0)[None]
    return np.take_along_axis(differences, best, 0)[0], np.take_along_axis(disagreement, best, 0)[0]
