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

    def count_time(self, owner: Any, name: str, part: str) -> None:
        """Counts the time of a method or function for a part."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            return self.timed(part, lambda: inner(*arguments, **keywords))

        setattr(owner, name, timed)

    def timed(self, part: str, action: Callable[[], Any]) -> Any:
        if self._inside:
            return action()
        self._inside, start = True, time.perf_counter()
        try:
            return action()
        finally:
            self._inside = False
            self.spent[part] += time.perf_counter() - start


def run_configuration(start: float, arguments: list[str]) -> dict[str, float]:
    """Runs one configuration in this process, which has begun at ``start``; seconds a part."""
    from gradpath.commands import cli, execute
    from gradpath.core.network import Network
    from gradpath.instruments import Instrument
    from gradpath.schema.discovery import discover
    from gradpath.tasks import Task
    from gradpath.tracking import recorder, store
    from gradpath.training import loop

    clock = Clock()
    for name in ("connect", "experiment_id", "reap"):
        clock.count_time(store, name, "MLflow start-up")
    for task in discover(Task).values():
        clock.count_time(task, "sample", "sampling")
    for instrument in discover(Instrument).values():
        clock.count_time(instrument, "measure", "instruments")
    clock.count_time(Network, "forward_seeds", "forward")
    clock.count_time(Network, "backward_seeds", "backward")
    clock.count_time(loop, "evaluate", "evaluation")
    for name in ("__init__", "start", "record", "__exit__"):
        clock.count_time(recorder.Recorder, name, "recording")
    training_began: list[float] = []
    train = execute.train_seeds

    def timed_train(*arguments: Any) -> Any:
        training_began.append(time.time() - start - clock.spent["MLflow start-up"] - clock.spent["recording"])
        return train(*arguments)

    execute.train_seeds = timed_train  # type: ignore[assignment]
    try:
        sys.argv = ["gradpath", "run", *arguments]
        cli.main()
    except SystemExit as exit_error:
        if exit_error.code:
            raise
    return {**clock.spent, "start-up": training_began[0]}


def measure(home: Path, arguments: list[str]) -> dict[str, float]:
    """Seconds a part of one configuration, and their ``total``."""
    answer = home / "answer.json"
    start = time.time()
    subprocess.run(
        [sys.executable, __file__, "--one", str(answer), str(start), *arguments],
        env=os.environ | {"GRADPATH_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    total = time.time() - start
    seconds = json.loads(answer.read_text())
    return {**seconds, PARTS[-1]: total - sum(seconds.values()), "total": total}


def main() -> None:
    rows = {}
    print(f"{'':<26}{'total':>8}" + "".join(f"{part:>{len(part) + 2}}" for part in PARTS))
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        database_seconds = time.perf_counter()
        environment = os.environ | {"GRADPATH_HOME": str(home)}
        subprocess.run(
            [sys.executable, "-c", "from gradpath.tracking import store; store.connect(None)"],
            env=environment,
            check=True,
        )
        database_seconds = time.perf_counter() - database_seconds
        for name, arguments in CONFIGURATIONS.items():
            rows[name] = row = measure(home, arguments)
            shares = (f"{row[part] / row['total']:>{len(part) + 2}.1%}" for part in PARTS)
            print(f"{name:<26}{row['total']:>6.1f} s" + "".join(shares), flush=True)
    print(f"making the database, once: {database_seconds:.1f} s")
    if len(sys.argv) > 1:
        results = {"date": date.today().isoformat(), "unit": "s", "making_the_database": database_seconds, "rows": rows}
        Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        Path(sys.argv[2]).write_text(json.dumps(run_configuration(float(sys.argv[3]), sys.argv[4:])))
    else:
        main()
