"""What is known of a run at its end only: the curves over the lag and the summary numbers."""

from gradpath.tracking.mlflow_metrics import lag_curves, non_finite_points, non_finite_readings
from gradpath.tracking.outbox import Outbox
from gradpath.tracking.readings import Readings
from gradpath.tracking.summary import summary
from gradpath.training.experiment import Experiment

TAG = 4000
"""Characters of a tag that every MLflow store takes."""


def conclude(experiment: Experiment, readings: Readings, outbox: Outbox) -> None:
    """Puts into the outbox what the readings come to, and which of it is no finite number."""
    series, diverged_at = readings.series, readings.diverged_at
    points, zeros = lag_curves(experiment, series, diverged_at)
    for point in points:
        outbox.point(*point)
    if zeros:
        outbox.tag("true_zeros", "; ".join(f"{key}: {text}" for key, text in zeros.items())[:TAG])
    if non_finite := non_finite_points(outbox.left_out) | non_finite_readings(experiment, series):
        outbox.tag("not_finite", "; ".join(f"{key}: {text}" for key, text in non_finite.items())[:TAG])
    for name, value, step in summary(experiment, series, readings.last_step, diverged_at):
        outbox.point(f"summary/{name}", value, step)
