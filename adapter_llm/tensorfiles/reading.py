"""Reading `.pth` (zip and older), `.safetensors` and OpenAI's TorchScript archives, one tensor at a time.

Nothing in a file is ever executed, and no file is mapped: memory holds what was asked for, no more. Only files of
torch.save's older format are read as a whole.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .archive import ArchiveReader, records
from .specs import SAFETENSORS_DTYPES, TensorFile, TensorFileError, TensorSpec, read_rows_at
from .torchscript import is_torchscript, known_archive

WRAPPERS = ("model", "state_dict")


def open_tensors(path: str | Path) -> TensorFile:
    """The tensors of a `.pth`, `.pt`, `.bin` or `.safetensors` file; what it is, its first bytes say.

    Raises TensorFileError for what cannot be read: no such file, a web page, a download that broke off, a pickle
    with code in it, an archive with code that is not known.
    """
    path = Path(path).expanduser()
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise TensorFileError(f"{path} cannot be read ({error.strerror}); check the path") from error
    if not head:
        raise TensorFileError(f"{path} is empty; download it again")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        raise TensorFileError(f"{path} is a web page, not a file of weights; download the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise TensorFileError(f"{path} is only a pointer to a file (git-lfs); fetch the file itself with: git lfs pull")
    if head[:2] == b"PK":
        return _open_archive(path)
    if head[8:9] == b"{":
        return _open_safetensors(path)
    if head[:1] != b"\x80":  # how torch.save's older format, a pickle, begins
        raise TensorFileError(f"{path} is no file of weights; give a .pth or .safetensors file")
    return _in_memory(path, load_whole(path, "cpu"))


def _open_archive(path: Path) -> TensorFile:
    """A zip made by torch.save: the pickle inside gives names, shapes and places, the bytes are read at need."""
    try:
        parts = records(path)
    except Exception as error:  # damaged bytes fail in ways no list of types covers
        raise _cut_off(path, error) from error
    content = known_archive(path, parts) if is_torchscript(parts) else load_whole(path, "meta")
    tensors, wrapper, extra = unwrap(path, content)
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    return TensorFile(path, specs, ArchiveReader(path, tensors, parts).rows, wrapper, extra)


def _open_safetensors(path: Path) -> TensorFile:
    try:
        with safe_open(path, framework="pt") as file:  # the library checks what we then read ourselves
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _cut_off(path, error) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    unknown = sorted({entry["dtype"] for entry in header.values()} - set(SAFETENSORS_DTYPES))
    if unknown:
        raise TensorFileError(f"{path} holds numbers of type {', '.join(unknown)}, which are not supported")
    specs = {n: TensorSpec(tuple(e["shape"]), SAFETENSORS_DTYPES[e["dtype"]]) for n, e in header.items()}

    def rows(name: str, first: int, last: int) -> Tensor:
        return read_rows_at(path, 8 + length + header[name]["data_offsets"][0], specs[name], first, last)

    return TensorFile(path, specs, rows, extra=metadata)


def load_whole(path: Path, device: str) -> Any:
    """What torch.save wrote; on the meta device, tensors without their bytes. Raises TensorFileError."""
    try:
        # training runs of the originals keep their arguments beside the weights; a Namespace is inert
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None and "Unsupported" not in str(error):
            raise _cut_off(path, error) from error
        culprit = f" ({code[1]})" if code else ""
        raise TensorFileError(
            f"{path} holds Python code beside its tensors{culprit}, which is never run; get the file from its owner, "
            "or save its state dict alone"
        ) from error
    except Exception as error:  # damaged bytes fail in ways no list of types covers
        raise _cut_off(path, error) from error


def _in_memory(path: Path, content: Any) -> TensorFile:
    tensors, wrapper, extra = unwrap(path, content)
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}

    def rows(name: str, first: int, last: int) -> Tensor:
        return tensors[name][first:last].contiguous() if specs[name].shape else tensors[name]

    return TensorFile(path, specs, rows, wrapper, extra)


def unwrap(path: Path, content: Any) -> tuple[dict[str, Tensor], str | None, dict[str, Any]]:
    """The tensors, the key they were wrapped in if any, and everything else."""
    wrapper, extra = None, {}
    if isinstance(content, Mapping):
        for name in WRAPPERS:
            if isinstance(content.get(name), Mapping):
                wrapper, extra = name, {key: value for key, value in content.items() if key != name}
                content = content[name]
                break
    if not isinstance(content, Mapping) or not content:
        raise TensorFileError(f"{path} holds no named tensors; it must be a state dict, or one under the key 'model'")
    strange = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise TensorFileError(
            f"{path} holds more than named tensors ({', '.join(strange[:8])}); it must be a state dict, "
            "or one under the key 'model'"
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}, wrapper, extra


def _cut_off(path: Path, error: Exception) -> TensorFileError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return TensorFileError(f"{path} is damaged or cut off, or holds no weights ({reason}); download it again")
