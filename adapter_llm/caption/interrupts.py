"""Ctrl-C at a better moment: rows that are being written are written first. And SIGTERM, which queues send, like it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_term() -> Iterator[None]:
    """SIGTERM ends what is done here as Ctrl-C does, unless somebody has other plans with it."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until what is done here is whole."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    known = {number: handler for number, handler in before.items() if handler is not None}  # None: not of Python
    for number in known:
        signal.signal(number, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)
        if pressed:
            signal.raise_signal(pressed[0])  # for whoever would have had it; some ignore it
