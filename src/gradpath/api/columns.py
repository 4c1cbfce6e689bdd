"""Splits the names of an instrument's readings into the columns of a table.

The gate of a name comes from the roles that the cell declares, never from the name itself.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gradpath.core import layer_names
from gradpath.core.roles import Roles


@dataclass(frozen=True)
class Entry:
    """The parts of one row of a table: ``labels``, which say what was read, and for each column of
    numbers the index of its name among the names read, None where there is none.
    """

    labels: dict[str, Any]
    places: dict[str, int | None]


def entries(instrument: str, names: Sequence[str], roles: Roles) -> list[Entry]:
    """The rows for one reading of an instrument."""
    if instrument in WIDE:
        return _wide(names)
    if instrument in PAIRED:
        return PAIRED[instrument](names, roles)
    describe, value = LONG.get(instrument, (_plain, "value"))
    return [Entry(describe(name, roles), {value: place}) for place, name in enumerate(names)]


def layered(name: str) -> tuple[int, str]:
    """(layer from 1 at the bottom, the name in it)."""
    layer, bare = layer_names.split(name)
    return layer + 1, bare


def _parameter(name: str, roles: Roles) -> dict[str, Any]:
    """``layer1/W_fh``; the readout and the norm over all parameters have no layer."""
    layer, bare = layered(name)
    role = roles.parameter(name)
    in_layer = role is not None and role.role != "readout"
    return {"layer": layer if in_layer else None, "parameter": bare, "gate": role.gate if role else None}


def _element(name: str, roles: Roles) -> dict[str, Any]:
    """``W_hh[0,1]``."""
    parameter, _, index = name.partition("[")
    return _parameter(parameter, roles) | {"element": f"[{index}" if index else ""}


def _state(name: str, roles: Roles) -> dict[str, Any]:
    """``layer1/H`` or ``direct/layer1/H``."""
    bare = name.removeprefix("direct/")
    layer, state = layered(bare)
    return {"layer": layer, "state": state, "derivative": "total" if bare == name else "direct"}


def _node(name: str, roles: Roles) -> dict[str, Any]:
    layer, node = layered(name)
    return {"layer": layer, "node": node}


def _gate(name: str, roles: Roles) -> dict[str, Any]:
    """``layer1/F/mean``."""
    layer, bare = layered(name)
    watched, _, statistic = bare.rpartition("/")
    declared = roles.watched.get(watched)
    return {
        "layer": layer,
        "watched": watched,
        "gate": declared.gate if declared else None,
        "slope": bool(declared and declared.slope),
        "statistic": statistic,
    }


def _counterfactual(name: str, roles: Roles) -> dict[str, Any]:
    """``F=1/layer1/C``."""
    counterfactual, _, state = name.partition("/")
    layer, bare = layered(state)
    return {"counterfactual": counterfactual, "layer": layer, "state": bare}


def _exponent(name: str, roles: Roles) -> dict[str, Any]:
    """``layer1/lambda_3``."""
    layer, bare = layered(name)
    return {"layer": layer, "index": _number(bare, "_")}


def _singular_value(name: str, roles: Roles) -> dict[str, Any]:
    """``layer1/lag=10/sigma_1``."""
    layer, bare = layered(name)
    lag, _, sigma = bare.partition("/")
    return {"layer": layer, "lag": _number(lag, "="), "index": _number(sigma, "_")}


def _number(text: str, separator: str) -> int | None:
    digits = text.rpartition(separator)[2]
    return int(digits) if re.fullmatch("[0-9]{1,15}", digits) else None


def _plain(name: str, roles: Roles) -> dict[str, Any]:
    """The name unchanged, for an instrument that is not known here."""
    layer, bare = layered(name)
    return {"layer": layer if bare != name else None, "name": bare}


def _paths(names: Sequence[str], roles: Roles) -> list[Entry]:
    """``layer1/C/forget_gate``, and its cosine to the total."""
    rows = []
    for place, name in enumerate(names):
        if name.endswith("/cosine"):
            continue
        layer, bare = layered(name)
        state, _, path = bare.partition("/")
        labels = {"layer": layer, "state": state, "path": path, "gate": roles.gate_of_path(path)}
        rows.append(Entry(labels, {"log10_norm": place, "cosine": _place(names, f"{name}/cosine")}))
    return rows


def _credit(names: Sequence[str], roles: Roles) -> list[Entry]:
    """``credit/s`` beside ``alignment/s``, where s is the timestep of the loss, from 1; ``norm``
    belongs to all losses together.
    """
    rows = []
    for place, name in enumerate(names):
        kind, _, step = name.partition("/")
        if kind != "alignment":
            labels = {"loss_t": _number(name, "/")}
            rows.append(Entry(labels, {"log10_norm": place, "alignment": _place(names, f"alignment/{step}")}))
    return rows


def _wide(names: Sequence[str]) -> list[Entry]:
    """A column for each name; a row for each layer where the names carry one."""
    by_layer: dict[int | None, dict[str, int | None]] = {}
    for place, name in enumerate(names):
        layer, bare = layered(name)
        by_layer.setdefault(layer if bare != name else None, {})[bare] = place
    if set(by_layer) == {None}:
        return [Entry({}, by_layer[None])]
    return [Entry({"layer": layer}, places) for layer, places in by_layer.items()]


def _place(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


LONG: dict[str, tuple[Callable[[str, Roles], dict[str, Any]], str]] = {
    "param_grad_norm": (_parameter, "log10_norm"),
    "grad_norm": (_parameter, "log10_norm"),
    "parameter_value": (_element, "value"),
    "state_grad_norm": (_state, "log10_norm"),
    "node_grad_norm": (_node, "log10_norm"),
    "gate_activation": (_gate, "value"),
    "counterfactual": (_counterfactual, "log10_norm"),
    "counterfactual_loss": (lambda name, roles: {"counterfactual": name}, "loss"),
    "lyapunov_spectrum": (_exponent, "exponent"),
    "jacobian_log_singular_values": (_singular_value, "log10_singular_value"),
}
"""Instruments with a row for each name: the function that reads the name, and the column of the
number.
"""
PAIRED: dict[str, Callable[[Sequence[str], Roles], list[Entry]]] = {"path_grad_norm": _paths, "credit": _credit}
"""Instruments with a row for each pair of names."""
WIDE = ("clip_scale", "clipping_ledger", "loss_surface", "reach", "theory")
"""Instruments with a column for each name."""
