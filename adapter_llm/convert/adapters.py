"""LLaMA-Adapter V2 and ImageBind-LLM files to weights folders, and back to the bytes they came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint import DECODER_PREFIX, build_parts
from ..config import AdapterConfig, AdapterLLMConfig, ClipConfig, ConnectorConfig, DecoderConfig, PromptConfig
from ..lora import change_shapes
from ..manifest import DecoderRecord, Manifest, Origin
from ..shards import fingerprint
from ..sources import ADAPTER, CONFIG, ENCODER, KEPT, MANIFEST, as_json, check_files, find_base, record_of
from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from .encoders import encoder_folder
from .errors import ConversionError
from .folder import job_of, output_file, output_folder
from .keys import IMAGEBIND_LLM, V2, AdapterLayout
from .relations import check_complete, convert_specs, reader

if TYPE_CHECKING:
    from transformers import PretrainedConfig

PUBLISHED_HEADS = 16  # of V2's visual blocks; head counts leave no trace in shapes
TITLES = {V2: "LLaMA-Adapter V2", IMAGEBIND_LLM: "ImageBind-LLM"}
LICENCE = "of the published file: see weights/README.md"


def convert_adapter(
    source: Path,
    output: Path,
    *,
    encoder: Path,
    llm: str | Path,
    connector_heads: int = PUBLISHED_HEADS,
    faithful: bool = True,
) -> None:
    """Write the weights folder of a published adapter; `encoder` and `llm` are its frozen parts, converted or not.

    `faithful` False is for adapters that others trained in the same layout without the originals' slips: pictures
    in R,G,B order, and an empty context counts as none. Raises ConversionError, TensorFileError, CheckpointError.
    """
    file = open_tensors(source)
    layout = AdapterLayout.of(source, file.specs)
    relations, kept = layout.relations(), [name for name in layout.kept() if name in file.specs]
    check_complete(source, relations, set(file.specs) - set(kept))
    base, base_config = find_base(llm)
    check_base(source, layout, base, base_config)
    specs = convert_specs(relations, file.specs)
    with encoder_folder(Path(encoder), beside=output) as eyes:
        config = config_of(layout, AdapterLLMConfig.load(eyes / CONFIG).encoder, connector_heads, faithful)
        check_shapes(source, config, base_config, specs)
        job = job_of(source, eyes, base, connector_heads=connector_heads, faithful=faithful)
        total = sum(spec.nbytes for spec in specs.values())
        with output_folder(output, job, total) as folder:
            folder.tensors(ADAPTER, specs, reader(relations, file.read, blocks=file.blocks))
            if kept:
                folder.tensors(KEPT, {name: file.specs[name] for name in kept}, file.read)
            folder.link(ENCODER, eyes / ENCODER)
            folder.write(CONFIG, as_json(config.to_dict()))
            manifest = Manifest(
                decoder=decoder_record(base, base_config, llm, output),
                files={name: record_of(folder.path / name) for name in folder.names()},
                origin=origin_of(layout.family, file, layout.layers, relations, specs),
                licence=LICENCE,
                training={"converted_from": f"{TITLES[layout.family]}, {source.name}"},
            )
            folder.write(MANIFEST, as_json(manifest.to_dict()))


def export_adapter(folder: Path, output: Path) -> None:
    """Write the published file that a weights folder was converted from, with the tensors the folder has now."""
    config, manifest = AdapterLLMConfig.load(folder / CONFIG), Manifest.load(folder / MANIFEST)
    origin = manifest.origin
    if origin is None or origin.family not in TITLES:
        raise ConversionError(f"{folder} does not come from a published adapter file: there is no layout to go back to")
    check_files(folder, manifest)
    ours = open_tensors(folder / ADAPTER)
    kept = open_tensors(folder / KEPT) if (folder / KEPT).is_file() else None
    if config.adapter.layer_scale:
        raise ConversionError(f"{folder} has a layer scale, for which the published layout has no place")
    layout = layout_of(config, manifest, ours, len(kept.specs) if kept else 0)
    relations = layout.relations()
    known = {name for relation in relations for name in relation.ours}
    if odd := sorted(known ^ set(ours.specs)):
        raise ConversionError(f"{folder / ADAPTER} does not fit config.json: {', '.join(odd[:8])}; convert it again")
    specs = convert_specs(relations, ours.specs, back=True) | (dict(kept.specs) if kept else {})
    specs |= {n: TensorSpec(specs[n].shape, getattr(torch, dtype)) for n, dtype in origin.dtypes.items()}
    make = reader(relations, ours.read, back=True, blocks=ours.blocks)

    def read(name: str) -> Tensor | Iterable[Tensor]:
        tensor = kept.read(name) if kept and name in kept.specs else make(name)
        return tensor.to(specs[name].dtype) if isinstance(tensor, Tensor) else tensor

    with output_file(output, job_of(folder), sum(spec.nbytes for spec in specs.values())) as file:
        file.pth(specs, read, origin.wrapper, origin.extra)


def config_of(layout: AdapterLayout, encoder: Any, connector_heads: int, faithful: bool) -> AdapterLLMConfig:
    v2 = layout.family == V2
    if v2 != isinstance(encoder, ClipConfig):
        wanted = "a CLIP encoder (OpenAI's ViT-L-14.pt)" if v2 else "an ImageBind encoder (imagebind_huge.pth)"
        raise ConversionError(f"{TITLES[layout.family]} needs {wanted}, and another was given with --encoder")
    if v2 and faithful:
        # every entry point of V2 read its pictures in this order, so that is what its weights know
        encoder = replace(encoder, image=replace(encoder.image, channels="bgr"))
    return AdapterLLMConfig(
        encoder=encoder,
        connector=ConnectorConfig(
            kind="visual_query" if v2 else "bridge",
            width=layout.width,
            depth=layout.blocks,
            heads=connector_heads if v2 else 1,
            mlp_ratio=layout.mlp_ratio,
            bias=layout.legacy,
        ),
        adapter=AdapterConfig(layout.query_len, layout.adapted, gate_scale=layout.new_gate),
        prompt=PromptConfig("alpaca", empty_input=v2 and faithful),
        decoder=DecoderConfig(layout.biases, layout.norms, layout.lora_rank),
    )


def layout_of(config: AdapterLLMConfig, manifest: Manifest, ours: TensorFile, kept: int) -> AdapterLayout:
    """The layout of the published file that a folder came from."""
    scaled, decoder, origin = config.adapter.gate_scale, manifest.decoder, manifest.origin
    return AdapterLayout(
        family=origin.family,
        layers=origin.layers,
        adapted=config.adapter.query_layer,
        query_len=config.adapter.query_len,
        hidden_size=decoder.hidden_size,
        heads=decoder.num_attention_heads,
        kv_heads=decoder.num_key_value_heads,
        features_dim=config.encoder.embedding_dim,
        width=config.connector.width,
        mlp_ratio=config.connector.mlp_ratio,
        blocks=config.connector.depth,
        legacy=config.connector.bias,
        new_gate=scaled,
        biases=config.decoder.biases,
        norms=config.decoder.norms,
        lora_rank=config.decoder.lora_rank,
        idle_gates=kept // 2 if scaled else kept,
    )


def check_base(source: Path, layout: AdapterLayout, base: Path, config: PretrainedConfig) -> None:
    """Raise ConversionError if the base is of another size than the adapter's."""
    wanted = (layout.hidden_size, layout.layers, layout.heads)
    found = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    if found != wanted:
        words = "hidden size {}, {} layers and {} heads"
        raise ConversionError(
            f"{source} was trained for a LLaMA with {words.format(*wanted)}, and {base} has {words.format(*found)}; "
            "give the base model it was trained for with --llm"
        )


