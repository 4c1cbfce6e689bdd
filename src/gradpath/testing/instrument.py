"""The contract of an instrument."""

from collections import Counter
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import pytest

from gradpath.commands import compose
from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument
from gradpath.schema.settings import ConfigError
from gradpath.testing._arrays import first_difference, unchanged
from gradpath.testing._runs import recorded
from gradpath.testing._unit import SMALL, UnitContract, composed
from gradpath.training.checked_reading import KEYS, valid_key
from gradpath.training.experiment import Experiment
from gradpath.training.loop import train

ONE_UNIT = ("cell=rnn", "cell.hidden_size=1")
"""For instruments that follow every element of θ."""
CURVES = 40
"""Largest number of keys of a run that the MLflow UI draws well."""
DECADES = 10 * np.log10(2)


class InstrumentContract(UnitContract):
    """The properties of an instrument on which gradpath relies.

    ``scale`` says how a reading changes if the loss, and with it every gradient, is multiplied by a
    factor: ``log10``, the decades of the factor are added; ``none``, the reading stays the same.
    Without ``scale`` this is not checked. ``undefined`` are names whose readings may be NaN or
    +inf. ``expected`` may compute the reading a second time, as plainly as possible.
    """

    group = "instruments"
    scale: ClassVar[Literal["log10", "none"] | None] = None
    undefined: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[float] = 1e-6
    """Largest difference between ``expected`` and the measurement, relative and absolute."""
    _is_in_a_list = True

    def expected(self, network: Network, trace: Trace) -> np.ndarray | None:
        """The values of the measurement, computed naively."""
        return None

    @property
    def choice(self) -> list[str]:
        return [f"instruments=[{self.name}]"]

    def experiment(self, *overrides: str) -> Experiment:
        """A run that the instrument can read: of the default cell, otherwise of a single unit."""
        return self._readable(*overrides, *self.overrides)

    def _readable(self, *overrides: str) -> Experiment:
        for size in ((), ONE_UNIT):
            try:
                return composed(*self.choice, *SMALL, *size, *overrides)
            except ConfigError as error:
                refusal = error
        pytest.fail(f"the unit cannot be chosen: {refusal}; give overrides of a network that it can read")

    def configured(self, *overrides: str) -> Instrument:
        return self.experiment(*overrides).instruments[self.name]

    def _as_in_its_file(self) -> Instrument:
        instruments = self._readable().instruments
        if self.name not in instruments:
            pytest.fail(f"conf/instruments/{self.name}.yaml: its first line must be # @package instruments.{self.name}")
        return instruments[self.name]

    def _compose(self, overrides: list[str]) -> Experiment:
        return compose.experiment([*overrides, *SMALL, *self.overrides])

    def passes(self, *overrides: str) -> tuple[Network, Trace]:
        """A network, and the trace of a minibatch, in float64."""
        experiment = self.experiment("train.dtype=float64", *overrides)
        network, rng = experiment.network, np.random.default_rng(0)
        theta = experiment.init.draw(rng, network, np.float64) + 0.1 * rng.normal(size=network.size)
        batch = experiment.task.sample(rng, experiment.train.batch_size)
        return network, network.backward(theta, network.forward(theta, batch))

    def measured(self, *overrides: str) -> tuple[Measurement, Trace]:
        """A measurement, with a check that the trace was not written to."""
        network, trace = self.passes(*overrides)
        with unchanged("measure", trace=trace):
            return self.configured(*overrides).measure(network, trace), trace

    def test_shape_and_names(self) -> None:
        reading, trace = self.measured()
        assert isinstance(reading.names, tuple), "names must be a tuple"
        assert all(isinstance(name, str) and name for name in reading.names), "names must be texts"
        double = [name for name, count in Counter(reading.names).items() if count > 1]
        assert not double, f"two columns have the name {double}"
        shape = reading.values.shape
        if self.unit_class.per_timestep:
            expected = (trace.tape.length, len(reading.names))
            assert shape == expected, f"per_timestep is True, so values must be (T, names) = {expected}, not {shape}"
        else:
            assert reading.values.ndim in (1, 2), f"values must be (names,) or a table (rows, names), not {shape}"
            assert shape[-1] == len(reading.names), f"values are {shape}, with {len(reading.names)} names"
        assert reading.values.dtype == np.float64, f"values must be float64, not {reading.values.dtype}"

    def test_nothing_given_is_written_to_and_a_second_reading_is_the_same(self) -> None:
        network, trace = self.passes()
        instrument = self.configured()
        with unchanged("measure", trace=trace):
            first, second = instrument.measure(network, trace), instrument.measure(network, trace)
        assert first.names == second.names, "the names differ in a second reading of the same trace"
        assert first_difference(first, second, "values") is None, "a second reading of the same trace differs"

    def test_names_and_shape_are_constant_over_training(self) -> None:
        every_step = [f"instruments.{self.name}.schedule.{rule}" for rule in ("every=1", "first=true", "last=true")]
        readings = self._readings(self.experiment(*every_step, "train.steps=4"))
        assert len(readings) == 5, f"it has read {len(readings)} of 5 steps"
        for reading in readings[1:]:
            assert reading.names == readings[0].names, "the names change during training"
            assert reading.values.shape == readings[0].values.shape, "the shape changes during training"

    def _readings(self, experiment: Experiment) -> list[Measurement]:
        steps = train(experiment)
        return [step.measurements[self.name] for step in steps if self.name in step.measurements]

    def test_readings_are_finite_or_true_zeros(self) -> None:
        reading, _ = self.measured()
        for name, values in zip(reading.names, np.moveaxis(reading.values, -1, 0), strict=True):
            if not (values < np.inf).all() and name not in self.undefined:
                pytest.fail(f"{name} is NaN or +inf; a true zero is -inf; name in undefined what may have no value")

    def test_one_timestep_can_be_read(self) -> None:
        """The shortest sequence that the task creates, and its last step alone."""
        network, trace = self.passes()
        batch, theta = trace.tape.batch, trace.tape.theta
        last = replace(batch, inputs=batch.inputs[-1:], targets=batch.targets[-1:], mask=batch.mask[-1:])
        single = network.backward(theta, network.forward(theta, last))
        reading = self.configured().measure(network, single)
        if self.unit_class.per_timestep:
            assert len(reading.values) == 1, f"T = 1, and values are {reading.values.shape}"

    @pytest.mark.parametrize("value", [np.inf, np.nan, 1e200])
    def test_a_trace_that_diverged_can_be_read(self, value: float) -> None:
        """Loss and gradient of a training that blew up: the reading may be NaN; an exception would
        end the run.
        """
        network, trace = self.passes()
        with np.errstate(all="ignore"):
            theta = trace.tape.theta * value
            diverged = network.backward(theta, network.forward(theta, trace.tape.batch))
            reading = self.configured().measure(network, diverged)
        assert reading.names == self.configured().measure(network, trace).names, "the names change at a divergence"

    def test_it_scales_as_declared(self) -> None:
        if self.scale is None:
            pytest.skip("scale is not given")
        network, trace = self.passes()
        tape = replace(trace.tape, loss_gradient=trace.tape.loss_gradient * 2.0**10, loss=trace.tape.loss * 2.0**10)
        plain, scaled = (
            self.configured().measure(network, read).values
            for read in (trace, network.backward(trace.tape.theta, tape))
        )
        expected = plain + DECADES if self.scale == "log10" else plain
        np.testing.assert_allclose(scaled, expected, rtol=1e-9, atol=1e-9, err_msg=f"scale is {self.scale!r}")

    def test_it_equals_a_naive_computation(self) -> None:
        network, trace = self.passes()
        expected = self.expected(network, trace)
        if expected is None:
            pytest.skip("expected(network, trace) is not given")
        values = self.configured().measure(network, trace).values
        np.testing.assert_allclose(values, expected, rtol=self.tolerance, atol=self.tolerance)

    def test_it_is_stored_and_comes_back_the_same(self) -> None:
        experiment = self.experiment()
        series, readings = recorded(experiment).series[self.name], self._readings(experiment)
        assert series.names == readings[0].names
        np.testing.assert_array_equal(series.values, np.stack([reading.values for reading in readings]))

    def test_keys_of_the_mlflow_ui(self) -> None:
        (reading, _), instrument = self.measured(), self.configured()
        keys = [key for name in reading.names if (key := instrument.metric(name)) is not None]
        refused = [key for key in keys if not valid_key(key)]
        assert not refused, f"metric must return None or a key that MLflow takes, {KEYS}; it returns {refused}"
        double = [key for key, count in Counter(keys).items() if count > 1]
        assert not double, f"metric gives the same key to several names: {double}"
        assert len(keys) <= CURVES, f"{len(keys)} curves in the MLflow UI, more than the {CURVES} that it draws well"
