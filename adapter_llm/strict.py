"""Tensors from a file into a module, every one of them or none: half a checkpoint loads silently into garbage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from imagebind_encoder.config import Modality

from .sources import CheckpointError
from .words import listed, one_line


def read_tensors(path: Path, skipped: Iterable[Modality] = ()) -> dict[str, Tensor]:
    """A safetensors file, but for the trunks of the modalities `skipped`. Raises CheckpointError if it is none."""
    unread = {f"{part}.{modality}." for modality in skipped for part in ("stems", "trunks", "heads", "postprocessors")}
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if not key.startswith(tuple(unread))]  # noqa: SIM118, it is not a dict
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({one_line(error)}); get it again") from None


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give a module its tensors. Raises CheckpointError naming keys that are missing, left over or misshapen."""
    expected = module.state_dict()
    check_tensors(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()}, path)
    for key, wanted in expected.items():
        if tensors[key].is_floating_point() != wanted.is_floating_point():
            raise CheckpointError(f"{path}: {key} has type {tensors[key].dtype}, not {wanted.dtype}; get it again")
    module.load_state_dict(tensors, assign=True)


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise CheckpointError unless tensors have exactly the expected names and shapes."""
    if problems := differences({key: tuple(tensor.shape) for key, tensor in tensors.items()}, expected):
        raise CheckpointError(f"{path} does not fit its config.json: {problems}; get both again")


def differences(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """What of tensors, given as shapes by name, is missing, left over or misshapen, in words; empty if all is right."""
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    return listed(problems, separator="; ")
