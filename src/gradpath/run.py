"""One run from experiment to MLflow: trains, records, and tells the terminal how far it is."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

from threadpoolctl import threadpool_limits
from tqdm import tqdm

from gradpath import paths
from gradpath.experiment import Experiment
from gradpath.recorder import Recorder
from gradpath.threads import chosen
from gradpath.training import Step, train

PLAIN_SECONDS = 15.0
"""Without a terminal, a line this often instead of a bar."""


def execute(experiment: Experiment, sweep_id: str, position: str = "", jobs: int = 1) -> Recorder:
    """Trains and records one point; ``position`` (``3/12``) says where in a sweep it stands, ``jobs`` how many of its
    points run at once.
    """
    threads = chosen(experiment, jobs)
    tags = {"sweep_id": sweep_id, "code_version": code_version(), "threads": str(threads)}
    label = f"{position} {experiment.run_name}".strip()
    with terminable(), threadpool_limits(threads, "blas"), Recorder(experiment, tags) as recorder:
        for step in progress(train(experiment), experiment.train.steps, label):
            recorder.record(step)
    return recorder


def progress(steps: Iterator[Step], total: int, label: str) -> Iterator[Step]:
    """Passes the steps on, with a bar of step, loss and time left on a terminal, plain lines elsewhere."""
    terminal = sys.stderr.isatty()
    started = said = time.monotonic()
    with tqdm(total=total, desc=label, unit="step", disable=not terminal, dynamic_ncols=True) as bar:
        for step in steps:
            yield step
            state = f"loss {step.loss:.4g}, log10 grad norm {step.log10_grad_norm:.1f}"
            bar.set_postfix_str(state, refresh=False)
            bar.update(step.step - bar.n)
            now = time.monotonic()
            ended = step.diverged or step.step == total
            if not terminal and (ended or now - said > PLAIN_SECONDS):
                left = (now - started) / max(step.step, 1) * (total - step.step)
                print(f"{label}: step {step.step}/{total}, {state}, {left:.0f} s left", file=sys.stderr, flush=True)
                said = now
        if step.evaluation is not None:
            e = step.evaluation
            bar.write(f"{label}: test loss {e.loss:.4g}, {'solved' if e.solved else 'not solved'}", file=sys.stderr)
        if step.diverged:
            bar.write(f"{label}: diverged at step {step.step}: loss or gradient is not finite", file=sys.stderr)


class Terminated(SystemExit):
    """SIGTERM, raised where the program stands, so that the run is closed as KILLED; exit status 128 + 15."""


@contextmanager
def terminable() -> Iterator[None]:
    """Turns SIGTERM into an exception for as long as a run is open."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated(143)

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: nothing to install
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout: ``0.1.0+1a2b3c4`` or ``….dirty``."""
    released = version("gradpath")
    root = paths.checkout()
    if root is None:
        return released
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--exclude=*"]
        commit = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return released
    return f"{released}+{commit}"
