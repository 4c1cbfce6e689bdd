"""Runs that a store holds."""

from typing import TYPE_CHECKING

from gradpath.api.argument_types import check_texts
from gradpath.api.result import Result, Results
from gradpath.api.session import session
from gradpath.tracking.store_uri import StoreError

if TYPE_CHECKING:
    from gradpath.tracking.loader import Sweep


def load(study: str | None = None, sweep: str | None = None, uri: str | None = None) -> Results:
    """The finished runs of a stored sweep; for each point the newest run.

    ``study``: the MLflow experiment, None for the one with the newest run; ``sweep``: the sweep_id,
    None for the newest; ``uri``: MLflow's tracking URI, None for ``$MLFLOW_TRACKING_URI`` or else
    the project's own database. Points without a finished run are in ``Results.missing``. Raises
    StoreError where the store cannot be used or holds no such run, ConfigError where an argument is
    no text.
    """
    check_texts(study=study, sweep=sweep, uri=uri)
    with session():
        from gradpath.commands.report import chosen_sweep
        from gradpath.tracking import loader
        from gradpath.tracking.store import uri_key

        with uri_key("uri"):
            experiment, sweep_id = chosen_sweep(study, sweep, uri)
            return results(loader.sweep(uri, experiment, sweep_id))


def results(content: "Sweep", points: "set[str] | None" = None) -> Results:
    """The runs of a sweep; with ``points``, only the runs of these (by ``config_hash``). Raises
    StoreError where there are none.
    """
    runs = [Result(run) for run in content.newest if points is None or run.config_hash in points]
    if not runs:
        raise StoreError(content.damaged[0] if content.damaged else "no finished run of this sweep")
    missing = [name for point, name in content.missing.items() if points is None or point in points]
    return Results(runs, missing, content.damaged)
