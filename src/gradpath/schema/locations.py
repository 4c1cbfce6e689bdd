"""Where things are: results, the folder conf/, and folders with names from outside."""

import hashlib
import os
import unicodedata
from pathlib import Path

from gradpath.schema.settings import ConfigError

LONGEST_NAME = 120
"""Bytes of a folder's name that is derived from an experiment's, half of what file systems take."""
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")}
"""Names that Windows keeps for devices, also with something after a dot."""


def home() -> Path:
    """The folder of results: ``$GRADPATH_HOME``, else the checkout gradpath runs from, else the
    working folder. Raises ConfigError where there is none.
    """
    chosen = os.environ.get("GRADPATH_HOME")
    if not chosen:
        return checkout() or _working_folder()
    try:
        folder = Path(chosen).expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"GRADPATH_HOME={chosen}: is not a folder")
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user, a link that leads in a circle
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"GRADPATH_HOME={chosen}: {reason}") from None
    return folder


def keep_home() -> None:
    """Lets the folder of results stay the same, whatever working folder the program, or a process
    that it starts, changes to. Raises ConfigError where there is no working folder.
    """
    _working_folder()  # Hydra needs one too
    os.environ["GRADPATH_HOME"] = str(home())


def _working_folder() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise ConfigError(f"the working folder: {error.strerror}; go to another") from None


def checkout() -> Path | None:
    """The root of the source tree, where there is one."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").exists() and (root / "conf").is_dir() else None


def conf() -> Path:
    """The folder of YAML files: ``conf/`` of the checkout, or the copy inside the installed
    package.
    """
    root = checkout()
    return root / "conf" if root else Path(__file__).resolve().parents[1] / "conf"


def database() -> Path:
    """The project's own MLflow database; its artifacts lie beside it."""
    return home() / "mlruns" / "mlflow.db"


def figures(experiment: str | None = None) -> Path:
    """Where the report writes its figures: all of them, or those of an MLflow experiment."""
    folder = home() / "reports" / "figures"
    return folder if experiment is None else folder / folder_name(experiment)


def folder_name(name: str) -> str:
    """A name as that of one folder, on every system: as it is where it is harmless; else what is
    harmless of it and ``~`` with a digest, so that no two names share a folder.
    """
    composed = unicodedata.normalize("NFC", name)
    safe = "".join(c if c.isalnum() or c in " ._-" else "_" for c in composed)
    safe = safe.encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .")
    if safe and safe == name and safe.partition(".")[0].rstrip().upper() not in RESERVED:
        return safe
    return f"{safe or '_'}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def unsent() -> Path:
    """Where the measurements of a run lie that its store did not take."""
    return home() / "unsent"
