"""Recurrent cells. A cell is one step and its derivative, pointwise; the loop over time, the matrix
products and the shift by one (H_{t-1}) stand once, in :mod:`gradpath.core.bptt`, for every cell.

A cell has n *gates*, each with a pre-activation X_t W_·x + H_{t-1} W_·h + b_· of H units; a *block*
is one gate's pre-activation in an array of all n, or its columns in the packed weights. The
candidate and the single unit of a cell without gating count as gates. The gates' weights lie side
by side in one matrix, so that a step is one product; each has its own name, which users see.
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
from gradpath.core.roles import READOUT, Gate, Keeping, Parameter, Roles, Watched
from gradpath.core.step import Elementwise, GateSpec, Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.schema.settings import setting


@dataclass
class Cell(ImmutableSettings, ABC):
    """Base of the cells, with all that a new cell must declare. Arrays of a step are (…, B, H) and
    gates (…, B, n, H), with or without leading axes; axes are therefore counted from the right:
    ``gates[..., 0, :]``.

    A cell is immutable and hashable, so that an equal cell can use the loops recorded for it.
    """

    hidden_size: int = setting(64, "units in each layer", ge=1, le=1_000_000)
    layers: int = setting(1, "layers, each fed by the one below", ge=1, le=1000)
    initial_state: float = setting(0.0, "H_0 of every unit; what else a cell hands on starts from 0")

    package: ClassVar[str] = "gradpath.cells"
    """The package in which cells are looked up by name."""
    states: ClassVar[tuple[str, ...]] = ("H",)
    """The names of the states that a step hands to the next; the first is the cell's output."""
    has_skip_to_h: ClassVar[bool] = False
    """Do the next states depend on H_{t-1} also outside the pre-activations, as in the GRU?"""
    paths: ClassVar[dict[str, str]]
    """Gate → the name of the gradient's path through it, for the gates that read H."""
    label: ClassVar[str] = ""
    """The cell's name in figures and reports; if empty, the name of its module."""
    colors: ClassVar[dict[str, str] | None] = None
    """Colours of the cell's plain form by the kind of clipping, with the keys ``""``, ``clipped``
    and ``value_clipped``; None lets the figure choose.
    """
    drawing: ClassVar[Drawing | None] = None
    """How the cell's step is drawn."""

    @property
    @abstractmethod
    def blocks(self) -> Mapping[str, GateSpec]:
        """Gate name → specification, in the order of the packed columns: first the gates that do
        not read H, last those that do not read X.
        """

    @property
    def saved(self) -> tuple[str, ...]:
        """The names of the arrays (…, B, H) that a step saves for its derivative besides gates and
        states.
        """
        return ()

    @property
    def variant(self) -> str:
        """What distinguishes this cell from its plain form in the name of an arm; empty for the
        plain form.
        """
        return ""

    @property
    def output(self) -> str:
        """The state that is the cell's output."""
        return self.states[0]

    @property
    def carrier(self) -> str:
        """The state that a step may hand on without passing through its gates (C of the LSTM)."""
        return self.states[-1]

    @property
    def keeping(self) -> Keeping | None:
        """The gate or number by which the carrier is multiplied at each step; None where there is
        no such factor.
        """
        return None

    @property
    def recurrence(self) -> Activation | None:
        """φ where the whole step is H_t = φ(X_t W + H_{t-1} W + b)."""
        return None

    @property
    def watched(self) -> Mapping[str, Watched]:
        """Name → which gate's values or slopes ``activations`` returns under it."""
        return {}

    @property
    def idle(self) -> tuple[str, ...]:
        """Settings that have no effect given the values of the others."""
        return ()

    @cached_property
    def roles(self) -> Roles:
        """All declarations of the cell, as data that is stored with a run."""
        parameters = {
            name: Parameter("elementwise" if isinstance(source, Elementwise) else source, gate)
            for gate, spec in self.blocks.items()
            for name, source in spec.sources.items()
        }
        # A cell that derives from another has the other's label and colours only if it declares
        # them again.
        declared = vars(type(self))
        return Roles(
            label=declared.get("label") or type(self).__module__.rpartition(".")[2],
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
            colors=declared.get("colors"),
            drawing=self.drawing,
        )

    @cached_property
    def elementwise(self) -> tuple[tuple[int, Elementwise], ...]:
        """The elementwise parameters in the order of the packed columns, each with the index of its
        gate.
        """
        gates = enumerate(self.blocks.values())
        return tuple((gate, weights) for gate, spec in gates for weights in spec.elementwise)

    @cached_property
    def reads_x(self) -> slice:
        """The gates with input weights, as a slice of the axis n."""
        return _range([bool(block.x) for block in self.blocks.values()])

    @cached_property
    def reads_h(self) -> slice:
        """The gates with recurrent weights, as a slice of the axis n."""
        return _range([bool(block.h) for block in self.blocks.values()])

    @property
    def truncated(self) -> bool:
        """Does the adjoint stop at the gates instead of passing on to H_{t-1}?"""
        return False

    @abstractmethod
    def step(self, s: Step) -> None:
        """One step: fills ``s.gates``, ``s.leaving`` and ``s.saved`` from ``s.pre`` and
        ``s.entering``. The terms of ``s.elementwise`` are first added to ``s.pre``, in place.

        Must call only ufuncs that write into arrays, so that it can be recorded
        (:mod:`gradpath.engine.replay`); the same holds for ``step_backward``.
        """

    def new_step(
        self, pre: NDArray, entering: Sequence[NDArray], elementwise: Mapping[str, NDArray] = MappingProxyType({})
    ) -> Step:
        """One step from given pre-activations X_t W_·x + H_{t-1} W_·h + b_· (…, B, n, H) and states
        (…, B, H), in newly allocated arrays.
        """
        pre, leaving = np.array(pre), [np.empty_like(state) for state in entering]
        saved = [np.empty_like(entering[0]) for _ in self.saved]
        s = Step(pre, np.empty_like(pre), entering, leaving, saved, elementwise=elementwise)
        self.step(s)
        return s

    @abstractmethod
    def activations_used(self, tape: LayerTape) -> list[tuple[Activation, NDArray, NDArray]]:
        """The nonlinearities φ that the step applies, each as (φ, x, φ(x)) with arrays (T, …, H) of
        the tape. ``step_backward`` gets their slopes φ′(x) as ``s.slopes``, in this order.
        """

    @abstractmethod
    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        """One backward step, from the arrays that ``step`` filled and the slopes of
        ``activations_used``.

        ``d.leaving`` holds the derivatives from all later steps; where one state feeds another
        within the step (H_t reads C_t), adds that term in place. Fills ``d.pre`` (…, B, n, H).
        Fills ``d.entering`` with the derivative of the entering states by every path except the
        matrices W_·h: outside the pre-activations, and by the elementwise parameters. For H it is
        filled only if ``has_skip_to_h``.
        """

    @abstractmethod
    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        """Name → values (T, B, H) in [0, 1] that the instrument ``gate_activation`` reads."""

    @abstractmethod
    def carrier_gain(self, tape: LayerTape) -> NDArray:
        """∂(carrier of step t) / ∂(carrier of step t−1) with the pre-activations held fixed,
        elementwise, broadcastable to (T, B, H).
        """

    @abstractmethod
    def output_wrt_carrier(self, tape: LayerTape) -> NDArray:
        """∂H_t / ∂(carrier of step t), elementwise, broadcastable to (T, B, H); 1 where H is
        the carrier.
        """

    @abstractmethod
    def nodes(self, tape: LayerTape, adjoint: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """Name → ∂L/∂n_t (T, B, H) of the step's inner nodes, such as the gates after their
        nonlinearity, from the total adjoints (T, B, H) of the states. The pre-activations are not
        among them: their gradient is δa_t of BPTT.
        """

    def counterfactuals(self) -> dict[str, "Cell"]:
        """Name → the same cell with a gate frozen or the gradient truncated, to be run with the θ
        of the trained network.
        """
        return {}

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        """Gate → bias (H,) or number, which replaces the bias drawn by the initialisation."""
        return {}


def _range(reads: Sequence[bool]) -> slice:
    """The slice from the first True to the last; empty if there is none."""
    return slice(reads.index(True), len(reads) - reads[::-1].index(True)) if any(reads) else slice(0, 0)
