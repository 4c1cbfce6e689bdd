"""What the rest of a training follows from."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradpath.optimizers import State

PREFIX = "state/"
OPTIMIZER = f"{PREFIX}optimizer/"


@dataclass(frozen=True)
class TrainingState:
    """A training between two updates: whoever goes on from here computes the same bits."""

    step: int
    """The training step that comes next."""
    theta: NDArray
    """θ (P,)."""
    optimizer: State
    data: dict[str, Any]
    """Of the generator that draws the minibatches: its state, as NumPy's ``BitGenerator`` says it.
    """
    norms: list[float]
    """The last log10 gradient norms, against which a spike is measured."""
    largest_read: dict[str, float]
    """Instrument → the largest log10 gradient norm that it has read at."""
    largest_spike: dict[str, float]

    def arrays(self) -> dict[str, NDArray]:
        """The state as plain arrays, exactly; nothing has to be unpickled."""
        scalars = {key: getattr(self, key) for key in ("step", "data", "norms", "largest_read", "largest_spike")}
        arrays = {f"{PREFIX}theta": self.theta, f"{PREFIX}scalars": np.array(json.dumps(scalars))}
        return arrays | {f"{OPTIMIZER}{name}": value for name, value in self.optimizer.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> "TrainingState":
        """The state that ``arrays`` has given."""
        optimizer = {name.removeprefix(OPTIMIZER): a for name, a in arrays.items() if name.startswith(OPTIMIZER)}
        scalars = json.loads(str(arrays[f"{PREFIX}scalars"]))
        return cls(theta=arrays[f"{PREFIX}theta"], optimizer=optimizer, **scalars)
