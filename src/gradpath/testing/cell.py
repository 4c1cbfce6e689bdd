"""The contract of a cell."""

import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from gradpath import gradient_check
from gradpath.core import backward, weight_gradients
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import per_step_gradients, relative_error, untied_differences
from gradpath.core.network import Network
from gradpath.engine import compiled, partition, replay
from gradpath.figures import CannotDrawError, Figure
from gradpath.instruments import Instrument
from gradpath.schema.discovery import discover
from gradpath.schema.settings import SettingError
from gradpath.testing._arrays import differ, first_difference, unchanged
from gradpath.testing._passes import CASES, HIDDEN, Pass, epsilon, random_pass
from gradpath.testing._runs import stored
from gradpath.testing._unit import UnitContract
from gradpath.tracking import declarations
from gradpath.tracking.loader import Run
from gradpath.training.loop import train

every_case = pytest.mark.parametrize("case", CASES)


class CellContract(UnitContract):
    """The properties of a cell on which gradpath relies. All of them are also checked with the
    settings ``variants``, as ``({"forget_bias": 3.0},)``. ``epsilon`` is the step of the central
    differences, small where the cell has a corner; ``figures`` are the figures that are drawn, by
    default all.
    """

    group = "cell"
    variants: ClassVar[Sequence[Mapping[str, Any]]] = ()
    epsilon: ClassVar[float | None] = None
    figures: ClassVar[Sequence[str] | None] = None

    def cells(self) -> list[Cell]:
        """The cell with the settings of its YAML file, and its variants."""
        base = self.configured()
        return [base, *(replace(base, **settings) for settings in self.variants)]

    def passes(self, case: str, dtype: type = np.float64, seed: int = 0) -> list[Pass]:
        """A pass of each variant."""
        layers, steps, every_step, loss = CASES[case]
        return [
            random_pass(replace(cell, hidden_size=HIDDEN, layers=layers), loss, steps, every_step, dtype, seed)
            for cell in self.cells()
        ]

    @pytest.mark.parametrize("layers", [1, 2])
    def test_gradpath_check_passes(self, layers: int) -> None:
        """The check in the type of training and in float64, with an adjoint that is rescaled; the
        variants only in a stack.
        """
        for cell in self.cells()[: None if layers > 1 else 1]:
            experiment = self.experiment(f"cell.layers={layers}")
            experiment = replace(experiment, cell=replace(cell, hidden_size=4, layers=layers))
            *_, (_, rows) = gradient_check.every_case(experiment)
            _all_right(rows, layers)

    @every_case
    def test_the_check_passes_at_every_length(self, case: str) -> None:
        for run in self.passes(case):
            rows = gradient_check.check(run.network, run.theta, run.batch, np.random.default_rng(0))
            _all_right(rows, run.network.layers)

    @every_case
    def test_every_parameter_at_every_step_equals_untied_central_differences(self, case: str) -> None:
        for run in self.passes(case):
            trace = run.trace()
            reference = untied_differences(run.network, run.theta, run.batch, self.epsilon or epsilon(trace, run))
            for name, gradient in per_step_gradients(trace).items():
                for t, expected in enumerate(reference[name]):
                    error = relative_error(gradient[t], expected)
                    if not error < 1e-7:
                        pytest.fail(f"∂L/∂{name} at t = {t + 1}: relative error {error:.1e}, at most 1e-7 ({case})")

    @every_case
    def test_the_sum_over_time_is_the_gradient(self, case: str) -> None:
        for run in self.passes(case):
            trace = run.trace()
            total = run.network.parameters(trace.gradient.scaled.plain())
            for name, steps in per_step_gradients(trace).items():
                atol = 1e-14 * np.abs(steps).max()
                np.testing.assert_allclose(steps.sum(axis=0), total[name], rtol=1e-11, atol=atol, err_msg=name)

    @every_case
    def test_nothing_given_is_written_to_and_a_second_pass_is_the_same(self, case: str) -> None:
        for run in self.passes(case):
            with unchanged("step", theta=run.theta, batch=run.batch):
                tape = run.network.forward(run.theta, run.batch)
            with unchanged("step_backward, activations_used or activations", theta=run.theta, tape=tape):
                first, second = (run.network.backward(run.theta, tape) for _ in range(2))
                for layer in tape.layers:
                    run.network.cell.activations(layer)
                    run.network.cell.carrier_gain(layer)
            if place := first_difference(first, second, "trace"):
                pytest.fail(f"{place} differs in a second pass over the same tape: a step keeps something")

    def test_float32_stays_float32_and_is_right(self) -> None:
        for case in CASES:
            for single, double in zip(self.passes(case, np.float32), self.passes(case), strict=True):
                trace, reference = single.trace(), per_step_gradients(double.trace())
                for layer in trace.tape.layers:
                    for name, array in {"gates": layer.gates, "pre": layer.pre, **layer.states, **layer.saved}.items():
                        assert array.dtype == np.float32, f"{name} is of {array.dtype} in a network of float32"
                for name, gradient in per_step_gradients(trace).items():
                    error = relative_error(gradient, reference[name])
                    assert error < 1e-4, f"∂L/∂{name} in float32: relative error {error:.1e}, at most 1e-4 ({case})"

    @every_case
    def test_seeds_side_by_side_give_the_bits_of_each_alone(self, case: str) -> None:
        for runs in zip(*(self.passes(case, np.float32, seed) for seed in range(3)), strict=True):
            network, thetas = runs[0].network, np.stack([run.theta for run in runs])
            layers, tapes = network.forward_seeds(thetas, [run.batch for run in runs])
            traces = network.backward_seeds(thetas, layers, tapes)
            for seed, (run, trace) in enumerate(zip(runs, traces, strict=True)):
                if differ(run.trace().gradient.scaled.array, trace.gradient.scaled.array):
                    pytest.fail(f"seed {seed} of 3 differs from itself alone: count axes from the right in step")

    def test_in_parts_as_whole(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for run in self.passes("T=5, two layers"):
            uncut = run.trace()
            with monkeypatch.context() as patch, ThreadPoolExecutor(1) as pool:
                patch.setattr(partition, "MIN_MULTIPLY_ADDS", 0)
                for module in (backward, weight_gradients):
                    patch.setattr(module, "CHUNK_ELEMENTS", 2**5)
                cut = replace(run, network=replace(run.network, splits_large_passes=True))
                sequential, parallel = cut.trace(), cut.trace(cut.network.workspace(executor=pool))
            if place := first_difference(sequential, parallel, "trace"):
                pytest.fail(f"{place} depends on which thread computes a part of the minibatch")
            for name, steps in per_step_gradients(uncut).items():
                error = relative_error(per_step_gradients(sequential)[name], steps)
                assert error < 1e-9, f"∂L/∂{name} of a minibatch in two parts: relative error {error:.1e}"

    def test_the_compiled_loop_gives_the_bits_of_the_python_loop(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A cell whose loop over time is not compiled only gets a warning, because this only costs
        time.
        """
        for run in self.passes("T=5, loss at every step"):
            with compiled.watched() as reasons:
                trace = run.trace()
            with monkeypatch.context() as patch:
                patch.setattr(replay, "_replay", None)
                in_python = run.trace()
            if place := first_difference(trace, in_python, "trace"):
                pytest.fail(f"{place} of the compiled loop differs from Python's: step must call ufuncs alone")
            if reasons and compiled.CHOICE.module is not None:
                warnings.warn(
                    f"cell={self.name}: its loop over time is not compiled: {'; '.join(reasons)}", stacklevel=1
                )

    def test_roles_come_back_from_text_and_from_the_configuration(self) -> None:
        experiment = self.experiment()
        for cell in self.cells():
            assert declarations.from_text(declarations.as_text(cell.roles)) == cell.roles
            resolved = replace(experiment, cell=cell).resolved()["cell"]
            assert declarations.from_configuration(resolved, {}) == cell.roles

    def stored_runs(self) -> list[Run]:
        """Two seeds of two steps, with every instrument that can read the cell, read back from a
        store.
        """
        if "_runs" not in vars(type(self)):
            first = self.experiment("train.eval_every=1")
            base = replace(first, instruments=_instruments(first.network))
            type(self)._runs = stored([replace(base, seed=seed) for seed in range(2)])
        return type(self)._runs

    _runs: ClassVar[list[Run]]

    def test_a_run_is_stored_with_every_reading(self) -> None:
        (run, _), experiment = self.stored_runs(), self.experiment("train.eval_every=1")
        assert run.roles == experiment.cell.roles
        steps = list(train(replace(experiment, instruments=_instruments(experiment.network))))
        for name, series in run.series.items():
            measured = [step.measurements[name].values for step in steps if name in step.measurements]
            np.testing.assert_array_equal(series.values, np.stack(measured), err_msg=name)

    @pytest.mark.filterwarnings("ignore:.*non-interactive")
    def test_every_figure_draws_it_or_says_why_not(self) -> None:
        import matplotlib
        from matplotlib import pyplot

        matplotlib.use("Agg")
        runs = self.stored_runs()
        for name, cls in discover(Figure).items():  # type: ignore[type-abstract]
            chosen = self.figures is None or name in self.figures
            if chosen and set(cls.needs) <= set(runs[0].series):
                try:
                    cls().draw(runs).draw_without_rendering()
                except CannotDrawError as refusal:
                    reason = str(refusal)
                except Exception as error:
                    pytest.fail(f"figures={name}: {type(error).__name__}: {error}")
                else:
                    reason = "drawn"
                finally:
                    pyplot.close("all")
                assert reason, f"figures={name}: does not say why it cannot be drawn"


def _all_right(rows: list[gradient_check.Row], layers: int) -> None:
    if not all(row.passed for row in rows):
        lines = gradient_check.table(rows, layers).splitlines()
        pytest.fail("\n".join([line for line in lines if line.endswith("WRONG")] + lines[-1:]))


def _instruments(network: Network) -> dict[str, Instrument]:
    """Every instrument that can read the network."""
    readable: dict[str, Instrument] = {}
    for name, cls in discover(Instrument).items():  # type: ignore[type-abstract]
        try:
            (instrument := cls()).check(network)
        except SettingError:
            continue
        readable[name] = instrument
    return readable
