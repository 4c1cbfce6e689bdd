"""``gradpath check``: the gradient check of a configuration, case by case."""

from collections.abc import Iterator, Sequence

from threadpoolctl import threadpool_limits

from gradpath import gradient_check
from gradpath.commands import compose
from gradpath.commands.execute import check_loops
from gradpath.schema.settings import ConfigError
from gradpath.training.experiment import Experiment


def checkable(overrides: Sequence[str]) -> Experiment:
    """The one experiment that overrides describe, if its gradient can be checked; otherwise raises
    ConfigError.
    """
    experiment = compose.experiment(overrides)
    if experiment.cell.truncated:
        raise ConfigError("cell.truncate=true: a truncated gradient is not the loss's gradient; nothing to check")
    check_loops([experiment])
    return experiment


def heading(experiment: Experiment) -> str:
    """The experiment and the sizes at which it is checked, in one line."""
    return f"{experiment.title}: {gradient_check.cases.sizes(experiment)}"


def cases(experiment: Experiment) -> Iterator[tuple[str, list[gradient_check.Row]]]:
    """Each case's name, before the case is computed, and the rows so far; at the end, an empty name
    and all rows.
    """
    with threadpool_limits(1, "blas"):
        yield from gradient_check.every_case(experiment)
