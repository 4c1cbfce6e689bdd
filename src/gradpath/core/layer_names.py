"""The one place that knows how a name carries its layer: ``layer1/W_fh`` in a stack, ``W_fh`` in a
single layer.
"""

import re


def prefix(layer: int, layers: int) -> str:
    """The prefix of the names of a layer; ``layer`` counts from 0."""
    return f"layer{layer + 1}/" if layers > 1 else ""


def split(name: str) -> tuple[int, str]:
    """(layer from 0, the name without its layer); 0 for the name in a single layer, or of the
    readout.
    """
    match = re.match(r"layer([1-9]\d*)/", name)
    return (int(match[1]) - 1, name[match.end() :]) if match else (0, name)
