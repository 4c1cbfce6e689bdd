"""The study of a search, which Optuna keeps in a file."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradpath.commands import resuming
from gradpath.commands.objective import Objective
from gradpath.commands.search_space import Space
from gradpath.schema import locations
from gradpath.schema.settings import ConfigError, fingerprint
from gradpath.schema.text import one_line
from gradpath.tracking import store_uri
from gradpath.tracking.provenance import source_tags

UNCHANGING = ("jobs=", "resume=", "train.threads=", "train.checkpoint_every=")
"""Overrides that make no study another one."""
SWEEP_ID = "sweep_id"
"""What a study holds of ours."""


def imported() -> Any:
    """Optuna; raises ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("hydra/sweeper=optuna: needs Optuna: pip install 'gradpath[optuna]'") from None
    if int(optuna.__version__.partition(".")[0]) < 4:  # as hydra-optuna-sweeper has it installed
        raise ConfigError(
            f"hydra/sweeper=optuna: needs Optuna from 4.5 on, and this is {optuna.__version__}: "
            "pip install 'gradpath[optuna]'"
        )
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def identity_of(space: Space, objective: Objective, settings: Any) -> str:
    """Of a study: what is searched, for what, how and by which code."""
    fixed = [o for o in space.fixed if not o.startswith(UNCHANGING)]
    sampler = [settings.sampler.name, settings.sampler.seed, settings.sampler.n_startup_trials]
    description = {"fixed": fixed, "space": space.described(), "objective": [objective.name, objective.sign]}
    return fingerprint({**description, "sampler": sampler, **source_tags()})


def opened(optuna: Any, name: str, space: Space, objective: Objective, settings: Any, resume: bool) -> Any:
    """The study of that name, a new one with ``resume=false``; raises ConfigError where the name is
    that of another search.
    """
    if settings.sampler.name not in ("tpe", "random"):
        raise ConfigError(f"hydra.sweeper.sampler.name={settings.sampler.name}: must be tpe or random")
    for key, least in (("n_trials", 1), ("n_jobs", 1)):
        if settings[key] is not None and settings[key] < least:
            raise ConfigError(f"hydra.sweeper.{key}={settings[key]}: must be at least {least}")
    file = locations.home() / "mlruns" / "optuna.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    identity = identity_of(space, objective, settings)
    direction = "minimize" if objective.sign > 0 else "maximize"
    try:
        storage = optuna.storages.RDBStorage(settings.storage or store_uri.sqlite_uri(file))
        if not resume and name in optuna.study.get_all_study_names(storage):
            optuna.delete_study(study_name=name, storage=storage)
        study = optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
        if study.user_attrs.setdefault("identity", identity) != identity:
            raise ConfigError(f"hydra.sweeper.study_name={name}: is the name of another search, or of other code's")
        study.set_user_attr("identity", identity)
        if SWEEP_ID not in study.user_attrs:
            study.set_user_attr(SWEEP_ID, resuming.new_id())
    except ConfigError:
        raise
    except Exception as error:  # of Optuna, SQLAlchemy, a database's driver
        origin = f"hydra.sweeper.storage={store_uri.masked(settings.storage or str(file))}"
        raise ConfigError(f"{origin}: {one_line(store_uri.masked(str(error)))}") from error
    return study


@contextmanager
def locked(name: str) -> Iterator[None]:
    """One command at a search at a time; raises ConfigError in the second."""
    from filelock import FileLock, Timeout

    folder = locations.home() / "mlruns"
    os.makedirs(folder, exist_ok=True)
    lock = FileLock(folder / f"{locations.folder_name(name)}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"hydra/sweeper=optuna: another command is at this search, {name}") from None
    try:
        yield
    finally:
        lock.release()
