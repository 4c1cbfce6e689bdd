"""The split by path and the nodes against autograd, on a graph in which every edge is a tensor of
its own.
"""

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Case, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import relative_error
from gradpath.core.losses import Loss
from gradpath.core.step import GateSpec
from gradpath.instruments.node_grad_norm import NodeGradNorm
from gradpath.instruments.path_grad_norm import one_step, whole_lag

pytestmark = pytest.mark.peers
torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch==2.13.0")

CELLS = [LSTM(4), LSTM(4, 2), LSTM(4, 3), LSTM(4, ablation=Ablation.coupled_gates), GRU(4), GRU(4, 2)]


class Graph:
    """A textbook forward pass that keeps every tensor by (layer, name, t), each edge being a copy
    of what it carries.

    With ``cut`` the copies that the gates of that layer read are detached: the carousel alone is
    left.
    """

    def __init__(self, case: Case, cut: int | None = None) -> None:
        self.case, self.cut = case, cut
        self.kept: dict[tuple[int, str, int], torch.Tensor] = {}
        cell, mask = case.network.cell, torch.tensor(case.batch.mask)
        self.p = {name: torch.tensor(value) for name, value in case.network.parameters(case.theta).items()}
        inputs = [torch.tensor(x, requires_grad=True) for x in case.batch.inputs]
        for k in range(cell.layers):
            run = self._lstm if isinstance(cell, LSTM) else self._gru
            inputs = run(k, inputs)
        y = torch.stack([h @ self.p["W_hy"] + self.p["b_y"] for h in inputs])
        loss = ((y - torch.tensor(case.batch.targets))[mask] ** 2).sum(dim=-1).mean()
        loss.backward()

    def keep(self, layer: int, name: str, t: int, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        if not value.requires_grad:
            value.requires_grad_()
        value.retain_grad()
        self.kept[layer, name, t] = value
        return value

    def gradient(self, layer: int, name: str) -> NDArray:
        """(T, B, H); 0 where nothing came."""
        shape = (self.case.batch.mask.shape[1], self.case.network.cell.hidden_size)
        tensors = [self.kept.get((layer, name, t)) for t in range(len(self.case.batch.mask))]
        return np.stack([np.zeros(shape) if v is None or v.grad is None else v.grad.numpy() for v in tensors])

    def _gate_input(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        return h.detach() if layer == self.cut else h

    def _a(self, layer: int, x, h, t: int, block: str, names: GateSpec):
        prefix = self.case.network.prefix(layer)
        w_x, w_h, b = (name and self.p[prefix + name] for name in names[:3])
        parts = [x @ w_x] if w_x is not None else []
        parts += [h @ w_h] if w_h is not None else []
        return self.keep(layer, f"a_{block}", t, sum(parts) + b)

    def _lstm(self, layer: int, inputs: list) -> list:
        cell, sequences = self.case.network.cell, self.case.batch.mask.shape[1]
        c = torch.zeros(sequences, cell.hidden_size, dtype=torch.float64)
        o = torch.zeros_like(c)
        outputs = []
        for t, x in enumerate(inputs):
            a = {}
            for block, names in cell.blocks.items():
                copy = self.keep(layer, cell.paths[block], t - 1, c)
                h = self._gate_input(layer, o * torch.tanh(copy))
                a[block] = self._a(layer, x, h, t, block, names)
            gate = {name: self.keep(layer, name.upper(), t, torch.sigmoid(a[name])) for name in "ifo" if name in a}
            f = gate["f"] if "f" in gate else 1 - gate["i"]
            g = self.keep(layer, "G", t, torch.tanh(a["c"]))
            c = self.keep(layer, "C", t, f * self.keep(layer, "highway", t - 1, c) + gate["i"] * g)
            o = gate["o"]
            outputs.append(o * torch.tanh(self.keep(layer, "direct", t, c)))
        return outputs

    def _gru(self, layer: int, inputs: list) -> list:
        cell, sequences = self.case.network.cell, self.case.batch.mask.shape[1]
        h = torch.zeros(sequences, cell.hidden_size, dtype=torch.float64)
        outputs = []
        for t, x in enumerate(inputs):
            a = {}
            for block, names in cell.blocks.items():
                gate_h = h
                if block in cell.paths:
                    gate_h = self._gate_input(layer, self.keep(layer, cell.paths[block], t - 1, h))
                a[block] = self._a(layer, x, gate_h, t, block, names)
            z = self.keep(layer, "Z", t, torch.sigmoid(a["z"]))
            r = self.keep(layer, "R", t, torch.sigmoid(a["r"]))
            n = self.keep(layer, "N", t, torch.tanh(a["n"] + r * a["q"]))
            h = self.keep(layer, "H", t, z * self.keep(layer, "highway", t - 1, h) + (1 - z) * n)
            outputs.append(self.keep(layer, "direct", t, h))
        return outputs


@pytest.mark.parametrize("every_step", [False, True], ids=["last-step", "every-step"])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_paths_and_nodes_equal_autograd(cell: Cell, steps: int, every_step: bool) -> None:
    case = make_case(cell, Loss.squared_error, steps, every_step, seed=4)
    trace, graph = case.trace, Graph(case)
    measurement = NodeGradNorm().measure(case.network, trace)
    for layer in range(cell.layers):
        for name, part in one_step(case.network, trace, layer):
            assert relative_error(part.plain(), graph.gradient(layer, name)) < 1e-9, (layer, name)
        total = graph.gradient(layer, cell.states[-1])
        carousel = Graph(case, cut=layer).gradient(layer, cell.states[-1])
        for name, part in whole_lag(case.network, trace, layer):
            expected = carousel if name == "carousel" else total - carousel
            assert relative_error(part.plain(), expected) < 1e-9, (layer, name)
        for name in measurement.names:
            if name.startswith(case.network.prefix(layer)) and name != case.network.prefix(layer) + "H":
                naive = np.linalg.norm(
                    graph.gradient(layer, name.removeprefix(case.network.prefix(layer))), axis=(1, 2)
                )
                np.testing.assert_allclose(
                    10 ** measurement.values[:, measurement.names.index(name)], naive, rtol=1e-9, atol=1e-300
                )
