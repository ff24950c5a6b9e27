"""What `identify` answers, and the words it answers in."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..tensorfiles import TensorSpec
from ..words import one_line

IMAGEBIND = "imagebind"
IMAGEBIND_POINT = "imagebind-point"
LLAMA_META = "llama-meta"
LLAMA_HF = "llama-hf"
GGUF = "gguf"
ADAPTER_V2 = "adapter-v2"
IMAGEBIND_LLM = "imagebind-llm"
CLIP_OPENAI = "clip-openai"
CLIP_HF = "clip-hf"
FAISS = "faiss-index"
WEIGHTS = "weights"
ENCODER = "encoder"
INDEX = "feature-index"

TITLES: Mapping[str, str] = {
    IMAGEBIND: "ImageBind encoder, published layout (imagebind_huge.pth)",
    IMAGEBIND_POINT: "ImageBind encoder with point clouds, published layout (imagebind_w3D.pth)",
    LLAMA_META: "LLaMA, Meta layout",
    LLAMA_HF: "language model, Hugging Face layout",
    GGUF: "language model, GGUF",
    ADAPTER_V2: "LLaMA-Adapter V2 multimodal, published layout",
    IMAGEBIND_LLM: "ImageBind-LLM, published layout",
    CLIP_OPENAI: "CLIP vision transformer, OpenAI's layout",
    CLIP_HF: "CLIP vision transformer, Hugging Face layout",
    FAISS: "index of feature vectors, by faiss",
    WEIGHTS: "weights folder of this project",
    ENCODER: "encoder folder of this project",
    INDEX: "feature index of this project",
}
KNOWN = (
    "imagebind_huge.pth and imagebind_w3D.pth, LLaMA-Adapter V2 multimodal, ImageBind-LLM, CLIP, a LLaMA folder "
    "(Meta or Hugging Face), GGUF, a faiss index, this project's own folders and indexes"
)


class IdentifyError(ValueError):
    """A file or folder that is nothing known here, or only a piece of something, in one sentence."""


@dataclass(frozen=True)
class Found:
    """What a file or folder is, as far as names and shapes can tell."""

    path: Path
    family: str  # one of the constants above
    title: str  # the same for people
    variant: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, bool] = field(default_factory=dict)  # what such a file may hold, and whether it does
    dtypes: Mapping[str, int] = field(default_factory=dict)  # tensors of each type
    tensors: int = 0
    files: tuple[Path, ...] = ()  # what it consists of
    bytes: int = 0  # of these files
    missing: tuple[str, ...] = ()  # keys, or files of a folder, that the layout has
    unexpected: tuple[str, ...] = ()  # keys that it does not have
    problems: tuple[str, ...] = ()  # in words: it cannot be used as it is
    needs: tuple[str, ...] = ()  # what else it takes to run it
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path, family: str, specs: Mapping[str, TensorSpec], files: Iterable[Path], **rest: Any) -> Found:
        """Counts from the tensors' specs, bytes from the files; sequences among `rest` become tuples."""
        files = tuple(files)
        dtypes = Counter(str(spec.dtype).removeprefix("torch.") for spec in specs.values())
        for name in ("missing", "unexpected", "problems", "needs", "notes"):
            rest[name] = tuple(rest.get(name, ()))
        rest = {"title": TITLES[family], "dtypes": dict(dtypes), "tensors": len(specs), **rest}
        return cls(path=path, family=family, files=files, bytes=sum(file.stat().st_size for file in files), **rest)


def known(**sizes: Any) -> dict[str, int]:
    """Those of the sizes that are whole numbers."""
    return {name: value for name, value in sizes.items() if isinstance(value, int) and not isinstance(value, bool)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises IdentifyError for a file that holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IdentifyError(f"{path} cannot be read as JSON ({one_line(error)}); get it again") from error
    if not isinstance(values, dict):
        raise IdentifyError(f"{path} holds no JSON object; get it again")
    return values
