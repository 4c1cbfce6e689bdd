"""How far a training is, told on a terminal by a bar and elsewhere by plain lines; or, in a process
of a sweep, told to the process that shows the whole.
"""

import math
import sys
import time
from collections.abc import Collection, Iterator, MutableSequence, Sequence
from datetime import UTC, datetime
from statistics import median
from typing import Protocol

from gradpath.commands.terminal import bar_class, in_notebook
from gradpath.training.experiment import Experiment
from gradpath.training.loop import Step

PLAIN_SECONDS = 15.0
"""Without a terminal, a line this often instead of a bar."""


class Display(Protocol):
    """Where a training says how far it is."""

    def begin(self, name: str, total: int) -> None:
        """What is trained, and for how many steps."""

    def step(self, step: int, state: str, last: bool) -> None:
        """A step has been taken; ``last`` where none comes after it."""

    def line(self, text: str) -> None:
        """Something that is worth a line."""

    def end(self) -> None:
        """The training has ended, one way or another."""


class Bar:
    """The display of a training that has the terminal to itself."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty() or in_notebook()

    def begin(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._started = self._printed = time.monotonic()
        self._bar = bar_class()(
            total=total, desc=name, unit="step", disable=not self._terminal, dynamic_ncols=True, leave=True
        )

    def step(self, step: int, state: str, last: bool) -> None:
        self._bar.set_postfix_str(state, refresh=False)
        self._bar.update(step - self._bar.n)
        now = time.monotonic()
        if not self._terminal and (last or now - self._printed > PLAIN_SECONDS):
            remaining = (now - self._started) / max(step, 1) * (self._total - step)
            print(plain_line(self._name, step, self._total, state, remaining), file=sys.stderr, flush=True)
            self._printed = now

    def line(self, text: str) -> None:
        self._bar.write(text, file=sys.stderr)

    def end(self) -> None:
        self._bar.close()


class Logged:
    """A display whose ``lines`` are kept, with the time of each, for the record of the run."""

    def __init__(self, display: Display) -> None:
        self.lines: list[str] = []
        self._display = display

    def begin(self, name: str, total: int) -> None:
        self._name, self._total = name, total
        self._log(f"{name}: {total} steps")
        self._display.begin(name, total)

    def step(self, step: int, state: str, last: bool) -> None:
        if last:
            self._log(f"{self._name}: step {step}/{self._total}, {state}")
        self._display.step(step, state, last)

    def line(self, text: str) -> None:
        self._log(text)
        self._display.line(text)

    def end(self) -> None:
        self._display.end()

    def _log(self, text: str) -> None:
        self.lines.append(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}Z {text}")


class Share:
    """The display of a training in a process of a sweep: writes the share that is done into memory
    that is shared, and keeps its lines until the training has ended.
    """

    def __init__(self, shares: MutableSequence[float], index: int) -> None:
        self._shares, self._index = shares, index
        self.lines: list[str] = []

    def begin(self, name: str, total: int) -> None:
        self._name, self._total = name, total

    def step(self, step: int, state: str, last: bool) -> None:
        self._shares[self._index] = step / self._total if self._total else 1.0
        if last:
            self.lines.append(plain_line(self._name, step, self._total, state, 0.0))

    def line(self, text: str) -> None:
        self.lines.append(text)

    def end(self) -> None:
        pass


class Whole:
    """The display of a sweep whose jobs run in processes of their own; ``runs`` of each job, and
    the share of it that is done.
    """

    def __init__(self, runs: Sequence[int], shares: Sequence[float]) -> None:
        self._runs, self._shares = runs, shares
        self._ended: dict[int, bool] = {}
        self._terminal = sys.stderr.isatty() or in_notebook()
        self._started = self._printed = time.monotonic()
        layout = "{desc} |{bar}| {percentage:.0f} % [{elapsed}<{remaining}]"
        self._bar = bar_class()(
            total=sum(runs), disable=not self._terminal, dynamic_ncols=True, bar_format=layout, leave=False
        )
        self.show(())

    def ended(self, index: int, failed: bool) -> None:
        """A job has ended."""
        self._ended[index] = failed

    def show(self, running: Collection[int]) -> None:
        """Shows how far all is; ``running``: the jobs that have begun."""
        done = sum(r * (1.0 if i in self._ended else self._shares[i]) for i, r in enumerate(self._runs))
        self._bar.set_description_str(text := self._text(running), refresh=False)
        self._bar.n = done
        self._bar.refresh()
        now = time.monotonic()
        if not self._terminal and now - self._printed > PLAIN_SECONDS:
            remaining = (now - self._started) * (sum(self._runs) / done - 1) if done else math.inf
            left = f", {remaining:.0f} s left" if math.isfinite(remaining) else ""
            print(f"{text}{left}", file=sys.stderr, flush=True)
            self._printed = now

    def _text(self, running: Collection[int]) -> str:
        count = {
            word: sum(self._runs[i] for i, failed in self._ended.items() if failed == (word == "failed"))
            for word in ("done", "failed")
        }
        words = [f"{count['done']} of {sum(self._runs)} runs done", f"{sum(self._runs[i] for i in running)} running"]
        return ", ".join([*words, *[f"{count['failed']} failed"] * bool(count["failed"])])

    def line(self, text: str) -> None:
        """A line above the bar."""
        self._bar.write(text, file=sys.stderr)

    def end(self) -> None:
        """The sweep has ended, one way or another."""
        self._bar.close()


def plain_line(name: str, step: int, total: int, state: str, remaining: float) -> str:
    """The state of a training without a bar."""
    return f"{name}: step {step}/{total}, {state}, {remaining:.0f} s left"


def label(experiments: Sequence[Experiment]) -> str:
    """What is trained side by side, in words: ``lstm · adding T=100 · 16 seeds``."""
    first, *remaining = experiments
    return f"{first.title} · {len(experiments)} seeds" if remaining else first.run_name


def shown(
    stream: Iterator[dict[int, Step]], experiments: Sequence[Experiment], display: Display, position: str = ""
) -> Iterator[dict[int, Step]]:
    """Passes the steps on, and tells the display step, loss and gradient norm, of several seeds the
    medians over those still training; at the end the test loss.
    """
    total, diverged = experiments[0].train.steps, 0
    name, prefix = f"{position} {label(experiments)}".strip(), "median " if len(experiments) > 1 else ""
    display.begin(name, total)
    try:
        for steps in stream:
            yield steps
            diverged_runs = [experiments[index].run_name for index, step in steps.items() if step.diverged]
            training = [step for step in steps.values() if not step.diverged]
            active, diverged = training or [*steps.values()], diverged + len(diverged_runs)
            step, loss, norm = active[0].step, median(s.loss for s in active), median(s.log10_grad_norm for s in active)
            state = f"{prefix}loss {loss:.4g}, {prefix}log10 grad norm {norm:.1f}"
            state += f", {diverged} of {len(experiments)} diverged" if prefix and diverged else ""
            display.step(step, state, not training or step == total)
            for run in diverged_runs:
                display.line(f"{position} {run}: diverged at step {step}: loss or gradient is not finite".strip())
        if evaluations := [s.evaluation for s in steps.values() if s.evaluation is not None]:
            solved = sum(evaluation.solved for evaluation in evaluations)
            outcome = f"{solved} of {len(experiments)} solved" if prefix else "solved" if solved else "not solved"
            loss = median(evaluation.loss for evaluation in evaluations)
            display.line(f"{name}: {prefix}test loss {loss:.4g}, {outcome}")
    finally:
        display.end()
