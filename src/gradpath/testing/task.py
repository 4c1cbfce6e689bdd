"""The contract of a task."""

import sys
from dataclasses import fields, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from gradpath.core.losses import Loss, evaluate
from gradpath.core.tape import Batch, Tape
from gradpath.schema.settings import ConfigError, SettingError
from gradpath.tasks import Task
from gradpath.testing._unit import SMALL, UnitContract, composed
from gradpath.training.experiment import Experiment
from gradpath.training.loop import train

DRAWN = 4000
"""Number of sequences to which the predictor that ignores the input is fitted, and on as many of
which it is scored.
"""
STANDARD_ERRORS = 5
LONGEST = 1000
"""A task must allow some T up to this."""


class TaskContract(UnitContract):
    """The properties of a task on which gradpath relies. ``length`` is the T of the checks;
    ``optimum`` is the score of a perfect predictor. ``solution`` computes the targets from the
    inputs alone; without it, the contract does not check that the targets follow from the inputs.
    """

    group = "task"
    length: ClassVar[int] = 30
    optimum: ClassVar[float] = 0.0

    def solution(self, task: Any, inputs: NDArray) -> NDArray | None:
        """The targets (T, B) or (T, B, O) from the inputs (T, B, I); elements that are not scored
        may have any value.
        """
        return None

    def experiment(self, *overrides: str) -> Experiment:
        """A small experiment with the task at the length of its YAML file."""
        small = [override for override in SMALL if not override.startswith("task.")]
        try:
            return composed(*self.choice, *small, *overrides, *self.overrides)
        except ConfigError as error:
            pytest.fail(f"the unit cannot be chosen: {error}")

    @property
    def task(self) -> Task:
        """The unit at the length of the checks, or at its shortest length where that is longer."""
        configured: Task = self.configured()
        try:
            return replace(configured, length=self.length)
        except SettingError:
            return self.shortest()

    def shortest(self) -> Task:
        """The unit at the smallest T that it allows."""
        configured: Task = self.configured()
        for length in range(1, LONGEST + 1):
            try:
                return replace(configured, length=length)
            except SettingError:
                continue
        pytest.fail(f"no length up to {LONGEST} is taken")

    def draw(self, seed: int, sequences: int = 7) -> Batch:
        """A minibatch."""
        return self.task.sample(np.random.default_rng(seed), sequences)

    def test_shapes_and_types(self) -> None:
        task, batch = self.task, self.draw(0)
        inputs, outputs = task.sizes
        rows = (task.timesteps, 7)
        assert batch.inputs.shape == (*rows, inputs), f"inputs must be (T, B, I) = {(*rows, inputs)}"
        assert batch.inputs.dtype == np.float64, f"inputs must be float64, not {batch.inputs.dtype}"
        assert batch.mask.shape == rows, f"mask must be (T, B) = {rows}"
        assert batch.mask.dtype == bool, f"mask must be bool, not {batch.mask.dtype}"
        assert batch.mask.any(axis=0).all(), "a sequence has no scored position"
        if task.loss is Loss.cross_entropy:
            assert batch.targets.shape == rows, f"targets must be symbols (T, B) = {rows}"
            assert np.issubdtype(batch.targets.dtype, np.integer), (
                f"symbols must be integers, not {batch.targets.dtype}"
            )
            legal = (batch.targets >= 0) & (batch.targets < outputs)
            assert legal.all(), f"symbols must be 0 … {outputs - 1}: sizes says that there are {outputs}"
        else:
            assert batch.targets.shape == (*rows, outputs), f"targets must be (T, B, O) = {(*rows, outputs)}"
            assert batch.targets.dtype == np.float64, f"targets must be float64, not {batch.targets.dtype}"
        assert np.isfinite(batch.inputs).all(), "an input is not finite"
        assert np.isfinite(batch.targets).all(), "a target is not finite"

    def test_the_seed_decides(self) -> None:
        first, repeated, second = self.draw(0), self.draw(0), self.draw(1)
        for name in ("inputs", "targets", "mask"):
            equal = getattr(first, name).tobytes() == getattr(repeated, name).tobytes()
            assert equal, f"{name} differ under the same seed: draw from rng alone"
        if self.task.chance_loss > 0:
            assert first.inputs.tobytes() != second.inputs.tobytes(), "another seed draws the same inputs"

    def test_a_minibatch_is_drawn_without_a_loop_over_the_sequences(self) -> None:
        """Loops are detected by the number of calls, not by time."""
        calls = [_calls(self.task, sequences) for sequences in (4, 400)]
        assert calls[1] < calls[0] + 100, (
            f"sample makes {calls[0]} calls for 4 sequences and {calls[1]} for 400; draw whole arrays"
        )

    def test_a_perfect_predictor_reaches_the_optimum(self) -> None:
        task, batch = self.task, self.draw(0, 50)
        score = task.score(_answered(task, batch, _as_outputs(task, batch.targets)))
        assert score == pytest.approx(self.optimum, abs=1e-9), f"the targets themselves score {score}"
        assert task.solved(score), f"the targets themselves, with a score of {score}, do not count as solved"

    def test_the_targets_follow_from_the_inputs(self) -> None:
        task, batch = self.task, self.draw(0, 200)
        targets = self.solution(task, batch.inputs)
        if targets is None:
            pytest.skip("solution(task, inputs) is not given")
        wrong = np.abs(targets - batch.targets)
        wrong = (wrong if wrong.ndim == 2 else wrong.max(axis=-1)) > 1e-9
        places = np.argwhere(wrong & batch.mask)
        if places.size:
            t, sequence = places[0]
            pytest.fail(
                f"{len(places)} of {batch.mask.sum()} scored positions have another target than the solution, the "
                f"first at t = {t + 1}: {batch.targets[t, sequence]}, not {targets[t, sequence]}; is the mask right?"
            )

    def test_the_best_predictor_that_ignores_the_input_scores_the_chance_loss(self) -> None:
        """The predictor is fitted to some sequences and scored on others; the bound is five
        standard errors plus the cost of fitting.
        """
        task, batch = self.task, self.draw(0, 2 * DRAWN)
        fitted, scored = (_sequences(batch, part) for part in (slice(0, DRAWN), slice(DRAWN, None)))
        tape = _answered(task, scored, _best_constant(task, fitted))
        losses = _by_sequence(task, scored, _best_constant(task, fitted))
        deviation = STANDARD_ERRORS * losses.std() / np.sqrt(DRAWN)
        spread = task.chance_loss if task.loss is Loss.squared_error else task.sizes[1]
        bound = deviation + 4 * spread / DRAWN + 1e-9
        if not abs(tape.loss - task.chance_loss) <= bound:
            pytest.fail(
                f"chance_loss is {task.chance_loss:.5g}, and the best predictor that ignores the input scores "
                f"{tape.loss:.5g} ± {bound:.1g} on {DRAWN} sequences: is it the formula, or the mask?"
            )
        if task.chance_loss > 0:
            assert not task.solved(task.score(tape)), "a predictor that ignores the input counts as having solved it"

    def test_lags_are_possible(self) -> None:
        for task in (self.task, self.shortest()):
            low, high = task.lags
            assert type(low) is int, f"lags must be integers, not {type(low).__name__}"
            assert type(high) is int, f"lags must be integers, not {type(high).__name__}"
            rows = task.timesteps
            assert 0 <= low <= high <= rows, (
                f"lags {low} to {high} in a sequence of {rows} steps (length={task.length})"
            )

    def test_plateaus_lie_below_the_chance_loss(self) -> None:
        for name, loss in self.task.plateaus.items():
            assert 0 < loss <= self.task.chance_loss, f"plateau {name!r} of {loss} is no partial solution"

    def test_the_shortest_length_works_and_one_below_is_refused_in_a_line(self) -> None:
        shortest = self.shortest()
        refused = shortest.length - 1
        with pytest.raises(SettingError) as refusal:
            replace(shortest, length=refused)
        assert refusal.value.name == "length", f"length={refused}: the error is that of {refusal.value.name}"
        assert "\n" not in str(refusal.value), f"length={refused}: the error is longer than a line"
        self._trains(shortest)

    def test_two_training_steps_run(self) -> None:
        self._trains(self.task)

    def _trains(self, task: Task) -> None:
        experiment = self.experiment("instruments=[]", "train.eval_every=1")
        for step in train(replace(experiment, task=task)):
            assert np.isfinite(step.loss), f"length={task.length}: the loss is {step.loss}"
            assert step.evaluation is not None
            assert np.isfinite(step.evaluation.score), f"length={task.length}: the score is {step.evaluation.score}"


