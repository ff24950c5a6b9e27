"""A weights folder: `config.json`, `manifest.json`, `encoder.safetensors`, `adapter.safetensors`. Read strictly.

The last holds the connector, the adapter, and what the weights change in the decoder, if they do.

Everything cheap is checked before anything slow: names, sizes and hashes of files, then the decoder's config,
then every key and shape, and only then is the decoder loaded. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from imagebind_encoder.config import Modality
from imagebind_encoder.schema import ConfigError

from .adapter import AdapterTokens
from .config import AdapterLLMConfig
from .connector import build_connector
from .decoder import load_decoder, tokenizer_fingerprint
from .encoders import BACKBONE_PREFIX, build_encoder, fill_encoder
from .lora import change_shapes
from .manifest import Manifest
from .model import AdapterLLM
from .shards import fingerprint
from .sources import (
    ADAPTER,
    CONFIG,
    DECODER_PREFIX,
    ENCODER,
    MANIFEST,
    WEIGHTS_FILES,
    CheckpointError,
    as_json,
    check_decoder,
    check_files,
    find_decoder,
    find_folder,
    record_of,
)
from .strict import check_tensors, load_strictly, read_tensors
from .words import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with all that is needed to use it."""

    model: AdapterLLM
    tokenizer: PreTrainedTokenizerBase
    config: AdapterLLMConfig
    manifest: Manifest
    changes: Mapping[str, Tensor] = field(default_factory=dict)  # of the decoder, as they are stored


def from_pretrained(
    weights: str | Path,
    llm: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Iterable[Modality | str] | None = None,
    allow_base_mismatch: bool = False,
    merge: bool = True,
    **placement: Any,
) -> Checkpoint:
    """Load a weights folder, or hub id, and its decoder: the one it names, or `llm` (folder, hub id or GGUF).

    `dtype` is the decoder's; encoder, connector and adapter were trained in float32 and stay in it. Only the
    trunks of `modalities` are loaded. A base model or a tokenizer with another fingerprint than that of the
    conversion is refused unless `allow_base_mismatch`. `merge` False keeps low-rank updates apart, to train them.
    `placement` is `device_map`, `max_memory` and `offload_folder` of `decoder.load_decoder`.
    Raises CheckpointError, ConfigError or FetchError, in one sentence.
    """
    folder = find_folder(weights, "weights", WEIGHTS_FILES)
    config, manifest = AdapterLLMConfig.load(folder / CONFIG), Manifest.load(folder / MANIFEST)
    check_files(folder, manifest)
    decoder = find_decoder(llm, manifest, folder)
    llama_config = check_decoder(decoder, llm, manifest, weights)
    if not allow_base_mismatch:
        check_fingerprint(decoder, manifest, weights)
    parts = build_parts(config, llama_config, modalities)
    fill_encoder(parts["encoder"], folder, config, manifest)
    changes = load_adapter(folder / ADAPTER, parts, config, llama_config)
    for part in parts.values():
        part.to(device=device, dtype=torch.float32)
    llama, tokenizer = load_decoder(
        decoder,
        dtype,
        device=device,
        config=config.decoder,
        changes=changes,
        adapted_layers=config.adapter.query_layer,
        merge=merge,
        **placement,
    )
    if not allow_base_mismatch:
        check_tokenizer(tokenizer, decoder, manifest, weights)
    return Checkpoint(AdapterLLM(llama=llama, **parts).eval(), tokenizer, config, manifest, changes)


def check_fingerprint(decoder: Path, manifest: Manifest, weights: str | Path) -> None:
    """Raise CheckpointError if a base model has the right sizes and yet is another than the one recorded."""
    wanted = manifest.decoder.fingerprint
    if wanted is None or (found := fingerprint(decoder)) == wanted:
        return
    raise CheckpointError(
        f"the weights {weights} were converted for {manifest.decoder.name} (fingerprint {wanted[:12]}), and {decoder} "
        f"has its sizes but other numbers (fingerprint {found[:12]}; a bfloat16 or quantised copy of the right one "
        "counts as another): answers would be garbage; give the right one with --llm, or insist with "
        "--allow-base-mismatch"
    )


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, decoder: Path, manifest: Manifest, weights: str | Path
) -> None:
    """Raise CheckpointError if the base model's tokenizer is another than the one recorded."""
    wanted = manifest.decoder.tokenizer
    if wanted is None or (found := tokenizer_fingerprint(tokenizer)) == wanted:
        return
    raise CheckpointError(
        f"the weights {weights} were converted for the tokenizer of {manifest.decoder.name} (fingerprint "
        f"{wanted[:12]}), and the one in {decoder} has other tokens (fingerprint {found[:12]}): answers would be "
        "garbage; put the right one there, or insist with --allow-base-mismatch"
    )


