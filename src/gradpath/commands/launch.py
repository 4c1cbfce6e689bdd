"""``gradpath run``: plans and checks every point, hands them to Hydra's launcher, and says how each
of them ended.
"""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from gradpath.commands import compose, messages, parallel, pool, resuming
from gradpath.commands.conclusion import Job, Launched, conclude, experiments_of
from gradpath.commands.execute import check_loops, execute_seeds
from gradpath.commands.grammar import chosen, is_hydras, is_study
from gradpath.commands.hydra_choices import LAUNCHERS, SEARCH
from gradpath.commands.hydra_options import Options
from gradpath.commands.overrides import read
from gradpath.commands.parallel import StoreLostError
from gradpath.commands.reasons import reason
from gradpath.commands.signals import Terminated, ending
from gradpath.commands.terminal import settle
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line
from gradpath.tracking import declarations, store
from gradpath.tracking.ending import PATIENCE_INTERRUPTED
from gradpath.tracking.outcomes import Ended, records
from gradpath.training.experiment import Experiment

compose.register()  # in the processes of a parallel launcher too, which import this module to find the job


def launch(options: Options) -> int:
    """Runs what the options describe, and says how it ended; 1 where a run failed. Raises
    ConfigError or StoreError before the first one.
    """
    try:
        launched = carry_out(options)
    except StoreLostError as error:
        print(f"gradpath: {one_line(str(error))}", file=sys.stderr)
        return 1
    return conclude(launched)


def carry_out(options: Options) -> Launched:
    """Runs what the options describe. Raises ConfigError or StoreError before the first run, and
    StoreLostError where the store is lost during one; a run that fails is in what is returned.
    """
    if options.multirun:
        if chosen("hydra/sweeper", options.overrides) == SEARCH:
            raise ConfigError(f"hydra/sweeper={SEARCH}: a search is a command of its own: gradpath run -m …")
        if chosen("hydra/launcher", options.overrides) not in LAUNCHERS:
            pool.start_early(parallel.PRELOADED)
    return carry_out_jobs(options, planned(options))


def carry_out_jobs(options: Options, jobs: list[Job]) -> Launched:
    """Runs jobs that have been planned, as the options say."""
    check_loops(experiments_of(jobs))
    with store.patience(jobs[0].experiments[0].tracking.timeout):
        sweep_id, taken = resuming.prepare(jobs)
    for job in jobs:
        job.left = [e for e in job.experiments if e.config_hash not in taken]
    left = [job for job in jobs if job.left]
    began = int(time.time() * 1000)
    launcher_error = ""
    try:
        launcher = chosen("hydra/launcher", options.overrides) if options.multirun else "basic"
        if left and launcher in LAUNCHERS:
            _run_elsewhere(launcher, options, left, sweep_id)
        elif left and _in_processes(options, left):
            parallel.run(left, sweep_id)
        elif left:
            _run_jobs(options, left, sweep_id)
    except ConfigError:  # a launcher that is not there
        raise
    except StoreLostError:
        with suppress(Exception):  # closes the runs of processes that are no more
            records(experiments_of(jobs), sweep_id, began, wait=0)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(*_progress(jobs, sweep_id, began, len(taken))) from None
    except Terminated as stop:
        stop.progress = " ".join(_progress(jobs, sweep_id, began, len(taken)))
        raise
    except Exception as error:  # a launcher's own: a job keeps to itself what goes wrong in it
        if isinstance(error, OSError) and error.filename is not None:  # of Hydra's own files
            section = "sweep" if options.multirun else "run"
            raise ConfigError(f"hydra.{section}.dir: {error.filename}: cannot be written: {error.strerror}") from error
        launcher_error = reason(error)  # a process of it has died, or could not be started
    ended = records(experiments_of(jobs), sweep_id, began)
    for job in jobs:
        for experiment in job.left:
            # Of a store that is away the job itself tells: it came to its end, and all was sent.
            if ended.get(experiment.config_hash, Ended("")).status == "UNREAD":
                ended[experiment.config_hash] = Ended("MISSING" if job.reason or launcher_error else "FINISHED")
    lost = [e for e in experiments_of(jobs) if e.config_hash not in ended]
    lost = [e for e in lost if e.config_hash not in taken or taken[e.config_hash].running]
    if taken_since := resuming.taken_since_start(lost):
        taken |= taken_since
        resuming.record(jobs, sweep_id, taken)
    return Launched(sweep_id, jobs, ended, taken, launcher_error)


def planned(options: Options) -> list[Job]:
    """Every job with its experiments, all of them checked; raises ConfigError. Of many points it
    says how far it is.
    """
    overrides = options.overrides
    expanded = compose.points(overrides) if options.multirun else [overrides]
    return checked(expanded, [o for o in overrides if is_hydras(o)] if options.multirun else [])


