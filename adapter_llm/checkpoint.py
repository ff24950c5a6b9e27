"""A weights folder: `config.json`, `manifest.json`, `encoder.safetensors`, `adapter.safetensors`. Read strictly.

Everything cheap is checked before anything slow: names, sizes and hashes of files, then the decoder's config,
then every key and shape, and only then is the decoder loaded. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from imagebind_encoder.config import Modality
from imagebind_encoder.modeling import ImageBindEncoder
from imagebind_encoder.schema import ConfigError

from .adapter import AdapterTokens
from .config import AdapterLLMConfig
from .connector import build_connector
from .fetch import backbone_file
from .manifest import Manifest
from .model import AdapterLLM
from .sources import (
    ADAPTER,
    CONFIG,
    ENCODER,
    MANIFEST,
    WEIGHTS_FILES,
    CheckpointError,
    check_decoder,
    check_files,
    find_decoder,
    find_folder,
    one_line,
    record_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BACKBONE_PREFIX = "stems.vision.backbone."
SHOWN = 8  # problems in one message


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model with all that is needed to use it."""

    model: AdapterLLM
    tokenizer: PreTrainedTokenizerBase
    config: AdapterLLMConfig
    manifest: Manifest


def from_pretrained(
    weights: str | Path,
    llm: str | Path | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    modalities: Iterable[Modality | str] | None = None,
) -> Checkpoint:
    """Load a weights folder, or hub id, and its decoder: the one it names, or `llm` (folder, hub id or GGUF).

    `dtype` is the decoder's; encoder, connector and adapter were trained in float32 and stay in it. Only the
    trunks of `modalities` are loaded. Raises CheckpointError, ConfigError or FetchError, in one sentence.
    """
    folder = find_folder(weights, "weights", WEIGHTS_FILES)
    config, manifest = AdapterLLMConfig.load(folder / CONFIG), Manifest.load(folder / MANIFEST)
    check_files(folder, manifest)
    decoder = find_decoder(llm, manifest)
    parts = build_parts(config, check_decoder(decoder, llm, manifest, weights), modalities)
    built = parts["encoder"].modalities
    skipped = [modality for modality in config.encoder.trunks if modality not in built]
    tensors = read_tensors(folder / ENCODER, skipped)
    if Modality.VISION in built and config.encoder.trunks[Modality.VISION].backbone is not None:
        if manifest.backbone is None:
            raise CheckpointError(f"{folder / MANIFEST} does not say where the backbone's weights are; add backbone")
        backbone = read_tensors(backbone_file(manifest.backbone))
        tensors |= {BACKBONE_PREFIX + name: tensor for name, tensor in backbone.items()}
    load_strictly(parts["encoder"], tensors, folder / ENCODER)
    both = nn.ModuleDict({"connector": parts["connector"], "adapter": parts["adapter"]})
    load_strictly(both, read_tensors(folder / ADAPTER), folder / ADAPTER)
    for part in parts.values():
        part.to(device=device, dtype=torch.float32)
    llama, tokenizer = load_decoder(decoder, dtype)
    return Checkpoint(AdapterLLM(llama=llama.to(device), **parts).eval(), tokenizer, config, manifest)


def load_decoder(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder, frozen, and its tokenizer. Raises CheckpointError for weights that are damaged or incomplete."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        llama, report = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"the language model {folder} cannot be loaded ({one_line(error)}); get it again, or give another"
        ) from None
    if absent := sorted(report["missing_keys"]):  # transformers would go on with random numbers in their place
        raise CheckpointError(f"the language model {folder} lacks {listed(absent)}; get it again, whole")
    return llama.eval().requires_grad_(False), tokenizer


def save_pretrained(
    folder: str | Path,
    model: AdapterLLM,
    config: AdapterLLMConfig,
    manifest: Manifest,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write encoder, connector and adapter; the decoder and the backbone are not ours to copy.

    All files are written under temporary names, and renamed when the last is whole: until then the folder is
    what it was. Raises CheckpointError if they cannot be written.
    """
    folder = Path(folder)
    encoder = {k: v for k, v in model.encoder.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}
    adapter = {f"connector.{k}": v for k, v in model.connector.state_dict().items()}
    adapter |= {f"adapter.{k}": v for k, v in model.adapter.state_dict().items()}
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
            "encoder": ImageBindEncoder(config.encoder, modalities),
            "connector": build_connector(config.connector, config.encoder.embedding_dim, adapter.query_len, hidden),
            "adapter": AdapterTokens(adapter, hidden, llama_config.num_attention_heads),
        }


def read_tensors(path: Path, skipped: Iterable[Modality] = ()) -> dict[str, Tensor]:
    """A safetensors file, but for the trunks of the modalities `skipped`. Raises CheckpointError if it is none."""
    unread = {f"{part}.{modality}." for modality in skipped for part in ("stems", "trunks", "heads", "postprocessors")}
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if not key.startswith(tuple(unread))]  # noqa: SIM118, it is not a dict
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({one_line(error)}); get it again") from None


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a module its tensors. Raises CheckpointError naming keys that are missing, left over or misshapen."""
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    for key, wanted in expected.items():
        found = tensors.get(key, wanted)
        if found.shape != wanted.shape:
            problems.append(f"{key} has shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
        elif found.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{key} has type {found.dtype} instead of {wanted.dtype}")
    if problems:
        raise CheckpointError(f"{path} does not fit its config.json: {listed(problems, '; ')}; get both again")
    module.load_state_dict(tensors, assign=True)


def listed(names: list[str], separator: str = ", ") -> str:
    """The first few of a list, and how many more there are."""
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return separator.join(names[:SHOWN] + more)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
