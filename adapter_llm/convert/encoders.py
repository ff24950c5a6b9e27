"""ImageBind and CLIP files to encoder folders (config, safetensors, manifest), and back."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imagebind_encoder.config import EncoderConfig, ImageConfig
from imagebind_encoder.convert import TEXT_MASK, config_from_official, from_official, to_official

from ..config import AdapterLLMConfig, ClipConfig
from ..manifest import Manifest, Origin
from ..sources import CONFIG, ENCODER, MANIFEST, as_json, check_files, record_of
from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from ..tensorfiles.writing import Read
from .errors import ConversionError
from .folder import job_of, output_file, output_folder
from .relations import SAME, SPLIT_IN_THREE, TRANSPOSED, Relation, check_complete, convert_specs, reader

IMAGEBIND, CLIP = "imagebind", "clip"
CLIP_HEAD_SIZE = 64  # of every published CLIP: its head count leaves no trace in shapes
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


def convert_encoder(source: Path, output: Path, **sizes: Any) -> None:
    """Write the encoder folder of an ImageBind file, of a CLIP file in OpenAI's layout or of a Hugging Face CLIP.

    `sizes` are what shapes do not tell, as `imagebind_encoder.convert.config_from_official` takes them.
    Raises ConversionError, TensorFileError, or the encoder's KeyMismatchError.
    """
    file = open_tensors(clip_weights(source))
    family = CLIP if any(name.startswith((CLIP_PREFIX, *HUGGING_FACE)) for name in file.specs) else IMAGEBIND
    config, specs, read, dtypes = (clip_plan if family == CLIP else imagebind_plan)(file, sizes)
    with output_folder(output, job_of(source, **sizes), sum(spec.nbytes for spec in specs.values())) as folder:
        folder.tensors(ENCODER, specs, read)
        folder.write(CONFIG, as_json(AdapterLLMConfig(config).to_dict()))
        manifest = Manifest(
            files={name: record_of(folder.path / name) for name in (ENCODER, CONFIG)},
            origin=Origin(family, source.name, record_of(file.path), wrapper=file.wrapper, dtypes=dtypes),
            licence="of the published file: see weights/README.md",
        )
        folder.write(MANIFEST, as_json(manifest.to_dict()))


def export_encoder(folder: Path, output: Path) -> None:
    """Write the published file that an encoder folder was converted from."""
    config, manifest = AdapterLLMConfig.load(folder / CONFIG).encoder, Manifest.load(folder / MANIFEST)
    check_files(folder, manifest)
    file = open_tensors(folder / ENCODER)
    if isinstance(config, ClipConfig):
        relations = clip_relations(config.depth)
        specs = convert_specs(relations, file.specs, back=True)
        read = reader(relations, file.read, back=True, blocks=file.blocks)
    else:
        specs, read = official_plan(file)
    origin = manifest.origin
    wrapper = origin.wrapper if origin else None
    with output_file(output, job_of(folder), sum(spec.nbytes for spec in specs.values())) as target:
        target.pth(specs, read, wrapper, origin.extra if origin else None)


@contextmanager
def encoder_folder(source: Path, beside: Path) -> Iterator[Path]:
    """A folder with a converted encoder: `source` itself, or one made of it for as long as it is needed."""
    if (source / ENCODER).is_file() and (source / CONFIG).is_file():
        yield source
        return
    made = beside.with_name(f"{beside.name}.encoder")
    if not (made / MANIFEST).is_file():  # an earlier run may have come this far
        convert_encoder(source, made)
    yield made
    shutil.rmtree(made)


def imagebind_plan(
    file: TensorFile, sizes: Mapping[str, Any]
) -> tuple[EncoderConfig, dict[str, TensorSpec], Read, dict[str, str]]:
    official = file.empty()
    if TEXT_MASK in official:
        official[TEXT_MASK] = file.read(TEXT_MASK)  # small, and must be the one mask the encoder knows
    config = config_from_official(official, **sizes)
    names = {id(tensor): name for name, tensor in official.items()}  # tensors are passed on as they are
    sources = {ours: names[id(tensor)] for ours, tensor in from_official(official).items()}
    specs = {ours: file.specs[theirs] for ours, theirs in sources.items()}
    return config, specs, lambda name: file.blocks(sources[name]), {}


def official_plan(file: TensorFile) -> tuple[dict[str, TensorSpec], Read]:
    ours = file.empty()
    names = {id(tensor): name for name, tensor in ours.items()}
    official = to_official(ours)
    made = {name for name, tensor in official.items() if id(tensor) not in names}

    def read(name: str) -> Tensor | Iterable[Tensor]:
        if name in made:  # the causal mask, which is in no file of ours
            spec = TensorSpec.of(official[name])
            return torch.full(spec.shape, -math.inf, dtype=spec.dtype).triu(1)
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


def clip_plan(
    file: TensorFile, sizes: Mapping[str, Any]
) -> tuple[ClipConfig, dict[str, TensorSpec], Read, dict[str, str]]:
    """The text tower of a whole CLIP is left out."""
    if any(name.startswith(CLIP_PREFIX) for name in file.specs):
        depth = _depth(file, rf"{re.escape(CLIP_PREFIX)}transformer\.resblocks\.(\d+)\.")
        relations = clip_relations(depth)
        present = [name for name in file.specs if name.startswith(CLIP_PREFIX)]
    else:
        present = [n for n in file.specs if n.startswith(HUGGING_FACE) and not n.endswith("embeddings.position_ids")]
        relations = [Relation((name,), (_from_hugging_face(name),), SAME) for name in present]
        depth = _depth(file, r"vision_model\.encoder\.layers\.(\d+)\.")
        expected = {name for relation in clip_relations(depth) for name in relation.ours}
        theirs = {_from_hugging_face(name) for name in present}
        if odd := sorted(expected ^ theirs):
            raise ConversionError(f"{file.path} is no whole CLIP vision model: {', '.join(odd[:8])}; get it again")
    check_complete(file.path, relations, present)
    specs = convert_specs(relations, file.specs)
    width, _, patch, _ = specs["vision.embeddings.patch_embedding.weight"].shape
    grid = math.isqrt(specs["vision.embeddings.position_embedding.weight"].shape[0] - 1)
    heads = sizes.get("heads") or max(1, width // CLIP_HEAD_SIZE)
    config = ClipConfig(
        specs["projection.weight"].shape[0], width, depth, heads, patch, ImageConfig(size=grid * patch)
    )
    return config, specs, reader(relations, file.read, blocks=file.blocks), {}


def clip_relations(depth: int) -> list[Relation]:
    """OpenAI's names and ours, which are transformers' own inside the vision model."""
    found = [Relation((CLIP_PREFIX + theirs,), (ours,), SAME) for theirs, ours in CLIP_REST.items()]
    found.append(Relation((f"{CLIP_PREFIX}proj",), ("projection.weight",), TRANSPOSED))
    for n in range(depth):
        theirs, ours = f"{CLIP_PREFIX}transformer.resblocks.{n}.", f"vision.encoder.layers.{n}."
        found += [Relation((theirs + name,), (ours + target,), SAME) for name, target in CLIP_BLOCK.items()]
        for leaf in _LEAVES:
            split = tuple(f"{ours}self_attn.{name}_proj.{leaf}" for name in "qkv")
            found.append(Relation((f"{theirs}attn.in_proj_{leaf}",), split, SPLIT_IN_THREE))
    return found


def _from_hugging_face(name: str) -> str:
    return name.replace("vision_model.", "vision.", 1).replace("visual_projection.", "projection.", 1)


def _depth(file: TensorFile, pattern: str) -> int:
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, file.specs) if match]
    if not numbers:
        raise ConversionError(f"{file.path} has no blocks of a CLIP vision model; get it again")
    return 1 + max(numbers)
