"""Restores the state of the process that a command may change, after a call from Python."""

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
"""Hydra's state is shared by the whole process; calls from several threads therefore run one after
another.
"""


@contextmanager
def session() -> Iterator[None]:
    """Runs a command's work in the user's process.

    Restores environment variables, working directory, standard streams, loggers and Hydra's own
    state. Raises the exception that ended the call: ConfigError and StoreError with the line that
    the command prints, or KeyboardInterrupt where there was one, even if a library raised another
    exception on top of it.
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
            if isinstance(error, SystemExit):  # a unit called sys.exit
                raise RuntimeError(reason(error)) from error
            raise


@contextmanager
def _environment() -> Iterator[None]:
    """Restores the environment variables and the working directory."""
    variables, folder = dict(os.environ), None
    with contextlib.suppress(OSError):  # the folder may no longer exist
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
    """Restores standard output and error, which a command replaces by streams that cannot fail."""
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
    """Restores level and handlers of every logger."""
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
    """Restores Hydra's state of the process, which may be the user's own."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.utils import JobRuntime

    running, config, runtime = GlobalHydra.instance(), HydraConfig.instance(), JobRuntime.instance()
    states = running.hydra, config.cfg, runtime.conf.copy()
    running.hydra = None
    try:
        yield
    finally:
        GlobalHydra.set_instance(running)  # Hydra has replaced the instance by a copy
        running.hydra, config.cfg, runtime.conf = states
