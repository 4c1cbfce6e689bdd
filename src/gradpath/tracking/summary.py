"""The numbers of a whole run by which people sort runs."""

from collections.abc import Iterator

import numpy as np

from gradpath.tracking.evidence import Readings, decades_over_sequence
from gradpath.training.experiment import Experiment


def summary(
    experiment: Experiment, readings: Readings, last: int, diverged_at: int | None
) -> Iterator[tuple[str, float, int]]:
    """(name, value, training step) of each number. ``decades_lost``: the decades that the gradient
    of the bottom layer's carrier (‖∂L/∂C_t‖ where the carrier is C) loses from the last scored step
    to the first step of the sequence; negative where it rises. Where the loss reads several steps,
    it is that of the last one's loss alone. ``reach_over_needed_lag``: the lag at which the adjoint
    has fallen to 1/e, divided by the longest lag of the task. Clipping: the share of finite steps
    at which it engaged, and its median factor at these steps; the step at which training blew up is
    counted separately.
    """
    needed = experiment.task.lags[1]
    if "reach" in readings and needed:
        _, steps, values = readings["reach"]
        yield "reach_over_needed_lag", float(values[-1][0]) / needed, steps[-1]
    if "state_grad_norm" in readings:
        titles = {0: "decades_lost_at_init", last: "decades_lost"}
        for step, lost in decades_over_sequence(readings, experiment.cell.roles).items():
            if step in titles:
                yield titles[step], lost, step
    yield "non_finite_steps", float(diverged_at is not None), last
    if "clip_scale" in readings and experiment.clip.label:
        _, steps, values = readings["clip_scale"]
        scales = np.array([float(v[0]) for step, v in zip(steps, values, strict=True) if step != diverged_at])
        if scales.size:
            yield "clipped_share", float((scales < 1).mean()), last
        if (scales < 1).any():
            yield "clip_scale_median", float(np.median(scales[scales < 1])), last
