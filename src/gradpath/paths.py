"""Where things are, whatever the working directory."""

import os
from pathlib import Path


def home() -> Path:
    """The folder of results: ``$GRADPATH_HOME``, else the checkout gradpath runs from, else ``~/gradpath``."""
    if chosen := os.environ.get("GRADPATH_HOME"):
        return Path(chosen).expanduser().resolve()
    return checkout() or Path.home() / "gradpath"


def checkout() -> Path | None:
    """The root of the source tree, where there is one."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "conf").is_dir() else None


def conf() -> Path:
    """The folder of YAML files: ``conf/`` of the checkout, or the copy inside the installed package."""
    root = checkout()
    return root / "conf" if root else Path(__file__).resolve().parent / "conf"


def database() -> Path:
    """The project's own MLflow database; its artifacts lie beside it."""
    return home() / "mlruns" / "mlflow.db"


def figures() -> Path:
    """Where the report writes its figures."""
    return home() / "reports" / "figures"


def unsent() -> Path:
    """Where the measurements of a run lie that its store did not take."""
    return home() / "unsent"
