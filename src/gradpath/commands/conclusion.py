"""What ``gradpath run`` has run, how each run ended, and what is said of it."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradpath.commands.execute import label
from gradpath.commands.hints import report_command, ui_command
from gradpath.schema.text import one_line
from gradpath.tracking.outcomes import Ended, by_experiment, fallback_reason
from gradpath.training.experiment import Experiment


@dataclass
class Job:
    """One point for Hydra: what is trained side by side. ``name`` is what tells it from the others
    of the sweep.
    """

    overrides: list[str]
    experiments: list[Experiment]
    name: str = ""


def experiments_of(jobs: Sequence[Job]) -> list[Experiment]:
    """The experiments of all jobs, in their order."""
    return [experiment for job in jobs for experiment in job.experiments]


@dataclass
class Launched:
    """The jobs that were run, and how they ended: ``ended`` by MLflow's records, under the run's
    ``config_hash``; ``reasons`` why jobs failed, by their index, as the launcher knows it.
    """

    sweep_id: str
    jobs: list[Job]
    ended: dict[str, Ended]
    reasons: dict[int, str]
    launcher_error: str = ""
    """Why the launcher itself gave up, if it did."""

    @property
    def experiments(self) -> list[Experiment]:
        return experiments_of(self.jobs)

    def outcome(self, experiment: Experiment) -> Ended:
        """How one run ended."""
        return self.ended.get(experiment.config_hash, Ended("MISSING"))

    def failures(self) -> Iterator[str]:
        """A line for each job that failed: its runs and why."""
        for index, job in enumerate(self.jobs):
            failed = [run for run in map(self.outcome, job.experiments) if run.status != "FINISHED"]
            if failed or self.reasons.get(index):
                cause = (
                    self.reasons.get(index)
                    or next((run.error for run in failed if run.error), "")
                    or fallback_reason(failed)
                )
                yield one_line(f"failed: {label(job.experiments)}: {cause}{f' [{job.name}]' if job.name else ''}")


def conclude(launched: Launched) -> int:
    """Says how the runs ended and what to do with them; 1 where one failed."""
    if launched.launcher_error:
        print(f"gradpath: the launcher gave up: {launched.launcher_error}", file=sys.stderr)
    for (uri, name), members in by_experiment(launched.experiments).items():
        runs = [launched.outcome(experiment) for experiment in members]
        count = Counter("finished" if run.status == "FINISHED" else "failed" for run in runs)
        diverged = sum(run.diverged and run.status == "FINISHED" for run in runs)
        details = {"finished": f" ({diverged} diverged)" if diverged else "", "failed": ""}
        words = ", ".join(f"{count[word]} {word}{detail}" for word, detail in details.items() if count[word])
        shared = members[0].tracking.sweep_id or launched.sweep_id
        figures = f"Figures: {report_command(name, shared, uri)}. " if count["finished"] else ""  # of finished runs
        print(
            f"{len(runs)} run{'s'[: len(runs) != 1]} of sweep {shared} in MLflow experiment {name}: {words}. "
            f"{figures}Curves: {ui_command(uri)}"
        )
    failures = list(launched.failures())
    for line in failures:
        print(line, file=sys.stderr)
    return int(bool(failures))
