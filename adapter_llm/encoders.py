"""The encoder of a weights folder: built without weights, then given every tensor of it, or none.

An encoder alone needs no decoder: this loads neither transformers nor a language model.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from imagebind_encoder.config import EncoderConfig, Modality
from imagebind_encoder.modeling import ImageBindEncoder

from .config import AdapterLLMConfig, ClipConfig
from .fetch import backbone_file
from .manifest import Manifest
from .sources import CONFIG, ENCODER, MANIFEST, CheckpointError, check_files, find_folder
from .strict import load_strictly, read_tensors

BACKBONE_PREFIX = "stems.vision.backbone."
ENCODER_FILES = (CONFIG, MANIFEST, ENCODER)


def find_encoder(weights: str | Path) -> tuple[Path, AdapterLLMConfig, Manifest]:
    """The folder, config and manifest of a weights folder or hub id, whatever else it holds beside an encoder.

    Raises CheckpointError or ConfigError.
    """
    folder = find_folder(weights, "weights", ENCODER_FILES)
    return folder, AdapterLLMConfig.load(folder / CONFIG), Manifest.load(folder / MANIFEST)


def load_encoder(
    folder: Path,
    config: AdapterLLMConfig,
    manifest: Manifest,
    modalities: Iterable[Modality | str] | None = None,
) -> nn.Module:
    """The encoder alone, float32 on the CPU; only the trunks of `modalities` are loaded.

    Raises CheckpointError or FetchError, in one sentence.
    """
    needed = {name: record for name, record in manifest.files.items() if name in ENCODER_FILES}
    check_files(folder, replace(manifest, files=needed))
    with torch.device("meta"):
        encoder = build_encoder(config.encoder, modalities)
    fill_encoder(encoder, folder, config, manifest)
    return encoder.float().eval()


def build_encoder(config: EncoderConfig | ClipConfig, modalities: Iterable[Modality | str] | None) -> nn.Module:
    if isinstance(config, ClipConfig):
        from .clip import ClipEncoder

        return ClipEncoder(config, modalities)
    return ImageBindEncoder(config, modalities)


def fill_encoder(encoder: nn.Module, folder: Path, config: AdapterLLMConfig, manifest: Manifest) -> None:
    """Give an encoder its tensors from a weights folder. Raises CheckpointError for any that do not fit."""
    load_strictly(encoder, encoder_tensors(folder, encoder, config, manifest), folder / ENCODER)


def encoder_tensors(
    folder: Path, encoder: nn.Module, config: AdapterLLMConfig, manifest: Manifest
) -> dict[str, Tensor]:
    """The weights of the trunks that were built, with those of the backbone if there is one."""
    skipped = [modality for modality in config.encoder.modalities if modality not in encoder.modalities]
    tensors = read_tensors(folder / ENCODER, skipped)
    if isinstance(config.encoder, ClipConfig) or Modality.VISION not in encoder.modalities:
        return tensors
    if config.encoder.trunks[Modality.VISION].backbone is not None:
        if manifest.backbone is None:
            raise CheckpointError(f"{folder / MANIFEST} does not say where the backbone's weights are; add backbone")
        backbone = read_tensors(backbone_file(manifest.backbone))
        tensors |= {BACKBONE_PREFIX + name: tensor for name, tensor in backbone.items()}
    return tensors
