"""A feature index of a folder of media: what blends look for neighbours in."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional as F

from .perception import INPUT_ERRORS
from .pipeline import Pipeline
from .processing import LoadedItem, media_items
from .retrieval import FeatureIndex

# what the loaders read, by keyword
SUFFIXES = {
    "image": (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    "point": (".ply", ".pcd", ".npy", ".pt"),
}


def media_files(folder: Path, keywords: Sequence[str]) -> list[tuple[str, Path]]:
    """Every file below a folder that one of the keywords can load, in order of its path."""
    kinds = {suffix: keyword for keyword in keywords for suffix in SUFFIXES[keyword]}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in kinds)
    return [(kinds[path.suffix.lower()], path) for path in files]


def build_index(pipe: Pipeline, folder: str | Path, output: str | Path, batch_size: int = 16) -> FeatureIndex:
    """Encode every picture and point cloud below a folder and write their features as an index file.

    Each of an input's features becomes an entry of its own, of unit length; their id is the path below the folder. A
    file that cannot be read is named on stderr and left out. Raises ValueError if nothing is left.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one with media")
    keywords = [name for name in SUFFIXES if name in pipe.keywords]
    files = media_files(folder, keywords)
    if not files:
        raise ValueError(f"{folder} holds nothing these weights can see; they take {', '.join(keywords)}")
    batches = _batches(pipe, folder, files, batch_size)
    first = next(batches, None)
    if first is None:
        raise ValueError(f"none of the {len(files)} files in {folder} can be read")
    return FeatureIndex.build(itertools.chain([first], batches), output)


def _batches(
    pipe: Pipeline, folder: Path, files: Sequence[tuple[str, Path]], batch_size: int
) -> Iterator[tuple[list[str], Tensor]]:
    for start in range(0, len(files), batch_size):
        names: list[str] = []
        loaded: list[list[LoadedItem]] = []
        for keyword, path in files[start : start + batch_size]:
            try:
                loaded.append(pipe.processor.load(media_items(**{keyword: path})))
                names.append(str(path.relative_to(folder)))
            except INPUT_ERRORS as error:
                print(f"left out: {' '.join(str(error).split())}", file=sys.stderr)
        if loaded:
            features = F.normalize(pipe.encode(loaded), dim=-1)
            yield [name for name in names for _ in range(features.shape[1])], features.flatten(0, 1).float().cpu()
