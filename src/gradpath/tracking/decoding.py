"""Decodes the files of a store, which may come from anybody: no byte of them is trusted.

Contents other than plain arrays, or plain YAML, raise one ``DamagedError`` that says what is wrong
with the file.
"""

import io
import math
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from gradpath.schema.text import printable

LARGEST_ARRAYS = 2 << 30
"""Largest number of bytes of ``measurements.npz`` that are read. gradpath stores the arrays
uncompressed, so that a file is never larger in memory.
"""
LARGEST_CONFIG = 200_000
"""Largest number of bytes of ``config.yaml``; a real one has 3 000."""
INTEGER, NUMBER, TEXT = "iu", "iufb", "U"
"""Kinds of NumPy dtypes."""


class DamagedError(Exception):
    """An artifact is not of gradpath's form; the message says in a few words what is wrong."""


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Turns any exception into a DamagedError, because decoders raise exceptions of many kinds at a
    hostile file (struct.error, RecursionError, MemoryError, …).
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except DamagedError as error:
        raise DamagedError(f"damaged artifact: {name} {error}") from None
    except Exception as error:
        raise DamagedError(f"damaged artifact: {name} cannot be read: {_error_text(error)}") from error


def _error_text(error: Exception) -> str:
    message = str(error).strip().split("\n")[0]
    return printable(f"{type(error).__name__}: {message}" if message else type(error).__name__, 200)


def plain_yaml(path: Path) -> Any:
    """The contents of a YAML file as dicts with text keys, lists, text, numbers, booleans and None,
    with all text made printable; raises DamagedError.
    """
    with path.open("rb") as file:
        content = file.read(LARGEST_CONFIG + 1)
    if len(content) > LARGEST_CONFIG:
        raise DamagedError(f"is larger than {LARGEST_CONFIG} bytes")
    return _plain(yaml.load(content.decode(), _Loader), "")


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML without aliases: gradpath writes none, and a few lines of aliases can expand to any
    size.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise DamagedError("holds a YAML alias")
        return super().compose_node(parent, index)


def _plain(value: Any, key: str) -> Any:
    if isinstance(value, dict):
        if unfit := next((k for k in value if not isinstance(k, str)), None):
            raise DamagedError(f"has the key {printable(unfit, 40)}, no text")
        return {printable(k): _plain(v, f"{key}.{k}") for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(item, key) for item in value]
    if isinstance(value, str):
        return printable(value, LARGEST_CONFIG)
    if value is None or isinstance(value, bool | int | float):
        return value
    raise DamagedError(f"holds a {type(value).__name__} at {printable(key[1:], 80)}")


def arrays_of(path: Path) -> dict[str, NDArray]:
    """The arrays of an npz. Each header is compared with the size of the file before memory is
    allocated, since a header of 80 bytes can declare an exabyte.
    """
    if path.stat().st_size > LARGEST_ARRAYS:
        raise DamagedError(f"is larger than {LARGEST_ARRAYS >> 30} GiB")
    arrays: dict[str, NDArray] = {}
    with _Listed(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
        file.largest = LARGEST_ARRAYS
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise DamagedError("is compressed, which gradpath's are not")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise DamagedError("declares more than it holds")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise DamagedError(f"holds {printable(name, 80)} twice")
            arrays[name] = _array(archive, member)
    return arrays


def is_archive(path: Path) -> bool:
    """Is a file an npz to its end? A look at its list of members, which stands there, tells; their
    bytes are not read.
    """
    try:
        with _Listed(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            return sum(member.file_size for member in archive.infolist()) < path.stat().st_size
    except Exception:  # what zipfile raises at nonsense has no end
        return False


class _Listed(io.BufferedReader):
    """A file whose list of members must be short: ``zipfile`` keeps 500 bytes in memory for every
    46 bytes of the list.
    """

    largest = 1 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.largest:
            raise DamagedError("lists more arrays than gradpath writes")
        return super().read(size)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray:
    name = printable(member.filename, 80)
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise DamagedError(f"holds {name} in a format that gradpath does not write")
        if dtype.kind not in NUMBER + TEXT:
            raise DamagedError(f"holds {name} of dtype {printable(dtype, 80)}")
        content = file.read()
    if any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(content):
        raise DamagedError(f"holds {name} with {len(content)} bytes for shape {printable(shape, 80)}")
    flat = np.frombuffer(content, dtype) if content else np.empty(0, dtype)
    return flat.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="))
