"""Where things are, whatever the working directory."""

import hashlib
import os
import unicodedata
from pathlib import Path

LONGEST_NAME = 120
"""Bytes of a folder's name that is derived from an experiment's, half of what file systems take."""
RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "0123456789¹²³")}
"""Names that Windows keeps for devices, also with something after a dot."""


def home() -> Path:
    """The folder of results: ``$GRADPATH_HOME``, else the checkout gradpath runs from, else
    ``~/gradpath``.
    """
    if chosen := os.environ.get("GRADPATH_HOME"):
        return Path(chosen).expanduser().resolve()
    return checkout() or Path.home() / "gradpath"


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
