"""MLflow: the records that gradpath writes, their reading, and the verdict on a run."""
