"""Open the page, and close it again so that nothing of its visitors is left."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from starlette.middleware import Middleware

from ..engine import Engine
from ..feature_cache import FeatureCache
from ..pipeline import Pipeline
from .address import find_port
from .app import build
from .context import Context
from .sessions import Sessions
from .settings import PageSettings
from .style import CSS, HEAD, theme
from .visitors import Visitors

REMEMBERED = 256 * 2**20  # bytes of features
LAST_WORDS = 5.0  # seconds that answers may take to stop when the page closes
ELSEWHERE = ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE")  # where Gradio would keep files for everybody


class Page:
    """An open page. One a process: Gradio finds its folder by the environment."""

    def __init__(self, pipe: Pipeline, settings: PageSettings = PageSettings()) -> None:
        """Raises PageError for a host or port that cannot be had."""
        port = find_port(settings.host, settings.port)
        with ExitStack() as undo:
            self.folder = Path(tempfile.mkdtemp(prefix="adapter_llm_")).resolve()  # nobody else's: mode 0700
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            undo.callback(_restore, {name: os.environ.get(name) for name in ELSEWHERE})
            os.environ.update(dict.fromkeys(ELSEWHERE, str(self.folder)))
            visitors, cookie = self.folder / "visitors", f"adapter_llm_{port}"
            visitors.mkdir(mode=0o700)
            self.sessions = Sessions(visitors)
            undo.callback(self.sessions.close)
            self.engine = Engine(pipe, settings.batch_size, settings.queue_size)
            undo.callback(self.engine.close, drain=False, timeout=LAST_WORDS)
            context = Context(pipe.cached(FeatureCache(REMEMBERED)), self.engine, settings, self.sessions, cookie)
            self.blocks = build(context).queue(max_size=None, default_concurrency_limit=None)
            undo.callback(self.blocks.close, verbose=False)
            keeper = Middleware(
                Visitors,
                sessions=self.sessions,
                cookie=cookie,
                max_file_size=settings.max_file_size,
                hosts=settings.hosts,
            )
            self.blocks.launch(
                server_name=settings.host,
                server_port=port,
                auth=settings.auth,
                share=settings.share,
                max_file_size=settings.max_file_size,
                max_threads=settings.queue_size + settings.batch_size + 32,  # whoever waits keeps one busy
                app_kwargs={"middleware": [keeper], "docs_url": None, "redoc_url": None, "openapi_url": None},
                prevent_thread_lock=True,
                quiet=True,
                show_error=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                pwa=False,
                theme=theme(),
                css=CSS,
                head=HEAD,
            )
            self.url = self.blocks.share_url or self.blocks.local_url
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Stop all answers, close the port, delete all files."""
        self._undo.close()

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_page(pipe: Pipeline, settings: PageSettings = PageSettings()) -> Page:
    """Open the page; returns as soon as it can be visited."""
    return Page(pipe, settings)


def serve(pipe: Pipeline, settings: PageSettings) -> None:
    """Open the page, say where, and close it at Ctrl-C or SIGTERM."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    with open_page(pipe, settings) as page:
        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            print(f"The page is at {page.url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
            while not ended.wait(0.5):  # on Windows, Ctrl-C does not wake whoever waits without an end
                pass
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        print("Closing the page.", file=sys.stderr, flush=True)


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
