"""What `python demo.py` may be told about the page it opens."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..results import GenerationOptions
from ..retrieval import RetrievalOptions

LOOPBACK = ("127.0.0.1", "localhost", "::1")  # names of this machine that reach nobody else


@dataclass(frozen=True)
class PageSettings:
    """Where the page is, whom it lets in, how much it takes, and where its sliders begin."""

    host: str = "127.0.0.1"  # this machine alone
    port: int | None = None  # None: the first free one from 7860 on; 0: any
    auth: tuple[str, str] | None = None  # a name and a password
    max_file_size: int = 200 * 2**20  # bytes
    queue_size: int = 32  # questions that may wait; more are refused
    batch_size: int = 8  # answers that are written at once
    share: bool = False  # through Gradio's public tunnel
    name: str = "default"  # of the weights
    options: GenerationOptions = field(default_factory=GenerationOptions)
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)

    @property
    def strangers(self) -> bool:
        """Whether others than the people of this machine may come; who else would be asked for a password."""
        return self.share or self.auth is not None or self.host not in LOOPBACK

    @property
    def hosts(self) -> tuple[str, ...] | None:
        """The names that the page goes by; None where it may have others: another server's before it, the tunnel's."""
        return None if self.strangers else LOOPBACK


def in_bytes(size: int) -> str:
    """A size as people say it."""
    for name, unit in (("GB", 2**30), ("MB", 2**20), ("kB", 2**10)):
        if size >= unit:
            return f"{size / unit:.{1 if size < 10 * unit else 0}f} {name}".replace(".0 ", " ")
    return f"{size} bytes"
