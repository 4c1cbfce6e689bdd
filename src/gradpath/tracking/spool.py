"""The folder ``spool`` of this machine: journals of runs that their store does not have in full."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from gradpath.schema import locations
from gradpath.schema.text import printable
from gradpath.tracking.journal import ACKNOWLEDGED, KEY, DamagedJournalError, Journal


def unsent(uri: str) -> list[Journal]:
    """The journals of one store, whoever has them in hand, to be read only."""
    journals = []
    for entry in locations.spool().glob("[0-9a-f]*"):
        with suppress(DamagedJournalError):
            if KEY.fullmatch(entry.name) and (journal := Journal.peek(entry)).uri == uri:
                journals.append(journal)
    return journals


def left(uri: str = "") -> Iterator[Journal | str]:
    """The journals that no process has in hand, of one store or of all; and a line for each folder
    that holds none. Each is closed again once the next one is asked for.
    """
    folder = locations.spool()
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        if entry.suffix == ".lock" and KEY.fullmatch(entry.stem):
            continue
        if not KEY.fullmatch(entry.name) or entry.is_symlink() or not entry.is_dir():
            yield f"{printable(entry, 200)}: is no journal of a run; it is left as it is"
            continue
        try:
            journal = Journal.open(entry)
        except DamagedJournalError as error:
            if _removed(entry):
                continue
            yield f"{printable(entry, 200)}: damaged journal, left as it is: {error}"
            continue
        if journal is None:
            continue
        try:
            if uri in ("", journal.uri):
                yield journal
        finally:
            journal.close()


def _removed(folder: Path) -> bool:
    """Is a folder gone, or what a kill has left of one that was being made or deleted?"""
    with suppress(OSError):
        if folder.is_dir() and {path.name for path in folder.iterdir()} <= {ACKNOWLEDGED}:
            (folder / ACKNOWLEDGED).unlink(missing_ok=True)
            folder.rmdir()
    return not folder.exists()
