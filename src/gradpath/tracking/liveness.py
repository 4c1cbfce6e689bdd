"""Who writes a run, and whether it is still alive.

A run tells the process that writes it, and renews a heartbeat. It is dead where its process was one
of this machine and of this container and is no more, or where its heartbeat has stopped for
``STALE`` seconds (by the clocks of both machines, which may differ by less than that). Whatever
proves neither is left alone.
"""

import math
import os
import re
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradpath.tracking.reserve import terminate
from gradpath.tracking.store_client import pages, patience
from gradpath.tracking.store_uri import StoreError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

INTERVAL = 30.0
"""Seconds between two beats."""
STALE = 300.0
"""Seconds without a beat after which a run is taken for dead: ten beats missed."""


def process_tags() -> dict[str, str]:
    """Who writes a run: what ``reap`` needs to know of it later."""
    tags = {"host": socket.gethostname(), "pid": str(os.getpid()), "heartbeat": f"{time.time():.0f}"}
    container, started = _container(), _started(os.getpid())
    return tags | ({"process": f"{container} {started}"} if container and started else {})


def _container() -> str:
    """The boot of this machine, and the namespace in which process ids count; empty where the
    system does not say.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> str:
    """When a process of this container was started, in clock ticks since boot; empty where there is
    none.
    """
    with suppress(OSError, IndexError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[18] if state not in "ZX" else ""
    return ""


class _Pulse:
    """One thread that renews the heartbeats of all open runs of this process."""

    def __init__(self) -> None:
        self._runs: dict[str, tuple[Any, float]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def start(self, client: "MlflowClient", run_id: str) -> None:
        """Renews a run's heartbeat from now on, its first being in the tags it was made with."""
        with self._changed:
            self._runs[run_id] = (client, time.monotonic())
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="gradpath-heartbeat", daemon=True)
                self._thread.start()

    def stop(self, run_id: str) -> None:
        """The run is about to end."""
        with self._changed:
            self._runs.pop(run_id, None)
            self._changed.notify()

    def _beat(self) -> None:
        while True:
            with self._changed:
                if not self._runs:
                    self._thread = None
                    return
                run_id, (client, last) = min(self._runs.items(), key=lambda item: item[1][1])
                if (remaining := last + INTERVAL - time.monotonic()) > 0:
                    self._changed.wait(remaining)
                    continue
                self._runs[run_id] = (client, time.monotonic())
            # Outside the lock, and never the run's problem: the store may be away, and may come
            # back.
            with suppress(Exception), patience(0):
                client.set_tag(run_id, "heartbeat", f"{time.time():.0f}")


pulse = _Pulse()


def reap(client: "MlflowClient") -> list[str]:
    """Marks as KILLED our runs that are RUNNING and proven to be dead, in whatever experiment of
    the store, and returns a line for each; and one for those of which nothing proves it.
    """
    lines, doubtful = [], []
    for run in _running(client):
        is_dead = dead(run.data.tags)
        if is_dead is None:
            doubtful.append(run)
        elif is_dead:
            with suppress(StoreError):
                current = client.get_run(run.info.run_id)  # it may have ended, or have had a beat, in the meantime
                if current.info.status == "RUNNING" and dead(current.data.tags):
                    terminate(client, run.info.run_id, "KILLED")
                    lines.append(f"found a run that was killed, now marked so: {run.info.run_name}")
    if doubtful:
        first, others_count = doubtful[0], len(doubtful) - 1
        lines.append(
            f"left alone, since nothing proves it dead: {first.info.run_name} ({first.info.run_id}), "
            f"RUNNING without a heartbeat{f', and {others_count} more' if others_count else ''}"
        )
    return lines


def _running(client: "MlflowClient") -> "list[Run]":
    """All runs of a store that are RUNNING and ours."""
    ids = [e.experiment_id for e in pages(lambda token: client.search_experiments(page_token=token))]
    query = "attributes.status = 'RUNNING' and tags.config_hash != '' and tags.host != ''"
    runs = pages(lambda token: client.search_runs(ids, query, max_results=1000, page_token=token))
    return [run for run in runs if re.fullmatch("[0-9a-f]{12}", run.data.tags.get("config_hash", ""))]


def dead(tags: Mapping[str, str]) -> bool | None:
    """Whether a RUNNING run is dead; None where its process seems gone and nothing proves that it
    was the same one.
    """
    age, pid = _age(tags.get("heartbeat")), _pid(tags.get("pid"))
    container, process = _container(), tags.get("process", "").rpartition(" ")
    if container and process[0] == container and pid is not None:
        return _started(pid) != process[2]
    if age is not None:
        return age > STALE
    if tags.get("host") != socket.gethostname() or pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        return False  # alive, and another user's
    return False


def _pid(text: str | None) -> int | None:
    """The process that a tag names, if one can have that number."""
    return int(text) if text and re.fullmatch("[1-9][0-9]{0,8}", text) else None


def _age(text: str | None) -> float | None:
    """Seconds since the heartbeat that a tag tells, if it is one: a time, and not of the future."""
    try:
        age = time.time() - float(text or "")
    except ValueError:
        return None
    return age if math.isfinite(age) and age > -STALE else None
