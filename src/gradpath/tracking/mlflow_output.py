"""Suppresses the output of MLflow and the libraries below it."""

import logging
import os
import sys
import warnings

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment variables that MLflow reads when it is imported, or before it prints."""


def silence() -> None:
    """Switches off MLflow's telemetry and its own lines on the terminal, unless the user asks for
    them by ``MLFLOW_LOGGING_LEVEL``.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "mlflow" in sys.modules and "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for noisy in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=r"mlflow\.")
