"""What is at the foot of the page: which model, where it runs, and how much memory it takes."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from .settings import in_bytes

if TYPE_CHECKING:
    from ..pipeline import Pipeline


def footer(pipe: Pipeline, name: str) -> str:
    decoder = pipe.manifest.decoder.name if pipe.manifest.decoder else ""
    dtype = str(pipe.model.llama.dtype).removeprefix("torch.")
    parts = [" on ".join(filter(None, [name, decoder])), f"{_device(pipe)}, {dtype}", memory(pipe)]
    return " <span>·</span> ".join(escape(part) for part in parts if part)


def memory(pipe: Pipeline) -> str:
    """What the model's device holds now; on the processor, this process. Empty where that is not known."""
    import torch

    if pipe.device.type == "cuda":
        return f"{in_bytes(torch.cuda.memory_allocated(pipe.device))} of GPU memory"
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        import resource

        return f"{in_bytes(pages * resource.getpagesize())} of memory"
    return ""


def _device(pipe: Pipeline) -> str:
    import torch

    if pipe.device.type == "cuda":
        return torch.cuda.get_device_name(pipe.device)
    return {"cpu": "processor", "mps": "Apple GPU"}.get(pipe.device.type, str(pipe.device))
