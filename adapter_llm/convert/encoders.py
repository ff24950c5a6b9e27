"""ImageBind and CLIP files to encoder folders (config, safetensors, manifest), and back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from imagebind_encoder.config import EncoderConfig, ImageConfig
from imagebind_encoder.convert import (
    TEXT_MASK,
    KeyMismatchError,
    causal_mask,
    config_from_official,
    from_official,
    to_official,
)
from imagebind_encoder.modeling import ImageBindEncoder
from imagebind_encoder.schema import ConfigError

from ..config import AdapterLLMConfig, ClipConfig
from ..manifest import Manifest, Origin
from ..sources import CONFIG, ENCODER, KEPT, MANIFEST, as_json, check_files, record_of
from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from ..tensorfiles.writing import Read
from ..words import one_line
from .checks import plain, refuse_safetensors
from .errors import ConversionError
from .folder import job_of, output_file, output_folder
from .relations import (
    SAME,
    SPLIT_IN_THREE,
    TRANSPOSED,
    Relation,
    check_complete,
    convert_specs,
    mismatch,
    reader,
    wrong_shapes,
)

IMAGEBIND, CLIP, CLIP_HF = "imagebind", "clip", "clip-hf"
CLIP_HEAD_SIZE = 64  # of every published CLIP: its head count leaves no trace in shapes
LICENCE = "of the published file: see weights/README.md"
_LEAVES = ("weight", "bias")

CLIP_BLOCK = {
    **{f"attn.out_proj.{leaf}": f"self_attn.out_proj.{leaf}" for leaf in _LEAVES},
    **{f"ln_1.{leaf}": f"layer_norm1.{leaf}" for leaf in _LEAVES},
    **{f"mlp.c_fc.{leaf}": f"mlp.fc1.{leaf}" for leaf in _LEAVES},
    **{f"mlp.c_proj.{leaf}": f"mlp.fc2.{leaf}" for leaf in _LEAVES},
    **{f"ln_2.{leaf}": f"layer_norm2.{leaf}" for leaf in _LEAVES},
}
CLIP_REST = {
    "class_embedding": "vision.embeddings.class_embedding",
    "positional_embedding": "vision.embeddings.position_embedding.weight",
    "conv1.weight": "vision.embeddings.patch_embedding.weight",
    **{f"ln_pre.{leaf}": f"vision.pre_layrnorm.{leaf}" for leaf in _LEAVES},
    **{f"ln_post.{leaf}": f"vision.post_layernorm.{leaf}" for leaf in _LEAVES},
}
CLIP_PREFIX, HUGGING_FACE = "visual.", ("vision_model.", "visual_projection.")


@dataclass(frozen=True)
class EncoderPlan:
    """What an encoder folder will hold, known before a tensor is read."""

    config: EncoderConfig | ClipConfig
    specs: Mapping[str, TensorSpec]
    read: Read
    family: str
    file: TensorFile
    kept: tuple[str, ...] = ()  # of the file, what the encoder does not use


def convert_encoder(source: Path, output: Path, **sizes: Any) -> None:
    """Write the encoder folder of an ImageBind file, of a CLIP file in OpenAI's layout or of a Hugging Face CLIP.

    `sizes` are what shapes do not tell: of ImageBind as `imagebind_encoder.convert.config_from_official` takes them,
    of CLIP its `heads`. Raises ConversionError or TensorFileError.
    """
    plan = plan_encoder(source, **sizes)
    kept = {name: plan.file.specs[name] for name in plan.kept}
    total = sum(spec.nbytes for spec in (*plan.specs.values(), *kept.values()))
    with output_folder(output, job_of(source, **sizes), total) as folder:
        folder.tensors(ENCODER, plan.specs, plan.read)
        if kept:
            folder.tensors(KEPT, kept, plan.file.blocks)
        folder.write(CONFIG, as_json(AdapterLLMConfig(plan.config).to_dict()))
        manifest = Manifest(
            files={name: record_of(folder.path / name) for name in folder.names()},
            origin=Origin(
                plan.family,
                source.name,
                record_of(plan.file.path),
                wrapper=plan.file.wrapper,
                extra=plain(plan.file.extra),
            ),
            licence=LICENCE,
        )
        folder.write(MANIFEST, as_json(manifest.to_dict()))


def plan_encoder(source: Path, **sizes: Any) -> EncoderPlan:
    """Read names and shapes of a published encoder. Raises ConversionError for what is not the whole of one."""
    file = open_tensors(clip_weights(source))
    try:
        if any(name.startswith((CLIP_PREFIX, *HUGGING_FACE)) for name in file.specs):
            plan = clip_plan(file, {**_stated_sizes(source), **sizes})
        else:
            plan = imagebind_plan(file, sizes)
    except ConfigError as error:
        raise ConversionError(
            f"{file.path} is not of the published sizes ({error}); give its heads from Python: "
            "adapter_llm.convert.convert(source, output, heads=...)"
        ) from error
    with torch.device("meta"):
        expected = _build(plan.config).state_dict()
    if problems := wrong_shapes({name: tuple(tensor.shape) for name, tensor in expected.items()}, plan.specs):
        raise ConversionError(f"{file.path} is not a whole encoder: {problems}; get it again")
    return plan


def _build(config: EncoderConfig | ClipConfig) -> nn.Module:
    if isinstance(config, EncoderConfig):
        return ImageBindEncoder(config)
    from ..clip import ClipEncoder  # brings transformers

    return ClipEncoder(config)


def export_encoder(folder: Path, output: Path) -> None:
    """Write the tensors of the published file that an encoder folder was converted from, under their names there."""
    refuse_safetensors(output)
    config, manifest = AdapterLLMConfig.load(folder / CONFIG).encoder, Manifest.load(folder / MANIFEST)
    check_files(folder, manifest)
    file, origin = open_tensors(folder / ENCODER), manifest.origin
    if isinstance(config, ClipConfig):
        relations = clip_relations(config.depth, origin is not None and origin.family == CLIP_HF)
        specs = convert_specs(relations, file.specs, back=True)
        make = reader(relations, file.read, back=True, blocks=file.blocks)
    else:
        specs, make = official_plan(file)
    specs, read = with_kept(folder, specs, make)
    with output_file(output, job_of(folder), sum(spec.nbytes for spec in specs.values())) as target:
        target.pth(specs, read, origin.wrapper if origin else None, origin.extra if origin else None)


def with_kept(folder: Path, specs: Mapping[str, TensorSpec], read: Read) -> tuple[dict[str, TensorSpec], Read]:
    """Tensors of a published file, and those of it that were only kept, if there are any."""
    if not (folder / KEPT).is_file():
        return dict(specs), read
    kept = open_tensors(folder / KEPT)
    return {**specs, **kept.specs}, lambda name: kept.blocks(name) if name in kept.specs else read(name)


def _stated_sizes(source: Path) -> dict[str, Any]:
    """What the config of a Hugging Face CLIP says of sizes that shapes do not tell."""
    path = source / CONFIG
    if not path.is_file():
        return {}
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        vision = stated.get("vision_config") or stated
        kind, eps = vision.get("hidden_act", "quick_gelu"), vision.get("layer_norm_eps", 1e-5)
        heads = {"heads": int(vision["num_attention_heads"])} if "num_attention_heads" in vision else {}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConversionError(f"{path} is no config of a CLIP ({one_line(error)}); get the folder again") from error
    if (kind, eps) != ("quick_gelu", 1e-5):
        raise ConversionError(
            f"{source} has the activation {kind} and epsilon {eps}, and LLaMA-Adapter V2 was trained with CLIP's own, "
            "quick_gelu and 1e-05; give OpenAI's ViT-L-14.pt or its copy on the hub"
        )
    return heads


def imagebind_plan(file: TensorFile, sizes: Mapping[str, Any]) -> EncoderPlan:
    official = file.empty()
    if TEXT_MASK in official:
        official[TEXT_MASK] = file.read(TEXT_MASK)  # small, and must be the one mask the encoder knows
    try:
        config = config_from_official(official, **sizes)
        ours = from_official(official)
    except KeyMismatchError as error:
        problems = mismatch(error.missing, error.unexpected)
        raise ConversionError(f"{file.path} {problems}; get it again, or give an ImageBind file") from error
    names = {id(tensor): name for name, tensor in official.items()}  # tensors are passed on as they are
    sources = {name: names[id(tensor)] for name, tensor in ours.items()}
    specs = {name: file.specs[theirs] for name, theirs in sources.items()}
    return EncoderPlan(config, specs, lambda name: file.blocks(sources[name]), IMAGEBIND, file)


def official_plan(file: TensorFile) -> tuple[dict[str, TensorSpec], Read]:
    ours = file.empty()
    names = {id(tensor): name for name, tensor in ours.items()}
    official = to_official(ours)
    made = {name for name, tensor in official.items() if id(tensor) not in names}

    def read(name: str) -> Tensor | Iterable[Tensor]:
        if name in made:  # the causal mask, which is in no file of ours
            mask = official[name]
            return causal_mask(len(mask), torch.empty(0, dtype=mask.dtype))
        return file.blocks(names[id(official[name])])

    return {name: TensorSpec.of(tensor) for name, tensor in official.items()}, read


def clip_weights(source: Path) -> Path:
    """The file of a Hugging Face CLIP folder, or the file itself."""
    if not source.is_dir():
        return source
    found = source / "model.safetensors"
    if not found.is_file():
        raise ConversionError(f"{source} has no model.safetensors; give the file with CLIP's or ImageBind's weights")
    return found


def clip_plan(file: TensorFile, sizes: Mapping[str, Any]) -> EncoderPlan:
    """The text tower of a whole CLIP is kept, and not used."""
    openai = any(name.startswith(CLIP_PREFIX) for name in file.specs)
    blocks = r"visual\.transformer\.resblocks" if openai else r"vision_model\.encoder\.layers"
    depth = _depth(file, rf"{blocks}\.(\d+)\.")
    relations = clip_relations(depth, not openai)
    known = {name for relation in relations for name in relation.theirs}
    ours = (CLIP_PREFIX,) if openai else HUGGING_FACE
    # an old version of transformers stored the numbers 0, 1, 2, ... with the weights
    present = [n for n in file.specs if n.startswith(ours) and not n.endswith("embeddings.position_ids")]
    check_complete(file.path, relations, present)
    specs = convert_specs(relations, file.specs)
    width, _, patch, _ = specs["vision.embeddings.patch_embedding.weight"].shape
    grid = math.isqrt(specs["vision.embeddings.position_embedding.weight"].shape[0] - 1)
    heads = sizes.get("heads") or max(1, width // CLIP_HEAD_SIZE)
    image = ImageConfig(size=grid * patch)
    config = ClipConfig(specs["projection.weight"].shape[0], width, depth, heads, patch, image)
    kept = tuple(name for name in file.specs if name not in known)
    family = CLIP if openai else CLIP_HF
    return EncoderPlan(config, specs, reader(relations, file.read, blocks=file.blocks), family, file, kept)


def clip_relations(depth: int, hugging_face: bool = False) -> list[Relation]:
    """OpenAI's names and ours, which are transformers' own inside the vision model."""
    found = [Relation((CLIP_PREFIX + theirs,), (ours,), SAME) for theirs, ours in CLIP_REST.items()]
    found.append(Relation((f"{CLIP_PREFIX}proj",), ("projection.weight",), TRANSPOSED))
    for n in range(depth):
        theirs, ours = f"{CLIP_PREFIX}transformer.resblocks.{n}.", f"vision.encoder.layers.{n}."
        found += [Relation((theirs + name,), (ours + target,), SAME) for name, target in CLIP_BLOCK.items()]
        for leaf in _LEAVES:
            split = tuple(f"{ours}self_attn.{name}_proj.{leaf}" for name in "qkv")
            found.append(Relation((f"{theirs}attn.in_proj_{leaf}",), split, SPLIT_IN_THREE))
    if not hugging_face:
        return found
    return [Relation((_to_hugging_face(name),), (name,), SAME) for relation in found for name in relation.ours]


def _to_hugging_face(name: str) -> str:
    return name.replace("vision.", "vision_model.", 1).replace("projection.", "visual_projection.", 1)


def _depth(file: TensorFile, pattern: str) -> int:
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, file.specs) if match]
    if not numbers:
        raise ConversionError(f"{file.path} has no blocks of a CLIP vision model; get it again")
    return 1 + max(numbers)
