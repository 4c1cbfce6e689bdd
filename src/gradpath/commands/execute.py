"""From experiment to MLflow: trains, records, and tells the terminal how far it is."""

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from statistics import median

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from gradpath.commands.signals import Terminated, terminable
from gradpath.commands.terminal import bar_class, in_notebook
from gradpath.engine import compiled
from gradpath.schema import locations, plugins
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tracking.recorder import Recorder
from gradpath.training.checked_task import minibatch
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step, train_seeds
from gradpath.training.threads import thread_count

PLAIN_SECONDS = 15.0
"""Without a terminal, a line this often instead of a bar."""


def execute(experiment: Experiment, sweep_id: str) -> Recorder:
    """Trains and records one run."""
    (recorder,) = execute_seeds([experiment], sweep_id)
    return recorder


def execute_seeds(
    experiments: Sequence[Experiment], sweep_id: str, position: str = "", jobs: int = 1
) -> list[Recorder]:
    """Trains experiments that differ in their seed only side by side, and records each as a run of
    its own; ``position`` (``3/12``) says where in a sweep they stand, ``jobs`` how many of its jobs
    run at once.
    """
    threads = thread_count(experiments[0], jobs, len(experiments))
    tags = {"sweep_id": sweep_id, "code_version": code_version(), "threads": str(threads)}
    if active := plugins.active():
        tags["plugins"] = ", ".join(map(str, active))
    announced, name = "", f"{position} {label(experiments)}".strip()
    with terminable(), threadpool_limits(1, "blas"), compiled.watched() as in_python, ExitStack() as exits:
        stacks = [exits.enter_context(ExitStack()) for _ in experiments]
        recorders = [
            stack.enter_context(Recorder(experiment, tags))
            for stack, experiment in zip(stacks, experiments, strict=True)
        ]
        for steps in progress(_no_exit(train_seeds(experiments, threads)), experiments, position):
            loop = printable(compiled.loop_used([*in_python]))
            if loop != announced:
                tqdm.write(f"{name}: loop over time: {loop}", file=sys.stderr)
                announced = loop
            for index, step in steps.items():
                recorders[index].tag("replay", loop)
                recorders[index].record(step)
                if step.diverged:  # its run ends here, whatever becomes of the others
                    stacks[index].close()
    return recorders


def _no_exit(steps: Iterator[dict[int, Step]]) -> Iterator[dict[int, Step]]:
    """The steps; a unit that calls sys.exit has failed, and has not ended the program."""
    try:
        yield from steps
    except Terminated:
        raise
    except SystemExit as error:
        # With the place in the unit's code, which the line about the run names.
        failure = RuntimeError(f"sys.exit({error.code!r}) was called")
        raise failure.with_traceback(error.__traceback__) from error


def check_loops(experiments: Iterable[Experiment]) -> None:
    """Raises ConfigError where the loops over time cannot run as ``GRADPATH_REPLAY`` asks: with
    ``require``, which one pass of a single sequence through each network tells.
    """
    try:
        compiled.check()
        if not compiled.CHOICE.required:
            return
        shapes = {(repr(e.cell), e.task.sizes, e.train.dtype): e for e in experiments}
        for e in shapes.values():
            network, rng = e.network, np.random.default_rng(0)
            theta, batch = (
                e.init.draw(rng, network, e.train.dtype.numpy),
                minibatch(e.task, rng, 1).astype(e.train.dtype.numpy),
            )
            with np.errstate(all="ignore"):
                network.backward(theta, network.forward(theta, batch))
    except compiled.ReplayError as error:
        raise ConfigError(str(error)) from None


def label(experiments: Sequence[Experiment]) -> str:
    """What is trained side by side, in words: ``lstm · adding T=100 · 16 seeds``."""
    first, *remaining = experiments
    return f"{first.title} · {len(experiments)} seeds" if remaining else first.run_name


def progress(
    stream: Iterator[dict[int, Step]], experiments: Sequence[Experiment], position: str = ""
) -> Iterator[dict[int, Step]]:
    """Passes the steps on, with a bar of step, loss and time left on a terminal, plain lines
    elsewhere. Several seeds have one bar, with the medians over those still training.
    """
    terminal, total, diverged = sys.stderr.isatty() or in_notebook(), experiments[0].train.steps, 0
    name, prefix = f"{position} {label(experiments)}".strip(), "median " if len(experiments) > 1 else ""
    started = printed = time.monotonic()
    with bar_class()(total=total, desc=name, unit="step", disable=not terminal, dynamic_ncols=True) as bar:
        for steps in stream:
            yield steps
            diverged_runs = [experiments[index].run_name for index, step in steps.items() if step.diverged]
            training = [step for step in steps.values() if not step.diverged]
            active, diverged = training or [*steps.values()], diverged + len(diverged_runs)
            step, loss, norm = active[0].step, median(s.loss for s in active), median(s.log10_grad_norm for s in active)
            state = f"{prefix}loss {loss:.4g}, {prefix}log10 grad norm {norm:.1f}"
            state += f", {diverged} of {len(experiments)} diverged" if prefix and diverged else ""
            bar.set_postfix_str(state, refresh=False)
            bar.update(step - bar.n)
            now = time.monotonic()
            if not terminal and (not training or step == total or now - printed > PLAIN_SECONDS):
                remaining = (now - started) / max(step, 1) * (total - step)
                print(f"{name}: step {step}/{total}, {state}, {remaining:.0f} s left", file=sys.stderr, flush=True)
                printed = now
            for run in diverged_runs:
                line = f"{position} {run}: diverged at step {step}: loss or gradient is not finite"
                bar.write(line.strip(), file=sys.stderr)
        if evaluations := [s.evaluation for s in steps.values() if s.evaluation is not None]:
            solved = sum(evaluation.solved for evaluation in evaluations)
            outcome = f"{solved} of {len(experiments)} solved" if prefix else "solved" if solved else "not solved"
            loss = median(evaluation.loss for evaluation in evaluations)
            bar.write(f"{name}: {prefix}test loss {loss:.4g}, {outcome}", file=sys.stderr)


def code_version() -> str:
    """The package's version, with the commit where it runs from a checkout: ``0.2.0+1a2b3c4`` or
    ``….dirty``.
    """
    released = version("gradpath")
    root = locations.checkout()
    if root is None:
        return released
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=.dirty", "--exclude=*"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return released
    return f"{released}+{commit}"
