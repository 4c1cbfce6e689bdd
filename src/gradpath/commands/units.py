"""The groups of units in a configuration: for each a folder of conf/, a package of gradpath and a
base class.
"""

from gradpath.clippings import Clipping
from gradpath.core.cell import Cell
from gradpath.figures import Figure
from gradpath.inits import Init
from gradpath.instruments import Instrument
from gradpath.optimizers import Optimizer
from gradpath.tasks import Task

GROUPS: dict[str, type] = {
    "task": Task,
    "cell": Cell,
    "init": Init,
    "optimizer": Optimizer,
    "clip": Clipping,
    "instruments": Instrument,
    "figures": Figure,
}
SEVERAL = ("instruments", "figures")
"""The groups from which a configuration chooses several units."""
PRESETS = ("arm", "experiment")
"""The groups of YAML files that set keys of other sections."""
CHOSEN = (*GROUPS, *PRESETS, "tracking")


def group_of(path: str) -> str:
    """The group to which a configuration file belongs, if any."""
    return next((group for group in CHOSEN if path == group or path.startswith(group + "/")), "")
