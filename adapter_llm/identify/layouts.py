"""The published layouts as patterns of keys: what every file of a family has, and what it has whole or not at all."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from string import Formatter

from ..tensorfiles import TensorSpec

_LORA_LAYERS = (*(f"attention.lora_w{name}" for name in "qkvo"), *(f"feed_forward.lora_w{name}" for name in "123"))


@dataclass(frozen=True)
class Layout:
    """Keys with counters in braces, as in `layers.{layer}.norm.weight`."""

    required: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # part of the model -> its keys
    ignored: str | None = None  # a regular expression for keys that say nothing about the file

    def parts(self, keys: Iterable[str]) -> dict[str, bool]:
        """Which groups the keys have anything of."""
        keys = list(keys)
        return {name: any(map(_matcher(patterns), keys)) for name, patterns in self.groups.items()}

    def differences(
        self, keys: Iterable[str], counts: Mapping[str, range]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Keys that are missing and keys that are too many, where each counter runs over `counts`."""
        keys = [key for key in keys if not (self.ignored and re.search(self.ignored, key))]
        present = self.parts(keys)
        patterns = [*self.required, *(p for name, group in self.groups.items() if present[name] for p in group)]
        # what a config says of the layers may be anything: there are no more than keys
        counts = {name: numbers[: len(keys) + 1] for name, numbers in counts.items()}
        expected = dict.fromkeys(key for pattern in patterns for key in _expand(pattern, counts))
        found = set(keys)
        return tuple(k for k in expected if k not in found), tuple(sorted(found - set(expected)))


def count(keys: Collection[str], prefix: str) -> int:
    """One more than the largest number that follows `prefix`, but no more than there are keys."""
    numbers = re.compile(re.escape(prefix) + r"(\d+)\b")
    largest = max((int(match[1]) for match in map(numbers.match, keys) if match), default=-1)
    return min(largest + 1, len(keys))


def side(specs: Mapping[str, TensorSpec], key: str, axis: int) -> int | None:
    """One side of a tensor; None if there is no such tensor or side."""
    shape = specs[key].shape if key in specs else ()
    return shape[axis] if axis < len(shape) else None


def _counters(pattern: str) -> list[str]:
    return [name for _, name, _, _ in Formatter().parse(pattern) if name]


def _expand(pattern: str, counts: Mapping[str, range]) -> Iterable[str]:
    names = _counters(pattern)
    for values in product(*(counts[name] for name in names)):
        yield pattern.format(**dict(zip(names, values, strict=True)))


def _matcher(patterns: Iterable[str]):
    texts = [re.sub(r"\\{\w+\\}", r"\\d+", re.escape(pattern)) for pattern in patterns]
    return re.compile("|".join(f"(?:{text})" for text in texts)).fullmatch


def _leaves(prefix: str, *names: str) -> tuple[str, ...]:
    """`name.weight` and `name.bias` of each name."""
    return tuple(f"{prefix}{name}.{leaf}" for name in names for leaf in ("weight", "bias"))


def _layer(*names: str, prefix: str = "llama.") -> tuple[str, ...]:
    return tuple(f"{prefix}layers.{{layer}}.{name}" for name in names)


# What both adapters may add to the LLaMA they were trained with.
_DECODER_GROUPS = {
    "decoder biases": _layer(
        "attention.wq.bias", "attention.wo.bias", *(f"feed_forward.w{name}.bias" for name in "123")
    ),
    "decoder norms": (*_layer("attention_norm.weight", "ffn_norm.weight"), "llama.norm.weight"),
    "LoRA": _layer(*(f"{name}_l{half}.weight" for name in _LORA_LAYERS for half in "12")),
}

ADAPTER_V2_LAYOUT = Layout(
    required=(
        *_leaves("", "clip_proj", "clip_proj_norm"),
        "visual_query.weight",
        *_leaves("visual_blocks.{block}.", "norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
        *_leaves("", "visual_proj", "visual_proj_norm"),
        "adapter_query.weight",
        *_layer("attention.gate"),
    ),
    groups={**_DECODER_GROUPS, "new_gate": _layer("attention.new_gate")},
)

IMAGEBIND_LLM_LAYOUT = Layout(
    required=(
        *_leaves("", "image_bind_proj"),
        "image_bind_norm_{step}.weight",
        *(f"image_bind_f{name}_{{step}}.weight" for name in "123"),
        "prefix_query.weight",
        *_layer("attention.gate"),
    ),
    groups={
        **_DECODER_GROUPS,
        "bridge biases": ("image_bind_norm_{step}.bias", *(f"image_bind_f{name}_{{step}}.bias" for name in "123")),
    },
)

LLAMA_META_LAYOUT = Layout(
    required=(
        "tok_embeddings.weight",
        *_layer(*(f"attention.w{name}.weight" for name in "qkvo"), prefix=""),
        *_layer(*(f"feed_forward.w{name}.weight" for name in "123"), prefix=""),
        *_layer("attention_norm.weight", "ffn_norm.weight", prefix=""),
        "norm.weight",
        "output.weight",
    ),
    ignored="rope",
)

LLAMA_HF_LAYOUT = Layout(
    required=(
        "model.embed_tokens.weight",
        *_layer(*(f"self_attn.{name}_proj.weight" for name in "qkvo"), prefix="model."),
        *_layer(*(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")), prefix="model."),
        *_layer("input_layernorm.weight", "post_attention_layernorm.weight", prefix="model."),
        "model.norm.weight",
    ),
    groups={
        "output matrix": ("lm_head.weight",),  # absent where it is the embeddings' own
        "attention biases": _layer(*(f"self_attn.{name}_proj.bias" for name in "qkvo"), prefix="model."),
        "feed-forward biases": _layer(*(f"mlp.{name}_proj.bias" for name in ("gate", "up", "down")), prefix="model."),
    },
    ignored=r"rotary_emb\.inv_freq$",
)

CLIP_OPENAI_LAYOUT = Layout(
    required=(
        *(f"visual.{name}" for name in ("class_embedding", "positional_embedding", "proj", "conv1.weight")),
        *_leaves("visual.", "ln_pre", "ln_post"),
        *(f"visual.transformer.resblocks.{{layer}}.attn.in_proj_{leaf}" for leaf in ("weight", "bias")),
        *_leaves("visual.transformer.resblocks.{layer}.", "attn.out_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2"),
    ),
    ignored=r"^(?!visual\.)",  # the text half, which nothing here uses
)

CLIP_HF_LAYOUT = Layout(
    required=(
        "vision_model.embeddings.class_embedding",
        "vision_model.embeddings.patch_embedding.weight",
        "vision_model.embeddings.position_embedding.weight",
        *_leaves("vision_model.", "pre_layrnorm", "post_layernorm"),  # the first is spelled so in every file
        *_leaves(
            "vision_model.encoder.layers.{layer}.",
            *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
            "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2",
        ),
        "visual_projection.weight",
    ),
    ignored=r"^(?!vision_model\.|visual_projection\.)|position_ids$",
)  # fmt: skip
