"""The port that the server listens at. Imports nothing heavy: it is taken before a model is loaded."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys

BACKLOG = 2048  # connections that the system keeps until they are looked at


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody else may listen at, and that does not listen yet. Raises ValueError."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ValueError(f"{host!r} is no address of this machine ({error.strerror}); give another --host") from None
    found = socket.socket(kind, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":  # where it would let two servers share a port
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise _sentence(error, host, port) from None
    return found


def listen(sock: socket.socket) -> None:
    """Open the port. Raises ValueError if another server did since it was bound."""
    try:
        sock.listen(BACKLOG)
    except OSError as error:
        raise _sentence(error, *sock.getsockname()[:2]) from None


def _sentence(error: OSError, host: str, port: int) -> ValueError:
    reasons = {
        errno.EADDRINUSE: f"port {port} of {host} is in use; give another --port, or 0 for any that is free",
        errno.EACCES: f"port {port} is not for this user; give one from 1024 up with --port",
        errno.EADDRNOTAVAIL: f"{host} is no address of this machine; give another --host",
    }
    return ValueError(reasons.get(error.errno, f"port {port} of {host} cannot be opened: {error.strerror}"))


def is_loopback(sock: socket.socket) -> bool:
    """Whether this machine alone can reach it."""
    return ipaddress.ip_address(sock.getsockname()[0]).is_loopback


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
