"""Processes of a command that work for it side by side.

Pebble's pool, because of what a killed worker costs: of the launchers and pools that were tried
(``experiments/performance/launchers.md``) it alone loses no other job, ends its workers with the
command, and leaves none behind when the command itself is killed.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from gradpath.commands.signals import Terminated, left_to_this_process
from gradpath.commands.terminal import settle
from gradpath.schema import plugins

POLL_SECONDS = 0.5
TERM_SECONDS = 15.0
"""That a process has to close its runs once the command ends."""
FORKSERVER = "forkserver"


def start_early(preloaded: Sequence[str]) -> None:
    """Has the process that workers are forked from import what they need, while the command goes
    on: seconds that each of them would take for it.
    """
    # The tracker of semaphores, a process of Python's own, would speak of those that ended workers
    # have left to it.
    quiet = "ignore::UserWarning:multiprocessing.resource_tracker"
    if quiet not in (filters := os.environ.get("PYTHONWARNINGS", "")):
        os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (filters, quiet)))
    if FORKSERVER in multiprocessing.get_all_start_methods():
        from multiprocessing import forkserver

        multiprocessing.get_context(FORKSERVER).set_forkserver_preload([*preloaded])
        with left_to_this_process():  # a terminal that is closed sends them to the whole group
            forkserver.ensure_running()


def context() -> Any:
    """What the processes are made by, and memory that they share."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context(FORKSERVER if FORKSERVER in methods else "spawn")


@contextmanager
def workers(count: int, initializer: Callable[..., None], arguments: Sequence[Any]) -> Iterator[Any]:
    """A pool of pebble's, whose processes call the initializer with the arguments first. Where the
    context is left by an exception, what they do is stopped.
    """
    from pebble import CONSTS, ProcessPool

    CONSTS.term_timeout = TERM_SECONDS
    prepared = (initializer, tuple(arguments), dict(os.environ), os.getcwd())
    pool: Any = ProcessPool(count, initializer=_prepare, initargs=prepared, context=context())
    with _main_hidden():
        try:
            yield pool
            pool.close()
        except BaseException:
            pool.stop()
            raise
        finally:
            pool.join()


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Keeps a new process from importing the program that has started it, as multiprocessing would:
    a user's script without ``if __name__ == "__main__"`` would run again in each of them.
    """
    main = sys.modules["__main__"]
    names = [name for name in ("__file__", "__spec__") if name in main.__dict__]
    hidden: dict[str, Any] = {name: main.__dict__.pop(name) for name in names}
    main.__dict__["__spec__"] = None
    try:
        yield
    finally:
        main.__dict__.update(hidden)


def _prepare(
    initializer: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], folder: str
) -> None:
    """Makes a new worker a process of the command: its environment and folder, which the process
    that it was forked from may have from an earlier one.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    settle()
    plugins.active()
    initializer(*arguments)


def leave(ended: BaseException) -> None:
    """Ends a worker by what was to end it. Pebble would take the exception for the job's result,
    and have this process run the next job.
    """
    os._exit(128 + (ended.number if isinstance(ended, Terminated) else signal.SIGINT))


def death(error: Any) -> str:
    """How a process ended, by pebble's ProcessExpired, in words."""
    try:
        return f"was ended by {signal.Signals(-error.exitcode).name}"
    except (TypeError, ValueError):
        return f"ended with status {error.exitcode}"
