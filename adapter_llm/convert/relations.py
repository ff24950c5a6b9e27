"""How tensors of a published file become ours and ours become theirs again: small operations, each with its inverse.

Run on meta tensors they give shapes and types, so that a conversion is planned before a byte is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tensorfiles import TensorSpec
from ..words import listed
from .errors import ConversionError

Tensors = Sequence[Tensor]


@dataclass(frozen=True)
class Operation:
    """`forward` takes the tensors of the published file in order and gives ours, `backward` the other way."""

    forward: Callable[[Tensors], Tensors]
    backward: Callable[[Tensors], Tensors]


@dataclass(frozen=True)
class Relation:
    """Tensors of the published file, tensors of ours, and what makes the one of the other."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operation: Operation


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a rotated projection, (heads * P, ...), from Meta's neighbouring pairs to Hugging Face's halves."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def to_pairs(rows: Tensor, heads: int) -> Tensor:
    """Inverse of `to_halves`."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


SAME = Operation(lambda tensors: tensors, lambda tensors: tensors)
TRANSPOSED = Operation(lambda tensors: [tensors[0].T.contiguous()], lambda tensors: [tensors[0].T.contiguous()])
SPLIT_IN_THREE = Operation(lambda tensors: tensors[0].chunk(3), lambda tensors: [torch.cat(list(tensors))])
# one number, or one a head, of every layer: (1, H, 1, 1) each to (L, H)
GATES = Operation(
    lambda tensors: [torch.stack([tensor.flatten() for tensor in tensors])],
    lambda tensors: [row.view(1, -1, 1, 1) for row in tensors[0]],
)
SCALES = Operation(
    lambda tensors: [torch.cat([tensor.flatten() for tensor in tensors])],
    lambda tensors: [number.view(1, 1, 1, 1) for number in tensors[0]],
)


def rotary(heads: int) -> Operation:
    return Operation(
        lambda tensors: [to_halves(tensors[0], heads)],
        lambda tensors: [to_pairs(tensors[0], heads)],
    )


def by_layer(query_len: int) -> Operation:
    """(L * Q, D), layer after layer, to (L, Q, D)."""
    return Operation(
        lambda tensors: [tensors[0].unflatten(0, (-1, query_len))],
        lambda tensors: [tensors[0].flatten(0, 1)],
    )


def mismatch(missing: Iterable[str], unknown: Iterable[str]) -> str:
    """What a file lacks, and has and should not, in words; empty if all is right."""
    lists = (("lacks", sorted(missing)), ("has the unknown", sorted(unknown)))
    return " and ".join(f"{what} {listed(names)}" for what, names in lists if names)


def check_complete(path: object, relations: Iterable[Relation], present: Iterable[str]) -> None:
    """Raise ConversionError listing the names of a published file that are missing or that the table does not know."""
    present = set(present)
    expected = {name for relation in relations for name in relation.theirs}
    if problems := mismatch(expected - present, present - expected):
        raise ConversionError(f"{path} {problems}; get the file again, or give one of a known layout")


def convert_specs(
    relations: Iterable[Relation], specs: Mapping[str, TensorSpec], back: bool = False
) -> dict[str, TensorSpec]:
    """Shapes and types on the other side."""
    result = {}
    for relation in relations:
        sources, targets = (relation.ours, relation.theirs) if back else (relation.theirs, relation.ours)
        change = relation.operation.backward if back else relation.operation.forward
        try:
            made = list(change([specs[name].empty() for name in sources]))
        except RuntimeError as error:  # torch's, of shapes that do not go together
            shapes = listed([f"{name} {specs[name].shape}" for name in sources])
            raise ConversionError(f"{shapes} cannot be what it is called; get the file again") from error
        for name, tensor in zip(targets, made, strict=True):
            result[name] = TensorSpec.of(tensor)
    return result


def reader(
    relations: Iterable[Relation],
    read: Callable[[str], Tensor],
    back: bool = False,
    blocks: Callable[[str], Iterable[Tensor]] | None = None,
) -> Callable[[str], Tensor | Iterable[Tensor]]:
    """A function that makes one tensor of the other side, reading only what it is made of.

    With `blocks`, tensors that are the same on both sides are passed on in pieces, and never whole in memory.
    """
    made_by = {}
    for relation in relations:
        sources, targets = (relation.ours, relation.theirs) if back else (relation.theirs, relation.ours)
        made_by |= {name: (index, sources, relation.operation) for index, name in enumerate(targets)}

    def make(name: str) -> Tensor | Iterable[Tensor]:
        index, sources, operation = made_by[name]
        if operation is SAME and blocks is not None:
            return blocks(sources[index])
        change = operation.backward if back else operation.forward
        return change([read(source) for source in sources])[index].contiguous()

    return make


def wrong_shapes(expected: Mapping[str, tuple[int, ...]], specs: Mapping[str, TensorSpec]) -> str:
    """Tensors that are not of the shape they should be, missing or too many, in words; empty if all is right."""
    found = {name: spec.shape for name, spec in specs.items()}
    odd = sorted(name for name in set(found) | set(expected) if found.get(name) != expected.get(name))
    return listed([f"{name} {found.get(name)} instead of {expected.get(name)}" for name in odd])
