"""What ``hydra/launcher=`` and ``hydra/sweeper=`` choose of gradpath's own: where the jobs of a
sweep run, and a search in place of every combination.

The names and keys are those of Hydra's plugins for Ray, submitit and Optuna, in whose place these
stand: ``docs/cluster.md`` and ``docs/search.md`` say why. Nothing here is called by Hydra, and a
plugin that is installed changes nothing.
"""

from dataclasses import dataclass, field

from hydra.core.config_store import ConfigStore


@dataclass
class RayInit:
    """How a command joins a Ray cluster."""

    address: str | None = None
    """``auto``, HOST:PORT, or null: $RAY_ADDRESS, else a cluster of this machine alone."""
    num_cpus: int | None = None
    """Of a cluster of this machine alone: its cores; null for all."""


@dataclass
class RayRemote:
    """What a job takes of a node."""

    num_cpus: int = 1
    memory: int | None = None
    resources: dict[str, float] = field(default_factory=dict)


@dataclass
class Ray:
    """Both, under the names of the plugin."""

    init: RayInit = field(default_factory=RayInit)
    remote: RayRemote = field(default_factory=RayRemote)


@dataclass
class RayLauncher:
    """``hydra/launcher=ray``."""

    ray: Ray = field(default_factory=Ray)


@dataclass
class SubmititLauncher:
    """``hydra/launcher=submitit``, and ``submitit_local``: submitit's local executor."""

    submitit_folder: str | None = None
    """Of submitit's files, with %j for the job; null for mlruns/submitit/%j."""
    timeout_min: int = 525_600


@dataclass
class SlurmLauncher:
    """``hydra/launcher=submitit_slurm``."""

    submitit_folder: str | None = None
    timeout_min: int = 60
    cpus_per_task: int = 1
    mem_gb: int | None = None
    name: str = "gradpath"
    partition: str | None = None
    qos: str | None = None
    account: str | None = None
    comment: str | None = None
    constraint: str | None = None
    exclude: str | None = None
    mem_per_cpu: str | None = None
    signal_delay_s: int = 120
    """Seconds before its end at which a job is told of it."""
    max_num_timeout: int = 0
    """How often a job that has reached its time limit goes on."""
    array_parallelism: int = 256
    """Jobs in the queue at once, at most."""


@dataclass
class Sampler:
    """Of a search."""

    name: str = "tpe"
    seed: int = 0
    n_startup_trials: int = 10
    """Trials at random before the first that depends on others."""


@dataclass
class OptunaSweeper:
    """``hydra/sweeper=optuna``."""

    n_trials: int = 20
    """Of the study as a whole."""
    n_jobs: int | None = None
    """Trials at once; null for as many as a sweep has."""
    objective: str = "test/loss"
    direction: str | None = None
    """minimize or maximize; null for the objective's own."""
    storage: str | None = None
    """URL of Optuna's storage; null for mlruns/optuna.db."""
    study_name: str | None = None
    sampler: Sampler = field(default_factory=Sampler)
    params: dict[str, str] | None = None
    max_batch_size: int | None = None


LAUNCHERS: dict[str, type] = {
    "ray": RayLauncher,
    "submitit": SubmititLauncher,
    "submitit_local": SubmititLauncher,
    "submitit_slurm": SlurmLauncher,
}
SEARCH = "optuna"


def store() -> None:
    """Makes them known to Hydra, after the plugins that are installed."""
    for name, node in LAUNCHERS.items():
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node)
    ConfigStore.instance().store(group="hydra/sweeper", name=SEARCH, node=OptunaSweeper)
