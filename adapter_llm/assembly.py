"""A LLaMA put together from a stored one and what an adapter's weights change in it, tensor by tensor.

It is built without weights. Each tensor is then read through a memory map, changed, rounded once and put where it
belongs: memory holds what is kept and little more.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import get_balanced_memory
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from .config import DecoderConfig
from .lora import DOWN, UNBIASED, UP, Changes, change_shapes, insert_lora
from .shards import EMBEDDINGS, HEAD, SLAB, Shards
from .sources import CheckpointError
from .strict import differences
from .tensorfiles import TensorSpec, write_safetensors
from .words import listed, one_line

DISK = "disk"
BASE = "model."  # what a weights folder leaves out of the names of the decoder's tensors


def assemble(
    folder: Path,
    sizes: PretrainedConfig,
    dtype: torch.dtype,
    changes: Changes,
    device_map: str | Mapping[str, Any],
    max_memory: Mapping[int | str, int | str] | None,
    offload_folder: str | Path | None,
) -> PreTrainedModel:
    """See `decoder.load_decoder`. Raises CheckpointError, before anything is read, for all that does not fit."""
    llama = _build(folder, sizes, dtype, changes.config)
    given = {name: tuple(tensor.shape) for name, tensor in changes.tensors.items()}
    if problems := differences(given, change_shapes(changes.config, sizes)):
        raise CheckpointError(f"the weights' changes to the language model do not fit {folder}: {problems}")
    if rank := changes.config.lora_rank:
        insert_lora(llama.model.layers, rank, changes.adapted_layers, changes.merge)
    shards = Shards(folder)
    if HEAD in shards.files:  # without one the embeddings are used
        llama.config.tie_word_embeddings = False
    llama.tie_weights()
    _check(folder, llama, shards, changes)
    source = _Source(shards, changes.tensors, changes.merge)
    places = dict(device_map) if isinstance(device_map, Mapping) else _share_out(llama, device_map, max_memory)
    index = _fill(llama, source, places, offload_folder)
    if len(set(places.values())) == 1 and not index:
        return llama.to(*set(places.values()))
    dispatch_model(llama, places, offload_index=index or None, skip_keys=llama._skip_keys_device_placement)
    return llama


@dataclass(frozen=True)
class _Source:
    """Where the tensors of a changed decoder come from, by their names in the decoder."""

    shards: Shards
    changes: Mapping[str, Tensor]  # by their names in the weights folder
    merge: bool
    # one piece of memory for all sums: many that come and go leave holes, and the process keeps them
    scratch: Tensor = field(default_factory=lambda: torch.empty(SLAB // 4))

    def is_stored(self, name: str) -> bool:
        """Whether a tensor is the stored one, but for its type."""
        return name in self.shards.files and name.removeprefix(BASE) not in self.changes and not self._update(name)

    def _update(self, name: str) -> tuple[Tensor, Tensor] | None:
        linear = name.removeprefix(BASE).removesuffix(".weight")
        if not self.merge or f"{linear}.{UP}" not in self.changes:
            return None
        return self.changes[f"{linear}.{DOWN}"], self.changes[f"{linear}.{UP}"]

    @torch.no_grad()
    def tensor(self, name: str, like: Tensor, device: Any) -> Tensor:
        """The tensor the decoder needs, of the type of `like`."""
        changed = self.changes.get(name.removeprefix(BASE))
        if changed is not None:
            return changed.detach().to(device, like.dtype, copy=True)
        if name not in self.shards.files:  # a bias of keys or values, which no weights have
            return torch.zeros_like(like, device=device)
        update = self._update(name)
        if update is None and torch.device(device).type == "cpu":
            stored = self.shards.tensor(name)
            if stored.dtype == like.dtype:
                return stored  # stays mapped, as transformers leaves it: the system can have its memory back
        tensor = torch.empty_like(like, device=device)
        down, up = (None, None) if update is None else (factor.float() for factor in update)
        for rows, values in self.shards.slabs(name):
            if down is not None:  # the sum is made in float32, and rounded once
                values = self.scratch[: values.numel()].view(values.shape).copy_(values).addmm_(up[rows], down)
            tensor[rows] = values
        return tensor


def _build(folder: Path, sizes: PretrainedConfig, dtype: torch.dtype, config: DecoderConfig) -> PreTrainedModel:
    """The decoder without weights, and with places for the biases it is to get."""
    if sizes.model_type != "llama":
        raise CheckpointError(f"these weights change a LLaMA, and {folder} is a {sizes.model_type}; give a LLaMA")
    if config.biases:
        if sizes.attention_bias or sizes.mlp_bias:
            raise CheckpointError(f"these weights bring biases, and {folder} has some; give a language model without")
        sizes.attention_bias = sizes.mlp_bias = True
    with init_empty_weights():
        llama = AutoModelForCausalLM.from_config(sizes, dtype=dtype)
    if (folder / "generation_config.json").is_file():
        llama.generation_config = GenerationConfig.from_pretrained(folder)
    return llama


def _check(folder: Path, llama: PreTrainedModel, shards: Shards, changes: Changes) -> None:
    """Raise CheckpointError if the stored model is not the one that is to be changed, by name and by shape."""
    added = {BASE + name for name in changes.tensors} - shards.files.keys()
    if changes.config.biases:
        count = len(llama.model.layers)
        added |= {f"{BASE}layers.{layer}.{linear}.bias" for layer in range(count) for linear in UNBIASED}
    stored = {name: tuple(p.shape) for name, p in llama.named_parameters() if name not in added}
    if absent := sorted(stored.keys() - shards.files.keys()):
        raise CheckpointError(f"the language model {folder} lacks {listed(absent)}; get it again, whole")
    if problems := differences(shards.shapes, stored):
        raise CheckpointError(f"the language model {folder} is not what its config.json says: {problems}; get it again")


def _share_out(
    llama: PreTrainedModel, strategy: str, max_memory: Mapping[int | str, int | str] | None
) -> dict[str, Any]:
    """Which part of the decoder goes where; a layer is never cut in two."""
    options = {"no_split_module_classes": list(llama._no_split_modules)}
    if strategy != "sequential":
        max_memory = get_balanced_memory(llama, max_memory, low_zero=strategy == "balanced_low_0", **options)
    return infer_auto_device_map(llama, max_memory, **options)


def _place(name: str, places: Mapping[str, Any]) -> Any:
    """The device of a tensor: that of the smallest part that has one and holds it."""
    part = name
    while part not in places:
        if not part:
            raise CheckpointError(f"the device map has no place for {name}; add one, or ask for device_map auto")
        part = part.rpartition(".")[0]
    return places[part]


def _fill(
    llama: PreTrainedModel, source: _Source, places: Mapping[str, Any], offload_folder: str | Path | None
) -> dict[str, dict[str, str]]:
    """Give the decoder its tensors, but for those on the disk; of those, say where they are."""
    parameters = dict(llama.named_parameters())
    if llama.config.tie_word_embeddings and _place(HEAD, places) != _place(EMBEDDINGS, places):
        raise CheckpointError("model.embed_tokens and lm_head are one here; give both the same place in the device map")
    on_disk = [name for name in parameters if _place(name, places) == DISK]
    written = {name: parameters[name] for name in on_disk if not source.is_stored(name)}
    file = _write(llama, source, written, offload_folder) if written else None
    for name, parameter in parameters.items():
        if name not in on_disk:
            module, _, leaf = name.rpartition(".")
            tensor = source.tensor(name, parameter, _place(name, places))
            setattr(llama.get_submodule(module), leaf, nn.Parameter(tensor, requires_grad=False))
    llama.tie_weights()
    index = {}
    for name in on_disk:
        path = file if name in written else source.shards.files[name]
        index[name] = {"safetensors_file": str(path), "weight_name": name}  # accelerate converts what it fetches
    if llama.config.tie_word_embeddings and EMBEDDINGS in index:
        index[HEAD] = index[EMBEDDINGS]
    return index


def _write(
    llama: PreTrainedModel, source: _Source, tensors: Mapping[str, Tensor], offload_folder: str | Path | None
) -> Path:
    """Write the changed tensors that stay on the disk, into a folder that goes when the decoder goes."""
    if offload_folder is None:
        raise CheckpointError(
            "a part of the changed language model has to stay on the disk; give offload_folder, or more memory"
        )
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    try:
        Path(offload_folder).mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="decoder-", dir=offload_folder))
        weakref.finalize(llama, shutil.rmtree, folder, ignore_errors=True)
        path = folder / "changed.safetensors"
        write_safetensors(path, specs, lambda name: source.tensor(name, tensors[name], "cpu"))
    except OSError as error:
        raise CheckpointError(
            f"changed weights cannot be written to {offload_folder} ({one_line(error)}); make room, or name another"
        ) from error
    return path