def _calls(task: Task, sequences: int) -> int:
    """The number of calls, of Python and of C, while a minibatch is drawn."""
    count = 0

    def counted(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    rng, previous = np.random.default_rng(0), sys.getprofile()
    task.sample(rng, sequences)
    sys.setprofile(counted)
    try:
        task.sample(rng, sequences)
    finally:
        sys.setprofile(previous)
    return count


def _sequences(batch: Batch, part: slice) -> Batch:
    return Batch(*(getattr(batch, field.name)[:, part] for field in fields(batch)))


def _as_outputs(task: Task, targets: NDArray) -> NDArray:
    """Outputs that predict the targets with certainty."""
    return 100.0 * np.eye(task.sizes[1])[targets] if task.loss is Loss.cross_entropy else targets


def _best_constant(task: Task, batch: Batch) -> NDArray:
    """Outputs (T, 1, O) that depend on the step alone: the mean or the log frequencies of the
    targets.
    """
    count = batch.mask.sum(axis=1)[:, None]
    if task.loss is Loss.squared_error:
        means = (batch.targets * batch.mask[..., None]).sum(axis=1) / np.maximum(count, 1)
        return means[:, None]
    symbols = np.eye(task.sizes[1])[batch.targets] * batch.mask[..., None]
    return np.log((symbols.sum(axis=1) + 0.01) / (count + 0.01 * task.sizes[1]))[:, None]


def _answered(task: Task, batch: Batch, outputs: NDArray) -> Tape:
    """The tape of a network with these outputs."""
    scored = np.flatnonzero(batch.mask.any(axis=1))
    outputs = np.broadcast_to(outputs, (*batch.mask.shape, task.sizes[1]))[scored]
    loss, gradient = evaluate(task.loss, outputs, batch.targets[scored], batch.mask[scored])
    return Tape(np.zeros(0), batch, (), scored, outputs, float(loss), gradient)


def _by_sequence(task: Task, batch: Batch, outputs: NDArray) -> NDArray:
    """The contribution of each sequence to the mean loss, (B,)."""
    wide = np.broadcast_to(outputs, (*batch.mask.shape, task.sizes[1])).swapaxes(0, 1)[:, :, None]
    targets, mask = (array.swapaxes(0, 1)[:, :, None] for array in (batch.targets, batch.mask))
    losses, _ = evaluate(task.loss, wide, targets, mask)
    return losses * mask.sum(axis=(1, 2)) / mask.sum(axis=(1, 2)).mean()
