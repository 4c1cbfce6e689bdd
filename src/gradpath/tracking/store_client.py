"""All access to an MLflow store. Temporary failures are waited for; every other failure is one
clear line.
"""

import math
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from gradpath.tracking.store_uri import StoreError, masked, named, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T")

TIMEOUT = 15.0
"""Seconds to wait for a store at first, and for an answer of a server: ``tracking.timeout``."""
QUIET = 2.0
"""Seconds of waiting before a line says so."""
PAGES = 100_000
"""Largest number of pages of a search; a store that always has one more is faulty."""
BUSY = 1000
"""Milliseconds that SQLite itself waits for another process, during which Ctrl-C has no effect;
further waiting is done in Python.
"""
DRIVERS = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "pymysql": "pymysql",
    "pyodbc": "pyodbc",
}
"""The module of a database's driver → the package that contains it."""
SQLITE = {
    sqlite3.SQLITE_BUSY: "the database is locked by another process",
    sqlite3.SQLITE_LOCKED: "the database is locked by another process",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_READONLY_DBMOVED: "the database file has been moved or deleted",
    sqlite3.SQLITE_FULL: "no space left on the disk",
    sqlite3.SQLITE_CANTOPEN: "the database file cannot be opened; it, or its folder, is gone or not accessible",
    sqlite3.SQLITE_NOTADB: "the file is no SQLite database",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
}
_NAMES = {"create_run": "create a run", "set_terminated": "close a run", "log_artifact": "write an artifact"}
_NAMES |= {"log_dict": "write an artifact", "log_batch": "write metrics", "set_tag": "write a tag"}

_USER_SET = {name for name in os.environ if name.startswith("MLFLOW_HTTP_REQUEST_")}
"""Variables that the user has set keep their values."""
_patience: ContextVar[float] = ContextVar("patience", default=TIMEOUT)


class UnreachableError(StoreError):
    """A temporary failure of a store: it is locked, or its server is away."""

    detail = "it does not answer"


@contextmanager
def patience(seconds: float | None) -> Iterator[None]:
    """Sets how long calls in this context wait for a store that is locked or away, in this thread
    only; 0 tries once, None leaves it as it is.
    """
    reset_token = _patience.set(_patience.get() if seconds is None else seconds)
    try:
        yield
    finally:
        _patience.reset(reset_token)


def pages(fetch: Callable[[str | None], Any]) -> Iterator[Any]:
    """Every item of a search, page by page; raises StoreError where a store repeats itself instead
    of ending.
    """
    token, seen = None, set()
    for _ in range(PAGES):
        page = fetch(token)
        yield from page
        if not (token := page.token):
            return
        if token in seen:
            break
        seen.add(token)
    raise StoreError("the MLflow store does not come to the end of its answer: it repeats a page")


def limit_requests(seconds: float | None) -> None:
    """Limits the time of one request; None leaves a limit as it is. MLflow's own repeats are turned
    off, because they can be neither seen nor interrupted.
    """
    if seconds is None and "MLFLOW_HTTP_REQUEST_MAX_RETRIES" in os.environ:
        return
    limits = {"TIMEOUT": max(1, math.ceil(seconds or TIMEOUT)), "MAX_RETRIES": 0}
    for name, value in limits.items():
        if f"MLFLOW_HTTP_REQUEST_{name}" not in _USER_SET:
            os.environ[f"MLFLOW_HTTP_REQUEST_{name}"] = str(value)
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(limits["TIMEOUT"]))


class Client:
    """An ``MlflowClient`` whose every call is answered, waits visibly, or raises a StoreError."""

    def __init__(self, uri: str, client: "MlflowClient") -> None:
        self.tracking_uri = uri
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def request(*arguments: Any, **keywords: Any) -> Any:
            action = _NAMES.get(name, name.replace("_", " "))
            return ask(self.tracking_uri, action, lambda: call(*arguments, **keywords))

        return request if callable(call) else call


