"""Which points of a sweep are left to run: not those that have finished with the same code, nor
those that another command is running.
"""

import secrets
import sys
import time
from collections.abc import Iterable, Sequence

from gradpath.commands.conclusion import Job, experiments_of
from gradpath.schema.text import printable
from gradpath.tracking import plan, store
from gradpath.tracking.earlier import Earlier, earlier
from gradpath.tracking.ending import PATIENCE
from gradpath.tracking.outcomes import by_experiment
from gradpath.tracking.spooling import send_left
from gradpath.training.experiment import Experiment


def prepare(jobs: Sequence[Job]) -> tuple[str, dict[str, Earlier]]:
    """The sweep_id of a command, and of its runs those that need not be done again, by identity.
    Makes the MLflow experiments, marks runs in them that a kill has left open, stores the plan, and
    says what is skipped.
    """
    experiments = experiments_of(jobs)
    identities = {e.config_hash for e in experiments}
    taken: dict[str, Earlier] = {}
    reaped: set[str | None] = set()
    begun: list[tuple[str, dict[str, plan.Point]]] = []
    for (uri, name), members in by_experiment(experiments).items():
        client = store.connect(uri, timeout=members[0].tracking.timeout)
        if uri not in reaped and not store.is_local(uri):
            count, lines = send_left(client)
            lines += [f"sent now: {count} run{'s'[: count != 1]} of earlier commands"] * bool(count)
            print(*map(printable, lines), sep="\n", end="\n" * bool(lines), file=sys.stderr)
        experiment_id = store.experiment_id(client, name)  # once, before processes of a sweep could race for it
        if uri not in reaped:
            reaped.add(uri)
            for line in store.reap(client):
                print(printable(line), file=sys.stderr)
        if wanted := {e.config_hash for e in members if e.resume}:
            runs, sweep_ids, damaged = earlier(client, experiment_id, wanted)
            taken |= runs
            for name in damaged:
                print(f"found a finished run whose artifacts are damaged: {printable(name)}", file=sys.stderr)
            tags = client.get_experiment(experiment_id).tags if sweep_ids else {}
            begun += [(sweep_id, plan.read(tags, sweep_id)[0]) for sweep_id in sweep_ids]
    # The same command again, or with more points, goes on with the sweep that it began.
    continued = [(sweep_id, points) for sweep_id, points in begun if points and points.keys() <= identities]
    sweep_id, points = continued[0] if continued else (new_id(), dict[str, plan.Point]())
    stored = {(identity, point.run_id) for identity, point in points.items()}
    foreign = {(identity, run.run_id) for identity, run in taken.items() if run.sweep_id != sweep_id}
    if points.keys() != identities or not foreign <= stored or any(e.tracking.sweep_id for e in experiments):
        record(jobs, sweep_id, taken)
    _announce(len(experiments), taken.values())
    return sweep_id, taken


def new_id() -> str:
    """Of a sweep."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def record(jobs: Sequence[Job], sweep_id: str, taken: dict[str, Earlier]) -> None:
    """Stores the plan of a sweep, with the runs of others that stand for points of it."""
    shared = experiments_of(jobs)[0].tracking.sweep_id or sweep_id
    foreign = {identity: run.run_id for identity, run in taken.items() if run.sweep_id != shared}
    plan.record(((job.overrides, job.experiments) for job in jobs), sweep_id, foreign)


def taken_since_start(experiments: Iterable[Experiment]) -> dict[str, Earlier]:
    """Those that another command has computed, or is computing, since this one has begun."""
    runs: dict[str, Earlier] = {}
    for (uri, name), members in by_experiment(experiments).items():
        with store.patience(PATIENCE if store.is_local(uri) else members[0].tracking.timeout):
            client = store.connect(uri)
            identities = {e.config_hash for e in members if e.resume}
            if identities and (experiment := client.get_experiment_by_name(name)) is not None:
                runs |= earlier(client, experiment.experiment_id, identities)[0]
    return runs


def _announce(runs: int, taken: Iterable[Earlier]) -> None:
    """Says what is skipped, and how it is not."""
    running = sum(run.running for run in taken)
    finished = len([*taken]) - running
    if finished:
        print(
            f"skipped: {finished} of {runs} run{'s'[: runs != 1]}, finished before with the same code; "
            "resume=false runs all of them again",
            file=sys.stderr,
        )
    if running:
        print(f"skipped: {running} of {runs} run{'s'[: runs != 1]}, which another command is running", file=sys.stderr)
