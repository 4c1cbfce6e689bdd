"""The cells, a file each; what a cell must say is in :mod:`gradpath.core.cell`."""

from gradpath.core.cell import Cell
from gradpath.schema.namespace import unit_attributes

__getattr__, __dir__ = unit_attributes(Cell)
