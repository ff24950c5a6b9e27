"""Names of the published adapter files and of ours, as data, and the sizes a file tells by its shapes.

{i} counts decoder layers, {n} blocks of the connector. What a file may lack is in ABSENCES and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..tensorfiles import TensorSpec
from .errors import ConversionError
from .relations import GATES, SAME, SCALES, Operation, Relation, by_layer, rotary

V2, IMAGEBIND_LLM = "adapter-v2", "imagebind-llm"

# groups that a published file may lack as a whole: how their names are known, and what counts without them
ABSENCES = {
    "new_gate": (r"llama\.layers\.\d+\.attention\.new_gate", "1 in every layer"),
    "biases": (r"llama\..+\.bias", "0"),
    "norms": (r"llama\.(.+_)?norm\.weight", "those of the base model"),
    "lora": (r"llama\..+\.lora_w._l\d\.weight", "no update"),
    "gates of layers that are not adapted": (None, "not used"),
}

_LEAVES = ("weight", "bias")
V2_CONNECTOR = {
    "visual_query.weight": "queries",
    **{f"clip_proj.{leaf}": f"input_proj.{leaf}" for leaf in _LEAVES},
    **{f"clip_proj_norm.{leaf}": f"input_norm.{leaf}" for leaf in _LEAVES},
    **{
        f"visual_blocks.{{n}}.{part}.{leaf}": f"blocks.{{n}}.{part}.{leaf}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for leaf in _LEAVES
    },
    **{f"visual_proj.{leaf}": f"output_proj.{leaf}" for leaf in _LEAVES},
    **{f"visual_proj_norm.{leaf}": f"output_norm.{leaf}" for leaf in _LEAVES},
}
# theirs count from 1; only the first published layout has biases inside the blocks
BRIDGE_CONNECTOR = {f"image_bind_proj.{leaf}": f"input_proj.{leaf}" for leaf in _LEAVES}
BRIDGE_BLOCK = {"image_bind_norm_{n}": "norm", "image_bind_f1_{n}": "gate", "image_bind_f2_{n}": "down",
                "image_bind_f3_{n}": "up"}  # fmt: skip
BRIDGE_BLOCKS = 3
CONNECTOR_SIZES = {  # where its width and the features' are, and that of its feed-forward
    V2: ("clip_proj.weight", "visual_blocks.0.mlp.fc1.weight"),
    IMAGEBIND_LLM: ("image_bind_proj.weight", "image_bind_f1_1.weight"),
}
QUERIES = {V2: "adapter_query.weight", IMAGEBIND_LLM: "prefix_query.weight"}

LAYER = "llama.layers.{i}."
GATE, NEW_GATE = LAYER + "attention.gate", LAYER + "attention.new_gate"
LINEAR = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
}  # fmt: skip
BIASED = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
NORMS = {"attention_norm.weight": "input_layernorm.weight", "ffn_norm.weight": "post_attention_layernorm.weight"}
LAST_NORM = {"llama.norm.weight": "norm.weight"}


def lora_name(linear: str, number: int) -> str:
    """Published name of one of the two factors, e.g. attention.lora_wq_l1.weight."""
    module, name = linear.split(".")
    return f"{module}.lora_{name}_l{number}.weight"


@dataclass(frozen=True)
class AdapterLayout:
    """What a published adapter file consists of."""

    family: str
    layers: int  # of the decoder
    adapted: int  # L
    query_len: int  # Q
    hidden_size: int  # D
    heads: int
    kv_heads: int
    features_dim: int  # E
    width: int  # of the connector's blocks
    mlp_ratio: float
    blocks: int
    legacy: bool = False  # bridge with LayerNorm and biases
    new_gate: bool = False
    biases: bool = False
    norms: bool = False
    lora_rank: int = 0
    idle_gates: bool = False  # layers below the adapted ones have gates all the same

    @classmethod
    def of(cls, path: object, specs: Mapping[str, TensorSpec]) -> AdapterLayout:
        """Read off names and shapes. Raises ConversionError for a file that is not of this family."""
        family = next((name for name, query in QUERIES.items() if query in specs), None)
        gates = [name for name in specs if re.fullmatch(r"llama\.layers\.\d+\.attention\.gate", name)]
        if family is None or not gates:
            raise ConversionError(
                f"{path} is neither a LLaMA-Adapter V2 nor an ImageBind-LLM file: it has no "
                f"{' or '.join(QUERIES.values())} with gates; look at it with: python -m adapter_llm inspect"
            )
        rows, hidden = _axes(path, specs, QUERIES[family], 2)
        heads, layers = _axes(path, specs, gates[0], 4)[1], 1 + max(map(_layer_number, specs))
        query_len = _axes(path, specs, "visual_query.weight", 2)[0] if family == V2 else 1
        adapted = rows // query_len
        if rows % query_len or adapted > layers or (family == IMAGEBIND_LLM and adapted != layers) or hidden % heads:
            raise ConversionError(
                f"{path} has {rows} rows of {QUERIES[family]} for {query_len} tokens a layer, {layers} layers and "
                f"{heads} heads of {hidden} numbers, which cannot be; get the file again"
            )
        wide, inner = CONNECTOR_SIZES[family]
        width, features = _axes(path, specs, wide, 2)
        present = {name: any(re.fullmatch(p, key) for key in specs) for name, (p, _) in ABSENCES.items() if p}
        rank, kv_heads = 0, heads
        if present["lora"]:
            first = LAYER.format(i=0)
            rank = _axes(path, specs, first + lora_name("attention.wk", 1), 2)[0]
            kv_heads = _axes(path, specs, first + lora_name("attention.wk", 2), 2)[0] * heads // hidden
        blocks = [int(name.split(".")[1]) for name in specs if re.match(r"visual_blocks\.\d+\.", name)]
        return cls(
            family=family,
            layers=layers,
            adapted=adapted,
            query_len=query_len,
            hidden_size=hidden,
            heads=heads,
            kv_heads=kv_heads,
            features_dim=features,
            width=width,
            mlp_ratio=_axes(path, specs, inner, 2)[0] / width,
            blocks=1 + max(blocks) if blocks else BRIDGE_BLOCKS,
            legacy="image_bind_norm_1.bias" in specs,
            new_gate=present["new_gate"],
            biases=present["biases"],
            norms=present["norms"],
            lora_rank=rank,
            idle_gates=any(GATE.format(i=i) in specs for i in range(layers - adapted)),
        )

    def relations(self) -> list[Relation]:
        """Every tensor of the file, but for what `kept` names."""
        connector = dict(BRIDGE_CONNECTOR)
        if self.family == V2:
            connector = V2_CONNECTOR
        else:
            for theirs, ours in BRIDGE_BLOCK.items():
                for leaf in _LEAVES if self.legacy else ("weight",):
                    connector[f"{theirs}.{leaf}"] = f"blocks.{{n}}.{ours}.{leaf}"
        found = []
        for theirs, ours in connector.items():
            first = 0 if self.family == V2 else 1
            for n in range(self.blocks if "{n}" in theirs else 1):
                found.append(_one(theirs.format(n=n + first), f"connector.{ours.format(n=n)}"))
        found.append(_one(QUERIES[self.family], "adapter.queries", by_layer(self.query_len)))
        adapted = range(self.layers - self.adapted, self.layers)
        found.append(Relation(tuple(GATE.format(i=i) for i in adapted), ("adapter.gates",), GATES))
        if self.new_gate:
            found.append(Relation(tuple(NEW_GATE.format(i=i) for i in adapted), ("adapter.gate_scale",), SCALES))
        for i in range(self.layers):
            found += self._layer(LAYER.format(i=i), f"decoder.layers.{i}.")
        if self.norms:
            found += [_one(theirs, f"decoder.{ours}") for theirs, ours in LAST_NORM.items()]
        return found

    def kept(self) -> list[str]:
        """Published tensors that no computation uses, kept for the way back."""
        if not self.idle_gates:
            return []
        patterns = (GATE, NEW_GATE) if self.new_gate else (GATE,)
        return [pattern.format(i=i) for i in range(self.layers - self.adapted) for pattern in patterns]

    def _layer(self, theirs: str, ours: str) -> list[Relation]:
        turned = {"attention.wq": rotary(self.heads), "attention.wk": rotary(self.kv_heads)}
        found = []
        for linear, name in LINEAR.items():
            change = turned.get(linear, SAME)
            if self.biases and linear in BIASED:
                found.append(_one(f"{theirs}{linear}.bias", f"{ours}{name}.bias", change))
            if self.lora_rank:
                found.append(_one(theirs + lora_name(linear, 1), f"{ours}{name}.lora_down"))
                found.append(_one(theirs + lora_name(linear, 2), f"{ours}{name}.lora_up", change))
        if self.norms:
            found += [_one(theirs + norm, ours + name) for norm, name in NORMS.items()]
        return found


def _one(theirs: str, ours: str, operation: Operation = SAME) -> Relation:
    return Relation((theirs,), (ours,), operation)


def _axes(path: object, specs: Mapping[str, TensorSpec], name: str, count: int) -> tuple[int, ...]:
    """The shape of a tensor that sizes are read from. Raises ConversionError if it is not there or not like that."""
    shape = specs[name].shape if name in specs else None
    if shape is None or len(shape) != count or 0 in shape:
        found = "lacks it" if shape is None else f"has {shape}"
        raise ConversionError(f"{path} must have {name} with {count} axes, and {found}; get the file again")
    return shape


def _layer_number(name: str) -> int:
    match = re.match(r"llama\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1
