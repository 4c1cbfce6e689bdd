"""From experiment to MLflow: trains, records, and tells the terminal how far it is."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from threadpoolctl import threadpool_limits

from gradpath.commands.progress import Bar, Display, Logged, label, shown
from gradpath.commands.reasons import LOWER_MEMORY
from gradpath.commands.signals import Terminated, terminable
from gradpath.commands.signals import check as check_signals
from gradpath.engine import compiled
from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tracking.earlier import in_turn
from gradpath.tracking.ending import PATIENCE
from gradpath.tracking.provenance import code_version
from gradpath.tracking.recorder import Recorder
from gradpath.tracking.spooling import delivery
from gradpath.tracking.store import patience
from gradpath.training.checked_task import minibatch
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step, train_seeds
from gradpath.training.state import TrainingState
from gradpath.training.threads import thread_count


def execute(experiment: Experiment, sweep_id: str) -> Recorder:
    """Trains and records one run, whatever has been recorded before."""
    (recorder,) = execute_seeds([replace(experiment, resume=False)], sweep_id)
    return recorder


def execute_seeds(
    experiments: Sequence[Experiment],
    sweep_id: str,
    position: str = "",
    jobs: int = 1,
    display: Display | None = None,
    tags: Mapping[str, str] = MappingProxyType({}),
) -> list[Recorder]:
    """Trains experiments that differ in their seed only side by side, and records each as a run of
    its own; ``position`` (``3/12``) says where in a sweep they stand, ``jobs`` how many of its jobs
    run at once. ``display``: None for one that has the terminal to itself; ``tags``: more of each
    run.
    """
    display = Logged(display or Bar())
    threads = thread_count(experiments[0], jobs, len(experiments))
    tags = {"sweep_id": sweep_id, "code_version": code_version(), "threads": str(threads), **tags}
    if active := plugins.active():
        tags["plugins"] = ", ".join(map(str, active))
    announced, name = "", f"{position} {label(experiments)}".strip()
    with terminable(), threadpool_limits(1, "blas"), compiled.watched() as in_python, ExitStack() as exits:
        exits.enter_context(delivery(experiments[0].tracking.timeout))
        runs: list[tuple[ExitStack, Recorder]] = []
        for experiment in experiments:
            stack = exits.enter_context(ExitStack())
            recorder = Recorder(experiment, tags, display.lines)
            stack.push(recorder)
            with in_turn(recorder.client.tracking_uri) if experiment.resume else nullcontext(), patience(PATIENCE):
                recorder.start()
                withdrawn = experiment.resume and recorder.withdrawn()
            if not withdrawn:
                runs.append((stack, recorder))
        left = [recorder.experiment for _, recorder in runs]
        states = _restored([recorder for _, recorder in runs])
        training = train_seeds(left, threads, states)
        for steps in shown(_no_exit(training), left, display, position) if left else ():
            loop = printable(compiled.loop_used([*in_python]))
            if states:
                display.line(f"{name}: goes on at step {states[0].step}")
                states = []
            if loop != announced:
                display.line(f"{name}: loop over time: {loop}")
                announced = loop
            check_signals()
            for index, step in steps.items():
                stack, recorder = runs[index]
                recorder.tag("replay", loop)
                recorder.record(step)
                if step.diverged:  # its run ends here, whatever becomes of the others
                    stack.close()
    return [recorder for _, recorder in runs]


def _restored(recorders: Sequence[Recorder]) -> list[TrainingState]:
    """Where a training goes on: at the last step of which every run has a checkpoint; nothing where
    it begins.
    """
    common = set.intersection(*[{*recorder.checkpoints} for recorder in recorders]) if recorders else set()
    return [recorder.restore(max(common)) for recorder in recorders] if common else []


def _no_exit(steps: Iterator[dict[int, Step]]) -> Iterator[dict[int, Step]]:
    """The steps; a unit that calls sys.exit has failed, and has not ended the program. Where memory
    runs out, what to lower is added.
    """
    try:
        yield from steps
    except MemoryError as error:
        error.add_note(LOWER_MEMORY)
        raise
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
