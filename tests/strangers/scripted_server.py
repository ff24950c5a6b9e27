"""A web server in a thread that says what a test tells it to, byte for byte, and a certificate for "media.example"."""

import socket
import ssl
import threading
import time
from contextlib import contextmanager

# Made for these tests and trusted by nobody else.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBWjCCAQGgAwIBAgIBATAKBggqhkjOPQQDAjAPMQ0wCwYDVQQDDAR0ZXN0MCAX
DTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAPMQ0wCwYDVQQDDAR0ZXN0
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEcdFLOkCSQL5rH5F2+sGQ1CT/txwO
0FERmiPHieI/C9VKhPl0GHl8P3FoFe9+FIwabpyG1LpYJQ0g7HW8XHFSzKNMMEow
GAYDVR0RBBEwD4INbWVkaWEuZXhhbXBsZTAPBgNVHRMBAf8EBTADAQH/MB0GA1Ud
DgQWBBR1TVRrk+gmgCC276+qDSjkMInbdDAKBggqhkjOPQQDAgNHADBEAiAPxAVe
HsNtoF+EjXCb/wOh3r5BEEfAEw0jq8xeFgkCxwIgBwlZA/Qgspvc891WoMBSVFFC
NGwu33DoB57CYFA/X58=
-----END CERTIFICATE-----
"""
KEY = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgOhfT7P7V51ezYiBh
/fCQ4ffMaqDYpijBCYyvGa/QEiShRANCAARx0Us6QJJAvmsfkXb6wZDUJP+3HA7Q
URGaI8eJ4j8L1UqE+XQYeXw/cWgV734UjBpunIbUulglDSDsdbxccVLM
-----END PRIVATE KEY-----
"""


class Said:
    """What a server heard: `requests`, each the bytes up to the empty line, and `taken`, the bytes it could send."""

    def __init__(self, port):
        self.port, self.requests, self.taken = port, [], 0


def answer(body=b"media", status="200 OK", **headers):
    """A whole answer. Header names are given with _ for -."""
    headers = {"content_length": len(body), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def redirect(to, status="302 Found", body=b""):
    return answer(body, status, location=to)


def slowly(data, seconds):
    """`data` byte by byte, one each so many seconds."""
    for byte in data:
        yield bytes([byte])
        time.sleep(seconds)


@contextmanager
def serving(*answers, tls=None):
    """A server on 127.0.0.1 that gives one answer a connection, in order, the last one again and again.

    An answer is bytes, or an iterable of them that is sent as it comes. With `tls`, a server's SSLContext.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    said, stopped = Said(listener.getsockname()[1]), threading.Event()

    def work():
        for number in range(10_000):
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            given = answers[min(number, len(answers) - 1)]
            threading.Thread(target=serve, args=(connection, given), daemon=True).start()

    def serve(connection, given):
        try:
            connection = tls.wrap_socket(connection, server_side=True) if tls else connection
            with connection:
                heard = b""
                while b"\r\n\r\n" not in heard:
                    data = connection.recv(65536)
                    if not data:
                        return
                    heard += data
                said.requests.append(heard)
                for piece in [given] if isinstance(given, bytes) else given:
                    if stopped.is_set():
                        return
                    connection.sendall(piece)
                    said.taken += len(piece)
        except OSError:
            pass  # the client left

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield said
    finally:
        stopped.set()
        # Closing does not wake a thread that waits for a connection.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def tls_contexts(folder):
    """A server's context with the certificate, and a client's that trusts no other."""
    (folder / "certificate.pem").write_text(CERTIFICATE + KEY)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "certificate.pem")
    return server, ssl.create_default_context(cadata=CERTIFICATE)
