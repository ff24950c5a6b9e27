"""LLaMA in Meta's layout to a Hugging Face folder that transformers loads by itself, and back; and GGUF to one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from torch import Tensor

from ..fetch import FetchError, convert_gguf
from ..shards import INDEX, WHOLE, shard_files
from ..sources import as_json
from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from ..words import listed
from .errors import ConversionError
from .folder import OutputFolder, job_of, output_folder, refuse_inside
from .meta_folder import PARAMS, TOKENIZER, MetaFolder, open_meta, shard_name
from .meta_layout import COLUMNS, ROWS, Params, Weight, weights
from .relations import to_pairs
from .tokenizer import convert_tokenizer

LARGEST_FILE = 2 * 10**9  # bytes
ORIGIN, TABLES = "meta.json", "meta.safetensors"  # what the way back needs; transformers looks at neither
FORMAT = 1  # of meta.json


def from_meta(source: Path, output: Path, tokenizer: Path | None = None, *, progress: bool = True) -> None:
    """Write the Hugging Face folder of a LLaMA in Meta's layout; dtypes stay as they are.

    `tokenizer` is its tokenizer.model where that lies neither in `source` nor beside it. Raises ConversionError or
    TensorFileError, before anything is written, for files that are missing, damaged or of different models.
    """
    source = Path(source).expanduser()
    refuse_inside(output, source)
    model = open_meta(source, tokenizer)
    specs, by_name = model.specs(), {weight.ours: weight for weight in model.weights}
    tables = model.tables()
    table_specs = {name: shard.specs[key] for name, (shard, key) in tables.items()}
    total = sum(spec.nbytes for spec in (*specs.values(), *table_specs.values()))
    with output_folder(output, job_of(*model.files, kind="from meta"), total, progress) as folder:
        convert_tokenizer(model.tokenizer, folder.path)  # first: it is the last thing that may be found wrong
        _write_model(folder, specs, lambda name: model.blocks(by_name[name]))
        _write_configs(folder.path, model)
        if tables:
            folder.tensors(TABLES, table_specs, lambda name: tables[name][0].read(tables[name][1]))
        origin = {
            "format": FORMAT,
            "params": model.params_text,
            "shards": len(model.shards),
            "tokens": model.tokens,
            "tables": list(tables),
        }
        folder.write(ORIGIN, as_json(origin))


def to_meta(source: Path, output: Path, *, progress: bool = True) -> None:
    """Write the files that `from_meta` made a folder of, with the tensors that the folder has now.

    Raises ConversionError, TensorFileError or CheckpointError.
    """
    source = Path(source).expanduser()
    refuse_inside(output, source)
    try:
        origin = json.loads((source / ORIGIN).read_text(encoding="utf-8"))
        params, shards = Params.parse(origin["params"], source / ORIGIN), origin["shards"]
        table, kept = weights(params, origin["tokens"]), origin["tables"]
    except FileNotFoundError as error:
        raise ConversionError(
            f"{source} was not made of a LLaMA in Meta's layout (it has no {ORIGIN}), so there is none to go back to"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{source / ORIGIN} cannot be read ({error}); convert the original again") from error
    files = _model_files(source)
    _check_complete(source, files, table)
    tables = open_tensors(source / TABLES) if kept else None
    parts = {weight.theirs: weight.divide(files[weight.ours].specs[weight.ours], shards) for weight in table}
    by_name = {weight.theirs: weight for weight in table}
    total = shards * sum(spec.nbytes for spec in parts.values())
    total += sum(spec.nbytes for spec in tables.specs.values()) if tables else 0
    with output_folder(output, job_of(source, kind="to meta"), total, progress) as folder:
        for index in range(shards):
            mine = {name.partition(".")[2]: name for name in kept if int(name.partition(".")[0]) == index}
            extra = {name: tables.specs[stored] for name, stored in mine.items()} if tables else {}

            def read(name: str, index: int = index, mine: dict[str, str] = mine) -> Tensor | Iterable[Tensor]:
                if tables and name in mine:
                    return tables.read(mine[name])
                weight = by_name[name]
                return _shard_blocks(files[weight.ours], weight, parts[name], index, params.head_size)

            folder.pth(shard_name(index), parts | extra, read)
        folder.write(PARAMS, origin["params"])
        folder.write(TOKENIZER, (source / TOKENIZER).read_bytes())


def from_gguf(source: Path, output: Path, *, progress: bool = True) -> None:
    """Write the Hugging Face folder, in bfloat16, of a language model as GGUF. It is in memory as a whole meanwhile.

    Raises ConversionError, or FetchError for a file that cannot be read as a language model.
    """
    from gguf import GGUFReader

    source = Path(source).expanduser()
    try:
        total = sum(2 * int(tensor.n_elements) for tensor in GGUFReader(source).tensors)
    except Exception as error:  # a damaged file fails in ways no list of types covers
        raise FetchError(f"{source} is no GGUF file, or is damaged or cut off ({error}); download it again") from error
    with output_folder(output, job_of(source, kind="from gguf"), total, progress) as folder:
        made = folder.path / "made"
        if made.exists():  # all of it is made anew
            shutil.rmtree(made)
        convert_gguf(source, made)
        for file in made.iterdir():
            os.replace(file, folder.path / file.name)
        made.rmdir()
        folder.bar.update(total)


def _write_model(folder: OutputFolder, specs: dict[str, TensorSpec], read: Callable[[str], Iterable[Tensor]]) -> None:
    """model.safetensors, or several files of at most 2 GB and the index that says what is where."""
    files: list[dict[str, TensorSpec]] = [{}]
    for name, spec in specs.items():
        if files[-1] and sum(other.nbytes for other in files[-1].values()) + spec.nbytes > LARGEST_FILE:
            files.append({})
        files[-1][name] = spec
    if len(files) == 1:
        folder.tensors(WHOLE, specs, read)
        return
    places = {}
    for index, part in enumerate(files):
        file = f"model-{index + 1:05d}-of-{len(files):05d}.safetensors"
        folder.tensors(file, part, read)
        places |= dict.fromkeys(part, file)
    total = sum(spec.nbytes for spec in specs.values())
    folder.write(INDEX, as_json({"metadata": {"total_size": total}, "weight_map": places}))


def _write_configs(folder: Path, model: MetaFolder) -> None:
    from sentencepiece import SentencePieceProcessor
    from transformers import GenerationConfig, LlamaConfig

    params, spec = model.params, next(iter(model.specs().values()))
    pieces = SentencePieceProcessor(model_file=str(model.tokenizer))
    tokens = {"bos_token_id": pieces.bos_id(), "eos_token_id": pieces.eos_id()}
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=model.vocabulary,
        hidden_size=params.dim,
        intermediate_size=model.width,
        num_hidden_layers=params.n_layers,
        num_attention_heads=params.n_heads,
        num_key_value_heads=params.n_kv_heads,
        max_position_embeddings=params.positions(),
        rms_norm_eps=params.norm_eps,
        rope_parameters=params.rotation(),
        tie_word_embeddings=False,
        dtype=str(spec.dtype).removeprefix("torch."),
        **tokens,
    ).save_pretrained(folder)
    # the published tokenizers have no token for padding, whose place their users fill with the unknown one
    padding = pieces.pad_id() if pieces.pad_id() >= 0 else pieces.unk_id()
    GenerationConfig(pad_token_id=padding, **tokens).save_pretrained(folder)


def _model_files(folder: Path) -> dict[str, TensorFile]:
    """The file of each tensor of a Hugging Face folder."""
    paths = shard_files(folder, WHOLE, INDEX)
    if not paths:
        raise ConversionError(f"{folder} has neither {WHOLE} nor a readable {INDEX}; convert the original again")
    return {name: file for file in map(open_tensors, paths) for name in file.specs}


def _check_complete(folder: Path, files: dict[str, TensorFile], table: list[Weight]) -> None:
    if differing := sorted({weight.ours for weight in table} ^ set(files)):
        raise ConversionError(
            f"{folder} does not hold the tensors its {ORIGIN} speaks of ({listed(differing)}); "
            "convert the original again"
        )


def _shard_blocks(file: TensorFile, weight: Weight, part: TensorSpec, index: int, head_size: int) -> Iterator[Tensor]:
    """One shard's share of a tensor, as Meta has it, in blocks of rows."""
    if weight.share == COLUMNS:
        for first, last in file.specs[weight.ours].steps():
            width = part.shape[1]
            yield file.rows(weight.ours, first, last)[:, index * width : (index + 1) * width]
        return
    start = index * part.rows if weight.share == ROWS else 0
    for first, last in part.steps(head_size if weight.rotated else 1):
        block = file.rows(weight.ours, start + first, start + last)
        yield to_pairs(block, (last - first) // head_size) if weight.rotated else block
