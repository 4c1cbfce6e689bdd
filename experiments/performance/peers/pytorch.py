"""PyTorch's step: the fused ``nn.LSTM`` or ``nn.RNN`` with autograd, and several ways to the norms
of every step.

Blocks lie side by side in one matrix, so that a step is one product: I, F, O, G by hand, I, F, G, O
in ``nn.LSTM``.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from problem import INPUTS, OUTPUTS, Answer, Contestant, Problem

MAX_ELEMENTS = 2**20
"""Elements of the per-step gradients that are formed at once: as many as stay in the cache."""

Outputs = tuple[Tensor, Sequence[Tensor], Sequence[Tensor]]
"""Loss; gradients of W_x, W_h, b, W_hy, b_y; (T, n) norms for each of them."""


class PyTorch:
    """A problem as tensors, and the contestants."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.cell, (self.steps, self.batch, self.hidden) = problem.cell, problem.shape
        self.x, self.target = torch.tensor(problem.batch.inputs), torch.tensor(problem.batch.targets)
        self.weights = [torch.tensor(packed) for packed in problem.weights]
        self.counts = [len(names) for names in problem.names]
        """Parameters that lie side by side in each of the weights."""
        self.zero = torch.zeros(self.batch, self.hidden, dtype=self.x.dtype)

    # --- no measurement ---------------------------------------------------------------------------

    def plain(self) -> Iterator[Contestant]:
        w_x, w_h, b, w_hy, b_y = self.weights
        rnn = self.layer(INPUTS, self.swap(w_x), self.swap(w_h), self.swap(b))
        readout = nn.Linear(self.hidden, OUTPUTS).to(self.x.dtype)
        with torch.no_grad():
            readout.weight.copy_(w_hy.T)
            readout.bias.copy_(b_y)

        def step(_: None) -> Tensor:
            rnn.zero_grad()
            readout.zero_grad()
            loss = mse_loss(readout(rnn(self.x)[0]), self.target)
            loss.backward()
            return loss

        def read(loss: Tensor) -> Answer:
            d_w_x, d_w_h, d_b, _ = (parameter.grad for parameter in rnn.parameters())
            gradient = self.swap(d_w_x.T), self.swap(d_w_h.T), self.swap(d_b), readout.weight.grad.T, readout.bias.grad
            return self.problem.answer(loss.item(), [part.numpy() for part in gradient], None)

        yield Contestant("PyTorch", "fused layer", {"step": step}, read)

    def layer(self, inputs: int, w_x: Tensor, w_h: Tensor, b: Tensor) -> nn.RNNBase:
        """PyTorch's own layer; it has two biases where one would do, and the second is 0."""
        rnn = (nn.LSTM if self.cell == "lstm" else nn.RNN)(inputs, self.hidden).to(self.x.dtype)
        with torch.no_grad():
            for parameter, value in zip(rnn.parameters(), (w_x.T, w_h.T, b, torch.zeros_like(b)), strict=True):
                parameter.copy_(value)
        return rnn

    def swap(self, packed: Tensor) -> Tensor:
        """From I, F, O, G to I, F, G, O or back, along the last axis."""
        if self.cell == "rnn":
            return packed
        i, f, third_block, fourth_block = packed.chunk(4, dim=-1)
        return torch.cat([i, f, fourth_block, third_block], dim=-1)

    # --- with the norms of every step -------------------------------------------------------------

    def with_norms(self) -> Iterator[Contestant]:
        width = len(self.weights[2])
        identity = torch.eye(width, dtype=self.x.dtype)
        fused = self.layer(width, identity, self.swap(self.weights[1]), torch.zeros(width)).requires_grad_(False)

        def through_fused(pre: Tensor) -> Tensor:
            return torch.cat([self.zero[None], fused(self.swap(pre))[0]])

        def hand_written(pre: Tensor) -> Tensor:
            return torch.stack(self.recurrence(pre.unbind(), [self.weights[1]] * self.steps))

        variants: dict[str, Callable[[], Outputs]] = {
            "untied copies": self.untied,
            "hooks": partial(self.by_deltas, hand_written, self.formed),
            "hooks, Gram identity": partial(self.by_deltas, hand_written, self.gram),
            "through the fused layer": partial(self.by_deltas, through_fused, self.formed),
        }
        for variant, step in variants.items():
            yield Contestant("PyTorch, norms", variant, {"step": lambda _, step=step: step()}, self.read)

    def read(self, outputs: Outputs) -> Answer:
        loss, *packed = outputs
        gradient, norms = ([part.detach().numpy() for part in parts] for parts in packed)
        return self.problem.answer(loss.item(), gradient, norms)

    def recurrence(self, pre: Sequence[Tensor], w_h: Sequence[Tensor]) -> list[Tensor]:
        """H_0 … H_T, from X_t W_x + b of every step and a W_h for every step."""
        h = c = self.zero
        states = [h]
        for input_term, w in zip(pre, w_h, strict=True):
            a = torch.addmm(input_term, h, w)
            if self.cell == "rnn":
                h = torch.tanh(a)
            else:
                i, f, o, g = a.chunk(4, dim=1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return states

    def norms(self, gradients: Tensor, count: int) -> Tensor:
        """(R, n) norms of the blocks of R steps' gradients (R, K, n·H)."""
        blocks = gradients.view(*gradients.shape[:2], count, -1)
        return torch.linalg.vector_norm(blocks, dim=(1, 3))

    def untied(self) -> Outputs:
        """A copy of every parameter for every step; autograd gives the copies' gradients and adds
        them up.
        """
        shared = [w.detach().requires_grad_() for w in self.weights]
        w_x, w_h, b, w_hy, b_y = copies = [[w.view_as(w) for _ in range(self.steps)] for w in shared]
        pre = [torch.addmm(b[t], self.x[t], w_x[t]) for t in range(self.steps)]
        hidden = self.recurrence(pre, w_h)[1:]
        loss = mse_loss(torch.stack([torch.addmm(b_y[t], h, w_hy[t]) for t, h in enumerate(hidden)]), self.target)
        gradients = iter(torch.autograd.grad(loss, [*shared, *(copy for row in copies for copy in row)]))
        gradient = [next(gradients) for _ in shared]
        norms = [
            torch.cat([self.norms(next(gradients).view(1, -1, w.shape[-1]), n) for _ in pre]) for w, n in self.packed
        ]
        return loss, gradient, norms

    @property
    def packed(self) -> Iterator[tuple[Tensor, int]]:
        return zip(self.weights, self.counts, strict=True)

    def by_deltas(self, states_of: Callable[[Tensor], Tensor], products: "Products") -> Outputs:
        """Only the gradients at the pre-activations by autograd; those of the weights are products
        of these with what entered.
        """
        w_x, _, b, w_hy, b_y = self.weights
        pre = torch.addmm(b, self.x.view(-1, INPUTS), w_x).view(self.steps, self.batch, -1).requires_grad_()
        states = states_of(pre)
        y = torch.addmm(b_y, states[1:].view(-1, self.hidden), w_hy).view_as(self.target)
        loss = mse_loss(y, self.target)
        delta, d_y = torch.autograd.grad(loss, [pre, y])
        with torch.no_grad():
            ones = self.x.new_ones(self.steps, self.batch, 1)
            factors = (self.x, delta), (states[:-1], delta), (ones, delta), (states[1:], d_y), (ones, d_y)
            weight_gradients = [products(*factor, n) for factor, n in zip(factors, self.counts, strict=True)]
        gradient, norms = zip(*weight_gradients, strict=True)
        return loss, [g.view_as(w) for g, w in zip(gradient, self.weights, strict=True)], norms

    def formed(self, inputs: Tensor, delta: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Forms ∂L/∂W_t of some steps at once, and reads norms and sum before it forms the next."""
        run = max(1, MAX_ELEMENTS // (inputs.shape[-1] * delta.shape[-1]))
        total, norms = delta.new_zeros(inputs.shape[-1], delta.shape[-1]), []
        for inputs_chunk, delta_chunk in zip(inputs.split(run), delta.split(run), strict=True):
            gradients = torch.bmm(inputs_chunk.mT, delta_chunk)
            total += gradients.sum(dim=0)
            norms.append(self.norms(gradients, count))
        return total, torch.cat(norms)

    def gram(self, inputs: Tensor, delta: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """‖Σ_b x_b δ_bᵀ‖² = Σ_ab (x_a·x_b)(δ_a·δ_b) (Goodfellow 2015) forms no gradient of a single
        step; in float64, since it cancels.
        """
        blocks = delta.double().view(self.steps, self.batch, count, -1).transpose(1, 2)
        inputs64 = inputs.double()
        squares = (torch.bmm(inputs64, inputs64.mT)[:, None] * (blocks @ blocks.mT)).sum(dim=(2, 3))
        return inputs.reshape(-1, inputs.shape[-1]).T @ delta.view(-1, delta.shape[-1]), squares.sqrt()


Products = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""From what entered (T, B, K) and δ (T, B, n·H): the sum over the steps (K, n·H) and the norms (T,
n).
"""
