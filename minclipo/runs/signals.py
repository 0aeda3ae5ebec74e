"""Ctrl-C, and the signals with which a system ends a process (Slurm, docker stop, a terminal that is closed)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from minclipo.extensions.processes import every, several
from minclipo.runs.console import say

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows: two


class Stopped(KeyboardInterrupt):
    """Somebody has stopped the program; the message says what was saved. Whoever expects Ctrl-C catches this, too.

    number: of the signal; twice: Ctrl-C came while an earlier signal was being followed; can_go_on: by --resume, None
    if no run has begun.
    """

    def __init__(self, number: int, message: str = "", *, twice: bool = False, can_go_on: bool | None = None):
        super().__init__(message or f"stopped by {name_of(number)}")
        self.number, self.twice, self.can_go_on = number, twice, can_go_on

    def __reduce__(self):  # a process that works for another one sends it there
        return partial(Stopped, twice=self.twice, can_go_on=self.can_go_on), (self.number, str(self))


def signal_of(stop: KeyboardInterrupt) -> int:
    return getattr(stop, "number", signal.SIGINT)


def exit_code(stop: KeyboardInterrupt) -> int:
    """What shells say of a program that a signal has ended: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + signal_of(stop)


def name_of(number: int) -> str:
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


class Listener:
    """Decides what a signal does: `Stopped` is raised at once where `may_stop()` says so, and otherwise by the next
    `check()`. A second Ctrl-C is raised at once anyway; other signals often come twice (`timeout` sends two). Several
    processes stop together, at the next `check()`, which all must call; torchrun sends each of them Ctrl-C twice."""

    def __init__(self, may_stop: Callable[[], bool]):
        self.may_stop, self.number = may_stop, 0  # number of the signal that came, 0: none

    def __call__(self, number: int, frame) -> None:
        if self.number:
            if number == signal.SIGINT and not several():
                raise Stopped(self.number, twice=True)
            return
        self.number = number
        if self.may_stop():
            raise Stopped(number)
        if several():
            say(f"{name_of(number)}: stopping as soon as this step or evaluation is finished")
        else:
            say(
                f"{name_of(number)}: stopping as soon as this update or save is finished. A second Ctrl-C stops at once, "
                "unsaved."
            )

    def check(self) -> None:
        number = max(every(self.number))
        if number:
            raise Stopped(number)


LISTENERS: list[Listener] = []  # those that are listening, the innermost last


def check_signals() -> None:
    """Raise `Stopped` again if a signal has come and the program goes on all the same: what is raised in a destructor or
    a weak reference's callback, Python reports and drops. For loops outside a `Run`; it is in there that several
    processes stop, all together."""
    for listener in LISTENERS:
        if listener.number and not several():
            raise Stopped(listener.number)


@contextmanager
def stop_signals(may_stop: Callable[[], bool] = lambda: True) -> Iterator[Listener]:
    """Within this context (or a function that it decorates) the signals go to the Listener that it yields. What was
    ignored (nohup) stays ignored. Only a main thread can listen: in another one nothing changes."""
    listener, before = Listener(may_stop), {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: old for number, old in before.items() if old not in (None, signal.SIG_IGN)}
    LISTENERS.append(listener)
    for number in before:
        signal.signal(number, listener)
    try:
        yield listener
    finally:
        LISTENERS.remove(listener)
        for number, old in before.items():
            signal.signal(number, old)
