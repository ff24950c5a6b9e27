"""The stored weights of a language model: a Hugging Face folder, in any number of files, read through memory maps.

What is mapped counts as this process's memory once it has been touched, and for as long as the map lives. So every
piece gets a map of its own, which goes when the piece is used up.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .sources import CheckpointError
from .words import one_line

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
SLAB = 16 * 1024**2  # bytes of a tensor that are worked on at a time
# tables that older versions of transformers stored with the weights
IGNORED = "rotary_emb.inv_freq"
EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SPOTS, SPOT = 8, 8  # where a fingerprint looks into a tensor, and how many numbers it takes there


class Shards:
    """Names, shapes and values of a folder's safetensors; where each tensor is, but nothing of it in memory."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError for a file that is missing, cut short, or does not hold what the index says."""
        self.files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.types: set[str] = set()  # as safetensors call them
        files = shard_files(folder, WHOLE, INDEX)
        if not files:
            raise CheckpointError(f"the language model {folder} has no safetensors; save it as such with transformers")
        for path, names in files.items():
            with opened(path) as file:
                for name in file.keys():  # noqa: SIM118, it is not a dict
                    if IGNORED not in name:
                        self.files[name] = path
                        tensor = file.get_slice(name)
                        self.shapes[name] = tuple(tensor.get_shape())
                        self.types.add(tensor.get_dtype())
            if absent := sorted(name for name in names if IGNORED not in name and name not in self.files):
                raise CheckpointError(f"{path} does not hold {absent[0]}, which {INDEX} says; get the folder again")

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Layers, tokens and hidden size of the LLaMA that is stored here."""
        layers = {found[0] for name in self.files if (found := re.match(r"model\.layers\.\d+\.", name))}
        return (len(layers), *self.shapes[EMBEDDINGS])

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, mapped: no memory is used before it is read."""
        with opened(self.files[name]) as file:
            return file.get_tensor(name)

    def slabs(self, name: str) -> Iterator[tuple[slice, Tensor]]:
        """A tensor in runs of rows, and which rows; each is gone from memory when the next one is asked for."""
        rows, *rest = self.shapes[name]
        step = max(1, SLAB // (4 * math.prod(rest)))
        for start in range(0, rows, step):
            with opened(self.files[name]) as file:
                yield slice(start, start + step), file.get_slice(name)[start : start + step]


def opened(path: Path):
    """A safetensors file, open. Raises CheckpointError if it is none, or not whole."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({one_line(error)}); get it again") from None


def shard_files(folder: Path, whole: str, index: str) -> dict[Path, list[str]]:
    """The files of a model and what its index wants of each; one without an index may hold anything.

    Empty if the folder has neither. Raises CheckpointError for an unreadable index and for a missing file.
    """
    if (folder / whole).is_file():  # as transformers looks for them
        return {folder / whole: []}
    path = folder / index
    if not path.is_file():
        return {}
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        files: dict[Path, list[str]] = {}
        for name, file in places.items():
            files.setdefault(folder / Path(file).name, []).append(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no index of weights ({one_line(error)}); get it again") from None
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing, and {index} names it; get it, or the whole folder again")
    return files


def fingerprint(folder: str | Path) -> str:
    """What a language model is, however it is cut into files, whatever they are called and how its numbers are stored.

    The SHA-256 of every tensor's name and shape, of some of its numbers, as float16, and of what its config says of
    positions and of the norms' epsilon. Only those are read, so
    that 13 GB take no longer than a file. A copy in float16 or float32 is the same model; one that was rounded to
    bfloat16 or quantised has other numbers and counts as another. Weights that were trained further differ everywhere;
    a single number that was changed on purpose is not noticed. Raises CheckpointError for a folder without whole
    weights.
    """
    entries: dict[str, bytes] = {}
    for name, shape, numbers in _samples(Path(folder)):
        if IGNORED not in name:
            entries[name] = repr(shape).encode() + numbers.numpy().tobytes()
    if entries.get(HEAD) == entries.get(EMBEDDINGS):  # a model that uses one for both may store it twice
        entries.pop(HEAD, None)
    digest = hashlib.sha256(_settings(Path(folder)))
    for name in sorted(entries):
        digest.update(name.encode() + b"\0" + entries[name])
    return digest.hexdigest()


def _settings(folder: Path) -> bytes:
    """What changes a model's answers and leaves no trace in its tensors, however old the config is."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return b""  # whoever loads the model will say so
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    return repr((config.get("rms_norm_eps"), float(theta), kind, rope.get("factor"))).encode()


def _samples(folder: Path) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    files = shard_files(folder, WHOLE, INDEX)
    for path in files:
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                yield name, tuple(tensor.shape), _sample(tensor)
    if files:
        return
    files = shard_files(folder, PICKLED, PICKLED_INDEX)
    if not files:
        raise CheckpointError(f"{folder} holds no weights of a language model ({WHOLE} or {INDEX}); give another")
    for path in files:
        try:
            tensors = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            for name, tensor in tensors.items():
                yield name, tuple(tensor.shape), _sample(tensor)
        except Exception as error:  # whatever a file can be
            raise CheckpointError(f"{path} is not a whole file of weights ({one_line(error)}); get it again") from None


def _sample(tensor: Tensor) -> Tensor:
    """Some numbers of a tensor, in runs: what lies side by side is read at once."""
    flat = tensor.detach().reshape(-1)
    if flat.numel() > SPOTS * SPOT:
        last = flat.numel() - SPOT
        flat = torch.cat([flat[last * spot // (SPOTS - 1) :][:SPOT] for spot in range(SPOTS)])
    return flat.to(torch.float16) if flat.is_floating_point() else flat
