"""Every key of the published files beside ours, for trunks of any depth."""

import re
from collections.abc import Callable, Iterable, Mapping

from ..config import FACTS, Modality

# The causal mask is stored in the official file; we know it and make it where it is needed.
TEXT_MASK = "modality_preprocessors.text.mask"

_STEM_PREFIX = {
    Modality.VISION: "rgbt_stem.proj.1",
    Modality.AUDIO: "rgbt_stem.proj",
    Modality.DEPTH: "depth_stem.proj",
    Modality.THERMAL: "rgbt_stem.proj",
    Modality.IMU: "imu_stem.proj",
}
_BLOCK = {
    "attn.in_proj_weight": "attention.qkv.weight",
    "attn.in_proj_bias": "attention.qkv.bias",
    "attn.bias_k": "attention.bias_k",
    "attn.bias_v": "attention.bias_v",
    "attn.out_proj.weight": "attention.out.weight",
    "attn.out_proj.bias": "attention.out.bias",
    "norm_1.weight": "attention_norm.weight",
    "norm_1.bias": "attention_norm.bias",
    "mlp.fc1.weight": "mlp.up.weight",
    "mlp.fc1.bias": "mlp.up.bias",
    "mlp.fc2.weight": "mlp.down.weight",
    "mlp.fc2.bias": "mlp.down.bias",
    "norm_2.weight": "mlp_norm.weight",
    "norm_2.bias": "mlp_norm.bias",
}

# The point-cloud trunk is kept apart from the others, stem and all, and has other names.
_POINT_ENCODER = "point_trunk.point_encoder"
_POINT_FRONT = {
    "pc_projection": "trunks.point.projection",
    "point_encoder.cls_token": "stems.point.cls_token",
    "point_encoder.cls_pos": "stems.point.cls_position",
}
_POINT_LAYERS = {
    "encoder.first_conv.0": "group_encoder.point_in",
    "encoder.first_conv.1": "group_encoder.point_norm",
    "encoder.first_conv.3": "group_encoder.point_out",
    "encoder.second_conv.0": "group_encoder.group_in",
    "encoder.second_conv.1": "group_encoder.group_norm",
    "encoder.second_conv.3": "group_encoder.group_out",
    "reduce_dim": "projection",
    "pos_embed.0": "position.0",
    "pos_embed.2": "position.2",
}
_POINT_BLOCK = {
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "norm2.weight": "mlp_norm.weight",
    "norm2.bias": "mlp_norm.bias",
    "mlp.fc1.weight": "mlp.up.weight",
    "mlp.fc1.bias": "mlp.up.bias",
    "mlp.fc2.weight": "mlp.down.weight",
    "mlp.fc2.bias": "mlp.down.bias",
    "attn.qkv.weight": "attention.qkv.weight",
    "attn.proj.weight": "attention.out.weight",
    "attn.proj.bias": "attention.out.bias",
}
_AFFINE = ("weight", "bias")
_BATCH_NORM = (*_AFFINE, "running_mean", "running_var", "num_batches_tracked")

# Which modality a key belongs to, and which block of its trunk.
_OFFICIAL_KEY = re.compile(r"modality_\w+\.(?P<name>\w+)\.(?:blocks\.(?P<block>\d+)\.)?")
_OFFICIAL_POINT_KEY = re.compile(r"(?P<name>point)_trunk\.(?:point_encoder\.blocks\.blocks\.(?P<block>\d+)\.)?")
_OUR_KEY = re.compile(r"(?:stems|trunks|heads|postprocessors)\.(?P<name>\w+)\.(?:blocks\.(?P<block>\d+)\.)?")
_NAMES = {modality.value for modality in Modality}

Owner = tuple[Modality, int]  # and its blocks, as far as this key tells: at least one


def official_owner(key: str) -> Owner | None:
    """What a key of a published file belongs to; None for a key that no such file has."""
    return _owner(_OFFICIAL_KEY.match(key) or _OFFICIAL_POINT_KEY.match(key))


def our_owner(key: str) -> Owner | None:
    """What a key of an encoder's state dict belongs to."""
    return _owner(_OUR_KEY.match(key))


def _owner(match: re.Match | None) -> Owner | None:
    if match is None or match["name"] not in _NAMES:
        return None
    return Modality(match["name"]), int(match["block"] or 0) + 1


