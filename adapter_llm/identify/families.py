"""What a file of tensors is, by the names and shapes in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from imagebind_encoder.config import Modality
from imagebind_encoder.convert.table import find_depths, key_table, official_owner

from ..tensorfiles import TensorFile, TensorSpec
from ..words import listed
from .found import (
    ADAPTER_V2,
    CLIP_HF,
    CLIP_OPENAI,
    IMAGEBIND,
    IMAGEBIND_LLM,
    IMAGEBIND_POINT,
    KNOWN,
    Found,
    IdentifyError,
    known,
)
from .layouts import (
    ADAPTER_V2_LAYOUT,
    CLIP_HF_LAYOUT,
    CLIP_OPENAI_LAYOUT,
    IMAGEBIND_LLM_LAYOUT,
    count,
    side,
)

Specs = Mapping[str, TensorSpec]

BASE_IN_FILE = ("llama.tok_embeddings.", "llama.output.", "clip.", "image_bind.")


def identify_tensors(file: TensorFile) -> Found:
    """Raises IdentifyError for a piece of something larger, and for what is not known."""
    keys = file.specs.keys()
    for signs, family in _FAMILIES:
        if any(key.startswith(signs) for key in keys):
            return family(file)
    for signs, advice in _PIECES:
        if any(key.startswith(signs) for key in keys):
            raise IdentifyError(f"{file.path} is {advice}")
    shown = listed(sorted(keys), 4) or "none"
    raise IdentifyError(f"{file.path} holds {len(keys)} tensors of no known family ({shown}); known are {KNOWN}")


def llama_needed(sizes: Mapping[str, int]) -> str:
    """The base model that these sizes ask for, in words."""
    words = {
        "hidden_size": "hidden size {}", "layers": "{} layers", "heads": "{} heads",
        "intermediate_size": "feed-forward size {}",
    }  # fmt: skip
    told = [text.format(sizes[name]) for name, text in words.items() if name in sizes]
    return f"a LLaMA base with {', '.join(told)}" if told else "a LLaMA base"


def _decoder_sizes(specs: Specs, rows: str) -> dict[str, int]:
    """Of the LLaMA that an adapter was trained with; `rows` are added to its hidden states."""
    block = "llama.layers.0.feed_forward."
    layers, hidden = count(specs, "llama.layers."), side(specs, rows, 1)
    heads = side(specs, f"llama.layers.{layers - 1}.attention.gate", 1)
    keys = side(specs, "llama.layers.0.attention.lora_wk_l2.weight", 0)
    return known(
        layers=layers or None,
        hidden_size=hidden,
        heads=heads,
        kv_heads=keys * heads // hidden if keys and heads and hidden else None,
        intermediate_size=side(specs, f"{block}w1.bias", 0) or side(specs, f"{block}lora_w1_l2.weight", 0),
        lora_rank=side(specs, "llama.layers.0.attention.lora_wq_l1.weight", 0),
    )


def _adapter_problems(specs: Specs) -> list[str]:
    if any(key.startswith(BASE_IN_FILE) for key in specs):
        return ["the frozen base models are in the file too, as a training run saves it; export the adapter alone"]
    return []


def adapter_v2(file: TensorFile) -> Found:
    specs, layout = file.specs, ADAPTER_V2_LAYOUT
    sizes = _decoder_sizes(specs, "adapter_query.weight")
    query_len, rows = side(specs, "visual_query.weight", 0), side(specs, "adapter_query.weight", 0)
    sizes |= known(
        query_len=query_len,
        query_layer=rows // query_len if rows and query_len else None,
        connector_width=side(specs, "visual_query.weight", 1),
        connector_depth=count(specs, "visual_blocks.") or None,
        encoder_dim=side(specs, "clip_proj.weight", 1),
    )
    counts = {"layer": range(sizes.get("layers", 1)), "block": range(sizes.get("connector_depth", 1))}
    missing, unexpected = layout.differences(specs, counts)
    idle = range(sizes.get("layers", 0) - sizes.get("query_layer", 0))  # layers below the adapted ones
    unused = {f"llama.layers.{layer}.attention.gate" for layer in idle}
    missing = [key for key in missing if key not in unused]
    parts = layout.parts(specs)
    variant = "LORA-BIAS" if parts["LoRA"] else "BIAS" if parts["decoder biases"] else "CAPTION"
    notes, problems = [], _adapter_problems(specs)
    if query_len and rows and rows % query_len:
        problems.append(f"adapter_query has {rows} rows, which are no whole layers of {query_len}")
    if parts["LoRA"] and not parts["new_gate"]:
        notes.append("no new_gate, the factor on the gate that files with LoRA may have: it is then 1")
    config: Any = file.extra.get("config")
    if isinstance(config, Mapping) and config.get("w_lora", parts["LoRA"]) != parts["LoRA"]:
        notes.append(f"its own config says w_lora {config['w_lora']}, but LoRA is {_there(parts['LoRA'])}")
    notes.append("the number of heads of its visual blocks leaves no trace in the file; the published ones have 16")
    needs = [llama_needed(sizes)]
    if "encoder_dim" in sizes:
        needs.append(f"a CLIP vision transformer with {sizes['encoder_dim']} features (published: ViT-L/14)")
    return _found(file, ADAPTER_V2, variant, sizes, parts, missing, unexpected, needs, notes, problems)


def imagebind_llm(file: TensorFile) -> Found:
    specs, layout = file.specs, IMAGEBIND_LLM_LAYOUT
    sizes = _decoder_sizes(specs, "prefix_query.weight")
    rows = side(specs, "prefix_query.weight", 0)  # one a layer
    sizes |= known(
        layers=max(sizes.get("layers", 0), rows or 0) or None,
        query_len=1,
        query_layer=rows,
        connector_depth=count(specs, "image_bind_norm_") - 1 or None,  # counted from 1
        encoder_dim=side(specs, "image_bind_proj.weight", 1),
    )
    counts = {"layer": range(sizes.get("layers", 1)), "step": range(1, sizes.get("connector_depth", 1) + 1)}
    missing, unexpected = layout.differences(specs, counts)
    parts = layout.parts(specs)
    variant = "finetune" if parts["LoRA"] or parts["decoder biases"] else "pretrain"
    if parts["bridge biases"]:
        variant += "-legacy"
    needs = [llama_needed(sizes)]
    if "encoder_dim" in sizes:
        needs.append(f"an ImageBind encoder with {sizes['encoder_dim']} features (published: imagebind_huge.pth)")
    notes = ["legacy bridge: LayerNorm and biases"] if parts["bridge biases"] else []
    problems = _adapter_problems(specs)
    return _found(file, IMAGEBIND_LLM, variant, sizes, parts, missing, unexpected, needs, notes, problems)


def imagebind(file: TensorFile) -> Found:
    specs = file.specs
    depths = find_depths(specs, official_owner)
    expected = key_table(depths)
    sizes = known(embedding_dim=next(filter(None, (_head(specs, modality) for modality in depths)), None))
    for modality, depth in depths.items():
        front = "point_trunk.point_encoder.blocks." if modality is Modality.POINT else f"modality_trunks.{modality}."
        width = side(specs, f"{front}blocks.0.mlp.fc1.weight", 1)
        sizes |= known(**{f"{modality}_layers": depth, f"{modality}_width": width})
    sizes |= known(vocab_size=side(specs, "modality_preprocessors.text.token_embedding.weight", 0))
    notes = ["attention heads leave no trace in the file; the published counts are taken"]
    if set(depths) == {Modality.POINT}:
        notes.append("the point-cloud branch alone, without the encoder it belongs to")
    parts = {str(modality): modality in depths for modality in Modality}
    missing, unexpected = (key for key in expected if key not in specs), sorted(set(specs) - set(expected))
    family = IMAGEBIND_POINT if Modality.POINT in depths else IMAGEBIND
    return _found(file, family, None, sizes, parts, missing, unexpected, (), notes)


def _head(specs: Specs, modality: Modality) -> int | None:
    places = (f"modality_heads.{modality}.{name}.weight" for name in ("2", "3", "proj.1"))
    return next(filter(None, (side(specs, key, 0) for key in places)), None)


def clip_openai(file: TensorFile) -> Found:
    specs, layout = file.specs, CLIP_OPENAI_LAYOUT
    if any(key.startswith("visual.layer1.") for key in specs):
        raise IdentifyError(f"{file.path} is a CLIP with a ResNet; only those with a vision transformer can be used")
    layers = count(specs, "visual.transformer.resblocks.")
    patch = "visual.conv1.weight"
    sizes = _clip_sizes(layers, side(specs, patch, 0), side(specs, "visual.proj", 1), side(specs, patch, 2),
                        side(specs, "visual.positional_embedding", 0))  # fmt: skip
    missing, unexpected = layout.differences(specs, {"layer": range(max(layers, 1))})
    parts = {"vision": True, "text": any(not key.startswith("visual.") for key in specs)}
    notes = ["the number of attention heads leaves no trace in the file; OpenAI's have one for 64 of the width"]
    return _found(file, CLIP_OPENAI, None, sizes, parts, missing, unexpected, (), notes)


def clip_hf(file: TensorFile) -> Found:
    specs, layout = file.specs, CLIP_HF_LAYOUT
    layers = count(specs, "vision_model.encoder.layers.")
    patch, positions = (f"vision_model.embeddings.{name}_embedding.weight" for name in ("patch", "position"))
    sizes = _clip_sizes(layers, side(specs, patch, 0), side(specs, "visual_projection.weight", 0),
                        side(specs, patch, 2), side(specs, positions, 0))  # fmt: skip
    missing, unexpected = layout.differences(specs, {"layer": range(max(layers, 1))})
    parts = {"vision": True, "text": any(key.startswith("text_model.") for key in specs)}
    return _found(file, CLIP_HF, None, sizes, parts, missing, unexpected, (), [])


def _clip_sizes(layers: int, width: int | None, dim: int | None, patch: int | None, positions: int | None):
    image = patch * math.isqrt(positions - 1) if patch and positions else None
    return known(layers=layers or None, width=width, embedding_dim=dim, patch_size=patch, image_size=image)


def _found(file, family, variant, sizes, parts, missing, unexpected, needs, notes, problems=()) -> Found:
    return Found.of(
        file.path, family, file.specs, (file.path,), variant=variant, sizes=sizes, parts=parts, missing=missing,
        unexpected=unexpected, needs=needs, notes=notes, problems=problems,
    )  # fmt: skip


def _there(present: bool) -> str:
    return "there" if present else "not there"


# How keys begin that only files of one family have.
_FAMILIES: tuple[tuple[tuple[str, ...], Callable[[TensorFile], Found]], ...] = (
    (("image_bind_proj.", "prefix_query."), imagebind_llm),
    (("clip_proj.", "visual_query.", "visual_blocks."), adapter_v2),
    (("modality_trunks.", "modality_preprocessors.", "point_trunk."), imagebind),
    (("visual.",), clip_openai),
    (("vision_model.",), clip_hf),
)
_META_PIECE = "one file of a LLaMA in the Meta layout; give its folder, with params.json and every consolidated.*.pth"
_PIECES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("adapter_query.",), "a LLaMA-Adapter for text only; only the multimodal ones of V2 can be used"),
    (("connector.", "adapter.queries"), "one file of a weights folder of this project; give the folder"),
    (("stems.", "trunks.", "heads."), "one file of an encoder or weights folder of this project; give the folder"),
    (("tok_embeddings.", "layers.0.attention.", "output.weight"), _META_PIECE),
    (("model.embed_tokens.", "model.layers.", "lm_head."),
     "one file of a language model in the Hugging Face layout; give its folder"),
)  # fmt: skip
