"""The split of the state gradient by path, the nodes, and the gates held: against the definition
and by identity.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Case, cell_id, cells, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, WITHOUT, Ablation
from gradpath.cells.rnn import RNN
from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import EPSILON, central_difference, pre_activations
from gradpath.core.losses import Loss, evaluate
from gradpath.core.scaled import Scaled
from gradpath.core.step_loss import states_of_step, trace_of_step
from gradpath.core.trace import Trace
from gradpath.instruments.counterfactual import Counterfactual
from gradpath.instruments.counterfactual_loss import CounterfactualLoss
from gradpath.instruments.credit import Credit
from gradpath.instruments.node_grad_norm import NodeGradNorm
from gradpath.instruments.path_grad_norm import PathGradNorm, one_step, whole_lag
from gradpath.instruments.reach import Reach
from gradpath.instruments.state_grad_norm import StateGradNorm

GATED = [cell for cell in cells() if not isinstance(cell, RNN)]


def total_of(case: Case, trace: Trace, layer: int) -> Scaled:
    return trace.states[case.network.prefix(layer) + case.network.cell.states[-1]]


# --- the parts of one step ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.pairwise
def test_the_parts_add_up_to_the_total_in_every_element(cell: Cell, steps: int, every_step: bool, dtype: type) -> None:
    """To the rounding of the adjoint's own matrix product: n·H products of the type, whose sizes
    are bounded here.
    """
    case = make_case(cell, Loss.squared_error, steps, every_step, dtype)
    trace = case.trace
    for layer in range(cell.layers):
        parts = dict(one_step(case.network, trace, layer))
        assert list(parts) == [
            "highway",
            *(cell.paths[block] for block in cell.blocks if block in cell.paths),
            "direct",
        ]
        same_step = {cell.paths[list(cell.blocks)[gate]] for gate, parameter in cell.elementwise if parameter.leaving}
        total = total_of(case, trace, layer).plain().astype(np.float64)
        assert {p.array.dtype for p in parts.values()} == {np.dtype(np.float64)}
        size = sum(np.abs(part.plain()) for part in parts.values()) + _products(case, trace, layer)
        rounding = 4 * np.finfo(dtype).eps * (size + np.abs(total))
        assert (np.abs(sum(part.plain() for part in parts.values()) - total) <= rounding).all()
        for name, part in parts.items():
            assert name in {"direct", *same_step} or not part.array[-1].any(), "nothing follows T"


def _products(case: Case, trace: Trace, layer: int) -> NDArray:
    """Σ |δa| |W_·h|ᵀ ∘ ∂H/∂C: what rounds in the product."""
    cell = case.network.cell
    delta = np.abs(trace.deltas[layer].plain()[:, :, cell.reads_h].astype(np.float64))
    layer_weights = list(case.network.layer_weights(trace.tape.theta))[layer]
    weights = np.abs(layer_weights.h)
    products = np.zeros(total_of(case, trace, layer).array.shape)
    products[:-1] = delta[1:].reshape(*delta[1:].shape[:2], delta.shape[-2] * delta.shape[-1]) @ weights.T
    products = products * np.abs(cell.output_wrt_carrier(trace.tape.layers[layer]))
    for gate, parameter in cell.elementwise:
        elementwise = layer_weights.elementwise_by_name(cell)[parameter.name]
        adjoint = np.abs(trace.deltas[layer].plain()[:, :, gate] * elementwise)
        products += adjoint if parameter.leaving else np.concatenate([adjoint[1:], 0 * adjoint[:1]])
    return products


@pytest.mark.parametrize("cell", cells(), ids=cell_id)
def test_each_part_equals_central_differences_of_its_own_edge(cell: Cell) -> None:
    """Let one gate of step t+1, or the highway, or what stands above, and nothing else, see the
    carrier of t moved.
    """
    case = make_case(cell, Loss.squared_error, 4, True)
    epsilon = 1e-4 if getattr(cell, "activation", None) is Activation.relu else EPSILON
    trace, rng = case.trace, np.random.default_rng(5)
    for layer in range(cell.layers):
        parts = {name: part.plain() for name, part in one_step(case.network, trace, layer)}
        for t in (0, 2, 3):
            direction = rng.normal(size=parts["direct"][t].shape)
            for name, part in parts.items():
                expected = central_difference(
                    lambda displacement, edge=(layer, t, name), v=direction: _loss_with_edge_moved(
                        case, *edge, displacement * v
                    ),
                    epsilon,
                )
                assert np.sum(part[t] * direction) == pytest.approx(expected, rel=1e-7, abs=1e-11), (layer, t, name)


def _loss_with_edge_moved(case: Case, layer: int, step: int, path: str, displacement: NDArray) -> float:
    cell, inputs = case.network.cell, case.batch.inputs
    readers = [cell.paths.get(name) if spec.h or spec.elementwise else None for name, spec in cell.blocks.items()]
    for k, weights in enumerate(case.network.layer_weights(case.theta)):
        states = [np.zeros((inputs.shape[1], cell.hidden_size)) for _ in cell.states]
        states[0] += case.network.initial_state
        outputs, moved = [], None
        for t in range(len(inputs)):
            pre = pre_activations(cell, weights, inputs[t], states[0])
            if moved is not None and path in readers:
                block = readers.index(path)
                pre[:, block] = pre_activations(cell, weights, inputs[t], moved)[:, block]
            elementwise = weights.elementwise_by_name(cell)
            for gate, parameter in cell.elementwise:
                if not parameter.leaving:
                    reads_moved = moved is not None and readers[gate] == path
                    pre[:, gate] += elementwise[parameter.name] * (states[-1] + (displacement if reads_moved else 0))
            if moved is not None and path == "highway":
                states[-1] = states[-1] + displacement
            zeros = {name: 0 * w for name, w in elementwise.items()}
            leaving = cell.new_step(pre, states, zeros).leaving
            for gate, parameter in cell.elementwise:
                if parameter.leaving:
                    reads_moved = (k, t) == (layer, step) and readers[gate] == path
                    pre[:, gate] += elementwise[parameter.name] * (leaving[-1] + (displacement if reads_moved else 0))
            _, gates, _, states, *_ = cell.new_step(pre, states, zeros)
            moved = _cell_output(cell, gates, states[-1] + displacement) if (k, t) == (layer, step) else None
            outputs.append(states[0] if moved is None or path != "direct" else moved)
        inputs = np.stack(outputs)
    return _score(case, inputs)


def _cell_output(cell: Cell, gates: NDArray, carrier: NDArray) -> NDArray:
    """H_t from a moved carrier: O ∘ tanh(C) in the LSTM, itself elsewhere."""
    if not isinstance(cell, LSTM):
        return carrier
    squashed = carrier if cell.ablation is Ablation.no_output_nonlinearity else np.tanh(carrier)
    return gates[:, list(cell.blocks).index("o")] * squashed if "o" in cell.blocks else squashed


def _score(case: Case, top_h: NDArray) -> NDArray:
    w_hy, b_y = case.network.packed(case.theta)[-2:]
    return evaluate(case.network.loss, top_h @ w_hy + b_y, case.batch.targets, case.batch.mask)[0]


@pytest.mark.parametrize(
    "cell", [LSTM(3, truncate=True), LSTM(3, 2, truncate=True), GRU(3, truncate=True)], ids=cell_id
)
def test_a_truncated_cell_has_true_zeros_on_the_gates_paths(cell: Cell) -> None:
    case = make_case(cell, Loss.squared_error, 5, True)
    trace = case.trace
    for layer in range(cell.layers):
        parts, lag = dict(one_step(case.network, trace, layer)), dict(whole_lag(case.network, trace, layer))
        for block in list(cell.blocks)[cell.reads_h]:
            assert not parts[cell.paths[block]].array.any()
        assert not lag["rest"].array.any()
        assert (lag["carousel"].plain() == total_of(case, trace, layer).plain()).all()


# --- the carousel alone, and the rest -------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.pairwise
def test_carousel_and_rest_add_up_to_the_total(cell: Cell, steps: int, every_step: bool, dtype: type) -> None:
    case = make_case(cell, Loss.squared_error, steps, every_step, dtype)
    trace = case.trace
    for layer in range(cell.layers):
        parts = {name: part.plain().astype(np.float64) for name, part in whole_lag(case.network, trace, layer)}
        total = total_of(case, trace, layer).plain()
        largest = max(np.abs(part).max() for part in parts.values())
        np.testing.assert_allclose(sum(parts.values()), total, rtol=0, atol=16 * np.finfo(dtype).eps * largest)


@pytest.mark.parametrize("cell", GATED, ids=cell_id)
def test_the_carousel_of_a_last_step_loss_is_a_product_of_keeping_gates(cell: Cell) -> None:
    case = make_case(cell, Loss.cross_entropy, 6, False)
    trace = case.trace
    top_layer = cell.layers - 1
    gates = dict(zip(cell.blocks, np.moveaxis(trace.tape.layers[top_layer].gates, -2, 0), strict=True))
    keeping_gate = gates.get(
        "z", gates.get("f", 1 - gates["i"] if cell.variant == "coupled_gates" else np.ones((6, 1, 1)))
    )
    carousel = dict(whole_lag(case.network, trace, top_layer))["carousel"].plain()
    expected = dict(one_step(case.network, trace, top_layer))["direct"].plain()[-1]
    for t in range(5, -1, -1):
        np.testing.assert_allclose(carousel[t], expected, rtol=1e-13)
        expected = expected * keeping_gate[t]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [-2.0, 1.0])
def test_the_carousel_over_a_thousand_steps_is_right_in_logs(bias: float, dtype: type) -> None:
    case = make_case(LSTM(3), Loss.squared_error, 1001, False, dtype)
    case.network.parameters(case.theta)["b_f"][:] = bias
    trace = case.trace
    measurement = PathGradNorm().measure(case.network, trace)
    carried = np.log(np.abs(total_of(case, trace, 0).plain()[-1].astype(np.float64)))
    keeps = np.log(trace.tape.layers[0].gates[..., 1, :].astype(np.float64))
    logs = carried + np.concatenate([np.cumsum(keeps[::-1], axis=0)[-2::-1], np.zeros((1, *carried.shape))])
    largest = logs.max(axis=(1, 2))
    expected = (largest + 0.5 * np.log(np.exp(2 * (logs - largest[:, None, None])).sum(axis=(1, 2)))) / np.log(10)
    carousel = measurement.values[:, measurement.names.index("C/carousel")]
    assert expected[0] < -100
    np.testing.assert_allclose(carousel, expected, rtol=0, atol=1e-4 if dtype is np.float32 else 1e-9)
    gate_columns = [k for k, name in enumerate(measurement.names) if not name.endswith(("cosine", "direct"))]
    assert np.isfinite(measurement.values[:-1, gate_columns]).all(), "no false zero"


def vanishing(cell: Cell, dtype: type) -> Case:
    """400 steps whose adjoint leaves float64, each sequence with exponents of its own."""
    case = make_case(cell, Loss.squared_error, 400, False, dtype)
    for name, value in case.network.parameters(case.theta).items():
        if name.endswith(("b_f", "b_z")):
            value[:] = -2 if name.endswith("b_f") else -5
        elif name.endswith("h") and name != "b_h":
            value *= 0.1
    return case


def at_exponent(value: Scaled, exponent: NDArray) -> NDArray:
    """``value`` / 2^exponent, in float64."""
    return np.ldexp(value.array.astype(np.float64), (value.exponent - exponent)[..., None])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", [LSTM(3), LSTM(3, 2), GRU(3), RNN(3)], ids=cell_id)
def test_both_splits_add_up_where_the_gradient_has_left_floating_point(cell: Cell, dtype: type) -> None:
    case = vanishing(cell, dtype)
    trace = case.trace
    for layer in range(cell.layers):
        total = total_of(case, trace, layer)
        assert total.exponent[0].max() < (-300 if layer == cell.layers - 1 else 0)
        expected = at_exponent(total, total.exponent)
        for split in (one_step, whole_lag):
            parts = [at_exponent(part, total.exponent) for _, part in split(case.network, trace, layer)]
            size = np.max([np.abs(part) for part in parts], axis=(0, -1), keepdims=True)[0]
            assert (np.abs(sum(parts) - expected) <= 64 * np.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nodes_where_the_gradient_has_left_floating_point(dtype: type) -> None:
    case = vanishing(LSTM(3), dtype)
    trace = case.trace
    measurement = NodeGradNorm().measure(case.network, trace)
    tape, d_c = trace.tape.layers[0], trace.states["C"]
    common = d_c.exponent.max(axis=1, keepdims=True)
    for name, factor in (("I", tape.gates[:, :, 3]), ("G", tape.gates[:, :, 0]), ("F", tape.states["C"][:-1])):
        value = np.linalg.norm((at_exponent(d_c, common) * factor).reshape(400, -1), axis=1)
        with np.errstate(divide="ignore"):
            expected = np.log10(value) + common[:, 0] * np.log10(2)
        np.testing.assert_allclose(
            measurement.values[:, measurement.names.index(name)], expected, rtol=1e-6, err_msg=name
        )


def test_a_cosine_where_the_squares_of_the_adjoint_underflow() -> None:
    """C grows by 1 a step, so that ∂H/∂C = O (1 − tanh² C) is 1e-260 at T: its square is below
    float64.
    """
    case = make_case(LSTM(3), Loss.squared_error, 300, False)
    named = case.network.parameters(case.theta)
    for gate in "ifc":
        named[f"b_{gate}"][:] = 50
    measurement = PathGradNorm().measure(case.network, case.trace)
    columns = dict(zip(measurement.names, measurement.values.T, strict=True))
    assert -300 < columns["C/total"][-1] < -200
    for part in ("C/direct", "C/carousel"):
        assert columns[part][-1] == pytest.approx(columns["C/total"][-1], rel=1e-12)
        assert columns[f"{part}/cosine"][-1] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("cell", [LSTM(4), GRU(4)], ids=cell_id)
def test_the_rest_is_right_where_total_and_carousel_agree_to_all_digits(cell: Cell) -> None:
    """With recurrent weights of size ε the rest is ε of the total; in float32 and ε = 1e-12 a
    subtraction is noise.
    """

    def rest_and_total(size: float, dtype: type) -> tuple[NDArray, NDArray]:
        case = make_case(cell, Loss.squared_error, 8, False)
        for name, value in case.network.parameters(case.theta).items():
            if name[0] == "W" and name[-1] == "h":
                value *= size
        case = Case(case.network, case.theta.astype(dtype), case.batch.astype(dtype))
        parts = {name: part.plain().astype(np.float64) for name, part in whole_lag(case.network, case.trace, 0)}
        return parts["rest"], total_of(case, case.trace, 0).plain() - parts["carousel"]

    computed, subtracted = rest_and_total(1e-5, np.float64)
    np.testing.assert_allclose(computed, subtracted, rtol=0, atol=1e-9 * np.abs(computed).max())
    computed32, noise = rest_and_total(1e-12, np.float32)
    computed64, _ = rest_and_total(1e-12, np.float64)
    np.testing.assert_allclose(computed32, computed64, rtol=0, atol=1e-4 * np.abs(computed64).max())
    assert np.abs(noise - computed64).max() > 100 * np.abs(computed64).max() or not noise.any()


# --- the readings ---------------------------------------------------------------------------------


@pytest.mark.pairwise
def test_norms_and_cosines_equal_a_naive_computation_and_the_shares_add_up_to_one(case: Case) -> None:
    trace = case.trace
    measurement = PathGradNorm().measure(case.network, trace)
    columns = dict(zip(measurement.names, measurement.values.T, strict=True))
    cell = case.network.cell
    assert not np.isnan(measurement.values).any()
    for layer in range(cell.layers):
        prefix = f"{case.network.prefix(layer)}{cell.states[-1]}/"
        total = total_of(case, trace, layer).plain()
        splits = [
            dict(one_step(case.network, trace, layer)),
            dict(whole_lag(case.network, trace, layer)),
        ]
        for t, size in enumerate(np.linalg.norm(total.reshape(len(total), -1), axis=1)):
            assert 10 ** columns[f"{prefix}total"][t] == pytest.approx(size, rel=1e-12)
            for split in splits:
                share_sum = 0.0
                for name, part in split.items():
                    value = part.plain()[t]
                    norm, inner = np.linalg.norm(value), np.sum(value * total[t])
                    cosine = inner / (norm * size) if norm * size else 0.0
                    assert 10 ** columns[prefix + name][t] == pytest.approx(norm, rel=1e-12, abs=0)
                    assert columns[f"{prefix}{name}/cosine"][t] == pytest.approx(cosine, rel=1e-9, abs=1e-12)
                    share_sum += cosine * norm / size if size else 0.0
                assert share_sum == pytest.approx(1 if size else 0, rel=1e-9)
    cosines = measurement.values[:, [name.endswith("cosine") for name in measurement.names]]
    assert (np.abs(cosines) <= 1).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cosines_are_right_where_the_gradient_has_left_floating_point(dtype: type) -> None:
    """All rows of a batch scaled by 2^-3000: norms move by as many decades
    and the directions stay.
    """
    case = make_case(LSTM(3), Loss.squared_error, 6, True, dtype)
    trace = case.trace

    def scale_down(value: Scaled) -> Scaled:
        return Scaled(value.array, value.exponent - 3000)

    scaled_trace = replace(
        trace,
        deltas=tuple(map(scale_down, trace.deltas)),
        states={k: scale_down(v) for k, v in trace.states.items()},
        direct={k: scale_down(v) for k, v in trace.direct.items()},
    )
    ordinary, tiny = PathGradNorm().measure(case.network, trace), PathGradNorm().measure(case.network, scaled_trace)
    for name, ordinary_column, tiny_column in zip(ordinary.names, ordinary.values.T, tiny.values.T, strict=True):
        moved = 0.0 if name.endswith("cosine") else 3000 * np.log10(2)
        tolerance = 1e-6 if dtype is np.float32 else 1e-12
        finite = np.isfinite(ordinary_column)
        assert (finite == np.isfinite(tiny_column)).all()
        np.testing.assert_allclose(
            tiny_column[finite], ordinary_column[finite] - moved, rtol=0, atol=tolerance, err_msg=name
        )


def test_mlflow_shows_the_paths_of_the_bottom_layer() -> None:
    metrics = {}
    for cell in (LSTM(3), LSTM(3, 3), GRU(3), RNN(3, 2)):
        case = make_case(cell, Loss.squared_error, 3, True)
        names = PathGradNorm().measure(case.network, case.trace).names
        metrics[cell_id(cell)] = [key.partition("/")[2] for name in names if (key := PathGradNorm().metric(name))]
    lstm = ["highway", "input_gate", "forget_gate", "output_gate", "internal_node", "carousel"]
    assert metrics["LSTM-1"] == metrics["LSTM-3"] == lstm
    assert metrics["GRU-1"] == ["highway", "update_gate", "reset_gate", "candidate", "carousel"]
    assert metrics["RNN-tanh-2"] == ["highway", "recurrence", "carousel"]


# --- the nodes ------------------------------------------------------------------------------------


def sigma(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def lstm_step(cell: LSTM, p: Callable, x: NDArray, entering: list[NDArray], node: Callable) -> list[NDArray]:
    h, c = entering
    peepholes = {list(cell.blocks)[gate]: parameter.name for gate, parameter in cell.elementwise}

    def pre(g: str, state: NDArray) -> NDArray:
        peephole = p(peepholes[g]) * state if g in peepholes else 0.0
        return node(f"a_{g}", x @ p(f"W_{g}x") + h @ p(f"W_{g}h") + p(f"b_{g}") + peephole)

    a = {g: pre(g, c) for g in cell.blocks if g != "o"}
    frozen = {"i": cell.freeze_i, "f": cell.freeze_f}
    gate = {g: sigma(a[g]) if frozen[g] is None else np.full_like(a[g], frozen[g]) for g in "if" if g in a}
    gate = {g: node(g.upper(), value) for g, value in gate.items()}
    f = 1 - gate["i"] if cell.ablation is Ablation.coupled_gates else gate.get("f", 1.0)
    g = node("G", a["c"] if cell.ablation is Ablation.no_input_nonlinearity else np.tanh(a["c"]))
    c = node("C", f * c + gate.get("i", 1.0) * g)
    o = 1.0
    if "o" in cell.blocks:
        a_o = pre("o", c)
        o = node("O", sigma(a_o) if cell.freeze_o is None else np.full_like(a_o, cell.freeze_o))
    h = o * (c if cell.ablation is Ablation.no_output_nonlinearity else np.tanh(c))
    return [node("H", h), c]


def gru_step(cell: GRU, p: Callable, x: NDArray, entering: list[NDArray], node: Callable) -> list[NDArray]:
    (h,) = entering
    a_z = node("a_z", x @ p("W_zx") + h @ p("W_zh") + p("b_z"))
    z = node("Z", sigma(a_z) if cell.freeze_z is None else np.full_like(a_z, cell.freeze_z))
    r = node("R", sigma(node("a_r", x @ p("W_rx") + h @ p("W_rh") + p("b_r"))))
    q = node("a_q", h @ p("W_nh") + p("b_q"))
    n = node("N", np.tanh(node("a_n", x @ p("W_nx") + p("b_n")) + r * q))
    return [node("H", z * h + (1 - z) * n)]


def _losses_with_node_moved(case: Case, layer: int, timestep: int, name: str, displacements: NDArray) -> NDArray:
    """The losses (N,) of textbook forward passes in which a node is moved by ``displacements``
    (N, B, H).
    """
    cell, inputs = case.network.cell, case.batch.inputs
    named = case.network.parameters(case.theta)
    for k in range(cell.layers):
        states = [np.zeros((inputs.shape[-2], cell.hidden_size)) for _ in cell.states]
        states[0] += case.network.initial_state
        outputs = []
        for t in range(inputs.shape[-3]):

            def node(node_name: str, value: NDArray, now: bool = (k, t) == (layer, timestep)) -> NDArray:
                return value + displacements if now and node_name == name else value

            step = lstm_step if isinstance(cell, LSTM) else gru_step
            states = step(
                cell, lambda key, k=k: named[case.network.prefix(k) + key], inputs[..., t, :, :], states, node
            )
            outputs.append(states[0])
        inputs = np.stack(np.broadcast_arrays(*outputs), axis=-3)
    return np.broadcast_to(_score(case, inputs), len(displacements))


@pytest.mark.parametrize("cell", GATED, ids=cell_id)
def test_every_node_equals_central_differences_of_a_textbook_forward_pass(cell: Cell) -> None:
    case = make_case(cell, Loss.squared_error, 3, True)
    measurement = NodeGradNorm().measure(case.network, case.trace)
    inner = "IFOG" if isinstance(cell, LSTM) else "ZRN"
    missing_gate = WITHOUT.get(getattr(cell, "ablation", Ablation.none), "").upper()
    names = [*cell.states, *(g for g in inner if g != missing_gate), *(f"a_{block}" for block in cell.blocks)]
    assert measurement.names == tuple(case.network.prefix(k) + name for k in range(cell.layers) for name in names)
    shape = (case.batch.mask.shape[1], cell.hidden_size)
    units = np.eye(shape[0] * shape[1]).reshape(-1, *shape)
    for layer in range(cell.layers):
        for t in (0, 2):
            for name in names:
                gradient = central_difference(
                    lambda displacement, position=(layer, t, name): _losses_with_node_moved(
                        case, *position, displacement * units
                    ),
                    3e-3,
                )
                node_norm = 10 ** measurement.values[t, measurement.names.index(case.network.prefix(layer) + name)]
                assert node_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-7, abs=1e-12), (layer, t, name)


def test_nodes_of_the_rnn() -> None:
    case = make_case(RNN(3, 2), Loss.squared_error, 5, True)
    trace = case.trace
    measurement = NodeGradNorm().measure(case.network, trace)
    assert measurement.names == ("layer1/H", "layer1/a_h", "layer2/H", "layer2/a_h")
    for k in range(2):
        naive = np.linalg.norm(trace.deltas[k].plain().reshape(5, -1), axis=1)
        np.testing.assert_allclose(10 ** measurement.values[:, 2 * k + 1], naive, rtol=1e-12)


# --- gates held after training --------------------------------------------------------------------


CONSTANT = {"1": 1000.0, "0.5": 0.0}
"""σ(1000) is 1, and 1 − σ(1000) is 0, in floating point."""
"""The bias with which σ is 1 to the last bit of float64, and ½ exactly."""


def _with_constant_gate(case: Case, name: str) -> Case:
    """A network of which a gate *is* that constant: no weights, and the bias to match."""
    gate, _, value = name.partition("=")
    theta = case.theta.copy()
    named = case.network.parameters(theta)
    for k in range(case.network.layers):
        prefix = f"{case.network.prefix(k)}"
        named[f"{prefix}W_{gate.lower()}x"][:] = 0
        named[f"{prefix}W_{gate.lower()}h"][:] = 0
        named[f"{prefix}b_{gate.lower()}"][:] = CONSTANT[value]
    return Case(case.network, theta, case.batch)


@pytest.mark.parametrize("cell", [LSTM(4), LSTM(4, 2), GRU(4), GRU(4, 2)], ids=cell_id)
def test_a_held_gate_is_the_network_with_that_constant(cell: Cell) -> None:
    case = make_case(cell, Loss.squared_error, 7, True)
    measurement, losses = (
        Counterfactual().measure(case.network, case.trace),
        CounterfactualLoss().measure(case.network, case.trace),
    )
    gates = ["F=1", "F=0.5", "I=1", "O=1"] if isinstance(cell, LSTM) else ["Z=1", "Z=0.5", "R=1"]
    assert losses.names == ("factual", *gates, "truncated")
    assert measurement.names == tuple(f"{name}/{state}" for name in losses.names for state in case.trace.states)
    for name in ("factual", *gates):
        reference = (case if name == "factual" else _with_constant_gate(case, name)).trace
        assert losses.values[losses.names.index(name)] == pytest.approx(reference.tape.loss, rel=1e-12)
        for state, adjoint in reference.states.items():
            naive = np.linalg.norm(adjoint.plain().reshape(7, -1), axis=1)
            np.testing.assert_allclose(
                10 ** measurement.values[:, measurement.names.index(f"{name}/{state}")], naive, rtol=1e-10
            )
    assert len(set(np.round(losses.values[:-1], 9))) == len(gates) + 1, "each changes the forward pass"


@pytest.mark.parametrize("cell", [LSTM(4), GRU(4)], ids=cell_id)
def test_truncated_is_the_carousel_and_leaves_the_loss_alone(cell: Cell) -> None:
    case = make_case(cell, Loss.squared_error, 7, True)
    trace, carrier = case.trace, cell.states[-1]
    tape = trace.tape.layers[0]
    block = list(cell.blocks).index("f" if carrier == "C" else "z")
    slope = tape.gates[..., 2, :] * (1 - np.tanh(tape.states["C"][1:]) ** 2) if carrier == "C" else 1.0
    direct_part = trace.direct["H"].plain() * slope
    expected = [np.zeros_like(direct_part[0])]
    for t in range(6, -1, -1):
        keeping_gate = tape.gates[t + 1, :, block] if t < 6 else 0.0
        expected.insert(0, expected[0] * keeping_gate + direct_part[t])
    measurement, losses = (
        Counterfactual().measure(case.network, trace),
        CounterfactualLoss().measure(case.network, trace),
    )
    naive = np.linalg.norm(np.stack(expected[:-1]).reshape(7, -1), axis=1)
    np.testing.assert_allclose(
        10 ** measurement.values[:, measurement.names.index(f"truncated/{carrier}")], naive, rtol=1e-12
    )
    assert losses.values[-1] == losses.values[0] == trace.tape.loss


def test_the_rnn_has_no_gate_to_hold() -> None:
    case = make_case(RNN(3), Loss.squared_error, 3, True)
    trace = case.trace
    assert Counterfactual().measure(case.network, trace).names == ("factual/H",)
    assert CounterfactualLoss().measure(case.network, trace).values.tolist() == [trace.tape.loss]


# --- long sequences -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", [RNN(4), LSTM(4, layers=2), GRU(4), LSTM(4, truncate=True)], ids=cell_id)
def test_a_sequence_in_several_runs_of_steps_reads_the_same(
    cell: Cell, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(cell, Loss.squared_error, 40, True, dtype)
    trace = case.trace
    instruments = NodeGradNorm(), PathGradNorm(), StateGradNorm(), Counterfactual(), Reach(), Credit()
    in_one_pass = [instrument.measure(case.network, trace) for instrument in instruments]
    monkeypatch.setattr("gradpath.engine.partition.CHUNK_ELEMENTS", 7 * 3 * 4)
    for instrument, expected in zip(instruments, in_one_pass, strict=True):
        measurement = instrument.measure(case.network, trace)
        assert measurement.names == expected.names
        np.testing.assert_array_equal(measurement.values, expected.values)


def test_the_states_adjoints_alone_are_those_of_the_trace() -> None:
    case = make_case(LSTM(4, layers=2), Loss.squared_error, 7, True)
    trace = case.trace
    for row in range(len(trace.tape.scored)):
        adjoints, expected = states_of_step(case.network, trace, row), trace_of_step(case.network, trace, row).states
        assert list(adjoints) == list(expected)
        for name, adjoint in expected.items():
            np.testing.assert_array_equal(adjoints[name].array, adjoint.array)
            np.testing.assert_array_equal(adjoints[name].exponent, adjoint.exponent)
