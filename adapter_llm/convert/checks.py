"""What an adapter file must agree with before it is converted: itself, its base model, its encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from ..adapter import AdapterTokens
from ..config import AdapterLLMConfig
from ..connector import build_connector
from ..decoder import tokenizer_fingerprint
from ..identify import identify
from ..lora import change_shapes
from ..sources import CONFIG, DECODER_PREFIX, find_language_model
from ..tensorfiles import TensorFile, TensorSpec
from ..words import listed, one_line
from .errors import ConversionError
from .keys import AdapterLayout
from .relations import wrong_shapes


@dataclass(frozen=True)
class BaseSizes:
    """Sizes of a LLaMA as its config.json has them; transformers would take 120 MB of memory to read them."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None  # None: as many as there are heads
    head_dim: int | None = None


def find_base(llm: str | Path) -> tuple[Path, BaseSizes]:
    """The folder and the sizes of the language model an adapter is put on. Raises CheckpointError or FetchError."""
    folder = find_language_model(llm)
    try:
        stated = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        sizes = {field.name: stated[field.name] for field in fields(BaseSizes) if stated.get(field.name) is not None}
        return folder, BaseSizes(**{name: int(value) for name, value in sizes.items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{folder / CONFIG} does not tell the sizes of a LLaMA ({one_line(error)}); give a whole language model"
        ) from error


def check_config(source: Path, layout: AdapterLayout, file: TensorFile) -> None:
    """Raise ConversionError for a file that has lost whole groups of tensors: by names alone it looks complete."""
    stated = file.extra.get("config")
    if isinstance(stated, Mapping) and "w_lora" in stated and bool(stated["w_lora"]) != bool(layout.lora_rank):
        raise ConversionError(
            f"{source} says w_lora {stated['w_lora']} of itself and has {'' if layout.lora_rank else 'no '}LoRA; "
            "get the file again"
        )
    if (layout.lora_rank or layout.new_gate) and not layout.biases:
        raise ConversionError(
            f"{source} has {'LoRA' if layout.lora_rank else 'new_gate'} and no biases, which the originals only write "
            "together; get the file again"
        )


def check_base(source: Path, layout: AdapterLayout, base: Path, config: BaseSizes) -> None:
    """Raise ConversionError if the base is of another size than the adapter's, or not whole."""
    wanted = (layout.hidden_size, layout.layers, layout.heads)
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    if found != wanted:
        words = "hidden size {}, {} layers and {} heads"
        raise ConversionError(
            f"{source} was trained for a LLaMA with {words.format(*wanted)}, and {base} has {words.format(*found)}; "
            "give the base model it was trained for with --llm"
        )
    whole = identify(base)
    if problems := [*whole.problems, *(f"no {n}" for n in whole.missing), *(f"unknown {n}" for n in whole.unexpected)]:
        raise ConversionError(f"{base} is not a whole language model: {listed(problems)}; get it again")


def check_shapes(
    source: Path, config: AdapterLLMConfig, base_config: BaseSizes, specs: Mapping[str, TensorSpec]
) -> None:
    """Raise ConversionError unless the tensors are what our own classes of these sizes consist of."""
    hidden, heads = base_config.hidden_size, base_config.num_attention_heads
    with torch.device("meta"):
        parts = {
            "connector": build_connector(
                config.connector, config.encoder.embedding_dim, config.adapter.query_len, hidden
            ),
            "adapter": AdapterTokens(config.adapter, hidden, heads),
        }
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part, module in parts.items()
        for name, tensor in module.state_dict().items()
    }
    expected |= {f"{DECODER_PREFIX}{name}": s for name, s in change_shapes(config.decoder, base_config).items()}
    if problems := wrong_shapes(expected, specs):
        raise ConversionError(
            f"{source} does not fit the encoder and the base model given: {problems}; give those it was trained with"
        )


def tokenizer_of(base: Path) -> str | None:
    """The fingerprint of a language model's tokenizer, read without transformers; None where it would add tokens."""
    from tokenizers import Tokenizer

    path, config = base / "tokenizer.json", base / "tokenizer_config.json"
    if not path.is_file():
        return None
    try:
        tokenizer = Tokenizer.from_file(str(path))
        stated = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except Exception as error:  # the library raises nothing more specific
        raise ConversionError(f"{base} has a damaged tokenizer ({one_line(error)}); get the folder again") from error
    named = [value for name, value in stated.items() if name.endswith("_token")]
    named += stated.get("additional_special_tokens") or []
    words = [value.get("content") if isinstance(value, dict) else value for value in named]
    known = tokenizer.get_vocab()
    return tokenizer_fingerprint(tokenizer) if all(w in known for w in words if isinstance(w, str)) else None


def plain(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest can hold of what stood beside the tensors; an optimiser's state, for one, it cannot."""
    kept = {}
    for name, value in extra.items():
        try:
            if json.loads(json.dumps(value)) == value:
                kept[name] = value
        except (TypeError, ValueError):
            continue
    return kept


def refuse_safetensors(output: Path) -> None:
    """Raise ConversionError for a name that says what the file will not be."""
    if Path(output).suffix == ".safetensors":
        raise ConversionError(f"{output}: published files are torch's .pth; give the --output such a name")
