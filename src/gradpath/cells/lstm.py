"""The long short-term memory of Hochreiter & Schmidhuber (1997), with the forget gate of Gers et
al. (2000), and its ablations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from gradpath.cells import _drawings
from gradpath.core.activations import Activation, activate, complement, slope
from gradpath.core.cell import Cell
from gradpath.core.roles import GateRole, Keeping, Watched, initial_logit
from gradpath.core.step import GateSpec, Step, StepAdjoint
from gradpath.core.tape import LayerTape
from gradpath.schema.settings import SettingError, setting


class Ablation(Enum):
    """What is removed from the LSTM (Greff et al. 2017, section 3)."""

    none = "none"
    no_input_gate = "no_input_gate"
    no_forget_gate = "no_forget_gate"
    no_output_gate = "no_output_gate"
    coupled_gates = "coupled_gates"
    no_input_nonlinearity = "no_input_nonlinearity"
    no_output_nonlinearity = "no_output_nonlinearity"


WITHOUT = {
    Ablation.no_input_gate: "i",
    Ablation.no_forget_gate: "f",
    Ablation.no_output_gate: "o",
    Ablation.coupled_gates: "f",
}
"""The gate that an ablation removes, with its weights."""
ROLES: dict[str, GateRole] = {"i": "input", "f": "keep", "o": "output", "c": "candidate"}


@dataclass
class LSTM(Cell):
    """With a_· = X_t W_·x + H_{t-1} W_·h + b_· (Gers et al. 2000, eqs. 2–7, without peepholes):

        I_t, F_t, O_t = σ(a_i), σ(a_f), σ(a_o)      G_t = tanh(a_c)
        C_t = F_t ∘ C_{t-1} + I_t ∘ G_t              H_t = O_t ∘ tanh(C_t)

    Backwards, with δ the total derivatives of the loss:

        δC_t ← δC_t + δH_t ∘ O_t ∘ (1 − tanh² C_t)
        δC_{t-1} = F_t ∘ δC_t                        (the constant error carousel when F = 1)
        δa_i = δC_t ∘ G_t ∘ I_t(1 − I_t)             δa_f = δC_t ∘ C_{t-1} ∘ F_t(1 − F_t)
        δa_o = δH_t ∘ tanh(C_t) ∘ O_t(1 − O_t)       δa_c = δC_t ∘ I_t ∘ (1 − G_t²)

    ``ablation`` (Greff et al. 2017): a gate is 1 and its weights are gone (NIG, NFG, NOG), F = 1 −
    I with δa_i = δC_t ∘ (G_t − C_{t-1}) ∘ I_t(1 − I_t) (CIFG), G = a_c (NIAF), H = O ∘ C (NOAF).
    ``no_forget_gate`` is the cell of 1997. With ``truncate``, as in that paper's appendix A.1, the
    gradient at the gates is not passed on to H_{t-1}, so that the carousel is the only path into
    the past; the result is then *not* the gradient of the loss.
    """

    forget_bias: float = setting(1.0, "initial b_f; 1 after Gers et al. (2000), Jozefowicz et al. (2015)")
    chrono_t_max: int | None = setting(
        None, "chrono initialisation for lags up to this: b_f = ln U[1, t_max − 1], b_i = −b_f", ge=3
    )
    ablation: Ablation = setting(Ablation.none, "what is taken away (Greff et al. 2017)")
    freeze_i: float | None = setting(None, "hold the input gate at this value", ge=0, le=1)
    freeze_f: float | None = setting(None, "hold the forget gate at this value", ge=0, le=1)
    freeze_o: float | None = setting(None, "hold the output gate at this value", ge=0, le=1)
    truncate: bool = setting(False, "stop the gradient at the gates (1997); it is not the loss's gradient then")

    def __post_init__(self) -> None:
        super().__post_init__()
        removed = WITHOUT.get(self.ablation)
        if removed in ("i", "f", "o") and (value := getattr(self, f"freeze_{removed}")) is not None:
            raise SettingError(f"freeze_{removed}", value, f"null where cell.ablation={self.ablation.name}")

    states = ("H", "C")
    paths = {"i": "input_gate", "f": "forget_gate", "o": "output_gate", "c": "internal_node"}
    label = "LSTM"
    colors: ClassVar[dict[str, str] | None] = {"": "#0072B2", "clipped": "#56B4E9"}
    drawing = _drawings.LSTM

    @cached_property
    def blocks(self) -> Mapping[str, GateSpec]:
        remaining = [name for name in "ifoc" if name != WITHOUT.get(self.ablation)]
        return {name: GateSpec(f"W_{name}x", f"W_{name}h", f"b_{name}", ROLES[name]) for name in remaining}

    @property
    def saved(self) -> tuple[str, ...]:
        return ("tanh_C", "F") if self.ablation is Ablation.coupled_gates else ("tanh_C",)

    @property
    def variant(self) -> str:
        return "" if self.ablation is Ablation.none else self.ablation.name

    @property
    def watched(self) -> dict[str, Watched]:
        gates = {name.upper(): Watched(name) for name in self.blocks if name != "c"}
        return gates | {"F": Watched("i")} if self.ablation is Ablation.coupled_gates else gates

    @property
    def keeping(self) -> Keeping:
        """F, also where it is 1 − I."""
        bias = initial_logit(self.forget_bias, self.chrono_t_max)
        if self.ablation is Ablation.no_forget_gate:
            return Keeping(None, "forget gate", held=1.0)
        i = self.freeze_i if self.ablation is Ablation.coupled_gates else None
        return Keeping("F", "forget gate", held=self.freeze_f if i is None else 1 - i, bias=bias)

    @property
    def idle(self) -> tuple[str, ...]:
        return ("forget_bias",) if self.chrono_t_max else ()

    @property
    def truncated(self) -> bool:
        return self.truncate

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.blocks)}

    @cached_property
    def _frozen(self) -> list[tuple[int, float]]:
        held = {"i": self.freeze_i, "f": self.freeze_f, "o": self.freeze_o}
        return [(self._place[name], v) for name, v in held.items() if v is not None and name in self._place]

    def _gates(self, gates: NDArray, coupled: Sequence[NDArray]) -> list[Any]:
        """I, F, O, G (…, H). A removed gate is the number 1; with coupled gates F is the array in
        ``coupled``.
        """
        by_name: dict[str, Any] = {name: gates[..., place, :] for name, place in self._place.items()}
        by_name |= zip("f", coupled, strict=False)
        return [by_name.get(name, 1.0) for name in "ifoc"]

    def _taped(self, tape: LayerTape) -> list[Any]:
        """I, F, O, G (T, B, H) of a tape."""
        return self._gates(tape.gates, [tape.saved[name] for name in self.saved[1:]])

    def step(self, s: Step) -> None:
        pre, gates = s.pre, s.gates
        (_, previous_c), (h, c), (tanh_c, *coupled) = s.entering, s.leaving, s.saved
        activate(Activation.sigmoid, pre[..., :-1, :], gates[..., :-1, :])
        if self.ablation is Ablation.no_input_nonlinearity:
            gates[..., -1, :] = pre[..., -1, :]
        else:
            np.tanh(pre[..., -1, :], out=gates[..., -1, :])
        for f in coupled:
            complement(pre[..., self._place["i"], :], f)
            if self.freeze_i is not None:
                f[...] = 1 - self.freeze_i
        for block, value in self._frozen:
            gates[..., block, :] = value
        i, f, o, g = self._gates(gates, coupled)
        np.multiply(f, previous_c, out=c)
        np.multiply(i, g, out=tanh_c)
        c += tanh_c
        if self.ablation is Ablation.no_output_nonlinearity:
            tanh_c[...] = c
        else:
            np.tanh(c, out=tanh_c)
        np.multiply(o, tanh_c, out=h)

    def activations_used(self, tape: LayerTape) -> list[tuple[Activation, NDArray, NDArray]]:
        nonlinearities = [(Activation.sigmoid, tape.pre[..., :-1, :], tape.gates[..., :-1, :])]
        if self.ablation is not Ablation.no_input_nonlinearity:
            nonlinearities.append((Activation.tanh, tape.pre[..., -1, :], tape.gates[..., -1, :]))
        if self.ablation is not Ablation.no_output_nonlinearity:
            nonlinearities.append((Activation.tanh, tape.states["C"][1:], tape.saved["tanh_C"]))
        return nonlinearities

    def step_backward(self, s: Step, d: StepAdjoint) -> None:
        (d_h, d_c), (_, previous_c), (tanh_c, *coupled) = d.leaving, s.entering, s.saved
        sigmoid_slopes, *tanh_slopes = s.slopes
        i, f, o, g = self._gates(s.gates, coupled)
        through_h = d_h * o
        d_c += through_h if self.ablation is Ablation.no_output_nonlinearity else through_h * tanh_slopes[-1]
        carrier_wrt_i = g - previous_c if self.ablation is Ablation.coupled_gates else g
        chain = {"i": (d_c, carrier_wrt_i), "f": (d_c, previous_c), "o": (d_h, tanh_c), "c": (d_c, i)}
        for name, block in self._place.items():
            adjoint, partial = chain[name]
            if name != "c":
                np.multiply(adjoint * partial, sigmoid_slopes[..., block, :], out=d.pre[..., block, :])
            elif self.ablation is Ablation.no_input_nonlinearity:
                np.multiply(adjoint, partial, out=d.pre[..., block, :])
            else:
                np.multiply(adjoint * partial, tanh_slopes[0], out=d.pre[..., block, :])
        for block, _ in self._frozen:
            d.pre[..., block, :] = 0
        np.multiply(d_c, f, out=d.entering[1])

    def activations(self, tape: LayerTape) -> dict[str, NDArray]:
        return {
            name: gate for name, gate in zip("IFO", self._taped(tape), strict=False) if isinstance(gate, np.ndarray)
        }

    def carrier_gain(self, tape: LayerTape) -> NDArray:
        """F_t."""
        return _filled(self._taped(tape)[1], tape.saved["tanh_C"])

    def output_wrt_carrier(self, tape: LayerTape) -> NDArray:
        """∂H_t/∂C_t = O_t ∘ (1 − tanh² C_t)."""
        o = _filled(self._taped(tape)[2], tape.saved["tanh_C"])
        return o if self.ablation is Ablation.no_output_nonlinearity else o * slope(*self.activations_used(tape)[-1])

    def nodes(self, tape: LayerTape, adjoint: Mapping[str, NDArray]) -> dict[str, NDArray]:
        i, _, _, g = self._taped(tape)
        previous_c, d_c = tape.states["C"][:-1], adjoint["C"]
        carrier_wrt_i = g - previous_c if self.ablation is Ablation.coupled_gates else g
        inner = {
            "i": d_c * carrier_wrt_i,
            "f": d_c * previous_c,
            "o": adjoint["H"] * tape.saved["tanh_C"],
            "c": d_c * i,
        }
        return {"G" if name == "c" else name.upper(): inner[name] for name in self._place}

    def counterfactuals(self) -> dict[str, Cell]:
        values: tuple[tuple[str, Any], ...] = (("f", 1.0), ("f", 0.5), ("i", 1.0), ("o", 1.0))
        present = [(name, value) for name, value in values if name in self._place]
        frozen = {f"{name.upper()}={value:g}": replace(self, **{f"freeze_{name}": value}) for name, value in present}
        return {**frozen, "truncated": replace(self, truncate=True)}

    def initial_bias(self, rng: Generator) -> dict[str, NDArray | float]:
        """b_f as set, or chrono: b_f ~ ln U[1, t_max − 1], b_i = −b_f (Tallec & Ollivier 2018, eq.
        16). With coupled gates F = σ(−a_i), so that only b_i = −b_f is set.
        """
        if self.chrono_t_max is None:
            biases: dict[str, NDArray | float] = {"f": self.forget_bias}
        else:
            forget = np.log(rng.uniform(1, self.chrono_t_max - 1, self.hidden_size))
            biases = {"f": forget, "i": -forget}
        if self.ablation is Ablation.coupled_gates:
            biases["i"] = -biases["f"]
        return {name: value for name, value in biases.items() if name in self._place}


def _filled(gate: Any, template: NDArray) -> NDArray:
    """A gate, or the number in its place, with the shape and type of ``like``."""
    return np.broadcast_to(np.asarray(gate, template.dtype), template.shape)
