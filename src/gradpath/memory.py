"""Memory that is freed stays with the process."""

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""As in glibc's malloc.h."""


def keep() -> None:
    """Lets the C library keep what NumPy frees for the next training step, which allocates the same again.

    By default glibc hands large pieces back to the kernel, which maps and clears them anew page by page: measured, a
    tenth to a third of the time of a step whose arrays are beyond a megabyte. Elsewhere than on glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(TRIM_THRESHOLD, 2**31 - 1)
    mallopt(MMAP_THRESHOLD, 2**25)  # the largest that it takes
