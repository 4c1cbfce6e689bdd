"""What a search is for: a number of a trial, from what its runs have recorded."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from gradpath.commands.conclusion import Job, Launched
from gradpath.schema.settings import ConfigError
from gradpath.tracking import outcomes, store
from gradpath.training.experiment import Experiment

LONGEST_SOLVED = "longest_solved"
BEST = "best_of_search"
"""Tag of the runs of a study's best trial."""


class UnscoredError(Exception):
    """A trial has no value; the message says why."""


class Objective:
    """``longest_solved``: the length of the task where every run of a trial has solved it, else 0.
    Any other name is that of a metric in MLflow: its last value, the mean over the seeds. A run
    that diverged has not solved its task, and makes a metric the worst there is, ±∞.
    """

    def __init__(self, name: str, direction: str | None) -> None:
        if direction not in (None, "minimize", "maximize"):
            raise ConfigError(f"hydra.sweeper.direction={direction}: must be minimize or maximize")
        if name == LONGEST_SOLVED and direction == "minimize":
            raise ConfigError(f"hydra.sweeper.direction={direction}: must be maximize for {LONGEST_SOLVED}")
        self.name = name
        self.sign = -1 if direction == "maximize" or name == LONGEST_SOLVED else 1
        """Smaller is better once a value is multiplied by it."""

    def score(self, launched: Launched, job: Job) -> float:
        """The value of the trial whose runs are a job's. Raises UnscoredError where one of them has
        failed, and ConfigError where the runs have no such metric.
        """
        ended = [launched.outcome(experiment) for experiment in job.experiments]
        failed = [run for run in ended if run.status != "FINISHED"]
        if any(run.status == "RUNNING" for run in failed):
            raise UnscoredError("another command was running it")
        if failed:
            raise UnscoredError(
                job.reason or next((run.error for run in failed if run.error), "") or outcomes.fallback_reason(failed)
            )
        client = store.connect(job.experiments[0].tracking.uri)
        ids = [launched.run_id(experiment) for experiment in job.experiments]
        stored = [client.get_run(run_id).data for run_id in ids]
        if self.name == LONGEST_SOLVED:
            solved = all(run.tags.get("solved") == "true" and run.tags.get("diverged") != "true" for run in stored)
            return float(job.experiments[0].task.length) if solved else 0.0
        if any(run.tags.get("diverged") == "true" for run in stored):
            return self.sign * math.inf
        for run in stored:
            if self.name not in run.metrics:
                names = ", ".join([LONGEST_SOLVED, *sorted(run.metrics)])
                raise ConfigError(f"hydra.sweeper.objective={self.name}: no such number of a run; there are {names}")
        return fmean(run.metrics[self.name] for run in stored)

    @staticmethod
    def mark(study: str, best: Sequence[Experiment]) -> None:
        """Gives the runs of the best trial of a study the tag ``best_of_search``, and no others."""
        identities = {experiment.config_hash for experiment in best}
        for uri, name in outcomes.by_experiment(best):
            client: Any = store.connect(uri)
            if (experiment := client.get_experiment_by_name(name)) is None:
                continue
            ids = [experiment.experiment_id]
            for run in client.search_runs(ids, f"tags.{BEST} = '{study}'"):
                if run.data.tags.get("config_hash") not in identities:
                    client.delete_tag(run.info.run_id, BEST)
            for identity in sorted(identities):
                query = f"tags.config_hash = '{identity}' and attributes.status = 'FINISHED'"
                for run in client.search_runs(ids, query, max_results=1):
                    client.set_tag(run.info.run_id, BEST, study)
