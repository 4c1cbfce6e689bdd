"""The cells, a file each; what a cell must say is in :mod:`gradpath.core.cell`."""
