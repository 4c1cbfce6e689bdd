"""Imported before processes are forked: all that a run needs of MLflow, once for all of them."""

from gradpath.tracking import provenance, store

store.import_mlflow()

import mlflow.artifacts  # noqa: E402 - it must come after
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401

provenance.machine()
