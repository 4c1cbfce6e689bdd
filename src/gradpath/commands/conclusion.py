"""What ``gradpath run`` has run, how each run ended, and what is said of it."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gradpath.commands.hints import report_command, ui_command
from gradpath.commands.progress import label
from gradpath.schema import locations
from gradpath.schema.text import one_line
from gradpath.tracking.earlier import Earlier
from gradpath.tracking.outcomes import Ended, by_experiment, fallback_reason
from gradpath.training.experiment import Experiment


@dataclass
class Job:
    """One point for Hydra: what is trained side by side, ``left`` those of them that have not been
    before. ``name`` is what tells it from the others of the sweep, ``reason`` why it failed, as the
    launcher knows it.
    """

    overrides: list[str]
    experiments: list[Experiment]
    name: str = ""
    left: list[Experiment] = field(default_factory=list)
    reason: str = ""

    @property
    def arguments(self) -> list[str]:
        """The overrides with the seeds that are left."""
        if len(self.left) == len(self.experiments):
            return self.overrides
        return [*self.overrides, f"seed=[{','.join(str(e.seed) for e in self.left)}]"]


def experiments_of(jobs: Sequence[Job]) -> list[Experiment]:
    """The experiments of all jobs, in their order."""
    return [experiment for job in jobs for experiment in job.experiments]


@dataclass
class Launched:
    """The jobs of a command, and how their runs ended by MLflow's records, under the run's
    ``config_hash``: those that were ``ended`` here, and those that were done ``earlier``, or are
    done elsewhere.
    """

    sweep_id: str
    jobs: list[Job]
    ended: dict[str, Ended]
    earlier: dict[str, Earlier]
    launcher_error: str = ""
    """Why the launcher itself gave up, if it did."""

    @property
    def experiments(self) -> list[Experiment]:
        return experiments_of(self.jobs)

    def outcome(self, experiment: Experiment) -> Ended:
        """How one run ended."""
        if (ended := self.ended.get(experiment.config_hash)) is not None:
            return ended
        if (run := self.earlier.get(experiment.config_hash)) is not None:
            return Ended("RUNNING" if run.running else "FINISHED", diverged=run.diverged)
        return Ended("MISSING")

    def run_id(self, experiment: Experiment) -> str:
        """The run that stands for a point, by its id in MLflow."""
        if (ended := self.ended.get(experiment.config_hash)) is not None:
            return ended.run_id
        return self.earlier[experiment.config_hash].run_id

    def failed(self, experiment: Experiment) -> bool:
        """Has the run ended otherwise than it should? One that another command runs has not."""
        skipped = experiment.config_hash in self.earlier and experiment.config_hash not in self.ended
        return not skipped and self.outcome(experiment).status != "FINISHED"

    def word(self, experiment: Experiment) -> str:
        """How a run ended, in a word."""
        if self.failed(experiment):
            return "not sent" if self.outcome(experiment).status == "UNSENT" else "failed"
        return "finished" if self.outcome(experiment).status == "FINISHED" else "left to another command"

    def failures(self) -> Iterator[str]:
        """A line for each job that failed: its runs and why."""
        for job in self.jobs:
            failed = [self.outcome(e) for e in job.experiments if self.failed(e)]
            if failed or job.reason:
                cause = job.reason or next((run.error for run in failed if run.error), "") or fallback_reason(failed)
                word = "failed" if job.reason or any(run.status != "UNSENT" for run in failed) else "not sent"
                yield one_line(f"{word}: {label(job.experiments)}: {cause}{f' [{job.name}]' if job.name else ''}")


def conclude(launched: Launched) -> int:
    """Says how the runs ended and what to do with them; 1 where one failed."""
    if launched.launcher_error:
        print(f"gradpath: the launcher gave up: {launched.launcher_error}", file=sys.stderr)
    for (uri, name), members in by_experiment(launched.experiments).items():
        runs = [launched.outcome(experiment) for experiment in members]
        count = Counter(launched.word(experiment) for experiment in members)
        diverged = sum(run.diverged and run.status == "FINISHED" for run in runs)
        details = {
            "finished": f" ({diverged} diverged)" if diverged else "",
            "left to another command": "",
            "not sent": "",
            "failed": "",
        }
        words = ", ".join(f"{count[word]} {word}{detail}" for word, detail in details.items() if count[word])
        shared = members[0].tracking.sweep_id or launched.sweep_id
        figures = f"Figures: {report_command(name, shared, uri)}. " if count["finished"] else ""  # of finished runs
        print(
            f"{len(runs)} run{'s'[: len(runs) != 1]} of sweep {shared} in MLflow experiment {name}: {words}. "
            f"{figures}Curves: {ui_command(uri)}"
        )
        if count["not sent"]:
            print(f"The store has not all of these runs; send what is kept in {locations.spool()} with: gradpath send")
    failures = list(launched.failures())
    for line in failures:
        print(line, file=sys.stderr)
    return int(bool(failures))
