"""A weights folder: `config.json`, `manifest.json`, `encoder.safetensors`, `adapter.safetensors`. Read strictly.

Everything cheap is checked before anything slow: names, sizes and hashes of files, then the decoder's config,
then every key and shape. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
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
from .manifest import DecoderRecord, FileRecord, Manifest
from .model import AdapterLLM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONFIG, MANIFEST, ENCODER, ADAPTER = "config.json", "manifest.json", "encoder.safetensors", "adapter.safetensors"
BACKBONE_PREFIX = "stems.vision.backbone."
HASH_LIMIT = 256 * 1024**2  # larger files are checked by their size alone, to start in seconds


class CheckpointError(RuntimeError):
    """Weights that are missing, damaged or of another model."""


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
    folder = find_folder(weights, "weights", (CONFIG, MANIFEST, ENCODER, ADAPTER))
    config, manifest = AdapterLLMConfig.load(folder / CONFIG), Manifest.load(folder / MANIFEST)
    check_files(folder, manifest)
    decoder = find_decoder(llm, manifest)
    check_decoder(decoder, llm, manifest, weights)
    if config.encoder.trunks.get(Modality.VISION) is not None and config.encoder.trunks[Modality.VISION].backbone:
        if manifest.backbone is None:
            raise CheckpointError(f"{folder / MANIFEST} does not say where the backbone's weights are; add backbone")
        from .fetch import backbone_file

        backbone = backbone_file(manifest.backbone)
    else:
        backbone = None

    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama = AutoModelForCausalLM.from_pretrained(decoder, dtype=dtype).eval().requires_grad_(False).to(device)
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    parts = build_parts(config, llama.config, modalities)
    encoder_tensors = read_tensors(folder / ENCODER)
    if backbone is not None:
        encoder_tensors |= {BACKBONE_PREFIX + name: tensor for name, tensor in read_tensors(backbone).items()}
    skipped = set(config.encoder.trunks) - set(parts["encoder"].modalities)
    encoder_tensors = {k: v for k, v in encoder_tensors.items() if k.split(".")[1] not in skipped}
    load_strictly(parts["encoder"], encoder_tensors, folder / ENCODER)
    adapter_tensors = read_tensors(folder / ADAPTER)
    both = nn.ModuleDict({"connector": parts["connector"], "adapter": parts["adapter"]})
    load_strictly(both, adapter_tensors, folder / ADAPTER)
    for part in parts.values():
        part.to(device=device, dtype=torch.float32).eval()
    return Checkpoint(AdapterLLM(llama=llama, **parts), tokenizer, config, manifest)


def save_pretrained(
    folder: str | Path,
    model: AdapterLLM,
    config: AdapterLLMConfig,
    manifest: Manifest,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write encoder, connector and adapter; the decoder and the backbone are not ours to copy.

    Every file is written under a temporary name, then renamed; the manifest, which names the others' hashes,
    comes last. A folder that was cut off in between is refused when it is loaded.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = {k: v for k, v in model.encoder.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}
    adapter = {f"connector.{k}": v for k, v in model.connector.state_dict().items()}
    adapter |= {f"adapter.{k}": v for k, v in model.adapter.state_dict().items()}
    for name, tensors in ((ENCODER, encoder), (ADAPTER, adapter)):
        tensors = {
            key: (tensor.to(dtype) if tensor.is_floating_point() else tensor).cpu().contiguous()
            for key, tensor in tensors.items()
        }
        _replace(folder / name, lambda path, tensors=tensors: save_file(tensors, path))
    _replace(folder / CONFIG, lambda path: _write_json(path, config.to_dict()))
    files = {name: record_of(folder / name) for name in (CONFIG, ENCODER, ADAPTER)}
    manifest = replace(manifest, files=files)
    _replace(folder / MANIFEST, lambda path: _write_json(path, manifest.to_dict()))


def find_folder(source: str | Path, what: str, files: tuple[str, ...]) -> Path:
    """A local folder, or the snapshot of a hub id. Raises CheckpointError if it is neither or lacks a file."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        missing = [name for name in files if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"the {what} folder {folder} lacks {', '.join(missing)}; give a complete folder")
        return folder
    if folder.exists():
        raise CheckpointError(f"{what}: {folder} is a file; give the folder it is in, or a hub id")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) or str(source).startswith("."):
        raise CheckpointError(f"there is no {what} folder {folder}; give a folder, or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=list(files) or None))
    except Exception as error:  # every kind of network and hub failure ends here, for the same advice
        reason = str(error).split("\n")[0][:160]
        raise CheckpointError(
            f"{what}: {source} is no folder here and could not be had from the hub ({reason}); "
            "check the name and the network"
        ) from error


def find_decoder(llm: str | Path | None, manifest: Manifest) -> Path:
    """The decoder's Hugging Face folder, fetched and converted if need be."""
    from .fetch import decoder_folder, gguf_folder

    if llm is not None:
        if str(llm).endswith(".gguf"):
            return gguf_folder(llm)
        local = Path(llm).expanduser()
        return find_folder(llm, "language model", ("config.json",) if local.is_dir() else ())
    if manifest.decoder.part is not None:
        return decoder_folder(manifest.decoder.part)
    if manifest.decoder.source is not None:
        return find_folder(manifest.decoder.source, "language model", ())
    raise CheckpointError(f"these weights need {manifest.decoder.name}, which they cannot fetch; give it with --llm")


def check_decoder(folder: Path, llm: str | Path | None, manifest: Manifest, weights: str | Path) -> None:
    """Raise CheckpointError if the decoder's sizes are not those the adapter was trained for."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
        found = DecoderRecord.of(config, str(llm or manifest.decoder.name))
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder} is not a language model transformers can read ({reason})") from None
    differences = manifest.decoder.differences(found)
    if differences:
        raise CheckpointError(
            f"the weights {weights} were trained for {manifest.decoder.name}, and {found.name} is another model "
            f"({', '.join(differences)}); give the right one with --llm, or weights trained for this one"
        )


def check_files(folder: Path, manifest: Manifest) -> None:
    """Raise CheckpointError for a file that is missing, cut short or changed."""
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; its folder's manifest lists it")
        size = path.stat().st_size
        if size != record.bytes:
            raise CheckpointError(f"{path} has {size} bytes instead of {record.bytes}; get it again")
        if size <= HASH_LIMIT and record_of(path) != record:
            raise CheckpointError(f"{path} is not the file its manifest describes (SHA-256 differs); get it again")


def build_parts(
    config: AdapterLLMConfig, llama_config, modalities: Iterable[Modality | str] | None = None
) -> dict[str, nn.Module]:
    """Encoder, connector and adapter without weights, on the meta device, for a decoder of these sizes."""
    adapter = config.adapter
    if adapter.query_layer > llama_config.num_hidden_layers:
        raise ConfigError(
            f"adapter.query_layer is {adapter.query_layer}, and the decoder has {llama_config.num_hidden_layers} layers"
        )
    with torch.device("meta"):
        hidden = llama_config.hidden_size
        return {
            "encoder": ImageBindEncoder(config.encoder, modalities),
            "connector": build_connector(config.connector, config.encoder.embedding_dim, adapter.query_len, hidden),
            "adapter": AdapterTokens(adapter, hidden, llama_config.num_attention_heads),
        }


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file, memory-mapped. Raises CheckpointError if it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is not a dict
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); get it again") from None


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a module its tensors. Raises CheckpointError naming every key that is missing, left over or misshapen."""
    expected = module.state_dict()
    problems = [f"missing {key}" for key in expected if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in expected]
    problems += [
        f"{key} has shape {tuple(tensors[key].shape)} instead of {tuple(wanted.shape)}"
        for key, wanted in expected.items()
        if key in tensors and tensors[key].shape != wanted.shape
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit its config.json: {'; '.join(problems)}")
    module.load_state_dict(tensors, assign=True)


def record_of(path: Path) -> FileRecord:
    """Size and hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1024 * 1024):
            digest.update(block)
    return FileRecord(path.stat().st_size, digest.hexdigest())


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(path: Path, write) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
