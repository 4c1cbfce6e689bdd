"""Imported before processes are forked: all that a figure needs of its libraries, once for all of
them.
"""

import seaborn  # noqa: F401
from matplotlib import pyplot  # noqa: F401
from matplotlib.backends import backend_agg, backend_svg  # noqa: F401
