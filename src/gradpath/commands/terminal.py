"""Terminal output that never stops the work."""

import codecs
import contextlib
import io
import os
import select
import sys
import warnings
from typing import Any, TextIO

from gradpath.schema.text import escape

PLAIN = {"…": "...", "·": "-", "−": "-", "–": "-", "×": "x", "→": "->", "≥": ">=", "≤": "<=", "‖": "||", "∂": "d"}
"""Replacements for characters that an encoding does not have; other characters are written as
``\\u2207``.
"""


def settle() -> None:
    """Makes standard output and error safe to write to, for the rest of the process. Where the
    reader has gone (``| head -1``), the disk is full or a descriptor is closed, only the output is
    lost; a character that the encoding does not have is replaced. The exit status describes the
    work, not the output.
    """
    for descriptor in (0, 1, 2):  # a closed one (``>&-``) would be given to the next file opened: the database
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None or stream is getattr(sys, f"__{name}__"):  # a test or a notebook may have replaced the stream
            setattr(sys, name, tolerant(descriptor, stream))


def tolerant(descriptor: int, stream: TextIO | None = None) -> TextIO:
    """A text stream on a descriptor that drops output that cannot be written, in the encoding of
    ``stream``.
    """
    encoding, terminal = "utf-8", os.isatty(descriptor)
    if stream is not None:
        encoding = stream.encoding
        with contextlib.suppress(OSError):
            stream.flush()
        if isinstance(stream, io.TextIOWrapper) and terminal and os.name == "nt":  # Windows writes to its own console
            stream.reconfigure(errors="gradpath.plain")
            return stream
    buffered = io.BufferedWriter(_Dropping(descriptor, "w", closefd=False))
    lines = terminal or descriptor == 2
    return io.TextIOWrapper(buffered, encoding, "gradpath.plain", line_buffering=lines, write_through=descriptor == 2)


def in_notebook() -> bool:
    """Does this code run in the kernel of a notebook?"""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


def bar_class() -> Any:
    """tqdm, or in a notebook the class of tqdm that the notebook shows."""
    if in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets, the class is the plain bar
            from tqdm.auto import tqdm as notebook_bar
        return notebook_bar
    from tqdm import tqdm

    return tqdm


class _Dropping(io.FileIO):
    """A descriptor that accepts all output; the output that the system refuses is lost."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # a non-blocking descriptor that is full at the moment
                select.select([], [self], [])
        except OSError:
            return len(data)
        return written


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Codec error handler: the replacement for characters that an encoding does not have."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or escape(c) for c in lacking), error.end


codecs.register_error("gradpath.plain", _plain)
