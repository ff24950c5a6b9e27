"""TorchScript archives, of which only the tensors are taken: the code in them is neither run nor needed.

All the same, only archives known by their hash are read: weights that others made into programs may need theirs.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..words import sha256_of
from .archive import Record
from .specs import TensorFileError

TRUSTED_ARCHIVES = {"b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "OpenAI's CLIP ViT-L/14"}
REBUILD = "torch._utils _rebuild_tensor_v2"
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_MARK = object()


def is_torchscript(parts: list[Record]) -> bool:
    return any(part.name.endswith("/constants.pkl") for part in parts)


def known_archive(path: Path, parts: list[Record]) -> dict[str, Tensor]:
    """Parameters and buffers on the meta device, each with its place in the file as torch.load would note it."""
    if sha256_of(path) not in TRUSTED_ARCHIVES:
        raise TensorFileError(
            f"{path} is a TorchScript archive, which holds code, and not one of those known by their SHA-256 "
            f"({', '.join(TRUSTED_ARCHIVES.values())}); save its state dict with torch.save, or give safetensors"
        )
    [data] = [part.name for part in parts if part.name.endswith("/data.pkl")]
    root = data.removesuffix("data.pkl")
    offsets = {part.name: part.offset for part in parts}
    with zipfile.ZipFile(path) as archive:
        code = {name: archive.read(name).decode() for name in offsets if name.endswith(".py")}
        module = _outline(archive.read(data))
    return {name: _tensor(call, offsets, root) for name, call in _tensors(module, code, root)}


@dataclass
class _Outline:
    """An object or a call in a pickle, by name and contents alone."""

    name: str
    contents: Any = field(default_factory=dict)


def _outline(pickled: bytes) -> _Outline:
    """What a pickle describes, without making any of it: names of classes and functions stay names."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        found = stack[at + 1 :]
        del stack[at:]
        return found

    def pairs(items: list[Any]) -> dict[Any, Any]:
        return dict(zip(items[::2], items[1::2], strict=True))

    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                stack.append(_MARK)
            case "GLOBAL" | "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE" | "NONE":
                stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[opcode.name])
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(pairs(items))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_Outline(str(name), arguments if opcode.name == "REDUCE" else {}))
            case "BUILD":
                state = stack.pop()
                stack[-1].contents = state
            case "BINPERSID":
                pass  # the tuple that names a storage stays a tuple
            case other:
                raise TensorFileError(f"a TorchScript archive uses {other}, which none of the known ones does")
    return stack[-1]


def _tensors(module: _Outline, code: dict[str, str], root: str, prefix: str = "") -> Iterator[tuple[str, _Outline]]:
    """Parameters and buffers of a module and of those in it; other tensors are attributes, no part of its state."""
    package, name = module.name.split(" ")
    text = code[f"{root}code/{package.replace('.', '/')}.py"]
    lists = re.search(rf"class {name}\(Module\):\n((?:  __(?:parameters|buffers)__ = \[.*\]\n)*)", text)
    state = set(re.findall(r'"([^"]+)"', lists[1])) if lists else set()
    for key, value in module.contents.items():
        if isinstance(value, _Outline) and value.name == REBUILD and key in state:
            yield prefix + key, value
        elif isinstance(value, _Outline) and value.name.startswith("__torch__"):
            yield from _tensors(value, code, root, f"{prefix}{key}.")


def _tensor(call: _Outline, offsets: dict[str, int], root: str) -> Tensor:
    (_, kind, key, _, count), offset, shape, stride, *_ = call.contents
    dtype = STORAGES[kind.removeprefix("torch ")]
    storage = torch.UntypedStorage(count * dtype.itemsize, device="meta")
    storage._checkpoint_offset = offsets[f"{root}data/{key}"]
    return torch.empty(0, dtype=dtype, device="meta").set_(storage, offset, shape, stride)
