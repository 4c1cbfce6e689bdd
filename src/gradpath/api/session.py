"""What a call from Python leaves as it was: the state of the process that a command may change."""

import contextlib
import logging
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gradpath.schema.settings import ConfigError
from gradpath.tracking.store_uri import StoreError

_LOCK = threading.RLock()
"""Hydra's state is one for the whole process: calls from several threads run one after another."""


@contextmanager
def session() -> Iterator[None]:
    """What a command does, done in somebody else's process.

    Restores environment variables, working directory, standard streams, loggers and Hydra's own
    state. Raises what ended the call: ConfigError and StoreError with the line that the command
    prints, KeyboardInterrupt where there was one, whatever a library has raised on top of it.
    """
    with _LOCK, _environment(), _streams(), _loggers(), warnings.catch_warnings(), _hydra():
        from gradpath.commands import compose
        from gradpath.commands.reasons import reason, store_answer
        from gradpath.commands.signals import Terminated, ending
        from gradpath.tracking.mlflow_output import silence

        silence()
        compose.forget()
        try:
            yield
        except Terminated:
            raise
        except (Exception, SystemExit) as error:
            if ended := ending(error):
                raise ended from None
            if isinstance(error, ConfigError | StoreError):
                raise
            if answer := store_answer(error):
                raise StoreError(answer) from error
            if isinstance(error, SystemExit):  # of a unit that calls sys.exit
                raise RuntimeError(reason(error)) from error
            raise


@contextmanager
def _environment() -> Iterator[None]:
    """The environment variables and the working directory."""
    variables, folder = dict(os.environ), None
    with contextlib.suppress(OSError):  # of a folder that is no more
        folder = os.getcwd()
    try:
        yield
    finally:
        for name in set(os.environ) - set(variables):
            del os.environ[name]
        for name, value in variables.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        with contextlib.suppress(OSError):
            if folder is not None and os.getcwd() != folder:
                os.chdir(folder)


@contextmanager
def _streams() -> Iterator[None]:
    """Standard output and error, in whose place a command puts streams that cannot fail."""
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    try:
        yield
    finally:
        for name, stream in streams.items():
            if (current := getattr(sys, name)) is not stream:
                with contextlib.suppress(Exception):
                    current.flush()
                setattr(sys, name, stream)


@contextmanager
def _loggers() -> Iterator[None]:
    """Level and handlers of every logger that there is."""
    existing = [entry for entry in logging.root.manager.loggerDict.values() if isinstance(entry, logging.Logger)]
    states = [(log, log.level, log.handlers[:], log.propagate, log.disabled) for log in (logging.root, *existing)]
    try:
        yield
    finally:
        for log, level, handlers, propagate, disabled in states:
            if log.level != level:
                log.setLevel(level)
            log.handlers[:], log.propagate, log.disabled = handlers, propagate, disabled


@contextmanager
def _hydra() -> Iterator[None]:
    """Hydra's state of the process, which may be a user's own."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import JobRuntime

    running, config, runtime = GlobalHydra.instance(), HydraConfig.instance(), JobRuntime.instance()
    states = running.hydra, config.cfg, runtime.conf.copy()
    running.hydra = None
    try:
        yield
    finally:
        GlobalHydra.set_instance(running)  # in whose place Hydra has put a copy
        running.hydra, config.cfg, runtime.conf = states
