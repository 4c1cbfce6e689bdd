"""Training of one network, of several seeds, or of a sweep."""

from typing import Any

from gradpath.api import stored
from gradpath.api.keywords import assignments
from gradpath.api.result import Result, Results
from gradpath.api.session import session
from gradpath.schema.settings import ConfigError
from gradpath.tracking.store_uri import StoreError


class RunError(Exception):
    """Runs have failed; the message names each of them and the reason. ``results`` holds the runs
    that have finished.
    """

    def __init__(self, message: str, results: Results) -> None:
        super().__init__(message)
        self.results = results


def run(*overrides: str, **settings: Any) -> Result | Results:
    """Trains one network and records it, as ``gradpath run`` does.

    ``overrides`` are those of the command line (``"arm=lstm"``, ``"task.length=50"``). ``settings``
    are the same as keyword arguments: a dict sets the keys of a section (``task={"length": 50}``),
    and None, bool, numbers, text and lists are written as on the command line. Keyword arguments
    come after the overrides. ``gradpath run --help`` lists the settings of every unit.

    Returns a Result; for several seeds (``seed="0..15"``, ``seed=[0, 3]``), which are trained side
    by side, Results. Raises ConfigError for an invalid configuration, before anything runs;
    StoreError where the store cannot be used; RunError where the run fails. KeyboardInterrupt ends
    the run as KILLED.
    """
    trained = _trained(assignments(overrides, settings))
    return trained if len(trained) > 1 else trained[0]


def sweep(*overrides: str, **settings: Any) -> Results:
    """Trains every combination and records it, as ``gradpath run -m`` does.

    Works as :func:`run`, but a list, tuple or range gives the values to choose from: ``arm=["rnn",
    "lstm"], seed=[0, 1]`` are four runs. A list that is itself a value is put into another list:
    ``instruments=[["reach", "theory"]]``; a plain list of instruments is refused.
    ``experiment="vanishing"`` is the sweep of a study. All points are checked before the first one
    runs. Raises the exceptions of ``run``.
    """
    arguments = ["-m", *assignments(overrides, settings, sweep=True)]
    try:
        return _trained(arguments)
    except ConfigError as error:
        if ": must be a list" not in str(error):
            raise
        hint = "in gp.sweep a list gives the values to choose from, so a list goes into another: [[…]]"
        raise ConfigError(f"{error}; {hint}") from None


def _trained(arguments: list[str]) -> Results:
    """Runs what the arguments of ``gradpath run`` describe, and reads the runs back."""
    with session():
        from gradpath.commands import hydra_options, launch
        from gradpath.commands.parallel import StoreLostError
        from gradpath.tracking import loader
        from gradpath.tracking.outcomes import by_experiment

        try:
            launched = launch.carry_out(hydra_options.read_options(arguments))
        except StoreLostError as error:
            raise StoreError(str(error)) from None
        failures = list(launched.failures())
        if launched.launcher_error:
            failures.insert(0, f"the launcher gave up: {launched.launcher_error}")
        parts: list[Results] = []
        for (uri, name), members in by_experiment(launched.experiments).items():
            finished = {e.config_hash for e in members if launched.outcome(e).status == "FINISHED"}
            shared = members[0].tracking.sweep_id or launched.sweep_id
            if finished:
                parts.append(stored.results(loader.sweep(uri, name, shared), finished))
        runs = Results([run for part in parts for run in part], (), [line for part in parts for line in part.damaged])
        if failures:
            raise RunError("\n".join(failures), runs)
        if len(runs) < len(launched.experiments):
            raise StoreError(runs.damaged[0] if runs.damaged else "a run that has finished cannot be found")
        return runs
