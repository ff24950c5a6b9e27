"""Published files to our folders and back: what a file is, its content says; each kind has its own module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..identify import (
    ADAPTER_V2,
    CLIP_HF,
    CLIP_OPENAI,
    ENCODER,
    FAISS,
    GGUF,
    IMAGEBIND,
    IMAGEBIND_LLM,
    IMAGEBIND_POINT,
    INDEX,
    LLAMA_HF,
    LLAMA_META,
    WEIGHTS,
    identify,
)
from .errors import ConversionError

__all__ = ["ConversionError", "convert", "convert_back"]


ADAPTER_OPTIONS = frozenset({"encoder", "llm", "connector_heads", "faithful"})
ENCODER_OPTIONS = frozenset({"heads", "image", "point"})
# what can be said about each kind of file, beyond where it goes
OPTIONS = {
    ADAPTER_V2: ADAPTER_OPTIONS,
    IMAGEBIND_LLM: ADAPTER_OPTIONS - {"connector_heads", "faithful"},
    IMAGEBIND: ENCODER_OPTIONS,
    IMAGEBIND_POINT: ENCODER_OPTIONS,
    CLIP_OPENAI: frozenset({"heads"}),
    CLIP_HF: frozenset({"heads"}),
    LLAMA_META: frozenset({"tokenizer"}),
    GGUF: frozenset(),
    FAISS: frozenset(),
}


def convert(source: Path, output: Path, **options: Any) -> None:
    """Write the folder (of an index: the file) that a published file or folder becomes.

    `options` are those of the kind's own function, see OPTIONS: an adapter needs its `encoder` and its `llm`;
    `tokenizer` is the tokenizer.model of a LLaMA in Meta's layout, where it is elsewhere. None is as good as nothing.
    Raises ConversionError, IdentifyError, TensorFileError, CheckpointError or FetchError, in one sentence, and
    before anything is written if it can be known by then.
    """
    found = identify(source)
    if found.family == LLAMA_HF:
        raise ConversionError(f"{source} is a Hugging Face folder already and needs no conversion: give it with --llm")
    if found.family not in OPTIONS:
        raise ConversionError(f"{source} is converted already ({found.title}); --back makes the published file of it")
    options = {name: value for name, value in options.items() if value is not None}
    if odd := sorted(set(options) - OPTIONS[found.family]):
        words = ", ".join("corrected" if name == "faithful" else name.replace("_", " ") for name in odd)
        raise ConversionError(f"{source} is {found.title}, to which nothing is to be said of {words}; leave that out")
    if found.family in (ADAPTER_V2, IMAGEBIND_LLM):
        from .adapters import convert_adapter

        if not {"encoder", "llm"} <= set(options):
            needed = "OpenAI's ViT-L-14.pt" if found.family == ADAPTER_V2 else "imagebind_huge.pth"
            raise ConversionError(
                f"{source} is an adapter alone: give the encoder it was trained with, --encoder {needed}, "
                f"and its language model, --llm FOLDER ({'; '.join(found.needs)})"
            )
        convert_adapter(source, output, **options)
    elif found.family in (IMAGEBIND, IMAGEBIND_POINT, CLIP_OPENAI, CLIP_HF):
        from .encoders import convert_encoder

        convert_encoder(source, output, **options)
    elif found.family == LLAMA_META:
        from .llama import from_meta

        from_meta(source, output, **options)
    elif found.family == GGUF:
        from .llama import from_gguf

        from_gguf(source, output)
    else:
        from .indexes import convert_index

        convert_index(source, output)


def convert_back(source: Path, output: Path) -> None:
    """Write the published file that a folder came from, the same tensors byte for byte. Raises as `convert`."""
    found = identify(source)
    if found.family == WEIGHTS:
        from .adapters import export_adapter

        export_adapter(source, output)
    elif found.family == ENCODER:
        from .encoders import export_encoder

        export_encoder(source, output)
    elif found.family == LLAMA_HF:
        from .llama import to_meta

        to_meta(source, output)
    elif found.family == INDEX:
        from .indexes import export_index

        export_index(source, output)
    else:
        raise ConversionError(f"{source} is no folder of ours but {found.title}: there is nothing to convert back")
