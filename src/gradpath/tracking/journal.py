"""The journal of a run whose store may be away: every request that the store is to get, on this
machine's disk, in order, until the store has acknowledged the last one.

One folder a run, ``spool/KEY``, where the key is the run's tag ``attempt``: ``journal.jsonl`` holds
the run (first line) and a request a line, ``artifacts/`` the newest form of each artifact, and
``acknowledged`` the number of requests that the store has. The process that writes a journal holds
the lock ``spool/KEY.lock``.
"""

import json
import os
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gradpath.schema import locations
from gradpath.schema.text import printable
from gradpath.tracking.store_uri import StoreError

VERSION = 1
KEY = re.compile(r"[0-9a-f]{16}")
ARTIFACT = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")
"""The path of an artifact; none leaves its folder."""
FILE, ACKNOWLEDGED, ARTIFACTS = "journal.jsonl", "acknowledged", "artifacts"
HEADER = {"uri": str, "experiment": str, "run_name": str, "tags": dict, "start_time": int, "run_id": str}
KINDS = {"batch": dict, "artifact": str, "discarded": str, "status": str, "deleted": bool}
"""What a request asks for → the type of what belongs to it."""


class DamagedJournalError(Exception):
    """A folder that holds no journal; the message says in a few words why."""


class Journal:
    """An open journal, whose lock this process holds. ``acknowledged`` of the ``requests`` are the
    store's.
    """

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.folder, self._lock = folder, lock
        self.header: dict[str, Any] = {}
        self.requests: list[dict[str, Any]] = []
        self.acknowledged = 0
        self.changed = threading.Condition()

    @classmethod
    def begin(cls, key: str, header: dict[str, Any]) -> "Journal":
        """A new journal; raises StoreError where the disk does not take it."""
        folder = locations.spool() / key
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{folder}.lock", thread_local=False)
            lock.acquire(timeout=0)
            folder.mkdir(mode=0o700)
            journal = cls(folder, lock)
            journal.header = header
            journal._write({"gradpath": VERSION} | header)
        except OSError as error:
            raise StoreError(f"{folder}: cannot keep a journal: {error.strerror}") from error
        return journal

    @classmethod
    def open(cls, folder: Path) -> "Journal | None":
        """A journal that a process has left; None where another process has it in hand. Raises
        DamagedJournalError.
        """
        lock = FileLock(f"{folder}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        try:
            journal = cls.peek(folder)
        except BaseException:
            lock.release()
            raise
        journal._lock = lock
        return journal

    @classmethod
    def peek(cls, folder: Path) -> "Journal":
        """A journal that another process, or this one, may have in hand, to be read only; raises
        DamagedJournalError.
        """
        journal = cls(folder, FileLock(f"{folder}.lock", thread_local=False))
        try:
            journal._read()
        except Exception as error:  # at a hostile file, of many kinds
            raise DamagedJournalError(printable(f"{type(error).__name__}: {error}", 120)) from None
        return journal

    @property
    def uri(self) -> str:
        """The store, without a password."""
        return str(self.header["uri"])

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def status(self) -> str:
        """How the run has ended; empty where nothing says that it has."""
        last = self.requests[-1] if self.requests else {}
        return "DELETED" if "deleted" in last else str(last.get("status", ""))

    @property
    def pending(self) -> int:
        return len(self.requests) - self.acknowledged

    def add(self, request: dict[str, Any]) -> None:
        """Adds a request; raises StoreError where the disk does not take it."""
        try:
            self._write(request)
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be written: {error.strerror}") from error
        with self.changed:
            self.requests.append(request)
        self.notify()

    def artifact(self, name: str) -> Path:
        """The file of an artifact."""
        return self.folder / ARTIFACTS / name

    def keep(self, name: str, source: Path) -> None:
        """Takes in an artifact, in place of an earlier form of it."""
        file = self.artifact(name)
        unfinished = file.with_name(f".{file.name}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, unfinished)
            os.replace(unfinished, file)
        except OSError as error:
            raise StoreError(f"{file}: cannot be written: {error.strerror}") from error
        self.add({"artifact": name})

    def acknowledge(self, run_id: str) -> None:
        """The store has the next request, of which no more is needed. (Where the disk does not take
        this it will be sent once more, which changes nothing.)
        """
        with self.changed:
            if "batch" in self.requests[self.acknowledged]:
                self.requests[self.acknowledged] = {"batch": {}}
            self.acknowledged += 1
        self.note(run_id)
        self.notify()

    def notify(self) -> None:
        """Wakes whoever waits for a change."""
        with self.changed:
            self.changed.notify_all()

    def note(self, run_id: str) -> None:
        """Writes down how far the store is, and how it calls the run."""
        with suppress(OSError):
            (self.folder / ACKNOWLEDGED).write_text(f"{self.acknowledged} {run_id}\n", "utf-8")

    def remove(self) -> None:
        """Deletes what the store has in full; the journal's file after the artifacts, so that a
        kill in between leaves a journal without a pending request.
        """
        shutil.rmtree(self.folder / ARTIFACTS, ignore_errors=True)
        for name in (FILE, ACKNOWLEDGED):
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()
        self.close()
        with suppress(OSError):
            Path(self._lock.lock_file).unlink()

    def close(self) -> None:
        """Leaves the journal to others."""
        self._lock.release()

    def last_written(self) -> int:
        """In milliseconds since 1970."""
        return int((self.folder / FILE).stat().st_mtime * 1000)

    def _write(self, content: dict[str, Any]) -> None:
        with (self.folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")

    def _read(self) -> None:
        """Reads and checks what a process has left."""
        text = (self.folder / FILE).read_text("utf-8")
        # The last line of a killed process may not be whole.
        first, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
        header = json.loads(first or "{}")
        if header.pop("gradpath", None) != VERSION:
            raise ValueError(f"is no journal of version {VERSION}")
        if {key: type(value) for key, value in header.items()} != HEADER or not _is_text(header["tags"]):
            raise ValueError("does not say which run it is of")
        self.header, self.requests = header, [json.loads(line) for line in lines]
        for number, request in enumerate(self.requests, 1):
            kind: str = next(iter(request))
            value: Any = request[kind]
            has_type = type(value) is KINDS.get(kind)
            if not has_type:
                raise ValueError(f"request {number} is none")
            if kind in ("artifact", "discarded") and not ARTIFACT.fullmatch(value):
                raise ValueError(f"request {number} names no artifact")
            if kind == "batch" and not _is_batch(**value):
                raise ValueError(f"request {number} holds what is no metric, parameter or tag")
        with suppress(OSError, ValueError):
            count, _, run_id = (self.folder / ACKNOWLEDGED).read_text("utf-8").strip().partition(" ")
            self.acknowledged = max(0, min(int(count), len(self.requests)))
            self.header["run_id"] = run_id or self.header["run_id"]
        for name in (request["artifact"] for request in self.requests[self.acknowledged :] if "artifact" in request):
            if self.artifact(name).is_symlink() or not self.artifact(name).is_file():
                raise ValueError(f"{name} is not there")


def _is_batch(metrics: list[Any], params: dict[str, Any], tags: dict[str, Any]) -> bool:
    is_metric = [[type(value) for value in metric] == [str, float, int, int] for metric in metrics]
    return all(is_metric) and _is_text(params) and _is_text(tags)


def _is_text(mapping: dict[Any, Any]) -> bool:
    return all(isinstance(word, str) for pair in mapping.items() for word in pair)
