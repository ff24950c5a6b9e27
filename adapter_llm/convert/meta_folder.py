"""A folder in Meta's layout: consolidated.*.pth, params.json, tokenizer.model. Checked as a whole before it is used."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from ..words import listed
from .errors import ConversionError
from .meta_layout import (
    COLUMNS,
    ROWS,
    TOKENS,
    Params,
    Weight,
    check_names,
    expected_shapes,
    is_table,
    weights,
)
from .relations import to_halves

PARAMS, TOKENIZER = "params.json", "tokenizer.model"
SHARD = re.compile(r"consolidated\.(\d+)\.pth")
FIRST_MATRIX, FIRST_WIDTH, HEAD = "layers.0.attention.wq.weight", "layers.0.feed_forward.w1.weight", "output.weight"


def shard_name(index: int) -> str:
    return f"consolidated.{index:02d}.pth"


@dataclass(frozen=True)
class MetaFolder:
    """All of a model but its numbers, which are read when they are asked for."""

    path: Path
    params_text: str  # verbatim
    params: Params
    tokenizer: Path
    shards: tuple[TensorFile, ...]
    weights: tuple[Weight, ...]
    vocabulary: int  # rows of the embeddings
    width: int  # of the feed-forward

    @property
    def files(self) -> list[Path]:
        """Everything that is read."""
        return [self.path / PARAMS, self.tokenizer, *(shard.path for shard in self.shards)]

    @property
    def tokens(self) -> str:
        """What a shard has of the embeddings."""
        return self.weights[0].share

    def specs(self) -> dict[str, TensorSpec]:
        """Tensors under Hugging Face's names, whole."""
        shapes = dict(expected_shapes(self.params, self.vocabulary, self.width))
        dtypes = self.shards[0].specs
        return {weight.ours: TensorSpec(shapes[weight.theirs], dtypes[weight.theirs].dtype) for weight in self.weights}

    def tables(self) -> dict[str, tuple[TensorFile, str]]:
        """Tensors that are kept for the way back alone, by shard and name."""
        return {
            f"{index:02d}.{name}": (shard, name)
            for index, shard in enumerate(self.shards)
            for name in filter(is_table, shard.specs)
        }

    def blocks(self, weight: Weight) -> Iterator[Tensor]:
        """A tensor as Hugging Face has it, in blocks of rows: shards joined, rotated rows in halves."""
        name, shards = weight.theirs, self.shards
        if weight.share == COLUMNS:
            rows, columns = shards[0].specs[name].shape
            for first, last in TensorSpec((rows, columns * len(shards)), shards[0].specs[name].dtype).steps():
                yield torch.cat([shard.rows(name, first, last) for shard in shards], dim=1)
            return
        size = self.params.head_size if weight.rotated else 1
        for shard in shards if weight.share == ROWS else shards[:1]:
            for first, last in shard.specs[name].steps(size):
                block = shard.rows(name, first, last)
                yield to_halves(block, (last - first) // size) if weight.rotated else block


def open_meta(folder: Path, tokenizer: Path | None = None) -> MetaFolder:
    """Raises ConversionError or TensorFileError for anything that is missing, damaged or of another model."""
    if not folder.is_dir():
        raise ConversionError(f"there is no folder {folder}; give the one that holds {shard_name(0)} and {PARAMS}")
    paths = _shard_paths(folder)
    try:
        text = (folder / PARAMS).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{folder} has no readable {PARAMS}; put the one that came with the weights there"
        ) from error
    params = Params.parse(text, folder / PARAMS)
    tokenizer = _find_tokenizer(folder, tokenizer)
    shards = tuple(open_tensors(path) for path in paths)
    for shard in shards:
        if shard.wrapper or shard.extra:
            raise ConversionError(f"{shard.path} is a file of a training run, not a shard as Meta published them")
        check_names(shard.path, shard.specs, params)
    _check_number(folder, shards, params)
    _check_same(shards)
    rows = sum(shard.specs[HEAD].rows for shard in shards)
    width = sum(shard.specs[FIRST_WIDTH].rows for shard in shards)
    by_rows = shards[0].specs[TOKENS].shape[1:] == (params.dim,)  # of a single shard, all are
    all_weights = tuple(weights(params, ROWS if by_rows else COLUMNS))
    _check_shapes(folder, shards, params, all_weights, rows, width)
    if params.vocab_size not in (-1, rows):
        raise ConversionError(
            f"{folder / PARAMS} says {params.vocab_size} tokens, and the embeddings have {rows}: "
            "it belongs to another model"
        )
    _check_tokenizer(tokenizer, rows, folder)
    return MetaFolder(folder, text, params, tokenizer, shards, all_weights, rows, width)


