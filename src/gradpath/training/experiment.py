"""What one run is: a cell, a task, how it is trained, and what is read of it."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

import numpy as np

from gradpath.clippings import Clipping
from gradpath.core.cell import Cell
from gradpath.core.network import Network
from gradpath.inits import Init
from gradpath.instruments import Instrument
from gradpath.optimizers import Optimizer
from gradpath.schema.discovery import unit_name
from gradpath.schema.settings import SettingError, Settings, fingerprint, setting
from gradpath.tasks import Task
from gradpath.training import passes
from gradpath.training.checked_task import check_task

MISSING: Any = "???"
"""What a unit is before the configuration names one."""
UNRESOLVED = ("tracking", "jobs", "resume")
"""Keys of an experiment that do not change what is computed."""


class Dtype(Enum):
    """The floating-point type of training."""

    float32 = "float32"
    float64 = "float64"

    @property
    def numpy(self) -> type[np.floating]:
        return np.float32 if self is Dtype.float32 else np.float64


@dataclass
class Train(Settings):
    """How long, on how much, in which precision."""

    steps: int = setting(1000, "updates; 0 measures the initialisation only", ge=0)
    batch_size: int = setting(32, "B, sequences of a minibatch", ge=1, le=1_000_000)
    dtype: Dtype = setting(Dtype.float32, "float32, or float64 (2–4.5 times slower)")
    readout: bool = setting(True, "train the readout W_hy, b_y; false holds it, and clipping sees the rest alone")
    eval_every: int | None = setting(None, "evaluate every n steps; null for only after training", ge=1)
    eval_size: int = setting(2000, "sequences of the evaluation set", ge=1, le=1_000_000)
    checkpoint_every: int | None = setting(
        None, "store a checkpoint every n steps, from which a run that was killed goes on; null for none", ge=1
    )
    threads: int | None = setting(None, "threads at most, for seeds or parts of a minibatch; null for two", ge=1)


LONGEST_NAME = 200
"""Bytes: a folder of the report bears the name, and file systems take 255; MLflow's own column is
256 characters.
"""


@dataclass
class Tracking(Settings):
    """Where results go. None of it changes what is computed."""

    uri: str | None = setting(
        None, "MLflow tracking URI; null for $MLFLOW_TRACKING_URI, else the project's own SQLite database"
    )
    experiment: str = setting("gradpath", "MLflow experiment, and folder of the report's figures")
    sweep_id: str | None = setting(None, "tag that runs of one sweep share; null for a new one")
    timeout: float = setting(15.0, "seconds to wait for a store that does not answer", gt=0, le=86400)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("experiment", "sweep_id"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[\w .-]*\w[\w .-]*", value):
                raise SettingError(name, value, "letters, digits, spaces, _ . or -")
            if value is not None and len(value.encode()) > LONGEST_NAME:
                raise SettingError(name, value, f"at most {LONGEST_NAME} bytes long, in UTF-8")


@dataclass
class Experiment(Settings):
    """One point of a sweep, resolved and checked."""

    task: Task = MISSING
    cell: Cell = MISSING
    init: Init = MISSING
    optimizer: Optimizer = MISSING
    clip: Clipping = MISSING
    instruments: dict[str, Instrument] = field(default_factory=dict)
    train: Train = field(default_factory=Train)
    tracking: Tracking = field(default_factory=Tracking)
    seed: int = setting(0, "seed of the three streams: initialisation, data, evaluation", ge=0)
    jobs: int | None = setting(None, "runs of a sweep at once, in processes of their own; null for one a core", ge=1)
    resume: bool = setting(True, "skip runs that have finished with the same code; false runs all of them again")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_task(self.task)
        network = self.network
        _ = network.layout  # which refuses parameters of one name
        for name, instrument in self.instruments.items():
            try:
                instrument.check(network)
            except SettingError as error:
                raise SettingError(f"instruments.{name}.{error.name}", error.value, error.allowed) from None

    @property
    def network(self) -> Network:
        """What is trained."""
        sizes, cell = self.task.sizes, self.cell
        return Network(cell, *sizes, self.task.loss, layers=cell.layers, initial_state=cell.initial_state)

    def resolved(self) -> dict[str, Any]:
        """Everything that determines the numbers, as plain values, each unit with the name it was
        chosen by.
        """
        tree = {key: value for key, value in asdict(self, dict_factory=_plain).items() if key not in UNRESOLVED}
        for key in ("threads", "checkpoint_every"):
            del tree["train"][key]
        tree["train"]["partitioned"] = self.partitioned
        for key in ("task", "cell", "init", "optimizer", "clip"):
            tree[key] = {"name": unit_name(getattr(self, key))} | tree[key]
        return tree

    @property
    def partitioned(self) -> bool:
        """Is a pass cut in two parts, whose number of threads does not matter? It decides the last
        bits, and of ``train.threads`` nothing else does.
        """
        network, timesteps, settings = self.network, self.task.timesteps, self.train
        evaluated = passes.evaluated_at_once(network, timesteps)
        held_out = {min(evaluated, settings.eval_size), settings.eval_size % evaluated} - {0}
        return passes.splits_large_passes(settings.threads) and (
            passes.cut(network, timesteps, settings.batch_size, backward=True)
            or any(passes.cut(network, timesteps, size, backward=False) for size in held_out)
        )

    @property
    def config_hash(self) -> str:
        """Identity of the run: equal for equal resolved configurations."""
        return fingerprint(self.resolved())

    @property
    def arm(self) -> str:
        """Cell × clipping, read off the configuration: ``clipped_rnn``, ``lstm``,
        ``lstm_no_input_gate``.
        """
        return "_".join(word for word in (self.clip.label, unit_name(self.cell), self.cell.variant) if word)

    @property
    def title(self) -> str:
        """``lstm · adding T=100``: the name of a run without its seed."""
        return f"{self.arm} · {unit_name(self.task)} T={self.task.length}"

    @property
    def run_name(self) -> str:
        """``lstm · adding T=100 · seed 3``."""
        return f"{self.title} · seed {self.seed}"


LARGEST_SEED = 2**63 - 1
"""What the stored record of a run holds."""
MOST_SEEDS = 1000
"""Of one vectorised run, whose memory grows with them."""
SEEDS = f"an integer ≥ 0, a range 0..15 or a list [0,3,7], each seed once and below 2^63, at most {MOST_SEEDS}"


@dataclass
class Replicates(Experiment):
    """An experiment as a user writes it: with one seed or with several,
    ``0..15`` or ``[0, 3, 7]``.
    """

    seed: Any = field(
        default=0,
        metadata={
            "help": "seed of the three streams: initialisation, data, evaluation; several are trained side by side",
            "takes": SEEDS,
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        seeds = self._seeds()
        natural = 0 < len(seeds) <= MOST_SEEDS and all(
            type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds
        )
        if not natural or len(set(seeds)) < len(seeds):
            raise SettingError("seed", self.seed, SEEDS)

    def experiments(self) -> list[Experiment]:
        """One experiment a seed."""
        return [Experiment(**vars(self) | {"seed": seed}) for seed in self._seeds()]

    def _seeds(self) -> Sequence[Any]:
        if isinstance(self.seed, str) and (ends := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})", self.seed)):
            return range(int(ends[1]), int(ends[2]) + 1)
        return self.seed if isinstance(self.seed, list) else [self.seed]


def _plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value.name if isinstance(value, Enum) else value for key, value in items}
