"""The locations of results and of the folder conf/, and safe names of folders."""

import hashlib
import os
import unicodedata
from pathlib import Path

from gradpath.schema.settings import ConfigError

LONGEST_NAME = 120
"""Largest number of bytes of a folder's name that is derived from an experiment's name, half of
what file systems allow.
"""
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")}
"""Names that Windows reserves for devices, with or without an extension."""


def home() -> Path:
    """The folder of results: ``$GRADPATH_HOME``, else the checkout from which gradpath runs, else
    the working folder. Raises ConfigError where there is none.
    """
    chosen = os.environ.get("GRADPATH_HOME")
    if not chosen:
        return checkout() or _working_folder()
    try:
        folder = Path(chosen).expanduser().resolve()
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"GRADPATH_HOME={chosen}: is not a folder")
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user, a circular link
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"GRADPATH_HOME={chosen}: {reason}") from None
    return folder


def keep_home() -> None:
    """Fixes the folder of results, so that it stays the same when the program, or a process that it
    starts, changes the working folder. Raises ConfigError where there is no working folder.
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
    """The folder into which the report writes its figures: of all experiments, or of one."""
    folder = home() / "reports" / "figures"
    return folder if experiment is None else folder / folder_name(experiment)


def folder_name(name: str) -> str:
    """A name as that of one folder, on every system: unchanged where it is safe; otherwise its safe
    characters and ``~`` with a digest, so that no two names share a folder.
    """
    composed = unicodedata.normalize("NFC", name)
    safe = "".join(c if c.isalnum() or c in " ._-" else "_" for c in composed)
    safe = safe.encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .")
    if safe and safe == name and safe.partition(".")[0].rstrip().upper() not in RESERVED:
        return safe
    return f"{safe or '_'}~{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:12]}"


def unsent() -> Path:
    """The folder for the measurements of runs that their store did not accept."""
    return home() / "unsent"


def spool() -> Path:
    """The folder for the journals of runs that their store does not have in full."""
    return home() / "spool"
