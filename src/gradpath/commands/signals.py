"""The signals that end a command, as exceptions, so that whatever is open is closed."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]
"""That end a command. (Ctrl-C, SIGINT, is Python's KeyboardInterrupt.)"""


class Terminated(SystemExit):
    """A signal, raised where the program stands, so that the run is closed as KILLED; exit status
    128 + its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number, self.progress = number, ""

    def __str__(self) -> str:
        return ": ".join([signal.Signals(self.number).name, *[self.progress] * bool(self.progress)])

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.number,)


_received: list[int] = []
"""The signal that has been raised as an exception and has not yet ended a block of ``terminable``:
Python drops an exception that is raised while an object is being deleted.
"""


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """A signal's handler that raises it."""
    _received[:] = [number]
    raise exception(number)


def exception(number: int) -> BaseException:
    """What a signal is in Python."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def check() -> None:
    """Raises again what has been raised and dropped. Called wherever a long loop begins anew."""
    if _received:
        raise exception(_received[0])


def ending(error: BaseException) -> BaseException | None:
    """What was to end the command when an error happened: libraries that are interrupted while they
    tidy up may raise an error of their own on top of it.
    """
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if isinstance(link, KeyboardInterrupt | Terminated):
            return link
        if link is not None and link not in seen:
            seen.append(link)
            waiting += [link.__cause__, link.__context__]
    return None


def _is_signal(dropped: Any) -> bool:
    """Is what Python drops a signal's exception? Then ``check`` raises it again, and nothing need
    be said.
    """
    return isinstance(dropped.exc_value, KeyboardInterrupt | Terminated)


@contextmanager
def terminable(handler: Callable[[int, FrameType | None], None] = stop) -> Iterator[None]:
    """Turns the signals that end a command into an exception; one that is ignored, as under nohup,
    stays so. Ctrl-C too, where Python's own handler would raise it, once and perhaps unheard.
    """
    previous: dict[int, Any] = {}
    ctrl_c = [signal.SIGINT] * (handler is stop and signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    try:
        for number in (*SIGNALS, *ctrl_c):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread: nothing to install
        pass
    hook = sys.unraisablehook
    sys.unraisablehook = lambda dropped: None if _is_signal(dropped) else hook(dropped)
    try:
        yield
    finally:
        for number, original in previous.items():
            signal.signal(number, original)
            if original is not stop:  # the outermost of such blocks
                _received.clear()
        sys.unraisablehook = hook


@contextmanager
def left_to_this_process() -> Iterator[None]:
    """A process that is started within the context ignores the signals that a terminal sends to the
    whole group; this process ends it, by SIGTERM.
    """
    previous: dict[int, Any] = {}
    try:
        for number in SIGNALS:
            if number != signal.SIGTERM:
                previous[number] = signal.signal(number, signal.SIG_IGN)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, original in previous.items():
            signal.signal(number, original)
