"""This project's own folders and indexes."""

from __future__ import annotations

from pathlib import Path

from ..config import AdapterLLMConfig, ClipConfig
from ..manifest import DecoderRecord, Manifest
from ..retrieval.files import FORMAT as INDEX_FORMAT
from ..sources import ADAPTER, CONFIG, KEPT, MANIFEST
from ..sources import ENCODER as ENCODER_FILE
from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from .found import ENCODER, INDEX, WEIGHTS, Found, known


def own_folder(folder: Path, names: set[str]) -> Found:
    """With an adapter or an encoder alone. Raises ConfigError for a config or manifest that cannot be read."""
    family = WEIGHTS if ADAPTER in names else ENCODER
    config = AdapterLLMConfig.load(folder / CONFIG) if CONFIG in names else None
    manifest = Manifest.load(folder / MANIFEST) if MANIFEST in names else None
    specs: dict[str, TensorSpec] = {}
    for name in sorted({ENCODER_FILE, ADAPTER, KEPT} & names):
        specs |= {f"{name}/{key}": spec for key, spec in open_tensors(folder / name).specs.items()}
    parts = {}
    if family == WEIGHTS:
        beginnings = {"connector": "connector.", "adapter": "adapter.", "changes of the decoder": "decoder."}
        for part, beginning in beginnings.items():
            parts[part] = any(key.startswith(f"{ADAPTER}/{beginning}") for key in specs)
        parts["kept for the way back"] = KEPT in names
    wanted = [CONFIG, MANIFEST, ENCODER_FILE, *([ADAPTER] if family == WEIGHTS else [])]
    wanted = dict.fromkeys([*wanted, *(manifest.files if manifest else ())])
    return Found.of(
        folder, family, specs, [folder / name for name in sorted({*wanted, KEPT} & names)],
        variant=_kind(config), sizes=_sizes(config, family), parts=parts,
        missing=(name for name in wanted if name not in names),
        needs=[_in_words(manifest.decoder)] if manifest and manifest.decoder else (),
    )  # fmt: skip


def feature_index(file: TensorFile) -> Found | None:
    """None for a file that is no index."""
    if file.extra.get("format") != INDEX_FORMAT or "vectors" not in file.specs:
        return None
    rows, width = file.specs["vectors"].shape
    return Found.of(
        file.path, INDEX, file.specs, [file.path],
        sizes={"embedding_dim": width, "vectors": rows}, parts={"ids": "ids" in file.specs},
    )  # fmt: skip


def _kind(config: AdapterLLMConfig | None) -> str | None:
    if config is None:
        return None
    return "clip" if isinstance(config.encoder, ClipConfig) else "imagebind"


def _sizes(config: AdapterLLMConfig | None, family: str) -> dict[str, int]:
    if config is None:
        return {}
    encoder, adapter, connector = config.encoder, config.adapter, config.connector
    sizes = {"embedding_dim": encoder.embedding_dim}
    if isinstance(encoder, ClipConfig):
        sizes |= {"vision_layers": encoder.depth, "vision_width": encoder.width, "vision_heads": encoder.heads}
    else:
        for name, trunk in encoder.trunks.items():
            sizes |= {f"{name}_layers": trunk.depth, f"{name}_width": trunk.width, f"{name}_heads": trunk.heads}
    if family == WEIGHTS:
        bridge = connector.kind == "bridge"  # has the width of the decoder, and no heads
        sizes |= known(
            query_len=adapter.query_len, query_layer=adapter.query_layer, connector_depth=connector.depth,
            connector_width=None if bridge else connector.width, connector_heads=None if bridge else connector.heads,
            lora_rank=config.decoder.lora_rank or None,
        )  # fmt: skip
    return sizes


def _in_words(decoder: DecoderRecord) -> str:
    return (
        f"the language model {decoder.name} (hidden size {decoder.hidden_size}, {decoder.num_hidden_layers} layers, "
        f"{decoder.num_attention_heads} heads, {decoder.vocab_size} tokens)"
    )
