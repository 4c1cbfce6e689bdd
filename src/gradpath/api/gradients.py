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
    """The result of the gradient check of a configuration; as text it is the table that ``gradpath
    check`` prints.
    """

    title: str
    """The configuration and the sizes at which it was checked."""
    rows: "tuple[Row, ...]"
    """One row for each quantity, with its largest error relative to the allowed error (``error``,
    ``allowed``, ``passed``), and the timestep, layer and case of this error.
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
    instrument stores or the optimiser receives is compared with central differences and with a
    second backward pass.

    Takes the arguments of :func:`gradpath.run`; nothing is trained or stored. A wrong gradient is a
    result (``passed`` is False) and no exception. Raises ConfigError for an invalid configuration,
    and for several seeds or a truncated gradient.
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

    Takes the arguments of :func:`gradpath.run`, with one seed. Returns ``(network, theta, batch)``,
    bit for bit those with which a run of this configuration begins: a ``Network``, θ (P,) and a
    ``Batch`` of inputs (T, B, I), targets and mask (T, B). ``tape = network.forward(theta, batch)``
    and ``trace = network.backward(theta, tape)`` are the passes of a training step. Raises
    ConfigError for an invalid configuration.
    """
    with session():
        from gradpath.commands import compose
        from gradpath.training.loop import start

        return start(compose.experiment(assignments(overrides, settings)))
