"""Reading `.pth` (zip and older), `.safetensors` and OpenAI's TorchScript archives, one tensor at a time.

Nothing in a file is ever executed, and no file is mapped: memory holds what was asked for, no more. Only files of
torch.save's older format are read as a whole.
"""

from __future__ import annotations

import argparse
import json
import pickle
import pickletools
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..words import listed, not_downloaded, one_line
from .archive import ArchiveReader, records
from .specs import SAFETENSORS_DTYPES, TensorFile, TensorFileError, TensorSpec, read_rows_at
from .torchscript import is_torchscript, known_archive

WRAPPERS = ("model", "state_dict")
# Instructions of pickles with code that torch does not follow: those newer than torch.save's own, and the oldest one
# that calls something. Any other that torch does not know is garbage.
_CALLING = {ord(code.code) for code in pickletools.opcodes if code.proto > 3 or code.name == "INST"}


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
    if is_safetensors(head):  # first, as the length of its header may begin like anything else
        return _open_safetensors(path)
    if problem := not_downloaded(head, "a file of weights"):
        raise TensorFileError(f"{path} {problem}")
    if head[:2] == b"PK":
        return _open_archive(path)
    if head[:1] != b"\x80":  # how torch.save's older format, a pickle, begins
        raise TensorFileError(f"{path} is no file of weights; give a .pth or .safetensors file")
    return _in_memory(path, load_whole(path, "cpu"))


def is_safetensors(head: bytes) -> bool:
    """Whether a file that begins so is one: its header follows its length, 8 bytes that allow for 100 MB at most."""
    return head[4:9] == b"\0\0\0\0{"


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
        step = re.search(r"Unsupported operand (\d+)", str(error))
        if code is None and (step is None or int(step[1]) not in _CALLING):
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
            f"{path} holds more than named tensors ({listed(strange)}); it must be a state dict, "
            "or one under the key 'model'"
        )
    return {str(name): tensor.detach() for name, tensor in content.items()}, wrapper, extra


def _cut_off(path: Path, error: Exception) -> TensorFileError:
    # torch says what is wrong between advice to run the file all the same and where to read more
    reason = one_line(error, 2000).rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    return TensorFileError(f"{path} is damaged or cut off, or holds no weights ({reason[:120]}); download it again")
