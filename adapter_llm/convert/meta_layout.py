"""LLaMA in Meta's own layout: the names of its tensors and Hugging Face's, and how shards divide them.

The table is that of the published files of LLaMA 1 to 3. Every shard holds every name: a share of each matrix, and
the norms whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..tensorfiles import TensorSpec
from .errors import ConversionError
from .relations import mismatch

ROWS, COLUMNS, WHOLE = "rows", "columns", "whole"  # what a shard has of a matrix
TOKENS = "tok_embeddings.weight"  # LLaMA 1 and 2 divide it by columns, LLaMA 3 by rows
ROTATION = ("rope_theta", "use_scaled_rope")  # what params.json may say of positions
TABLE = "rope"  # names with this in them are tables that follow from the sizes, of no use but kept

# Meta's name, Hugging Face's, the share of a shard, and whose heads its rows belong to if they are rotated
MODEL = (
    (TOKENS, "model.embed_tokens.weight", COLUMNS, None),
    ("norm.weight", "model.norm.weight", WHOLE, None),
    ("output.weight", "lm_head.weight", ROWS, None),
)
LAYER = (
    ("layers.{i}.attention.wq.weight", "model.layers.{i}.self_attn.q_proj.weight", ROWS, "n_heads"),
    ("layers.{i}.attention.wk.weight", "model.layers.{i}.self_attn.k_proj.weight", ROWS, "n_kv_heads"),
    ("layers.{i}.attention.wv.weight", "model.layers.{i}.self_attn.v_proj.weight", ROWS, None),
    ("layers.{i}.attention.wo.weight", "model.layers.{i}.self_attn.o_proj.weight", COLUMNS, None),
    ("layers.{i}.feed_forward.w1.weight", "model.layers.{i}.mlp.gate_proj.weight", ROWS, None),
    ("layers.{i}.feed_forward.w2.weight", "model.layers.{i}.mlp.down_proj.weight", COLUMNS, None),
    ("layers.{i}.feed_forward.w3.weight", "model.layers.{i}.mlp.up_proj.weight", ROWS, None),
    ("layers.{i}.attention_norm.weight", "model.layers.{i}.input_layernorm.weight", WHOLE, None),
    ("layers.{i}.ffn_norm.weight", "model.layers.{i}.post_attention_layernorm.weight", WHOLE, None),
)


@dataclass(frozen=True)
class Params:
    """What `params.json` says that shapes do not."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    norm_eps: float
    rope_theta: float = 10000.0
    use_scaled_rope: bool = False
    vocab_size: int = -1  # as published for LLaMA 1 and 2: that of the tokenizer

    @property
    def head_size(self) -> int:
        return self.dim // self.n_heads

    @classmethod
    def parse(cls, text: str, path: object) -> Params:
        """Raises ConversionError for what is no params.json, or one of a model with a rotation that is not known."""
        try:
            values = json.loads(text)
            heads = values["n_heads"]
            found = cls(
                dim=values["dim"],
                n_layers=values["n_layers"],
                n_heads=heads,
                n_kv_heads=values.get("n_kv_heads") or heads,
                norm_eps=float(values["norm_eps"]),
                rope_theta=float(values.get("rope_theta") or cls.rope_theta),
                use_scaled_rope=bool(values.get("use_scaled_rope")),
                vocab_size=values.get("vocab_size", -1),
            )
            sizes = (found.dim, found.n_layers, found.n_heads, found.n_kv_heads)
            fits = all(type(size) is int and size > 0 for size in sizes) and type(found.vocab_size) is int
            if not fits or found.dim % (2 * heads) or heads % found.n_kv_heads or not found.norm_eps > 0:
                raise ValueError("sizes that do not fit together")
        except KeyError as error:
            raise ConversionError(f"{path} does not say {error}; get the one that came with the weights") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise ConversionError(
                f"{path} is not the params.json of a LLaMA ({error}); get the one that came with the weights"
            ) from error
        if unknown := sorted(name for name in values if "rope" in name and name not in ROTATION):
            raise ConversionError(
                f"{path} asks for a rotation that is not known here ({', '.join(unknown)}); "
                "give that language model as a Hugging Face folder"
            )
        return found

    def rotation(self) -> dict[str, Any]:
        """Rotary positions as transformers' configs have them, and how many there are at least.

        The factors of LLaMA 3.1 are those of `apply_scaling` in the README of meta-llama/Llama-3.1-70B. LLaMA 3.2
        says in its file the same as 3.1 and has a factor of 32; its text models are those of less than 4096 wide.
        """
        if not self.use_scaled_rope:
            return {"rope_type": "default", "rope_theta": self.rope_theta}
        return {
            "rope_type": "llama3",
            "rope_theta": self.rope_theta,
            "factor": 8.0 if self.dim >= 4096 else 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }

    def positions(self) -> int:
        """The length the model was trained for, which no file says: the smallest of those with such a rotation."""
        if self.use_scaled_rope:
            return 131072
        return {500000.0: 8192, 1000000.0: 16384}.get(self.rope_theta, 2048)


