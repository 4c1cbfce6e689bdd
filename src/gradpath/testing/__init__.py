"""Contract tests: the properties of a unit on which gradpath relies, as test classes to subclass.

A repository with its own units tests them in a module of pytest::

    from pathlib import Path
    from gradpath.testing import CellContract

    class TestPeephole(CellContract):
        name = "peephole"
        plugin = Path(__file__).parents[1]  # not needed where an installed package has the unit

gradpath's units pass the same classes. Nothing else of gradpath needs pytest.
"""

try:
    import pytest
except ImportError:
    raise ImportError("gradpath.testing needs pytest: pip install 'gradpath[testing]'") from None

for module in ("_unit", "cell", "clipping", "figure", "init", "instrument", "optimizer", "task"):
    pytest.register_assert_rewrite(f"{__name__}.{module}")

from gradpath.testing.cell import CellContract  # noqa: E402
from gradpath.testing.clipping import ClippingContract  # noqa: E402
from gradpath.testing.figure import FigureContract  # noqa: E402
from gradpath.testing.init import InitContract  # noqa: E402
from gradpath.testing.instrument import InstrumentContract  # noqa: E402
from gradpath.testing.optimizer import OptimizerContract  # noqa: E402
from gradpath.testing.task import TaskContract  # noqa: E402

__all__ = [
    "CellContract",
    "ClippingContract",
    "FigureContract",
    "InitContract",
    "InstrumentContract",
    "OptimizerContract",
    "TaskContract",
]