def find_depths(keys: Iterable[str], owner_of: Callable[[str], Owner | None]) -> dict[Modality, int]:
    """Blocks of each modality that any of the keys belongs to."""
    owners = [owner_of(key) for key in keys]
    depths: dict[Modality, int] = {}
    for modality, depth in filter(None, owners):
        # A made-up block number must not blow the table up: there cannot be more blocks than keys.
        depths[modality] = min(max(depth, depths.get(modality, 0)), len(owners))
    return depths


def key_table(depths: Mapping[Modality, int]) -> dict[str, str | None]:
    """Official key -> our key, in the official order, for trunks of these depths.

    None marks the one key (`TEXT_MASK`) that has no counterpart.
    """
    table: dict[str, str | None] = {}
    modalities = [modality for modality in Modality if modality in depths]
    together = [modality for modality in modalities if modality is not Modality.POINT]
    for modality in together:
        table.update(_stem_keys(modality, f"modality_preprocessors.{modality}", f"stems.{modality}"))
    for modality in together:
        source, target = f"modality_trunks.{modality}", f"trunks.{modality}"
        if FACTS[modality].pre_norm:
            table.update(_leaves(f"{source}.pre_transformer_layer.0", f"{target}.pre_norm"))
        for index in range(depths[modality]):
            for official, ours in _BLOCK.items():
                if FACTS[modality].bias_kv or ours not in ("attention.bias_k", "attention.bias_v"):
                    table[f"{source}.blocks.{index}.{official}"] = f"{target}.blocks.{index}.{ours}"
    for modality in modalities:
        source, target = f"modality_heads.{modality}", f"heads.{modality}"
        norm, linear = {Modality.TEXT: ("proj.0", "proj.1"), Modality.IMU: ("0", "3")}.get(modality, ("0", "2"))
        table.update(_leaves(f"{source}.{norm}", f"{target}.norm"))
        table[f"{source}.{linear}.weight"] = f"{target}.projection.weight"
    for modality in modalities:
        if FACTS[modality].logit_scale is not None:
            table[f"modality_postprocessors.{modality}.1.log_logit_scale"] = f"postprocessors.{modality}.log_scale"
    if Modality.POINT in depths:
        table.update(_point_keys(depths[Modality.POINT]))
    return table


def _leaves(source: str, target: str, leaves: Iterable[str] = _AFFINE) -> dict[str, str]:
    return {f"{source}.{leaf}": f"{target}.{leaf}" for leaf in leaves}


def _stem_keys(modality: Modality, source: str, target: str) -> dict[str, str | None]:
    if modality is Modality.TEXT:
        return {
            f"{source}.pos_embed": f"{target}.position",
            TEXT_MASK: None,
            f"{source}.token_embedding.weight": f"{target}.token_embedding.weight",
        }
    cls_token = {f"{source}.cls_token": f"{target}.cls_token"}
    projection = {f"{source}.{_STEM_PREFIX[modality]}.weight": f"{target}.projection.weight"}
    if FACTS[modality].stem.norm:
        prefix = _STEM_PREFIX[modality].split(".")[0]
        projection |= _leaves(f"{source}.{prefix}.norm_layer", f"{target}.norm")
    if modality is Modality.IMU:
        return {f"{source}.pos_embed": f"{target}.position"} | cls_token | projection
    return cls_token | projection | {f"{source}.pos_embedding_helper.pos_embed": f"{target}.position"}


def _point_keys(depth: int) -> dict[str, str]:
    keys = {f"point_trunk.{official}": ours for official, ours in _POINT_FRONT.items()}
    for official, ours in _POINT_LAYERS.items():
        leaves = _BATCH_NORM if ours.endswith("_norm") else _AFFINE
        keys |= _leaves(f"{_POINT_ENCODER}.{official}", f"stems.point.{ours}", leaves)
    for index in range(depth):
        source, target = f"{_POINT_ENCODER}.blocks.blocks.{index}", f"trunks.point.blocks.{index}"
        keys |= {f"{source}.{official}": f"{target}.{ours}" for official, ours in _POINT_BLOCK.items()}
    return keys | _leaves(f"{_POINT_ENCODER}.norm", "trunks.point.final_norm")
