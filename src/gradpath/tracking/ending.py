"""How a run ends: what MLflow calls it, and how long the store is waited for."""

from gradpath.tracking import store

PATIENCE, PATIENCE_INTERRUPTED = 300.0, 3.0
"""Seconds that a run waits for a store that is away or locked: at its start and end, and once it is
interrupted.
"""


def patience_of(error: BaseException | None) -> float:
    """How long the end of a run may wait for the store: not long where a user, or the store itself,
    has ended it.
    """
    fault = isinstance(error, Exception) and not isinstance(error, store.StoreError)
    return PATIENCE if error is None or fault else PATIENCE_INTERRUPTED


def status_of(error: BaseException | None) -> str:
    """MLflow's word for how a run ended: a signal or Ctrl-C is no Exception, and the run KILLED and
    not FAILED.
    """
    return "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
