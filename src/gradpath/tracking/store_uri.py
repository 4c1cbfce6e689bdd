"""The location of an MLflow store: the tracking URI, the files behind it, and a form that may be
shown.

SQLAlchemy, urllib and pathlib parse and build the URIs, so that a folder may have any name.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

from gradpath.schema import locations
from gradpath.schema.text import without_passwords

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
SERVERS = ("http://", "https://")
ALLOWED = "must be a database (sqlite:////absolute/path.db, postgresql://…) or a server (http://…)"
HOME = "GRADPATH_HOME"
_key: ContextVar[str] = ContextVar("key", default="tracking.uri")


class StoreError(Exception):
    """The store cannot be used; the message says why in one line, and where the measurements are
    kept.
    """

    def __init__(self, reason: str, kept: tuple[Path, ...] = ()) -> None:
        super().__init__(reason)
        self.reason, self.kept = reason, kept

    def __str__(self) -> str:
        if not self.kept:
            return self.reason
        files = str(self.kept[0]) if len(self.kept) == 1 else f"{len(self.kept)} files in {self.kept[0].parent}"
        return f"{self.reason}; what was measured is kept in {files}"

    def with_kept(self, result: Path | str) -> Self:
        """A copy of the error that also names the file with the measurements, or the reason for
        which they could not be kept.
        """
        if isinstance(result, Path):
            return type(self)(self.reason, (*self.kept, result))
        return type(self)(f"{self.reason}; nor could what was measured be kept: {result}", self.kept)


def tracking_uri(configured: str | None) -> str:
    """The tracking URI to use: the given one, else ``$MLFLOW_TRACKING_URI``, else the project's own
    SQLite database; a path is made absolute.
    """
    key = _key.get()
    if configured is None and (configured := os.environ.get("MLFLOW_TRACKING_URI", "").strip() or None):
        key = "MLFLOW_TRACKING_URI"
    if configured is None:
        return sqlite_uri(_regular(locations.database(), str(locations.database())))
    written = f"{key}={masked(configured)}"
    if configured.startswith(SERVERS):
        try:
            valid = bool(urlsplit(configured).hostname) and urlsplit(configured).port != 0
        except ValueError:
            valid = False
        if not valid:
            raise StoreError(f"{written}: must name a host, and a port from 1 to 65535 if any, as in http://host:5000")
        return configured
    if not re.match(rf"(?:{'|'.join(DATABASES)})(?:\+\w+)?://", configured):
        raise StoreError(f"{written}: {ALLOWED}")
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(configured)
    except (ArgumentError, ValueError):
        raise StoreError(f"{written}: {ALLOWED}") from None
    if url.get_backend_name() != "sqlite":
        return configured
    path = url.database or ""
    if "?" in configured:
        raise StoreError(f"{written}: must end with the path of a file, in which a ? is written %3F")
    if url.host or path in ("", ":memory:") or path.startswith("file:") or "\0" in path:
        raise StoreError(f"{written}: must name a file, as in sqlite:////absolute/path.db")
    return sqlite_uri(_regular(Path(path).absolute(), written))


def _regular(file: Path, written: str) -> Path:
    """The file of a database, checked to be a regular file or absent. A device, a pipe or a broken
    link (as to a disk that is not mounted) would be replaced when the database is created.
    """
    try:
        if not file.is_file() and (file.exists() or file.is_symlink()):
            problem = "is a link that leads nowhere" if not file.exists() else "is no file"
            raise StoreError(f"{written}: {problem}; must name a file, as in sqlite:////absolute/path.db")
    except OSError as error:
        raise StoreError(f"{written}: {error.strerror}") from error
    return file


def sqlite_uri(file: Path, **query: str) -> str:
    """The URI of an SQLite file, for any characters in its path; with a query, the URI form that
    SQLite itself reads.
    """
    from sqlalchemy.engine import URL

    if not query:
        return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
    url = URL.create("sqlite+pysqlite", database=file.as_uri(), query=query | {"uri": "true"})
    return url.render_as_string(hide_password=False)


def missing_store(uri: str) -> StoreError:
    """The error for reading a store whose file does not exist."""
    default = sqlite_file(uri) == locations.database()
    hint = "; for results in another folder set GRADPATH_HOME to it" if default else ", or is the path another?"
    return StoreError(f"{named(uri)}: no such store; gradpath run makes it{hint}")


def backend_uri(uri: str) -> str:
    """The URI by which MLflow opens the store: an existing SQLite file, which opening never
    creates, read-only where it cannot be written. (MLflow creates folders for the path of a plain
    ``sqlite:///``.)
    """
    file = sqlite_file(uri)
    if file is None:
        return uri
    if writable(file):
        return sqlite_uri(file, mode="rw")
    if not in_wal_mode(file):
        return sqlite_uri(file, mode="ro")
    # Beside a file in WAL mode, SQLite must create a file of shared memory, which is impossible
    # here.
    wal = file.with_name(file.name + "-wal")
    if not (wal.exists() and wal.stat().st_size):
        return sqlite_uri(file, mode="ro", immutable="1")
    return sqlite_uri(_copy_with_wal(file), mode="rw")


@cache
def _copy_with_wal(file: Path) -> Path:
    """A copy that exists while the program runs: the part that a killed process left in the WAL can
    only be read where the files can be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="gradpath-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for suffix in ("", "-wal"):
        shutil.copyfile(f"{file}{suffix}", f"{folder / file.name}{suffix}")
    return folder / file.name


def writable(file: Path) -> bool:
    """Can an SQLite file and the journal beside it be written?"""
    return os.access(file, os.W_OK) and os.access(file.parent, os.W_OK)


def in_wal_mode(file: Path) -> bool:
    """Is an SQLite file in WAL mode, in which another file holds its newest part (bytes 18 and 19
    of the file)?
    """
    with file.open("rb") as stream:
        return stream.read(20)[18:20] == b"\2\2"


def sqlite_file(uri: str) -> Path | None:
    """The file of an SQLite store."""
    if not uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    database = make_url(uri).database or ""
    return Path(url2pathname(urlsplit(database).path) if database.startswith("file:") else database).absolute()


def artifact_root(uri: str) -> str | None:
    """The folder for the artifacts of a new MLflow experiment: beside an SQLite file, for another
    database in the folder of results; None lets a server choose.
    """
    if uri.startswith(SERVERS):
        return None
    return location((sqlite_file(uri) or locations.database()).parent / "artifacts")


def location(folder: Path) -> str:
    """A folder as MLflow's artifact location: its path, or its ``file:`` URI where the path has
    characters that MLflow would take for parts of a URI.
    """
    uri = folder.as_uri()
    return str(folder) if uri == f"file://{folder}" else uri


def local_path(location: str) -> Path | None:
    """The folder that an artifact location names, as MLflow reads it; None for an object store or a
    server.
    """
    parts = urlsplit(location)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        return None
    path = Path(url2pathname(parts.path if parts.scheme else location))
    return path if path.is_absolute() else None


@contextmanager
def uri_key(key: str) -> Iterator[None]:
    """Sets the key under which messages in this context name the tracking URI: ``tracking.uri``, or
    ``uri`` of a report.
    """
    reset_token = _key.set(key)
    try:
        yield
    finally:
        _key.reset(reset_token)


def named(uri: str) -> str:
    """A tracking URI in the form in which a person sets it, without its password; the project's own
    database is named by its folder, under the key ``GRADPATH_HOME``.
    """
    return f"{_key.get()}={locations.home() if _key.get() == HOME else shown(uri)}"


def shown(uri: str) -> str:
    """A tracking URI for a person to read, without its password."""
    file = sqlite_file(uri)
    return sqlite_uri(file) if file else masked(uri)


def masked(text: str, uri: str = "") -> str:
    """A message without the passwords in URIs and connection strings, and without the password of
    the store at ``uri``.
    """
    for secret in _secrets(uri):
        text = text.replace(secret, "***")
    return without_passwords(text)


def _secrets(uri: str) -> Iterator[str]:
    """The passwords of a store, in the forms in which a message may contain them."""
    passwords = [os.environ.get("MLFLOW_TRACKING_PASSWORD"), os.environ.get("MLFLOW_TRACKING_TOKEN")]
    if "@" in uri:
        passwords.append(urlsplit(uri).password)
    for secret in passwords:
        if secret and len(secret) > 2:
            yield from {secret, unquote(secret), quote(unquote(secret), safe="")}
