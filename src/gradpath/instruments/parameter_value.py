"""The values of the parameters during training."""

from dataclasses import dataclass

from gradpath.core.network import Network
from gradpath.core.trace import Measurement, Trace
from gradpath.instruments import Instrument, few_parameters


@dataclass
class ParameterValue(Instrument):
    """Every element of θ, for networks that are small enough to follow each element: ``W_hh`` of
    one unit, ``W_hh[0,1]`` of several. (names,), before the step's update.
    """

    per_timestep = False

    def check(self, network: Network) -> None:
        few_parameters(network)

    def measure(self, network: Network, trace: Trace) -> Measurement:
        return Measurement(network.elements, trace.tape.theta.astype(float))

    def metric(self, name: str) -> str | None:
        return None if "[" in name else f"parameters/{name}"
