"""What a folder is, by the files in it."""

from __future__ import annotations

from pathlib import Path

from ..sources import ADAPTER, CONFIG, ENCODER
from ..tensorfiles import open_tensors
from ..words import listed
from .families import clip_hf
from .found import CLIP_HF, KNOWN, Found, IdentifyError, known, read_json
from .language_models import PARAMS, is_meta, llama_hf, llama_meta, weight_files
from .own import own_folder

CLIP_TYPES = ("clip", "clip_vision_model")
WEIGHTS_ENDINGS = (".pth", ".pt", ".bin", ".safetensors", ".gguf", ".index")


def identify_folder(folder: Path) -> Found:
    """Raises IdentifyError for a folder of nothing known, and for one of several things."""
    names = {entry.name for entry in folder.iterdir() if entry.is_file()}
    if names & {ADAPTER, ENCODER}:
        return own_folder(folder, names)
    config = read_json(folder / CONFIG) if CONFIG in names else {}
    if config.get("model_type") in CLIP_TYPES:
        return _clip(folder, config)
    if "model_type" in config or "architectures" in config:
        return llama_hf(folder, config)
    if is_meta(names):
        return llama_meta(folder, names)
    raise IdentifyError(_nothing(folder, names))


def _clip(folder: Path, config: dict) -> Found:
    files, missing = weight_files(folder)
    if not files:
        raise IdentifyError(f"{folder} is a CLIP folder without {listed(missing)}; download the weights too")
    found = clip_hf(open_tensors(files[0]))
    vision = config.get("vision_config") or config
    return Found.of(
        folder, CLIP_HF, {}, [folder / CONFIG, *files], dtypes=found.dtypes, tensors=found.tensors, parts=found.parts,
        sizes={**found.sizes, **known(heads=vision.get("num_attention_heads"))}, missing=(*missing, *found.missing),
        unexpected=found.unexpected,
    )  # fmt: skip


def _nothing(folder: Path, names: set[str]) -> str:
    inside = sorted(
        entry.name for entry in folder.iterdir()
        if entry.is_dir() and any((entry / name).is_file() for name in (PARAMS, CONFIG))
    )  # fmt: skip
    if inside:
        return f"{folder} is no model itself, but {listed(inside)} in it may be; give that folder"
    files = sorted(name for name in names if name.endswith(WEIGHTS_ENDINGS))
    if files:
        return f"{folder} is no model as a whole, but holds {listed(files)}; give one of these files"
    return f"{folder} holds no weights ({listed(sorted(names)) or 'it has no files'}); known are {KNOWN}"