def check_shapes(
    source: Path, config: AdapterLLMConfig, base_config: PretrainedConfig, specs: Mapping[str, TensorSpec]
) -> None:
    """Raise ConversionError unless the tensors are what our own classes of these sizes consist of."""
    parts = build_parts(config, base_config)
    expected = {
        f"{part}.{name}": tuple(tensor.shape)
        for part in ("connector", "adapter")
        for name, tensor in parts[part].state_dict().items()
    }
    expected |= {f"{DECODER_PREFIX}{name}": s for name, s in change_shapes(config.decoder, base_config).items()}
    found = {name: spec.shape for name, spec in specs.items()}
    wrong = [
        f"{name} {found.get(name)} instead of {expected.get(name)}"
        for name in sorted(set(found) | set(expected))
        if found.get(name) != expected.get(name)
    ]
    if wrong:
        raise ConversionError(
            f"{source} does not fit the encoder and the base model given: {', '.join(wrong[:8])}; "
            "give those it was trained with"
        )


def decoder_record(base: Path, config: PretrainedConfig, llm: str | Path, output: Path) -> DecoderRecord:
    local = Path(llm).expanduser().exists()
    source = os.path.relpath(base, output) if local else str(llm)
    return DecoderRecord.of(config, base.name if local else str(llm), source=source, fingerprint=fingerprint(base))


def origin_of(
    family: str, file: TensorFile, layers: int | None, relations: list, specs: Mapping[str, TensorSpec]
) -> Origin:
    """Where tensors came from, with the types that the way back would get wrong by itself."""
    back = convert_specs(relations, specs, back=True)
    stored = {name: file.specs[name].dtype for name in back}
    dtypes = {n: str(stored[n]).removeprefix("torch.") for n, spec in back.items() if spec.dtype != stored[n]}
    return Origin(family, file.path.name, record_of(file.path), layers, file.wrapper, dict(file.extra), dtypes)
