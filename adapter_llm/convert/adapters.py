"""LLaMA-Adapter V2 and ImageBind-LLM files to weights folders, and back to the bytes they came from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagebind_encoder.config import EncoderConfig

from ..config import AdapterConfig, AdapterLLMConfig, ClipConfig, ConnectorConfig, DecoderConfig, PromptConfig
from ..manifest import DecoderRecord, Manifest, Origin
from ..shards import fingerprint
from ..sources import ADAPTER, CONFIG, ENCODER, KEPT, MANIFEST, as_json, check_files, record_of
from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from ..words import listed
from .checks import (
    BaseSizes,
    check_base,
    check_config,
    check_shapes,
    find_base,
    plain,
    refuse_safetensors,
    tokenizer_of,
)
from .encoders import LICENCE, EncoderPlan, plan_encoder, with_kept
from .errors import ConversionError
from .folder import OutputFolder, job_of, output_file, output_folder
from .keys import IMAGEBIND_LLM, V2, AdapterLayout
from .relations import Relation, check_complete, convert_specs, reader

PUBLISHED_HEADS = 16  # of V2's visual blocks; head counts leave no trace in shapes
TITLES = {V2: "LLaMA-Adapter V2", IMAGEBIND_LLM: "ImageBind-LLM"}


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
    check_config(source, layout, file)
    eyes = AdapterEncoder.of(Path(encoder).expanduser())
    config = config_of(layout, eyes.config, connector_heads, faithful)
    check_shapes(source, config, base_config, specs)
    job = job_of(source, eyes.source, base, connector_heads=connector_heads, faithful=faithful)
    with output_folder(output, job, sum(spec.nbytes for spec in specs.values()) + eyes.bytes) as folder:
        folder.tensors(ADAPTER, specs, reader(relations, file.read, blocks=file.blocks))
        if kept:
            folder.tensors(KEPT, {name: file.specs[name] for name in kept}, file.read)
        eyes.write(folder)
        folder.write(CONFIG, as_json(config.to_dict()))
        manifest = Manifest(
            decoder=decoder_record(base, base_config, llm, output),
            files={name: record_of(folder.path / name) for name in folder.names()},
            origin=origin_of(layout, file, relations, specs),
            licence=LICENCE,
            training={"converted_from": f"{TITLES[layout.family]}, {source.name}"},
        )
        eyes.check(manifest)
        folder.write(MANIFEST, as_json(manifest.to_dict()))


@dataclass(frozen=True)
class AdapterEncoder:
    """The encoder that goes with an adapter: of a folder that is converted already, or of a published file."""

    source: Path
    config: EncoderConfig | ClipConfig
    plan: EncoderPlan | None  # None: converted already
    manifest: Manifest | None = None

    @classmethod
    def of(cls, source: Path) -> AdapterEncoder:
        if (source / ENCODER).is_file() and (source / MANIFEST).is_file():
            manifest = Manifest.load(source / MANIFEST)
            check_files(source, manifest)
            return cls(source, AdapterLLMConfig.load(source / CONFIG).encoder, None, manifest)
        plan = plan_encoder(source)
        return cls(source, plan.config, plan)

    @property
    def bytes(self) -> int:
        """What is to be written; a link takes no room."""
        return 0 if self.plan is None else sum(spec.nbytes for spec in self.plan.specs.values())

    def write(self, folder: OutputFolder) -> None:
        if self.plan is None:
            folder.link(ENCODER, self.source / ENCODER)
        else:
            folder.tensors(ENCODER, self.plan.specs, self.plan.read)

    def check(self, manifest: Manifest) -> None:
        """Raise ConversionError if the file that was linked is not the one that was converted once."""
        if self.manifest and self.manifest.files.get(ENCODER) != manifest.files[ENCODER]:
            raise ConversionError(
                f"{self.source / ENCODER} is not the file its manifest describes (SHA-256 differs); convert it again"
            )


def export_adapter(folder: Path, output: Path) -> None:
    """Write the published file that a weights folder was converted from, with the tensors the folder has now."""
    refuse_safetensors(output)
    config, manifest = AdapterLLMConfig.load(folder / CONFIG), Manifest.load(folder / MANIFEST)
    origin = manifest.origin
    if origin is None or origin.family not in TITLES:
        raise ConversionError(f"{folder} does not come from a published adapter file: there is no layout to go back to")
    check_files(folder, manifest)
    ours = open_tensors(folder / ADAPTER)
    if config.adapter.layer_scale:
        raise ConversionError(f"{folder} has a layer scale, for which the published layout has no place")
    layout = layout_of(config, manifest)
    relations = layout.relations()
    known = {name for relation in relations for name in relation.ours}
    if odd := sorted(known ^ set(ours.specs)):
        raise ConversionError(f"{folder / ADAPTER} does not fit config.json: {listed(odd)}; convert it again")
    specs = convert_specs(relations, ours.specs, back=True)
    specs |= {n: TensorSpec(specs[n].shape, getattr(torch, dtype)) for n, dtype in origin.dtypes.items()}
    make = reader(relations, ours.read, back=True, blocks=ours.blocks)

    def as_it_was(name: str) -> Tensor | Iterable[Tensor]:
        tensor = make(name)
        return tensor.to(specs[name].dtype) if isinstance(tensor, Tensor) else tensor

    specs, read = with_kept(folder, specs, as_it_was)
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


def layout_of(config: AdapterLLMConfig, manifest: Manifest) -> AdapterLayout:
    """The layout of the published file that a folder came from, but for what is kept."""
    decoder, origin = manifest.decoder, manifest.origin
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
        new_gate=config.adapter.gate_scale,
        biases=config.decoder.biases,
        norms=config.decoder.norms,
        lora_rank=config.decoder.lora_rank,
    )


def decoder_record(base: Path, config: BaseSizes, llm: str | Path, output: Path) -> DecoderRecord:
    local = Path(llm).expanduser().exists()
    # both without links: how many folders lie between them is counted in the real ones
    source = os.path.relpath(base.resolve(), Path(output).expanduser().resolve()) if local else str(llm)
    name = base.name if local else str(llm)
    return DecoderRecord.of(config, name, source=source, fingerprint=fingerprint(base), tokenizer=tokenizer_of(base))


def origin_of(
    layout: AdapterLayout, file: TensorFile, relations: list[Relation], specs: Mapping[str, TensorSpec]
) -> Origin:
    """Where tensors came from, with the types that the way back would get wrong by itself."""
    back = convert_specs(relations, specs, back=True)
    stored = {name: file.specs[name].dtype for name in back}
    dtypes = {n: str(stored[n]).removeprefix("torch.") for n, spec in back.items() if spec.dtype != stored[n]}
    record = record_of(file.path)
    return Origin(layout.family, file.path.name, record, layout.layers, file.wrapper, plain(file.extra), dtypes)
