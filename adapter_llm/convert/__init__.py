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


def convert(
    source: Path,
    output: Path,
    *,
    encoder: Path | None = None,
    llm: str | Path | None = None,
    tokenizer: Path | None = None,
    **options: Any,
) -> None:
    """Write the folder (of an index: the file) that a published file or folder becomes.

    An adapter needs its `encoder` and its `llm`; `tokenizer` is the tokenizer.model of a LLaMA in Meta's layout,
    where it is elsewhere. `options` go to the kind's own function, e.g. `connector_heads` of an adapter.
    Raises ConversionError, IdentifyError, TensorFileError, CheckpointError or FetchError, in one sentence, and
    before anything is written if it can be known by then.
    """
    found = identify(source)
    if found.family in (ADAPTER_V2, IMAGEBIND_LLM):
        from .adapters import convert_adapter

        if encoder is None or llm is None:
            needed = "OpenAI's ViT-L-14.pt" if found.family == ADAPTER_V2 else "imagebind_huge.pth"
            raise ConversionError(
                f"{source} is an adapter alone: give the encoder it was trained with, --encoder {needed}, "
                f"and its language model, --llm FOLDER ({'; '.join(found.needs)})"
            )
        convert_adapter(source, output, encoder=encoder, llm=llm, **options)
    elif found.family in (IMAGEBIND, IMAGEBIND_POINT, CLIP_OPENAI, CLIP_HF):
        from .encoders import convert_encoder

        convert_encoder(source, output, **options)
    elif found.family == LLAMA_META:
        from .llama import from_meta

        from_meta(source, output, tokenizer)
    elif found.family == GGUF:
        from .llama import from_gguf

        from_gguf(source, output)
    elif found.family == FAISS:
        from ..retrieval import FeatureIndex

        FeatureIndex.from_faiss(source).save(output)
    elif found.family == LLAMA_HF:
        raise ConversionError(f"{source} is a Hugging Face folder already and needs no conversion: give it with --llm")
    else:
        raise ConversionError(f"{source} is converted already ({found.title}); --back makes the published file of it")


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
        from ..retrieval import FeatureIndex

        FeatureIndex.load(source).to_faiss(output)
    else:
        raise ConversionError(f"{source} is no folder of ours but {found.title}: there is nothing to convert back")
