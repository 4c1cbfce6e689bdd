"""What a run has to tell its store, sent by the thousand and not one by one."""

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from gradpath.tracking import store
from gradpath.tracking.mlflow_metrics import Point

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 10.0
BATCH = 1000
"""Metrics of one request, MLflow's limit."""


class Outbox:
    """Points and tags of one run that are to be sent. ``left_out``: the points that are not finite,
    which a store would return as ±1.8e308. ``stored``: key → steps at which the store has a point
    from before.
    """

    def __init__(self, client: "MlflowClient") -> None:
        self.client = client
        self.run_id = ""
        self.left_out: list[Point] = []
        self.stored: dict[str, set[int]] = {}
        self._points: list[Any] = []
        self._tags: dict[str, str] = {}
        self._flushed = time.monotonic()
        self._waits = False

    def tag(self, key: str, value: str) -> None:
        """Sets a tag, with the next points that are sent."""
        self._tags[key] = value

    def point(self, key: str, value: float, step: int) -> None:
        """Takes in one point of a curve."""
        from mlflow.entities import Metric

        if not math.isfinite(value):
            self.left_out.append((key, value, step))
        elif step not in self.stored.get(key, ()):
            self._points.append(Metric(key, value, int(time.time() * 1000), step))

    def try_flush(self, last: Callable[[], None] | None = None) -> None:
        """Sends what there is while the run goes on, now and then, or with something else that is
        to be sent now; later if the store is away or locked.
        """
        if last is None and time.monotonic() - self._flushed <= FLUSH_SECONDS:
            return
        try:
            with store.patience(0):
                self.flush()
                if last is not None:
                    last()
        except store.UnreachableError as error:
            if not self._waits:
                tqdm.write(f"gradpath: {error}; the run goes on, and what it measures is sent later", file=sys.stderr)
            self._waits, self._flushed = True, time.monotonic()
        else:
            self._waits = False

    def flush(self) -> None:
        """Sends what there is: a hundred times faster than one by one."""
        from mlflow.entities import RunTag

        while self._points or self._tags:
            tags = [RunTag(key, value) for key, value in self._tags.items()]
            self.client.log_batch(self.run_id, metrics=self._points[:BATCH], tags=tags)
            del self._points[:BATCH]
            self._tags.clear()
        self._flushed = time.monotonic()
