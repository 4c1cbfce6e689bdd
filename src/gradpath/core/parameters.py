"""Where the parameters of a stack lie in one flat vector θ (P,), and the names of its parameters.

Clipping and the optimisers are vector operations on θ; matrices are views of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from gradpath.core import cell_declarations
from gradpath.core.cell import Cell
from gradpath.core.roles import READOUT


@dataclass(frozen=True)
class PackedMatrix:
    """One packed matrix (K, n, H), or bias (n, H), in the flat vector: its place, and the
    names of its blocks.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    start: int

    @cached_property
    def stop(self) -> int:
        return self.start + math.prod(self.shape)


def layout(cell: Cell, input_size: int, output_size: int, prefixes: Sequence[str]) -> tuple[PackedMatrix, ...]:
    """The places of x, h and b of every layer from the bottom, whose names begin with ``prefixes``,
    and of its elementwise parameters if there are any; then W_hy, b_y. Raises ConfigError where
    what the cell declares does not fit together.
    """
    cell_declarations.check(cell)
    width, blocks = cell.hidden_size, cell.blocks.values()
    places: list[PackedMatrix] = []

    def place(names: tuple[str, ...], *shape: int) -> None:
        places.append(PackedMatrix(names, shape, places[-1].stop if places else 0))

    for layer, prefix in enumerate(prefixes):
        inputs = width if layer else input_size
        kinds = zip(*(spec[:3] for spec in blocks), strict=True)
        x, h, b = (tuple(prefix + name for name in kind if name) for kind in kinds)
        place(x, inputs, len(x), width)
        place(h, width, len(h), width)
        place(b, len(b), width)
        if cell.elementwise:
            place(tuple(prefix + weights.name for _, weights in cell.elementwise), len(cell.elementwise), width)
    place(READOUT[:1], width, 1, output_size)
    place(READOUT[1:], 1, output_size)
    return tuple(places)


def packed(places: Sequence[PackedMatrix], theta: NDArray) -> list[NDArray]:
    """Views of θ (P,), or of the θ of S seeds (S, P): each (…, K, n·H) or (…, n·H)."""
    return [
        theta[..., matrix.start : matrix.stop].reshape(*theta.shape[:-1], *matrix.shape[:-2], -1) for matrix in places
    ]


def named(places: Sequence[PackedMatrix], theta: NDArray) -> dict[str, NDArray]:
    """Every parameter under its own name, as a view of θ: W_·· (K, H), b_· (H,)."""
    views = {}
    for matrix in places:
        blocks = theta[matrix.start : matrix.stop].reshape(matrix.shape)
        for index, name in enumerate(matrix.names):
            views[name] = blocks[..., index, :]
    return views


def element_names(places: Sequence[PackedMatrix]) -> tuple[str, ...]:
    """The name of each element of θ in its order: ``b_h`` where a parameter has one element, else
    ``W_hh[0,1]``.
    """
    elements = [""] * places[-1].stop
    for name, positions in named(places, np.arange(len(elements))).items():
        for index, position in np.ndenumerate(positions):
            elements[position] = name if positions.size == 1 else f"{name}[{','.join(map(str, index))}]"
    return tuple(elements)
