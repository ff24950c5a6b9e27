"""Loading the language model: as it is, or with what the adapter's weights change in it, on one device or on several.

What is used as it is stored, transformers loads; the rest is put together by `assembly`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from .config import DecoderConfig
from .lora import Changes
from .shards import EMBEDDINGS, Shards
from .sources import CheckpointError, decoder_config
from .words import listed, one_line

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")  # of accelerate, for sharing a model out


def load_decoder(
    folder: Path,
    dtype: torch.dtype,
    *,
    device: torch.device | str = "cpu",
    device_map: str | Mapping[str, Any] | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
    offload_folder: str | Path | None = None,
    config: DecoderConfig = DecoderConfig(),
    changes: Mapping[str, Tensor] | None = None,
    adapted_layers: int = 0,
    merge: bool = True,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder, frozen, on `device` or shared out by `device_map`, and its tokenizer.

    `changes` are the tensors of `lora.change_shapes(config, ...)`; the last `adapted_layers` are those whose plain
    keys and values the adapter needs. With `merge` low-rank updates become part of the weights, which is for
    running; without it they stay parameters of their own, which is for training.
    `device_map` is one of accelerate's strategies, such as "auto" within `max_memory`, a device, or a mapping from
    modules to devices, "cpu" and "disk". Changed weights that belong on the disk are written to `offload_folder`.
    Of the stored settings for generation only the special tokens are kept.
    Raises CheckpointError for weights that are damaged or incomplete, and for changes made for another decoder.
    """
    if isinstance(device_map, str) and device_map not in STRATEGIES:
        device_map = {"": device_map}
    if isinstance(device_map, Mapping) and "" in device_map and len(device_map) > 1:
        raise CheckpointError("the device map places the whole model ('') and parts of it; give a place to every part")
    sizes = decoder_config(folder)
    with _explained(folder):
        tokenizer = _read_tokenizer(folder, sizes)
        if config or changes or _would_be_converted(folder, sizes, dtype):
            from .assembly import assemble

            everything = Changes(config, changes or {}, adapted_layers, merge)
            places = {"": device} if device_map is None else device_map
            llama = assemble(folder, sizes, dtype, everything, places, max_memory, offload_folder)
        elif device_map is None:
            llama = _load_plain(folder, dtype).to(device)
        else:
            options = {"device_map": device_map, "max_memory": max_memory, "offload_folder": offload_folder}
            llama = _load_plain(folder, dtype, **options)
    llama.generation_config = _without_settings(llama)
    return llama.eval().requires_grad_(False), tokenizer


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of all tokens and their numbers, those added later too: the same for every way to load them."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()


def _without_settings(llama: PreTrainedModel) -> GenerationConfig:
    """The tokens that begin, end and fill an answer.

    What else a model's publishers recommend, such as a penalty on repetition, would change answers that nobody asked
    to have changed, greedy ones too.
    """
    from transformers import GenerationConfig

    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(llama.generation_config, name) for name in names})


def _read_tokenizer(folder: Path, sizes: PretrainedConfig) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    room = getattr(sizes, "vocab_size", tokenizer.vocab_size)
    if tokenizer.vocab_size > room:  # what was added to it later does not count
        raise CheckpointError(
            f"the tokenizer in {folder} is of another model: it has {tokenizer.vocab_size} tokens, and the language "
            f"model {room}; put its own there"
        )
    return tokenizer


def _would_be_converted(folder: Path, sizes: PretrainedConfig, dtype: torch.dtype) -> bool:
    """Whether a LLaMA's numbers are stored in another type than they are used in.

    transformers would hold them, mapped, beside the converted ones until the last is done: twice the memory. And
    what a config of other sizes lacks it would make up first, be it gigabytes: CheckpointError.
    """
    if sizes.model_type != "llama" or getattr(sizes, "quantization_config", None) is not None:
        return False
    try:
        shards = Shards(folder)
    except CheckpointError:  # pickled weights, or damage that transformers will meet too
        return False
    if EMBEDDINGS not in shards.files or not shards.types <= TYPES.keys():
        return False
    wanted, found = (sizes.num_hidden_layers, sizes.vocab_size, sizes.hidden_size), shards.sizes
    if found != wanted:
        raise CheckpointError(
            f"the language model {folder} is not what its config.json says: "
            "it has {} layers, {} tokens and hidden size {} instead of {}, {} and {}".format(*found, *wanted)
            + "; get it again"
        )
    return {TYPES[kind] for kind in shards.types} != {dtype}


def _load_plain(folder: Path, dtype: torch.dtype, **options) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    llama, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True, **options)
    if absent := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise CheckpointError(f"the language model {folder} lacks {listed(absent)}; get it again, whole")
    if strange := sorted(report["unexpected_keys"]):  # it would leave them out and be another model
        raise CheckpointError(
            f"the language model {folder} is not what its config.json says: unexpected {listed(strange)}; get it again"
        )
    return llama


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """What libraries say of weights they cannot load, as one sentence."""
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the language model {folder} cannot be loaded ({one_line(error)}); get it again, or give another"
        ) from None
