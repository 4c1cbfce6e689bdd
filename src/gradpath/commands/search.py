"""``hydra/sweeper=optuna``: a search in place of every combination, by Optuna's ask and tell.

Trials run as the points of a sweep do, a batch of them at once; the study lies in a file, so that
the same command goes on with it. What a trial tries depends on its number, on the seed of the
sampler and on how the trials of the batches before it ended, and on nothing else: not on when a
process was killed or which trial of a batch was done first.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradpath.commands import compose, messages, parallel, pool, search_space, study
from gradpath.commands.conclusion import Job, Launched, conclude
from gradpath.commands.grammar import chosen, is_hydras
from gradpath.commands.hydra_choices import LAUNCHERS
from gradpath.commands.hydra_options import Options
from gradpath.commands.launch import carry_out_jobs, checked
from gradpath.commands.objective import Objective, UnscoredError
from gradpath.commands.parallel import StoreLostError
from gradpath.commands.search_space import Space
from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line
from gradpath.training.experiment import Tracking

POINTS, FAILURE = "points", "failure"
"""What a trial holds of ours."""


def search(options: Options) -> int:
    """Runs the search that the options describe, and prints its best point; 1 where a run failed.
    Raises ConfigError or StoreError before the first one.
    """
    optuna = study.imported()
    hydra, overrides = messages.explained(
        options.overrides, lambda: compose.parameters(options.overrides, intervals=True)
    )
    settings, space = hydra.sweeper, search_space.read(overrides)
    objective = Objective(settings.objective, settings.direction)
    hydra_overrides = [o for o in options.overrides if is_hydras(o)]
    for point in space.corners():  # before the first trial, and not when one comes there
        (job,) = checked([point], hydra_overrides)
    name = settings.study_name or f"search-{study.identity_of(space, objective, settings)}"
    if chosen("hydra/launcher", options.overrides) not in LAUNCHERS:
        pool.start_early(parallel.PRELOADED)
    with study.locked(name):
        opened = study.opened(optuna, name, space, objective, settings, job.experiments[0].resume)
        count = settings.n_jobs or parallel.processes([job] * settings.n_trials)
        trials = _Trials(optuna, opened, space, objective, settings, hydra_overrides, options)
        try:
            while batch := trials.batch(count):
                trials.run(batch)
        except StoreLostError as error:
            print(f"gradpath: {one_line(str(error))}", file=sys.stderr)
            return 1
        return trials.conclude()


class _Trials:
    """The trials of a study, and what has become of those of this command."""

    def __init__(
        self,
        optuna: Any,
        opened: Any,
        space: Space,
        objective: Objective,
        settings: Any,
        hydra_overrides: list[str],
        options: Options,
    ) -> None:
        self._optuna, self._study, self._space, self._objective = optuna, opened, space, objective
        self._settings, self._hydra_overrides, self._options = settings, hydra_overrides, options
        self._launched: list[Launched] = []
        self._failures: list[str] = []

    def batch(self, count: int) -> list[Any]:
        """The trials to run next: those that an earlier command has begun and not ended, and new
        ones; none when the study is complete.
        """
        trials = self._study.get_trials(deepcopy=False)
        batch = [t.number for t in trials if t.state == self._optuna.trial.TrialState.RUNNING]
        total = len(trials)
        while total < self._settings.n_trials and (total % count or not batch):
            batch.append(self._ask(total))
            total += 1
        return [self._continued(number) for number in batch]

    def _ask(self, number: int) -> int:
        self._study.sampler = self._sampler(number)
        return int(self._study.ask().number)

    def _continued(self, number: int) -> Any:
        """A trial with all its values, those that it lacks being drawn as they would have been."""
        self._study.sampler = self._sampler(number)
        frozen = self._study.get_trials(deepcopy=False)[number]
        trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
        self._space.suggest(trial)
        return trial

    def _sampler(self, number: int) -> Any:
        """The sampler of one trial, whose draws do not depend on those for others."""
        settings = self._settings.sampler
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
        samplers = self._optuna.samplers
        if settings.name == "random":
            return samplers.RandomSampler(seed)
        return samplers.TPESampler(
            seed=seed, n_startup_trials=settings.n_startup_trials, multivariate=True, constant_liar=True
        )

    def run(self, batch: Sequence[Any]) -> None:
        """Runs trials, and tells the study how they ended. What it has been told of a point that
        comes again holds for that too.
        """
        jobs: dict[tuple[str, ...], Job] = {}
        points: dict[int, tuple[str, ...]] = {}
        scored = {tuple(t.user_attrs.get(POINTS, ())): t for t in self._study.get_trials(deepcopy=False) if _ended(t)}
        for trial in batch:
            try:
                (job,) = checked([self._space.point(trial.params)], self._hydra_overrides)
            except ConfigError as error:  # a combination that the corners did not show
                self._tell(trial, None, str(error))
                continue
            job.name = self._space.values(trial.params)
            job.experiments = [self._in_sweep(e) for e in job.experiments]
            points[trial.number] = identity = tuple(e.config_hash for e in job.experiments)
            trial.set_user_attr(POINTS, list(identity))
            jobs.setdefault(identity, job)
        new = [job for identity, job in jobs.items() if identity not in scored]
        launched = carry_out_jobs(self._options, new) if new else None
        if launched is not None:
            self._launched.append(launched)
        for trial in batch:
            if trial.number not in points:
                continue
            identity = points[trial.number]
            if identity in scored or launched is None:
                earlier = scored[identity]
                self._tell(trial, earlier.value, earlier.user_attrs.get(FAILURE, ""))
                continue
            try:
                value, failure = self._objective.score(launched, jobs[identity]), ""
            except UnscoredError as error:
                value, failure = None, str(error)
            self._tell(trial, value, failure)

    def _in_sweep(self, experiment: Any) -> Any:
        """The same run in the sweep that all trials make."""
        tracking: Tracking = experiment.tracking
        shared = tracking.sweep_id or self._study.user_attrs[study.SWEEP_ID]
        return replace(experiment, tracking=replace(tracking, sweep_id=shared))

    def _tell(self, trial: Any, value: float | None, failure: str) -> None:
        named = f"trial {trial.number}: {self._space.values(trial.params)}"
        if value is None:
            trial.set_user_attr(FAILURE, failure)
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
            self._failures.append(f"failed: {named}: {failure}")
            return
        self._study.tell(trial, value)
        print(f"{named}: {self._objective.name} {value:.6g}", file=sys.stderr)

    def conclude(self) -> int:
        """Says how the runs of this command ended and which point of the study is best, and marks
        its runs; 1 where one failed.
        """
        status = 0
        if self._launched:
            first = self._launched[0]
            for launched in self._launched[1:]:
                first.jobs += launched.jobs
                first.ended |= launched.ended
                first.earlier |= launched.earlier
                first.launcher_error = first.launcher_error or launched.launcher_error
            status = conclude(first)
        for line in self._failures:
            print(one_line(line), file=sys.stderr)
        trials = self._study.get_trials(deepcopy=False)
        complete = [t for t in trials if t.state == self._optuna.trial.TrialState.COMPLETE]
        print(f"{len(trials)} trials of study {self._study.study_name}: {len(complete)} with a value.", end=" ")
        if not complete:
            print("None is best.")
            return 1
        best = min(complete, key=lambda t: (self._objective.sign * t.value, t.number))
        command = shlex.join(["gradpath", "run", *plugins.arguments(), *self._space.point(best.params), "resume=false"])
        print(
            f"Best, trial {best.number}: {self._objective.name} {best.value:.6g} at "
            f"{self._space.values(best.params)}. Again: {command}"
        )
        (job,) = checked([self._space.point(best.params)], self._hydra_overrides)
        self._objective.mark(self._study.study_name, job.experiments)
        return status or int(bool(self._failures))


def _ended(trial: Any) -> bool:
    """Has a trial been told, and of a point that was run?"""
    return trial.state.is_finished() and POINTS in trial.user_attrs
