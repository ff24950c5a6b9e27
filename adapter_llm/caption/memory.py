"""Memory that stays with the process."""

from __future__ import annotations

import contextlib
import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_memory() -> None:
    """Have the C library keep what is freed, where it can be told to.

    Layers allocate and free blocks of many megabytes. By itself the library returns each to the system at once, and to
    get it back costs more than to compute what is put there: 48 captions in batches of 16 took 1.45 times as long.
    """
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than glibc
            library = ctypes.CDLL(None)
            library.mallopt(M_MMAP_THRESHOLD, 2**30)
            library.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