@dataclass(frozen=True)
class Weight:
    """A tensor of both layouts."""

    theirs: str
    ours: str
    share: str
    rotated: bool

    def divide(self, spec: TensorSpec, shards: int) -> TensorSpec:
        """What one shard has of a tensor. Raises ConversionError if it cannot be cut into so many."""
        axis = {ROWS: 0, COLUMNS: 1}.get(self.share)
        if axis is None:
            return spec
        shape = list(spec.shape)
        if len(shape) != 2 or shape[axis] % shards:
            raise ConversionError(f"{self.ours} has shape {spec.shape} and cannot be cut into {shards} shards")
        shape[axis] //= shards
        return TensorSpec(tuple(shape), spec.dtype)


def weights(params: Params, tokens: str = COLUMNS) -> list[Weight]:
    """All tensors of a model in the order of the published files; `tokens` is a shard's share of the embeddings."""
    first, *last = (
        Weight(theirs, ours, tokens if theirs == TOKENS else share, False) for theirs, ours, share, _ in MODEL
    )
    layers = [
        Weight(theirs.format(i=i), ours.format(i=i), share, heads is not None)
        for i in range(params.n_layers)
        for theirs, ours, share, heads in LAYER
    ]
    return [first, *layers, *last]


def expected_shapes(params: Params, rows: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every published name with its shape before it was cut; `rows` of vocabulary, `width` of the feed-forward."""
    dim, keys = params.dim, params.n_kv_heads * params.head_size
    shapes = {
        TOKENS: (rows, dim), "norm.weight": (dim,), "output.weight": (rows, dim),
        "attention.wq.weight": (dim, dim), "attention.wk.weight": (keys, dim), "attention.wv.weight": (keys, dim),
        "attention.wo.weight": (dim, dim), "feed_forward.w1.weight": (width, dim),
        "feed_forward.w2.weight": (dim, width), "feed_forward.w3.weight": (width, dim),
        "attention_norm.weight": (dim,), "ffn_norm.weight": (dim,),
    }  # fmt: skip
    for weight in weights(params):
        yield weight.theirs, shapes[re.sub(r"^layers\.\d+\.", "", weight.theirs)]


def is_table(name: str) -> bool:
    return TABLE in name


def check_names(path: object, present: Mapping[str, TensorSpec], params: Params) -> None:
    """Raise ConversionError listing what a file lacks, or has and should not."""
    names, wanted = {name for name in present if not is_table(name)}, {weight.theirs for weight in weights(params)}
    if problems := mismatch(wanted - names, names - wanted):
        raise ConversionError(
            f"{path} {problems}; it is no shard of a LLaMA of {params.n_layers} layers: get it again"
        )
