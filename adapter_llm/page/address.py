"""Where the page can be reached: known before the model is loaded."""

from __future__ import annotations

import socket
import sys
from contextlib import closing

FIRST_PORT, PORTS = 7860, 100


class PageError(ValueError):
    """The page cannot be opened where it was wanted."""


def find_port(host: str, wanted: int | None) -> int:
    """The wanted port if it is free; of none the first free one from 7860 on, of 0 any. Raises PageError."""
    problem: OSError | None = None
    for port in range(FIRST_PORT, FIRST_PORT + PORTS) if wanted is None else [wanted]:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
                if sys.platform != "win32":  # where it would let two servers share a port
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return probe.getsockname()[1]
        except OSError as error:
            problem = error
    where = f"port {wanted}" if wanted is not None else f"the ports {FIRST_PORT} to {FIRST_PORT + PORTS - 1}"
    raise PageError(f"the page cannot use {where} of {host}: {problem.strerror}; give others with --host and --port")
