"""One finished run, read back from its record and its artifacts in MLflow, and checked."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradpath.core.roles import Roles
from gradpath.schema.text import printable
from gradpath.tracking import artifact, declarations, store
from gradpath.tracking.artifact import Measurements
from gradpath.tracking.decoding import DamagedError, is_archive
from gradpath.tracking.verdict import ORDER, Verdict

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun


@dataclass(frozen=True)
class _Identity:
    run_id: str
    name: str
    arm: str
    config: dict[str, Any]
    tags: dict[str, str]


@dataclass(frozen=True)
class Run(Measurements, _Identity):
    """A finished run: its identity, its resolved configuration, and all its measurements. All its
    text is printable, whatever the store holds.
    """

    # A dataclass takes the fields of its last base first: the identity, then the measurements.
    chance_loss: float
    longest_lag: int
    roles: Roles
    """The declarations of the cell: its parameters' roles, its carrier, the carrier's factor and
    its drawing.
    """

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def diverged_at(self) -> int | None:
        """The training step at which loss or gradient stopped being finite."""
        step = self.tags.get("diverged_at_step")
        return int(step) if step is not None else None

    @property
    def config_hash(self) -> str:
        """Identity of the point: equal for equal resolved configurations."""
        return self.tags["config_hash"]

    @property
    def verdict(self) -> Verdict:
        """The recorded verdict; ``unknown`` where there is none."""
        word = self.tags.get("verdict", "unknown")
        if word not in ORDER:
            return Verdict("unknown", f"its tag verdict holds {printable(word, 40)}, no verdict of this gradpath")
        return Verdict(word, self.tags.get("verdict_reason", "recorded without a verdict"))


def read_run(client: "MlflowClient", run: "MlflowRun", point: str) -> Run:
    """A finished run of gradpath, checked; raises DamagedError."""
    tags = {printable(key): printable(value, 8000) for key, value in run.data.tags.items()}
    arm = run.data.params.get("arm") or run.data.tags.get("arm")
    if not arm:
        raise DamagedError("it has no parameter arm")
    step = tags.get("diverged_at_step")
    if step is not None and not re.fullmatch(r"[0-9]{1,15}", step):
        raise DamagedError(f"its tag diverged_at_step is {printable(step, 40)}, no step of training")
    with artifact_file(client, run, store.ARTIFACT) as path:
        measurements = artifact.measurements(path)
    with artifact_file(client, run, "config.yaml") as path:
        config = artifact.configuration(path, point)
    chance_loss, longest_lag = measurements.chance_loss, measurements.longest_lag
    if chance_loss is None or longest_lag is None:
        try:
            chance_loss, longest_lag = declarations.from_task(config["task"])
        except Exception as error:  # the task is not installed, or does not take these settings
            raise DamagedError(f"its task has no longest lag: {printable(error, 200)}") from None
    roles = measurements.roles
    if roles is None:
        try:
            readings = {name: series.names for name, series in measurements.series.items()}
            roles = declarations.from_configuration(config["cell"], readings)
        except Exception as error:  # a fault in a cell's code, or settings that it does not take
            raise DamagedError(f"its cell has no roles: {printable(error, 200)}") from None
    state_norms = measurements.series.get("state_grad_norm")
    if roles.layers != config["cell"]["layers"] or (state_norms and roles.bottom_carrier not in state_norms.names):
        raise DamagedError("its roles are those of another cell")
    derived = {"chance_loss": chance_loss, "longest_lag": longest_lag, "roles": roles}
    return Run(run.info.run_id, run_name(run), printable(arm, 120), config, tags, **vars(measurements) | derived)


def run_name(run: "MlflowRun") -> str:
    return printable(run.info.run_name or "without a name", 120)


@contextmanager
def artifact_file(client: "MlflowClient", run: "MlflowRun", name: str) -> Iterator[Path]:
    """A local path to an artifact: its own path where it lies on this machine, even if the store
    has moved since; otherwise a copy that exists while it is read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = _local(client, run, name)
        if path is not None and not path.is_file():  # nor a device, whose copy would never end
            raise DamagedError(f"artifact {name} is not a file")
        if path is None:
            try:
                path = Path(client.download_artifacts(run.info.run_id, name, scratch))
            except store.UnreachableError:
                raise
            except Exception as error:  # of MLflow, of the disk, of a cloud's client
                message = str(error).strip().split("\n")[0]
                raise DamagedError(f"no artifact {name}: {printable(message, 200)}") from error
        yield path


def is_readable(client: "MlflowClient", run: "MlflowRun") -> bool:
    """Can a finished run be reported, as far as a look at the files on this machine tells? Of a run
    whose artifacts are elsewhere nothing is asked.
    """
    if store.local_path(run.info.artifact_uri or "") is None:
        return True
    archive, config = (_local(client, run, name) for name in (store.ARTIFACT, "config.yaml"))
    return archive is not None and is_archive(archive) and config is not None and config.stat().st_size > 0


def _local(client: "MlflowClient", run: "MlflowRun", name: str) -> Path | None:
    """Where an artifact lies on this machine, if it does."""
    folder = store.local_path(run.info.artifact_uri or "")  # None for the storage of another machine (s3://…)
    paths = [folder / name] if folder else []
    if file := store.sqlite_file(client.tracking_uri):
        paths.append(file.parent / "artifacts" / run.info.run_id / "artifacts" / name)
    return next((path for path in paths if _exists(path)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a path with NUL, or too long
        return False