def _shard_paths(folder: Path) -> list[Path]:
    found = {int(match[1]): path for path in folder.iterdir() if (match := SHARD.fullmatch(path.name))}
    if not found:
        raise ConversionError(f"{folder} holds no consolidated.*.pth; give the folder with the weights themselves")
    if missing := [shard_name(index) for index in range(max(found)) if index not in found]:
        raise ConversionError(f"{folder} lacks {listed(missing)}; download all files of the model")
    return [found[index] for index in sorted(found)]


def _find_tokenizer(folder: Path, given: Path | None) -> Path:
    """As published, one tokenizer stands beside the folders of all sizes."""
    places = [Path(given).expanduser()] if given else [folder / TOKENIZER, folder.resolve().parent / TOKENIZER]
    for place in places:
        if place.is_file():
            return place
    raise ConversionError(
        f"{folder} has no {TOKENIZER}: there is no {' and no '.join(map(str, places))}; "
        "give the one that came with the weights (--tokenizer)"
    )


def _check_number(folder: Path, shards: tuple[TensorFile, ...], params: Params) -> None:
    """The rows of a square matrix, over all shards, are as many as its columns."""
    rows, columns = (*shards[0].specs[FIRST_MATRIX].shape, 0, 0)[:2]
    if columns != params.dim or not rows or columns % rows or len(shards) == columns // rows:
        return  # right, or wrong in another way
    raise ConversionError(
        f"{folder} has {len(shards)} file{'s' * (len(shards) > 1)} of a model that was cut into {columns // rows}; "
        f"put {shard_name(0)} to {shard_name(columns // rows - 1)} there and no others"
    )


def _check_same(shards: tuple[TensorFile, ...]) -> None:
    """All shards have the same names and shapes, and norms that are the same to the bit."""
    first = shards[0]
    for other in shards[1:]:
        for name, spec in first.specs.items():
            if is_table(name):
                continue
            found = other.specs[name]
            differs = found != spec
            if not differs and len(spec.shape) == 1:
                differs = not torch.equal(first.read(name).view(torch.uint8), other.read(name).view(torch.uint8))
            if differs:
                raise ConversionError(
                    f"{first.path} and {other.path.name} are shards of two models: {name} differs; "
                    "download all files of one"
                )


def _check_shapes(
    folder: Path, shards: tuple[TensorFile, ...], params: Params, table: tuple[Weight, ...], rows: int, width: int
) -> None:
    shapes, wrong = dict(expected_shapes(params, rows, width)), []
    for weight in table:
        spec = shards[0].specs[weight.theirs]
        wanted = weight.divide(TensorSpec(shapes[weight.theirs], spec.dtype), len(shards))
        if spec != wanted:
            wrong.append(f"{weight.theirs} {spec.shape} instead of {wanted.shape}")
        elif weight.rotated and spec.rows % params.head_size:
            wrong.append(f"{weight.theirs} with parts of a head")
        elif not spec.dtype.is_floating_point:
            wrong.append(f"{weight.theirs} of {spec.dtype}")
    if wrong:
        raise ConversionError(
            f"{folder / PARAMS} and {shards[0].path.name} are of two models: {listed(wrong, 3)}; "
            "put the files of one model there"
        )


def _check_tokenizer(tokenizer: Path, rows: int, folder: Path) -> None:
    from .pieces import read_pieces

    count = len(read_pieces(tokenizer).texts)
    if count != rows:
        raise ConversionError(
            f"{tokenizer} has {count} pieces, and the embeddings in {folder} have {rows} rows: it belongs to another "
            "model; give the one that came with the weights (--tokenizer)"
        )
