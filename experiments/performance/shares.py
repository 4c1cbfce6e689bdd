"""Where the wall time of a whole run goes, from the start of the process to its end, with a real
MLflow store.

    python experiments/performance/shares.py [FILE.json]

Each configuration is run as ``gradpath run`` runs it, in a process of its own, in a home of its own
whose database is made beforehand. Time inside another part counts for the outer one: the forward
pass of an evaluation is evaluation. *recording* is all that the Recorder does, opening and closing
the run included. MLflow's import and the connection to its store stand beside it: they are the same
for a run of any length, and for all runs of a sweep together.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

CONFIGURATIONS = {
    "default": [],
    "default, 100 steps": ["train.steps=100"],
    "default, arm=rnn": ["arm=rnn"],
    "demo, rnn": ["+experiment=demo", "arm=rnn"],
    "demo, clipped_rnn": ["+experiment=demo", "arm=clipped_rnn"],
    "demo, chrono_lstm": ["+experiment=demo", "arm=chrono_lstm"],
    "demo, clipped_chrono_lstm": ["+experiment=demo", "arm=clipped_chrono_lstm"],
}
PARTS = (
    "start-up",
    "MLflow start-up",
    "sampling",
    "forward",
    "backward",
    "instruments",
    "evaluation",
    "recording",
    "clip, update, rest",
)


class Clock:
    """Seconds spent in each part; a part inside another is not counted twice."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._inside = False

    def watch(self, owner: Any, name: str, part: str) -> None:
        """Counts the time of a method or function for a part."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            return self.timed(part, lambda: inner(*arguments, **keywords))

        setattr(owner, name, timed)

    def timed(self, part: str, action: Callable[[], Any]) -> Any:
        if self._inside:
            return action()
        self._inside, started = True, time.perf_counter()
        try:
            return action()
        finally:
            self._inside = False
            self.spent[part] += time.perf_counter() - started


def one(started: float, arguments: list[str]) -> dict[str, float]:
    """Runs one configuration in this process, which has begun at ``started``; seconds a part."""
    from gradpath.commands import cli
    from gradpath.commands import execute as running
    from gradpath.core.network import Network
    from gradpath.instruments import Instrument
    from gradpath.schema.discovery import discover
    from gradpath.tasks import Task
    from gradpath.tracking import recorder, store
    from gradpath.training import loop

    clock = Clock()
    for name in ("connect", "experiment_id", "reap"):
        clock.watch(store, name, "MLflow start-up")
    for task in discover(Task).values():
        clock.watch(task, "sample", "sampling")
    for instrument in discover(Instrument).values():
        clock.watch(instrument, "measure", "instruments")
    clock.watch(Network, "forward_seeds", "forward")
    clock.watch(Network, "backward_seeds", "backward")
    clock.watch(loop, "_evaluate", "evaluation")
    for name in ("__init__", "__enter__", "record", "__exit__"):
        clock.watch(recorder.Recorder, name, "recording")
    training_began: list[float] = []
    train = running.train_seeds

    def beginning(*arguments: Any) -> Any:
        training_began.append(time.time() - started - clock.spent["MLflow start-up"] - clock.spent["recording"])
        return train(*arguments)

    running.train_seeds = beginning  # type: ignore[assignment]
    try:
        sys.argv = ["gradpath", "run", *arguments]
        cli.main()
    except SystemExit as ended:
        if ended.code:
            raise
    return {**clock.spent, "start-up": training_began[0]}


def measure(home: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds a part of one configuration, and their ``total``."""
    answer = home / "answer.json"
    started = time.time()
    subprocess.run(
        [sys.executable, __file__, "--one", str(answer), str(started), *arguments],
        env=os.environ | {"GRADPATH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    total = time.time() - started
    spent = json.loads(answer.read_text())
    return {**spent, PARTS[-1]: total - sum(spent.values()), "total": total}


def main() -> None:
    rows = {}
    print(f"{'':<26}{'total':>8}" + "".join(f"{part:>{len(part) + 2}}" for part in PARTS))
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        made = time.perf_counter()
        environment = os.environ | {"GRADPATH_HOME": str(home)}
        subprocess.run(
            [sys.executable, "-c", "from gradpath.tracking import store; store.connect(None)"],
            env=environment,
            check=True,
        )
        made = time.perf_counter() - made
        for name, arguments in CONFIGURATIONS.items():
            rows[name] = row = measure(home, arguments)
            shares = (f"{row[part] / row['total']:>{len(part) + 2}.1%}" for part in PARTS)
            print(f"{name:<26}{row['total']:>6.1f} s" + "".join(shares), flush=True)
    print(f"making the database, once: {made:.1f} s")
    if len(sys.argv) > 1:
        found = {"date": date.today().isoformat(), "unit": "s", "making_the_database": made, "rows": rows}
        Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        Path(sys.argv[2]).write_text(json.dumps(one(float(sys.argv[3]), sys.argv[4:])))
    else:
        main()