def load_adapter(
    path: Path, parts: Mapping[str, nn.Module], config: AdapterLLMConfig, llama_config
) -> dict[str, Tensor]:
    """Give connector and adapter their tensors; what is left over must be the decoder's changes, and is returned."""
    tensors = read_tensors(path)
    changes = {name: tensors.pop(name) for name in list(tensors) if name.startswith(DECODER_PREFIX)}
    load_strictly(nn.ModuleDict({name: parts[name] for name in ("connector", "adapter")}), tensors, path)
    changes = {name.removeprefix(DECODER_PREFIX): tensor for name, tensor in changes.items()}
    check_tensors(changes, change_shapes(config.decoder, llama_config), path)
    return changes


def save_pretrained(
    folder: str | Path,
    model: AdapterLLM,
    config: AdapterLLMConfig,
    manifest: Manifest,
    dtype: torch.dtype = torch.float16,
    changes: Mapping[str, Tensor] | None = None,
) -> None:
    """Write encoder, connector, adapter and the decoder's changes; the decoder itself is not ours to copy, nor is
    the backbone.

    All files are written under temporary names, and renamed when the last is whole: until then the folder is
    what it was. Raises CheckpointError if they cannot be written.
    """
    folder = Path(folder)
    encoder = {k: v for k, v in model.encoder.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}
    adapter = {f"connector.{k}": v for k, v in model.connector.state_dict().items()}
    adapter |= {f"adapter.{k}": v for k, v in model.adapter.state_dict().items()}
    adapter |= {f"{DECODER_PREFIX}{k}": v for k, v in (changes or {}).items()}
    # the manifest, which has the others' hashes, is renamed last
    partial = {name: folder / f".{name}.{os.getpid()}.partial" for name in (CONFIG, ENCODER, ADAPTER, MANIFEST)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tensors in ((ENCODER, encoder), (ADAPTER, adapter)):
            save_file({key: _stored(tensor, dtype) for key, tensor in tensors.items()}, partial[name])
            partial[name].chmod(0o644)  # safetensors writes files that only their owner may read
        _write_json(partial[CONFIG], config.to_dict())
        files = {name: record_of(path) for name, path in partial.items() if name != MANIFEST}
        _write_json(partial[MANIFEST], replace(manifest, files=files).to_dict())
        for name, path in partial.items():
            os.replace(path, folder / name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"the weights folder {folder} cannot be written ({one_line(error)})") from error
    finally:
        for path in partial.values():
            with suppress(OSError):  # most are renamed already
                path.unlink()


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace a folder's manifest alone, for what is learned about weights after they were saved."""
    partial = folder / f".{MANIFEST}.{os.getpid()}.partial"
    try:
        _write_json(partial, manifest.to_dict())
        os.replace(partial, folder / MANIFEST)
    except OSError as error:
        raise CheckpointError(f"{folder / MANIFEST} cannot be written ({one_line(error)})") from error
    finally:
        partial.unlink(missing_ok=True)


def build_parts(
    config: AdapterLLMConfig,
    llama_config,
    modalities: Iterable[Modality | str] | None = None,
    device: torch.device | str = "meta",
) -> dict[str, nn.Module]:
    """Encoder, connector and adapter for a decoder of these sizes; on the meta device they have no weights yet."""
    adapter = config.adapter
    if adapter.query_layer > llama_config.num_hidden_layers:
        raise ConfigError(
            f"adapter.query_layer is {adapter.query_layer}, and the decoder has {llama_config.num_hidden_layers} layers"
        )
    with torch.device(device):
        hidden = llama_config.hidden_size
        return {
            "encoder": build_encoder(config.encoder, modalities),
            "connector": build_connector(config.connector, config.encoder.embedding_dim, adapter.query_len, hidden),
            "adapter": AdapterTokens(adapter, hidden, llama_config.num_attention_heads),
        }


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """As it goes to disk: in `dtype`, unless a number is too large for that (a batch norm's variance, say)."""
    stored = tensor.to(dtype) if tensor.is_floating_point() else tensor
    if stored.is_floating_point() and not stored.isfinite().all() and tensor.isfinite().all():
        stored = tensor
    return stored.cpu().contiguous()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(as_json(values), encoding="utf-8")
