"""Recurrent cells. A cell is one step and its derivative, pointwise; the loop over time, the matrix
products and the shift by one (H_{t-1}) stand once, in :mod:`gradpath.core.bptt`, for every cell.

A cell has n *blocks*, each with a pre-activation X_t W_·x + H_{t-1} W_·h + b_· of H units. The
blocks' weights lie side by side in one matrix, so that a step is one product, and carry their own
names wherever a person reads them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.core.activations import Activation
from gradpath.core.drawing import Drawing
from gradpath.core.immutable import ImmutableSettings
from gradpath.core.roles import READOUT, Gate, Keeping, Parameter, ParameterRole, Roles, Watched
from gradpath.core.step import Elementwise, GateSpec, Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.schema.settings import setting


@dataclass
class Cell(ImmutableSettings, ABC):
    """Base of the cells: what a new one must say. Arrays of a step are (…, B, H), gates (…, B, n,
    H), with an axis of seeds in front or not; so count axes from the right: ``gates[..., 0, :]``.

    A cell is immutable and hashable, so that what has been recorded of it is found again by any
    equal one, and is never stale.
    """

    hidden_size: int = setting(64, "units in each layer", ge=1, le=1_000_000)
    layers: int = setting(1, "layers, each fed by the one below", ge=1, le=1000)
    initial_state: float = setting(0.0, "H_0 of every unit; what else a cell hands on starts from 0")

    package: ClassVar[str] = "gradpath.cells"
    """Where the cells are."""
    states: ClassVar[tuple[str, ...]] = ("H",)
    """The names of what a step hands to the next; the first is what the cell gives out."""
    has_skip_to_h: ClassVar[bool] = False
    """Does H_{t-1} reach the next states outside the gates too?"""
    paths: ClassVar[dict[str, str]]
    """Block → the name of the way that the gradient takes through it, for the blocks that read H.
    """
    label: ClassVar[str] = ""
    """The cell's name as people write it; empty for the one that it is chosen by."""
    colors: ClassVar[dict[str, str] | None] = None
    """The colour of its plain form by the kind of clipping: of ``""``, ``clipped``,
    ``value_clipped``. None: any.
    """
    drawing: ClassVar[Drawing | None] = None
    """How its step is drawn."""

    @property
    @abstractmethod
    def blocks(self) -> Mapping[str, GateSpec]:
        """The blocks in the order of the packed columns: those that do not read H first, those not
        reading X last.
        """

    @property
    def saved(self) -> tuple[str, ...]:
        """The names of what a step keeps for its derivative beside gates and states."""
        return ()

    @property
    def variant(self) -> str:
        """What distinguishes this cell from its plain form in the name of an arm; empty for the
        plain form.
        """
        return ""

    @property
    def output(self) -> str:
        """The state that the cell gives out."""
        return self.states[0]

    @property
    def carrier(self) -> str:
        """The state that a step may hand on without passing through its gates (C of the LSTM)."""
        return self.states[-1]

    @property
    def keeping(self) -> Keeping | None:
        """What hands the carrier on; None where it always passes through the gates, or by other
        than one of them.
        """
        return None

    @property
    def recurrence(self) -> Activation | None:
        """φ where the whole step is H_t = φ(X_t W + H_{t-1} W + b)."""
        return None

    @property
    def watched(self) -> Mapping[str, Watched]:
        """What each of ``activations`` is, by its name."""
        return {}

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings that have no effect as the others are set."""
        return ()

    @cached_property
    def roles(self) -> Roles:
        """All that the cell declares, as data that a run stores."""
        kinds: tuple[ParameterRole, ...] = ("input", "recurrent", "bias")
        parameters = {
            name: Parameter(role, gate)
            for gate, spec in self.blocks.items()
            for role, name in zip(kinds, spec[:3], strict=True)
            if name
        }
        for gate, spec in self.blocks.items():
            parameters |= {weights.name: Parameter("elementwise", gate) for weights in spec.elementwise}
        return Roles(
            label=self.label or type(self).__module__.rpartition(".")[2],
            variant=self.variant,
            layers=self.layers,
            states=tuple(self.states),
            output=self.output,
            carrier=self.carrier,
            parameters=parameters | {name: Parameter("readout") for name in READOUT},
            gates={name: Gate(spec.role, self.paths.get(name)) for name, spec in self.blocks.items()},
            watched=dict(self.watched),
            keeping=self.keeping,
            recurrence=self.recurrence.name if self.recurrence else None,
            idle=tuple(self.idle),
            colors=self.colors,
            drawing=self.drawing,
        )

    @cached_property
    def elementwise(self) -> tuple[tuple[int, Elementwise], ...]:
        """The elementwise parameters in the order in which they are packed, each with the index of
        the gate that reads by it.
        """
        gates = enumerate(self.blocks.values())
        return tuple((gate, weights) for gate, spec in gates for weights in spec.elementwise)

    @cached_property
    def reads_x(self) -> slice:
        """The blocks with input weights, as a slice of all."""
        return _range([bool(block.x) for block in self.blocks.values()])

    @cached_property
    def reads_h(self) -> slice:
        """The blocks with recurrent weights, as a slice of all."""
        return _range([bool(block.h) for block in self.blocks.values()])

    @property
    def truncated(self) -> bool:
        """Does the adjoint stop at the gates instead of passing on to H_{t-1}?"""
        return False

    @abstractmethod
    def step(self, s: Step) -> None:
        """One step: from ``s.pre`` and ``s.entering``, fills ``s.gates``, ``s.leaving`` and
        ``s.saved``; what a gate reads by ``s.elementwise`` it adds to ``s.pre`` first, in place.
        Ufuncs into given arrays alone, so that it can be recorded (:mod:`gradpath.engine.replay`);
        the same for ``step_backward``.
        """

    def new_step(
        self, pre: NDArray, entering: Sequence[NDArray], elementwise: Mapping[str, NDArray] = MappingProxyType({})
    ) -> Step:
        """One step from given pre-activations X_t W_·x + H_{t-1} W_·h + b_· and states, in arrays
        of its own.
        """
        pre, leaving = np.array(pre), [np.empty_like(state) for state in entering]
        saved = [np.empty_like(entering[0]) for _ in self.saved]
        s = Step(pre, np.empty_like(pre), entering, leaving, saved, elementwise=elementwise)
        self.step(s)
        return s

    @abstractmethod
    def nonlinear(self, tape: LayerTape) -> list[tuple[Activation, NDArray, NDArray]]:
        """The nonlinearities of the step: (φ, x, φ(x)). ``step_backward`` gets their slopes φ′(x)
        in this order.
        """

    @abstractmethod
    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        """One step back, from what ``step`` has left in ``s`` and the slopes of ``nonlinear``.
        Makes ``d.leaving`` total, in place, where one of the states feeds another; fills ``d.pre``
        and, in ``d.entering``, what reaches the entering states other than by a matrix W_·h:
        outside the pre-activations and by the elementwise parameters; for H where
        ``has_skip_to_h`` alone.
        """

    @abstractmethod
    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        """What ``gate_activation`` watches, by name: (T, B, H) values in [0, 1]."""

    @abstractmethod
    def carrier_gain(self, tape: LayerTape) -> NDArray:
        """∂(carrier that leaves) / ∂(carrier that enters) outside the gates, elementwise, broadcast
        to (T, B, H).
        """

    @abstractmethod
    def output_wrt_carrier(self, tape: LayerTape) -> NDArray:
        """∂H_t / ∂(carrier of step t), elementwise, broadcast to (T, B, H); 1 where H is the
        carrier.
        """

    @abstractmethod
    def nodes(self, tape: LayerTape, adjoint: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """∂L/∂n_t (T, B, H) of the step's inner nodes (gates after their nonlinearity …), from the
        states' total adjoints. The pre-activations' are BPTT's own δa_t and need no saying.
        """

    def counterfactuals(self) -> dict[str, "Cell"]:
        """The same cell with a gate frozen, by name: what a trained network would do and pass back
        if … (same θ).
        """
        return {}

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        """Biases that the cell sets itself, over the initialisation's: block → value (H,) or
        number.
        """
        return {}


def _range(reads: Sequence[bool]) -> slice:
    """From the first that reads to the last; empty where none does."""
    return slice(reads.index(True), len(reads) - reads[::-1].index(True)) if any(reads) else slice(0, 0)
