"""Folders of language models: LLaMA in the Meta layout, and what transformers reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..sources import CONFIG
from ..tensorfiles import TensorSpec, open_tensors
from .found import LLAMA_HF, LLAMA_META, Found, IdentifyError, known, read_json
from .layouts import LLAMA_HF_LAYOUT, LLAMA_META_LAYOUT, count, side

PARAMS, TOKENIZER = "params.json", "tokenizer.model"
SHARD = re.compile(r"consolidated\.\d\d\.pth")
WHOLE = ("model.safetensors", "pytorch_model.bin")  # as transformers looks for them
INDEX_ENDING = ".index.json"
TOKENIZERS = ("tokenizer.json", TOKENIZER, "vocab.json")
SMALL = (".json", ".model", ".txt", ".jinja")  # configs and tokenizers


def is_meta(names: set[str]) -> bool:
    return PARAMS in names or any(map(SHARD.fullmatch, names))


def llama_meta(folder: Path, names: set[str]) -> Found:
    """Shards hold the same keys: each has its share of every matrix, and all of every norm."""
    shards = sorted(filter(SHARD.fullmatch, names))
    if not shards:
        raise IdentifyError(f"{folder} has {PARAMS} and no consolidated.*.pth; download the weights too")
    params = read_json(folder / PARAMS) if PARAMS in names else {}
    specs = [open_tensors(folder / name).specs for name in shards]
    together = {key: spec for shard in specs for key, spec in shard.items()}
    sizes = known(layers=params.get("n_layers"), hidden_size=params.get("dim"), heads=params.get("n_heads"))
    sizes |= known(kv_heads=params.get("n_kv_heads"))
    layers = sizes.setdefault("layers", count(together, "layers."))
    hidden = sizes.get("hidden_size") or side(together, "norm.weight", 0)
    # one shard of wq has its share of the rows, whose number is the hidden size
    wanted = max(1, (hidden or 0) // (side(together, "layers.0.attention.wq.weight", 0) or len(shards)))
    sizes |= known(hidden_size=hidden, vocab_size=_vocabulary(together, hidden, wanted), shards=wanted)
    sizes["intermediate_size"] = wanted * (side(together, "layers.0.feed_forward.w1.weight", 0) or 0)
    needed = (PARAMS, *(f"consolidated.{index:02d}.pth" for index in range(wanted)))
    missing, unexpected = LLAMA_META_LAYOUT.differences(together, {"layer": range(layers)})
    problems = _disagreements(PARAMS, {"dim": hidden}, {"dim": side(together, "norm.weight", 0)})
    if len(shards) > wanted:
        problems.append(f"{len(shards)} shards of a model that was cut into {wanted}: they do not belong together")
    elif any(dict(shard) != dict(specs[0]) for shard in specs):
        problems.append("the shards differ in keys, shapes or types: they do not all belong to one model")
    tokenizer = [at for at in (folder / TOKENIZER, folder.parent / TOKENIZER) if at.is_file()][:1]
    return Found.of(
        folder, LLAMA_META, together, [*(folder / name for name in (PARAMS, *shards) if name in names), *tokenizer],
        sizes=sizes, parts={"tokenizer": bool(tokenizer)}, problems=problems, unexpected=unexpected,
        missing=(*(name for name in needed if name not in names), *missing),
        needs=() if tokenizer else [f"its {TOKENIZER}, which is neither in the folder nor beside it"],
    )  # fmt: skip


def _vocabulary(specs: Mapping[str, TensorSpec], hidden: int | None, shards: int) -> int | None:
    """The embeddings are cut along their width; those of LLaMA 3 along the vocabulary."""
    rows, width = (side(specs, "tok_embeddings.weight", axis) for axis in (0, 1))
    return rows * shards if rows and width == hidden else rows


def _disagreements(file: str, said: Mapping[str, int | None], found: Mapping[str, int | None]) -> list[str]:
    return [
        f"{file} says {name} {value}, and the weights have {found[name]}: they are of two models"
        for name, value in said.items() if value is not None and found[name] not in (None, value)
    ]  # fmt: skip


def llama_hf(folder: Path, config: Mapping[str, Any]) -> Found:
    files, missing = weight_files(folder)
    specs: dict[str, TensorSpec] = {}
    for file in files:
        specs |= open_tensors(file).specs
    sizes = known(
        layers=config.get("num_hidden_layers"), hidden_size=config.get("hidden_size"),
        heads=config.get("num_attention_heads"), kv_heads=config.get("num_key_value_heads"),
        intermediate_size=config.get("intermediate_size"), vocab_size=config.get("vocab_size"),
    )  # fmt: skip
    kind, unexpected, notes = config.get("model_type"), (), []
    names = [str(name) for name in config.get("architectures") or [kind]]
    if kind == "llama":
        absent, unexpected = LLAMA_HF_LAYOUT.differences(specs, {"layer": range(sizes.get("layers", 0))})
        if "lm_head.weight" not in specs and not config.get("tie_word_embeddings", False):
            absent = (*absent, "lm_head.weight")
        missing += absent if not missing else ()  # of a file that is not there, its name says enough
    elif not any("CausalLM" in name for name in names):
        notes.append(f"its config calls it {', '.join(names)}, which may be no causal language model")
    embeddings = "model.embed_tokens.weight"
    problems = _disagreements(
        CONFIG,
        {name: sizes.get(name) for name in ("vocab_size", "hidden_size")},
        {"vocab_size": side(specs, embeddings, 0), "hidden_size": side(specs, embeddings, 1)},
    )
    tokenizer = any((folder / name).is_file() for name in TOKENIZERS)
    small = sorted(path for path in folder.iterdir() if path.suffix in SMALL)
    return Found.of(
        folder, LLAMA_HF, specs, [*small, *files], variant=kind, sizes=sizes,
        parts={"tokenizer": tokenizer}, missing=missing, unexpected=unexpected, notes=notes, problems=problems,
        needs=() if tokenizer else ["its tokenizer (tokenizer.json or tokenizer.model)"],
    )  # fmt: skip


def weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files of weights that are there, and the names of those that should be and are not."""
    for whole in WHOLE:
        if (folder / whole).is_file():
            return [folder / whole], []
        index = folder / f"{whole}{INDEX_ENDING}"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict):
                raise IdentifyError(f"{index} does not say where the weights are; get it again")
            names = sorted({Path(str(name)).name for name in places.values()})
            there = [name for name in names if (folder / name).is_file()]
            return [folder / name for name in there], [name for name in names if name not in there]
    return [], [WHOLE[0]]
