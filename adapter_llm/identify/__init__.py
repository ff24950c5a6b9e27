"""What a file or folder of weights is: by its first bytes, names and shapes, without reading a tensor."""

from __future__ import annotations

from pathlib import Path

from ..tensorfiles import TensorFile, TensorSpec, open_tensors
from ..tensorfiles.reading import is_safetensors, load_whole, unwrap
from .faiss_files import identify_faiss
from .families import identify_tensors
from .folders import identify_folder
from .found import (
    ADAPTER_V2,
    CLIP_HF,
    CLIP_OPENAI,
    ENCODER,
    FAISS,
    GGUF,
    IMAGEBIND,
    IMAGEBIND_LLM,
    IMAGEBIND_POINT,
    INDEX,
    LLAMA_HF,
    LLAMA_META,
    TITLES,
    WEIGHTS,
    Found,
    IdentifyError,
)
from .gguf_files import MAGIC as GGUF_MAGIC
from .gguf_files import identify_gguf
from .own import feature_index

__all__ = [
    "ADAPTER_V2",
    "CLIP_HF",
    "CLIP_OPENAI",
    "ENCODER",
    "FAISS",
    "GGUF",
    "IMAGEBIND",
    "IMAGEBIND_LLM",
    "IMAGEBIND_POINT",
    "INDEX",
    "LLAMA_HF",
    "LLAMA_META",
    "TITLES",
    "WEIGHTS",
    "Found",
    "IdentifyError",
    "identify",
]

PICKLE = b"\x80"


def identify(path: str | Path) -> Found:
    """What there is at a path. Nothing in it is executed and no tensor is read, but for OpenAI's archive.

    Raises IdentifyError for what is not known or only a piece of something, TensorFileError for a file that is
    damaged, a web page, or holds code.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return identify_folder(path)
    if not path.is_file():
        raise IdentifyError(f"there is no file or folder {path}; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise IdentifyError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    if head[:4] == GGUF_MAGIC:
        return identify_gguf(path)
    if (index := identify_faiss(path, head)) is not None:
        return index
    pickled = head[:1] == PICKLE and not is_safetensors(head)
    file = _open_without_data(path) if pickled else open_tensors(path)
    return feature_index(file) or identify_tensors(file)


def _open_without_data(path: Path) -> TensorFile:
    """A file in torch.save's older format, which `open_tensors` would read into memory to know its names."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        tensors, wrapper, extra = unwrap(path, load_whole(path, "cpu"))
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    return TensorFile(path, specs, lambda *place: open_tensors(path).rows(*place), wrapper, extra)
