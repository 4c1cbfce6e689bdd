"""The gradient check, and a network to differentiate by hand."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradpath.api.keywords import assignments
from gradpath.api.session import session

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradpath.gradient_check import Row
    from gradpath.training.loop import Start


@dataclass(frozen=True, repr=False)
class Check:
    """What the gradient check of a configuration has found; as text it is the table that
    ``gradpath check`` prints.
    """

    title: str
    """What was checked, and at which sizes."""
    rows: "tuple[Row, ...]"
    """One a quantity, with its largest error relative to what is allowed (``error``, ``allowed``,
    ``passed``), and the timestep, layer and case of it.
    """
    text: str

    @property
    def passed(self) -> bool:
        """Is every error within what is allowed?"""
        return all(row.passed for row in self.rows)

    @property
    def wrong(self) -> "tuple[Row, ...]":
        """The rows that did not pass."""
        return tuple(row for row in self.rows if not row.passed)

    def table(self) -> "DataFrame":
        """The rows, as a table."""
        from pandas import DataFrame

        return DataFrame([vars(row) | {"passed": row.passed} for row in self.rows])

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        return f"{self.title}\n{self.text}"

    __repr__ = __str__


def check(*overrides: str, **settings: Any) -> Check:
    """Checks the gradient of a configuration, as ``gradpath check`` does: every number that an
    instrument stores or the optimiser sees, against central differences and a second backward pass.

    Takes what :func:`gradpath.run` takes; nothing is trained or stored. A wrong gradient is a
    result (``passed`` is False) and no error. Raises ConfigError for what cannot be, and for
    several seeds or a truncated gradient.
    """
    with session():
        from gradpath import gradient_check
        from gradpath.commands import checking

        experiment = checking.checkable(assignments(overrides, settings))
        rows: list[Row] = []
        for _, reported in checking.cases(experiment):
            rows = reported
        text = gradient_check.table(rows, experiment.cell.layers)
        return Check(checking.heading(experiment), tuple(gradient_check.merged(rows)), text)


def network(*overrides: str, **settings: Any) -> "Start":
    """The network of a configuration, its drawn parameters and its first minibatch, untrained.

    Takes what :func:`gradpath.run` takes, with one seed. Gives ``(network, theta, batch)``, bit for
    bit what a run of this configuration begins with: a ``Network``, θ (P,) and a ``Batch`` of
    inputs (T, B, I), targets and mask (T, B). ``tape = network.forward(theta, batch)`` and ``trace
    = network.backward(theta, tape)`` are a training step's own passes. Raises ConfigError for what
    cannot be.
    """
    with session():
        from gradpath.commands import compose
        from gradpath.training.loop import start

        return start(compose.experiment(assignments(overrides, settings)))
