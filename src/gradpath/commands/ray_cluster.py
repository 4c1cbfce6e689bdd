"""``hydra/launcher=ray``: the jobs of a sweep on the nodes of a Ray cluster.

By Ray itself and not by hydra-ray-launcher, which wants a cloudpickle that MLflow's joblib refuses
(``<3`` against ``>=3``), gives a sweep up at the first process that is lost, and leaves runs open
when it is interrupted.
"""

import os
import re
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

from gradpath.commands import cluster
from gradpath.commands.cluster import Assignment, LostError
from gradpath.commands.conclusion import Job
from gradpath.commands.parallel import Outcome
from gradpath.commands.pool import TERM_SECONDS
from gradpath.commands.reasons import reason
from gradpath.commands.signals import check as check_signals
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line


def run(jobs: Sequence[Job], sweep_id: str, settings: Any) -> None:
    """Runs the jobs, and notes with each why it failed; ``settings`` is ``hydra.launcher``. Raises
    ConfigError where there is no Ray or no such cluster.
    """
    with _joined(settings.ray.init) as ray:
        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        if not nodes:
            print("note: no node of the Ray cluster has a CPU to give; the jobs wait for one", file=sys.stderr)
        if len(nodes) > 1 or any(node["NodeManagerHostname"] != os.uname().nodename for node in nodes):
            cluster.note_of_store(jobs, f"the {len(nodes)} nodes of the Ray cluster")
        cluster.run(jobs, sweep_id, Nodes(ray, settings.ray.remote), settings.ray.remote.num_cpus)


CONNECT_SECONDS = 15.0
"""That a cluster has to answer: Ray itself would wait for it ten minutes and more."""


@contextmanager
def _joined(settings: Any) -> Iterator[Any]:
    """Ray, joined to a cluster, or to one of this machine that is started and ended here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise ConfigError("hydra/launcher=ray: needs Ray: pip install 'gradpath[ray]'") from None
    # Ray has a handler of its own for SIGTERM, which would end the command where it stands.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    options: dict[str, Any] = {key: value for key, value in settings.items() if value is not None}
    setting = f"hydra.launcher.ray.init.address={settings.address}"
    if settings.address and (place := re.fullmatch(r"(.+):(\d{1,5})", settings.address)):
        try:
            socket.create_connection((place[1], int(place[2])), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ConfigError(f"{setting}: no Ray cluster answers there: {error}") from None
    try:
        try:
            ray.init(**options, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(f"{setting}: {one_line(str(error))}") from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Nodes:
    """Runs assignments on whichever node has room. Ray starts them in their order, and shows no
    cheaper than by asking every node which of them have begun.
    """

    slots = 10_000

    def __init__(self, ray: Any, settings: Any) -> None:
        self._ray = ray
        needs = {key: dict(value) if key == "resources" else value for key, value in settings.items() if value}
        self._work = ray.remote(**needs, max_retries=0)(cluster.work)
        self._cpus = settings.num_cpus

    def submit(self, assignment: Assignment) -> Any:
        return self._work.options(name=assignment.position).remote(assignment)

    def ended(self, submitted: Sequence[Any], seconds: float) -> list[Any]:
        try:
            return list(self._ray.wait([*submitted], num_returns=1, timeout=seconds)[0])
        except SystemExit:  # what Ray makes of a signal's exception
            check_signals()
            raise

    def outcome(self, ended: Any) -> Outcome:
        errors = self._ray.exceptions
        try:
            return cast("Outcome", self._ray.get(ended))
        except errors.TaskCancelledError:
            raise LostError("was interrupted") from None
        except errors.RayTaskError as error:  # of Ray's own: what a unit raises is in the outcome
            return Outcome(one_line(str(error).strip().rpartition("\n")[2]))
        except errors.OutOfMemoryError:
            raise LostError("was ended by Ray, whose node ran out of memory") from None
        except errors.RayError as error:
            words = {"WorkerCrashedError": "was killed", "NodeDiedError": "was lost with its node"}
            raise LostError(words.get(type(error).__name__, f"was lost: {reason(error)}")) from None

    def running(self, submitted: Sequence[Any]) -> Sequence[Any]:
        return submitted[: int(self._ray.cluster_resources().get("CPU", 0)) // self._cpus]

    def stop(self, submitted: Sequence[Any]) -> None:
        """Each has a KeyboardInterrupt, and time to close its runs."""
        for handle in submitted:
            self._ray.cancel(handle)
        _, left = (
            self._ray.wait([*submitted], num_returns=len(submitted), timeout=TERM_SECONDS) if submitted else ([], [])
        )
        for handle in left:
            self._ray.cancel(handle, force=True)
