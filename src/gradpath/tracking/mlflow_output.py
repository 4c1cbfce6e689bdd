"""What MLflow and the libraries below it say by themselves."""

import logging
import os
import sys
import warnings

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""What MLflow reads of the environment when it is imported, or when it is about to print."""


def silence() -> None:
    """Keeps MLflow from telemetry, and its own lines off the terminal; a library that a user has
    asked to speak, by ``MLFLOW_LOGGING_LEVEL``, does.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if "mlflow" in sys.modules and "MLFLOW_LOGGING_LEVEL" not in os.environ:
        for noisy in ("mlflow", "alembic", "sqlalchemy", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL + 1)
        warnings.filterwarnings("ignore", module=r"mlflow\.")
