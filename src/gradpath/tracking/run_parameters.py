"""The MLflow parameters of a run, by which people group and filter runs."""

from dataclasses import asdict
from typing import Any

from gradpath.schema.discovery import unit_name
from gradpath.training.experiment import Experiment


def run_parameters(e: Experiment) -> dict[str, Any]:
    """The parameters by name; a setting of the cell or of the task keeps its name."""
    parameters: dict[str, Any] = {
        "arm": e.arm,
        "cell": unit_name(e.cell),
        "task": unit_name(e.task),
        "T": e.task.length,
    }
    parameters |= {"seed": e.seed} | asdict(e.clip)
    for unit in (e.cell, e.task):
        parameters |= {key: value for key, value in asdict(unit).items() if key != "length"}
    parameters |= {"init": unit_name(e.init), "gain": e.init.gain, "optimizer": unit_name(e.optimizer)}
    parameters |= {"lr": e.optimizer.lr, "batch_size": e.train.batch_size, "steps": e.train.steps}
    parameters["dtype"] = e.train.dtype.name
    return parameters
