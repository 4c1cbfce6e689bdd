"""The readings of one instrument in one run, as arrays with named axes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from numpy.typing import NDArray

if TYPE_CHECKING:
    from gradpath.tracking.stored_run import Run


class Curve(NamedTuple):
    """A number at training steps: ``steps`` (n,) and ``values`` (n,)."""

    steps: NDArray
    values: NDArray


class Evaluations(NamedTuple):
    """Loss and score on the evaluation set at training ``steps``, each (n,); ``solved`` is bool."""

    steps: NDArray
    loss: NDArray
    score: NDArray
    solved: NDArray


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """The readings of one instrument.

    ``values`` has the axes that ``axes`` names: ``("step", "t", "name")`` for an instrument that
    reads every timestep, ``("step", "name")`` for one that reads the training step as a whole,
    ``("step", "row", "name")`` for one whose reading is a table. Step s is the network after s
    updates.
    """

    instrument: str
    axes: tuple[str, ...]
    values: NDArray
    """float64; units are the instrument's own: log10 of a norm where its name says ``norm``."""
    steps: NDArray
    """(step,) training steps of the readings."""
    lag: NDArray | None
    """(t,) steps from t to the end of the sequence, T − 1 … 0; None without an axis t."""
    names: tuple[str, ...]
    """The names of the values, in the order of the last axis."""

    def column(self, name: str) -> NDArray:
        """The values of one name, with all axes but the last; KeyError where there is no such
        name.
        """
        if name not in self.names:
            raise KeyError(f"{name}: {self.instrument} has read {', '.join(self.names)}")
        return self.values[..., self.names.index(name)]

    def __repr__(self) -> str:
        sizes = " × ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.values.shape, strict=True))
        return f"Reading({self.instrument}: {sizes})"


def reading(run: "Run", instrument: str) -> Reading:
    """The readings of an instrument in a stored run; KeyError where there are none."""
    if instrument not in run.series:
        raise KeyError(f"{instrument}: this run holds readings of {', '.join(run.series)}")
    series = run.series[instrument]
    per_timestep = series.values.ndim == 3 and _reads_timesteps(instrument, series.values.shape[1] == run.lag.size)
    axes = (
        ("step", "t", "name")
        if per_timestep
        else ("step", "row", "name")
        if series.values.ndim == 3
        else ("step", "name")
    )
    lag = run.lag if per_timestep else None
    return Reading(instrument, axes, series.values, series.steps, lag, series.names)


def _reads_timesteps(instrument: str, fits: bool) -> bool:
    """Does the instrument read every timestep? Where it is not installed here, the shape
    decides.
    """
    from gradpath.instruments import Instrument
    from gradpath.schema.discovery import discover

    unit = discover(Instrument).get(instrument)  # type: ignore[type-abstract]
    return fits and (unit is None or unit.per_timestep)


class Readings(Mapping[str, Reading]):
    """The readings of one run by the instrument's name."""

    def __init__(self, run: "Run") -> None:
        self._run = run

    def __getitem__(self, instrument: str) -> Reading:
        return reading(self._run, instrument)

    def __iter__(self) -> Iterator[str]:
        return iter(self._run.series)

    def __len__(self) -> int:
        return len(self._run.series)

    def __repr__(self) -> str:
        return f"Readings({', '.join(self)})"
