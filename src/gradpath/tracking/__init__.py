"""MLflow: what is written into it, what is read back, and the verdict on a run."""
