"""The published checkpoint layout and ours: one table of keys, read in both directions.

`from_official` and `to_official` only rename, tensors are passed on as they are, so a round
trip changes no byte. Unknown and missing keys are errors: half a checkpoint loads silently
into garbage.
"""

import math
import pickle
from collections.abc import Iterable, Mapping
from os import PathLike

import torch
from torch import Tensor

from .config import FACTS, EncoderConfig, ImageConfig, Modality, PatchStemConfig, TextStemConfig, TrunkConfig
from .modeling import ImageBindEncoder

# Head counts leave no trace in tensor shapes.
PUBLISHED_HEADS: Mapping[Modality, int] = {
    modality: trunk.heads for modality, trunk in EncoderConfig.preset("huge").trunks.items()
}

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


class KeyMismatchError(ValueError):
    """A state dict is not the whole of the layout it should have; `missing` and `unexpected` list its keys."""

    def __init__(self, where: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        self.missing, self.unexpected = sorted(missing), sorted(unexpected)
        super().__init__(f"{where} has missing keys {self.missing} and unknown keys {self.unexpected}")


def key_table(depths: Mapping[Modality, int]) -> dict[str, str | None]:
    """Official key -> our key, in the official order, for trunks of these depths.

    None marks the one key (`TEXT_MASK`) that has no counterpart.
    """
    table: dict[str, str | None] = {}
    modalities = [modality for modality in Modality if modality in depths]
    for modality in modalities:
        source, target = f"modality_preprocessors.{modality}", f"stems.{modality}"
        table.update(_stem_keys(modality, source, target))
    for modality in modalities:
        source, target = f"modality_trunks.{modality}", f"trunks.{modality}"
        if FACTS[modality].pre_norm:
            for leaf in ("weight", "bias"):
                table[f"{source}.pre_transformer_layer.0.{leaf}"] = f"{target}.pre_norm.{leaf}"
        for index in range(depths[modality]):
            for official, ours in _BLOCK.items():
                if FACTS[modality].bias_kv or ours not in ("attention.bias_k", "attention.bias_v"):
                    table[f"{source}.blocks.{index}.{official}"] = f"{target}.blocks.{index}.{ours}"
    for modality in modalities:
        source, target = f"modality_heads.{modality}", f"heads.{modality}"
        norm, linear = {Modality.TEXT: ("proj.0", "proj.1"), Modality.IMU: ("0", "3")}.get(modality, ("0", "2"))
        table[f"{source}.{norm}.weight"] = f"{target}.norm.weight"
        table[f"{source}.{norm}.bias"] = f"{target}.norm.bias"
        table[f"{source}.{linear}.weight"] = f"{target}.projection.weight"
    for modality in modalities:
        if FACTS[modality].logit_scale is not None:
            table[f"modality_postprocessors.{modality}.1.log_logit_scale"] = f"postprocessors.{modality}.log_scale"
    return table


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
        projection |= {f"{source}.{prefix}.norm_layer.{leaf}": f"{target}.norm.{leaf}" for leaf in ("weight", "bias")}
    if modality is Modality.IMU:
        return {f"{source}.pos_embed": f"{target}.position"} | cls_token | projection
    return cls_token | projection | {f"{source}.pos_embedding_helper.pos_embed": f"{target}.position"}


def _depths(keys: Iterable[str], prefix: str) -> dict[Modality, int]:
    """Blocks of each modality that any key under `prefix` belongs to."""
    known = {modality.value for modality in Modality}
    depths: dict[Modality, int] = {}
    for key in keys:
        section, _, rest = key.partition(".")
        name, *path = rest.split(".")
        if name in known and section.startswith(prefix):
            modality = Modality(name)
            depths.setdefault(modality, 1)  # none is no trunk: let the first block be missed
            if path[:1] == ["blocks"] and len(path) > 1 and path[1].isdigit():
                depths[modality] = max(depths[modality], int(path[1]) + 1)
    return depths


def _check_keys(where: str, present: Iterable[str], expected: Iterable[str]) -> None:
    present, expected = set(present), set(expected)
    if present != expected:
        raise KeyMismatchError(where, expected - present, present - expected)


def from_official(
    state_dict: Mapping[str, Tensor], config: EncoderConfig | None = None, ignore: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """A state dict in the official layout under our names, same tensors.

    With a config its trunks decide what must be there, shapes are checked too, and the keys of other
    modalities are left out; without one, every modality of which a key is present must be whole.
    Keys that start with one of `ignore` are skipped, e.g. `("point_trunk.", "modality_heads.point.",
    "modality_postprocessors.point.")` for the variant with a point-cloud branch.
    Raises KeyMismatchError on missing or unknown keys, ValueError on a shape or mask that does not fit.
    """
    depths = _depths(state_dict, "modality_")
    present = [key for key in state_dict if not key.startswith(ignore)]
    if config is not None:
        others = tuple(f".{modality}." for modality in depths if modality not in config.trunks)
        present = [key for key in present if not any(part in key for part in others)]
        depths = {modality: trunk.depth for modality, trunk in config.trunks.items()}
    table = key_table(depths)
    _check_keys("the official checkpoint", present, table)
    if TEXT_MASK in table:
        mask = state_dict[TEXT_MASK]
        if mask.device.type != "meta" and not torch.equal(mask, _causal_mask(len(mask), mask)):
            raise ValueError(f"{TEXT_MASK} is not a causal mask, which is the only one the encoder knows")
    ours = {target: state_dict[source] for source, target in table.items() if target is not None}
    if config is not None:
        _check_shapes(ours, config)
    return ours


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `from_official`, keys in the official order.

    Raises KeyMismatchError for a state dict that is not an encoder's, and ValueError where the
    layout has no room for it: a backbone, or more than one class token.
    """
    for key, tensor in state_dict.items():
        if key.endswith(".extra_cls_tokens") or (key.endswith(".cls_token") and tensor.shape[1] != 1):
            raise ValueError(f"{key} holds more than one class token, for which the official layout has no place")
    table = key_table(_depths(state_dict, "trunks"))
    _check_keys("the encoder's state dict", state_dict, [target for target in table.values() if target])
    official = {source: state_dict[target] for source, target in table.items() if target is not None}
    if TEXT_MASK not in table:
        return official
    position = state_dict[table["modality_preprocessors.text.pos_embed"]]
    official[TEXT_MASK] = _causal_mask(position.shape[1], position)
    return {source: official[source] for source in table}


def _causal_mask(length: int, like: Tensor) -> Tensor:
    """The additive mask of the official file: 0 on and below the diagonal, -inf above."""
    return torch.full((length, length), -math.inf, dtype=like.dtype, device=like.device).triu(1)


def _check_shapes(ours: Mapping[str, Tensor], config: EncoderConfig) -> None:
    with torch.device("meta"):
        wanted = ImageBindEncoder(config).state_dict()
    for key, tensor in ours.items():
        if tensor.shape != wanted[key].shape:
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)} in the checkpoint but {tuple(wanted[key].shape)} by the config"
            )


def config_from_official(
    state_dict: Mapping[str, Tensor],
    heads: Mapping[Modality, int] = PUBLISHED_HEADS,
    image: ImageConfig | None = None,
) -> EncoderConfig:
    """Sizes of an official state dict, for the modalities it holds, read from its tensor shapes.

    `heads` cannot be read and defaults to the published counts; a wrong one loads and computes
    nonsense. Patch strides and the two sides of a spectrogram are taken as published.
    Raises KeyMismatchError on an incomplete file, ConfigError on sizes that cannot be.
    """
    depths = _depths(state_dict, "modality_")
    if not depths:
        raise KeyMismatchError("the official checkpoint", ["modality_trunks.*"], state_dict)
    table = key_table(depths)
    _check_keys("the official checkpoint", [key for key in state_dict if _depths([key], "modality_")], table)
    shapes = {target: tuple(state_dict[source].shape) for source, target in table.items() if target}
    trunks = {}
    for modality, depth in depths.items():
        hidden, width = shapes[f"trunks.{modality}.blocks.0.mlp.up.weight"]
        trunks[modality] = TrunkConfig(
            width=width,
            depth=depth,
            heads=heads[modality],
            mlp_ratio=hidden / width,
            stem=_stem_from_shapes(modality, shapes),
        )
    embedding_dim = shapes[f"heads.{next(iter(depths))}.projection.weight"][0]
    return EncoderConfig(embedding_dim, trunks, image or ImageConfig())


def _stem_from_shapes(modality: Modality, shapes: Mapping[str, tuple[int, ...]]) -> PatchStemConfig | TextStemConfig:
    positions = shapes[f"stems.{modality}.position"][1]
    if modality is Modality.TEXT:
        return TextStemConfig(shapes[f"stems.{modality}.token_embedding.weight"][0], positions)
    published, projection = FACTS[modality].stem, shapes[f"stems.{modality}.projection.weight"]
    if modality is Modality.IMU:
        kernel = published.kernel[0]
        return PatchStemConfig(projection[1] // kernel, ((positions - 1) * kernel,), (kernel,), (kernel,))
    channels, kernel = projection[1], projection[2:]
    if modality is Modality.AUDIO:
        return PatchStemConfig(channels, published.size, kernel, published.stride)
    side = math.isqrt(positions - 1) * kernel[-1]
    return PatchStemConfig(channels, (*kernel[:-2], side, side), kernel, kernel, published.norm)


def load_official(
    path: str | PathLike[str],
    modalities: Iterable[Modality | str] | None = None,
    heads: Mapping[Modality, int] = PUBLISHED_HEADS,
    image: ImageConfig | None = None,
) -> ImageBindEncoder:
    """The encoder of a published file (e.g. imagebind_huge.pth) in eval mode, tensors mapped from the file.

    `modalities` leaves out trunks that are not needed; their weights are never read from disk.
    Raises FileNotFoundError, ValueError for a file that is not a checkpoint, and what
    `config_from_official` and `from_official` raise.
    """
    try:
        state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a torch checkpoint of plain tensors; download it again") from error
    if not isinstance(state_dict, Mapping) or not all(isinstance(value, Tensor) for value in state_dict.values()):
        raise ValueError(f"{path} is not a state dict but holds something else; is it the encoder's file?")
    config = config_from_official(state_dict, heads, image)
    if modalities is not None:
        wanted = set(map(Modality, modalities))
        absent = sorted(wanted - set(config.trunks))
        if absent:
            raise ValueError(f"{path} has no {', '.join(absent)} trunk, only {', '.join(config.trunks)}")
        config = EncoderConfig(config.embedding_dim, {name: config.trunks[name] for name in wanted}, config.image)
    with torch.device("meta"):
        encoder = ImageBindEncoder(config)
    encoder.load_state_dict(from_official(state_dict, config), assign=True)
    return encoder.eval()
