"""Renaming a state dict, and refusing one that is not whole: half a checkpoint loads silently into garbage."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..config import EncoderConfig
from ..modeling import ImageBindEncoder
from .table import TEXT_MASK, find_depths, key_table, official_owner, our_owner


class KeyMismatchError(ValueError):
    """A state dict is not the whole of the layout it should have; `missing` and `unexpected` list its keys."""

    def __init__(self, where: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
        self.missing, self.unexpected = sorted(missing), sorted(unexpected)
        super().__init__(f"{where} has missing keys {self.missing} and unknown keys {self.unexpected}")


def check_keys(where: str, present: Iterable[str], expected: Iterable[str]) -> None:
    """Raises KeyMismatchError unless both are the same keys."""
    present, expected = set(present), set(expected)
    if present != expected:
        raise KeyMismatchError(where, expected - present, present - expected)


def from_official(state_dict: Mapping[str, Tensor], config: EncoderConfig | None = None) -> dict[str, Tensor]:
    """A state dict in the official layout under our names, same tensors.

    With a config its trunks decide what must be there, shapes are checked too, and the keys of other
    modalities are left out; without one, every modality of which a key is present must be whole.
    Raises KeyMismatchError on missing or unknown keys, ValueError on a shape or mask that does not fit.
    """
    if config is None:
        present, depths = list(state_dict), find_depths(state_dict, official_owner)
    else:
        owners = {key: official_owner(key) for key in state_dict}
        present = [key for key, owner in owners.items() if owner is None or owner[0] in config.trunks]
        depths = {modality: trunk.depth for modality, trunk in config.trunks.items()}
    table = key_table(depths)
    check_keys("the official checkpoint", present, table)
    if TEXT_MASK in table:
        mask = state_dict[TEXT_MASK]
        if mask.device.type != "meta" and not torch.equal(mask, causal_mask(len(mask), mask)):
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
    table = key_table(find_depths(state_dict, our_owner))
    check_keys("the encoder's state dict", state_dict, [target for target in table.values() if target])
    official = {source: state_dict[target] for source, target in table.items() if target is not None}
    if TEXT_MASK not in table:
        return official
    position = state_dict[table["modality_preprocessors.text.pos_embed"]]
    official[TEXT_MASK] = causal_mask(position.shape[1], position)
    return {source: official[source] for source in table}


def causal_mask(length: int, like: Tensor) -> Tensor:
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
