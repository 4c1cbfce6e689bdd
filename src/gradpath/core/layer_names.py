"""The one place that knows how a name carries its layer: ``layer1/W_fh`` in a stack, ``W_fh`` in a
single layer.
"""

import re


def prefix(layer: int, layers: int) -> str:
    """What the names of a layer begin with; ``layer`` counts from 0."""
    return f"layer{layer + 1}/" if layers > 1 else ""


def split(name: str) -> tuple[int, str]:
    """(layer from 0, the name without it); 0 for the name of a single layer, or of the readout."""
    found = re.match(r"layer([1-9]\d*)/", name)
    return (int(found[1]) - 1, name[found.end() :]) if found else (0, name)