def checked(expanded: list[list[str]], hydra_overrides: list[str]) -> list[Job]:
    """The job of each point; raises ConfigError."""
    jobs, seen = [], set()
    for point in _counted(expanded):
        job = Job(point, compose.experiments(hydra_overrides + point))
        for experiment in job.experiments:
            if experiment.config_hash in seen:
                raise ConfigError(f"{' '.join(point)}: this point is in the sweep twice, with seed {experiment.seed}")
            seen.add(experiment.config_hash)
            declarations.check(experiment)
        jobs.append(job)
    if len(jobs) > 1:
        values = Counter(override for job in jobs for override in job.overrides)
        for job in jobs:
            job.name = " ".join(o for o in job.overrides if values[o] < len(jobs))
    return jobs


def _counted(points: list[list[str]], seconds: float = 2.0) -> Iterator[list[str]]:
    """The points, with a bar on a terminal and a line now and then elsewhere once it takes longer
    than ``seconds``.
    """
    printed = time.monotonic()
    terminal = sys.stderr.isatty()
    bar = tqdm(points, "checking", unit="point", delay=seconds, leave=False, disable=not terminal)
    for index, point in enumerate(bar):
        if not terminal and time.monotonic() - printed > seconds:
            share = 100 * index // len(points)
            print(f"checking {len(points)} points: {share} %", file=sys.stderr, flush=True)
            printed, seconds = time.monotonic(), 10.0
        yield point


def _in_processes(options: Options, jobs: list[Job]) -> bool:
    """Do several jobs run at once in processes of gradpath's own? Not where another launcher of
    Hydra's has been chosen.
    """
    return chosen("hydra/launcher", options.overrides) == "basic" and parallel.processes(jobs) > 1


def _run_elsewhere(launcher: str, options: Options, jobs: list[Job], sweep_id: str) -> None:
    """Runs the jobs by a launcher of gradpath's own that needs an extra."""
    from gradpath.commands import ray_cluster, submitit_jobs

    ready = read([o for o in options.overrides if is_hydras(o)])
    settings = messages.explained(options.overrides, lambda: compose.trusted("config", ready)).hydra.launcher
    if launcher == "ray":
        ray_cluster.run(jobs, sweep_id, settings)
    else:
        submitit_jobs.run(jobs, sweep_id, settings, slurm=launcher == "submitit_slurm")


def _run_jobs(options: Options, jobs: list[Job], sweep_id: str) -> None:
    """Has Hydra run the jobs, and notes with each why it failed, as far as Hydra knows."""
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    from gradpath.commands.hydra_internals import Callbacks

    task = partial(_job, tuple(parallel.positions(jobs)) if options.multirun else ("",), sweep_id)
    with compose.hydra() as hydra:
        if not options.multirun:
            jobs[0].reason = hydra.run("config", task, [*read(jobs[0].arguments), "hydra.mode=RUN"]).return_value
            return
        base = [o for o in options.overrides if is_hydras(o) or is_study(o)]
        master = hydra.compose_config("config", [*base, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN, True)
        context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(context, task, master)
        size = master.hydra.sweeper.max_batch_size or len(jobs)
        results: list[Any] = []
        for first in range(0, len(jobs), size):
            results += launcher.launch([job.arguments for job in jobs[first : first + size]], first)
    for job, returned in zip(jobs, results, strict=False):
        # ``return_value`` would print Hydra's own words about a job that failed outside its task.
        value = returned._return_value
        job.reason = reason(value) if isinstance(value, BaseException) else str(value)


def _job(positions: tuple[str, ...], sweep_id: str, composed: DictConfig) -> str:
    """What Hydra calls, here or in another process: trains one point; returns why it failed, or
    nothing. ``positions``: where each job stands in the sweep.
    """
    from hydra.core.hydra_config import HydraConfig

    settle()  # also where a launcher runs this in a process of its own
    try:
        experiments: list[Experiment] = compose.build(composed).experiments()
        position = positions[HydraConfig.get().job.num if len(positions) > 1 else 0]
        execute_seeds(experiments, experiments[0].tracking.sweep_id or sweep_id, position, compose.jobs_at_once())
    except BaseException as error:  # the other points of a sweep still run, whatever a unit raises
        if ended := ending(error):
            raise ended from None
        if isinstance(error, store.StoreError):
            raise StoreLostError(str(error)) from None
        return reason(error)
    return ""


def _progress(jobs: Sequence[Job], sweep_id: str, began: int, skipped: int) -> list[str]:
    """What there is of a run or a sweep that was stopped; nothing where the store does not say."""
    time.sleep(0.5 if len(jobs) > 1 else 0)  # processes of a launcher are ending too
    try:
        ended = records(experiments_of(jobs), sweep_id, began, wait=PATIENCE_INTERRUPTED)
    except Exception:
        return []
    status = Counter(run.status for run in ended.values())
    unread = ", the others not known" * bool(status["UNREAD"])
    unsent = f", {status['UNSENT']} to be sent with: gradpath send" * bool(status["UNSENT"])
    runs = sum(len(job.experiments) for job in jobs)
    return [f"{skipped + status['FINISHED']} of {runs} runs finished{unsent}{unread}"]