def ask(uri: str, action: str, question: Callable[[], T]) -> T:
    """The answer of a store to a question that may be repeated; repeats it for as long as
    ``patience`` allows.
    """
    limit, started, pause = _patience.get(), time.monotonic(), 0.05
    waiting = f"waiting for {shown(uri)} ({limit:g} s)"
    announced = threading.Event()
    notice = threading.Timer(QUIET, _announce, (waiting, announced))  # in case the question itself hangs
    notice.daemon = True
    if limit > QUIET and not uri.startswith("sqlite"):
        notice.start()
    try:
        while True:
            try:
                return _attempt(uri, action, question)
            except UnreachableError as error:
                remaining = limit - (time.monotonic() - started)
                if remaining <= 0:
                    if limit:
                        error.reason += f"; waited for {limit:g} s"
                    raise
                if limit > QUIET and limit - remaining > QUIET:
                    _announce(f"{waiting}: {error.detail}", announced)
            time.sleep(min(pause, remaining))
            pause = min(2 * pause, 1.0)
    finally:
        notice.cancel()


def _announce(line: str, announced: threading.Event) -> None:
    """Says once that the program waits for a store."""
    if announced.is_set():
        return
    announced.set()
    tqdm.write(f"gradpath: {line}", file=sys.stderr)


def _attempt(uri: str, action: str, question: Callable[[], T]) -> T:
    """One question; exceptions of MLflow, SQLAlchemy, a driver or the system become a
    StoreError.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return question()
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:
        detail, passes = _reason(error)
        line = masked(" ".join(detail.split())[:300], uri)
        prefix = f"{named(uri)}: " if uri else ""
        refusal = (UnreachableError if passes else StoreError)(f"{prefix}cannot {action}: {line}")
        if isinstance(refusal, UnreachableError):
            refusal.detail = line
        raise refusal from error


def _reason(error: BaseException) -> tuple[str, bool]:
    """The reason for which a store failed, and whether waiting helps, from the innermost error that
    has a known reason.
    """
    import requests
    from sqlalchemy import exc

    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = getattr(link, "orig", None) or link.__cause__ or link.__context__
    for link in links:
        code = getattr(link, "sqlite_errorcode", None)
        if isinstance(code, int):
            busy = code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            return SQLITE.get(code) or SQLITE.get(code & 0xFF) or str(link), busy
        if isinstance(link, ImportError):
            return (
                f"needs a package that is not installed: pip install '{DRIVERS.get(link.name or '', link.name)}'",
                False,
            )
        if isinstance(link, requests.exceptions.RequestException):
            return _http(link)
        if isinstance(link, OSError) and link.strerror:
            return f"{link.strerror}{f': {link.filename}' if link.filename else ''}", False
        if isinstance(link, exc.NoSuchModuleError):
            return f"{link}; MLflow's databases are sqlite, postgresql, mysql, mssql", False
        if isinstance(link, exc.OperationalError | exc.InterfaceError) and not isinstance(link.orig, sqlite3.Error):
            return str(link.orig), True
    return str(error).partition("\n")[0] or type(error).__name__, False


def _http(error: Any) -> tuple[str, bool]:
    """The reason for which a request to a server failed, and whether waiting helps."""
    import re

    import requests

    message = str(error)
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS: {message[-200:]}", False
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return message, False
    answer = getattr(error, "response", None)
    if answer is not None and 400 <= answer.status_code < 500 and answer.status_code not in (408, 429):
        return f"the server answers with status {answer.status_code}", False
    if isinstance(error, requests.exceptions.Timeout) or "imed out" in message:
        return "the server does not answer (tracking.timeout=SECONDS waits longer)", True
    if status := re.search(r"too many (\d+) error responses", message):
        return f"the server answers with status {status[1]}", True
    if number := re.search(r"\[Errno -?\d+\] ([^'\")]+)", message):
        return number[1], True
    return "the connection was broken", True
