"""Two processes at one run: which of them computes it, and what becomes of the other's record."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from gradpath.tracking import earlier, reserve, store
from gradpath.tracking.spooling import Spooling

if TYPE_CHECKING:
    from mlflow import MlflowClient


def is_second(client: "MlflowClient", run_id: str) -> bool:
    """Does another command compute the same run, and began before? Not as far as a store that is
    away says.
    """
    if not isinstance(client, Spooling):
        return earlier.is_second(client, run_id)
    try:
        return bool(client.run_id) and earlier.is_second(cast("MlflowClient", client), client.run_id)
    except store.UnreachableError:
        return False


def taken_since(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> bool:
    """Has another process taken over the run that this one, whose ``tags`` it had, has taken over?
    Two can where the store is a server; the one that wrote its tags last goes on. Not as far as a
    store that is away says.
    """
    try:
        return bool(client.get_run(run_id).data.tags.get("attempt") != tags["attempt"])
    except store.UnreachableError:
        if isinstance(client, Spooling):
            return False
        raise


def withdraw(client: "MlflowClient", run_id: str, taken: bool, continues: bool) -> None:
    """Ends a run that another process computes: one that had been begun before stays, and is left
    alone if it has been ``taken`` over.
    """
    if isinstance(client, Spooling):  # whose sender looks itself whose the run is
        client.set_terminated(run_id, "KILLED") if continues else client.delete_run(run_id)
        return
    if not taken:
        reserve.terminate(client, run_id, "KILLED")
    if not continues:
        client.delete_run(run_id)
