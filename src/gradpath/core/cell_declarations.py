"""What a cell declares, held together: each name that one declaration gives is known to another."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import get_args

import numpy as np

from gradpath.core.cell import Cell
from gradpath.core.roles import READOUT, GateRole
from gradpath.schema.discovery import unit_name
from gradpath.schema.settings import ConfigError, SettingError


def check(cell: Cell) -> None:
    """Raises ConfigError, which names the cell, the declaration and the name in it."""
    for problem in (*_blocks(cell), *_parameters(cell), *_names(cell)):
        raise ConfigError(f"cell={unit_name(cell)}: {problem}")


def _blocks(cell: Cell) -> Iterator[str]:
    """The order of the gates: the packed weights of those that read H, and of those that read X,
    are one matrix each.
    """
    if not cell.blocks:
        yield "blocks: there must be a gate"
    for reading, place in (("read X", 0), ("read H", 1)):
        reads = [bool(spec[place]) for spec in cell.blocks.values()]
        readers = [gate for gate, read in zip(cell.blocks, reads, strict=True) if read]
        if readers and not all(reads[reads.index(True) : len(reads) - reads[::-1].index(True)]):
            yield (
                f"blocks: the gates that {reading} ({', '.join(readers)}) must stand next to each other in "
                f"{', '.join(cell.blocks)}; first the gates that do not read H, last those that do not read X"
            )
    for gate, spec in cell.blocks.items():
        if spec.role not in (None, *get_args(GateRole)):
            yield f"blocks: gate {gate} has the role {spec.role!r}; there are {_listed(get_args(GateRole))}"


def _parameters(cell: Cell) -> Iterator[str]:
    first = dict.fromkeys(READOUT, "the readout")
    for gate, spec in cell.blocks.items():
        for name in [*filter(None, spec[:3]), *(weights.name for weights in spec.elementwise)]:
            if name in first:
                yield (
                    f"gate {gate} names a parameter {name}, as {first[name]} does; "
                    "each parameter needs a name of its own"
                )
            first[name] = f"gate {gate}"
        for weights in spec.elementwise:
            if weights.state not in cell.states:
                yield (
                    f"blocks: gate {gate} has Elementwise({weights.name!r}, {weights.state!r}); "
                    f"the states are {_listed(cell.states)}"
                )


def _names(cell: Cell) -> Iterator[str]:
    """What refers to gates, states and watched values by name."""
    if not hasattr(cell, "paths"):
        yield "paths: the name of the gradient's path through each gate that reads H is not declared"
        return
    # The class names the paths of all gates, also of those that a setting has taken away.
    gates = set(cell.blocks)
    if set(cell.paths) - gates:
        with suppress(SettingError):
            gates |= set(type(cell)().blocks)
    for gate in cell.paths:
        if gate not in gates:
            yield f"paths: {gate!r} is no gate; the gates are {_listed(cell.blocks)}"
    try:
        _ = cell.roles
    except ValueError as error:
        yield str(error)
    for gate in cell.initial_bias(np.random.default_rng(0)):
        if gate not in cell.blocks:
            yield f"initial_bias: {gate!r} is no gate; the gates are {_listed(cell.blocks)}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
