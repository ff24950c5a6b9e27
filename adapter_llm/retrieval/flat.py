"""faiss's file of a flat inner-product index (`knn.index` of ImageBind-LLM), read and written without faiss.

The layout, as faiss's `write_index` makes it, little endian and without padding: four letters of the kind, width
(int32), number of vectors (int64), two unused int64 that are always 2**20, one byte for "trained", the metric
(int32, 0 is the inner product), the number of floats (uint64), the floats row by row.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .files import FLOAT_BYTES, FeatureIndexError, first_bytes, is_faiss, map_rows

HEADER = struct.Struct("<4siqqq?iQ")
INNER_PRODUCT, OTHER_METRICS = b"IxFI", (b"IxF2", b"IxFl")
UNUSED = 2**20
ROWS_AT_ONCE = 65536


def header_of(rows: int, width: int) -> bytes:
    """What stands before the vectors (rows, width)."""
    return HEADER.pack(INNER_PRODUCT, width, rows, UNUSED, UNUSED, True, 0, rows * width)


def read_flat(path: str | Path) -> Tensor:
    """The vectors' bytes (N, 4 E): mapped if the index is flat, else as the faiss library decodes them.

    Raises FeatureIndexError for a file that is cut off, damaged, of a metric other than the inner product, or not
    of faiss at all.
    """
    path = Path(path).expanduser()
    head = first_bytes(path)
    kind = head[:4]
    if kind in OTHER_METRICS:
        raise FeatureIndexError(_other_metric(path))
    if kind != INNER_PRODUCT:
        if is_faiss(head):
            return _flattened(path, kind.decode())
        raise FeatureIndexError(
            f"{path} is no index of faiss, it begins with {kind!r}; give a flat inner-product index such as knn.index"
        )
    if len(head) < HEADER.size:
        raise FeatureIndexError(f"{path} ends within its header; download it again")
    _, width, rows, _, _, _, metric, floats = HEADER.unpack(head[: HEADER.size])
    if width < 1 or rows < 1 or metric != 0 or floats != rows * width:
        raise FeatureIndexError(
            f"{path} is damaged or empty: its header says {rows} vectors of {width} numbers, metric {metric} and "
            f"{floats} numbers in all; download it again"
        )
    size, wanted = path.stat().st_size, HEADER.size + floats * FLOAT_BYTES
    if size != wanted:
        raise FeatureIndexError(f"{path} has {size} bytes and its header asks for {wanted}; download it again")
    return map_rows(path, HEADER.size, rows, width)


def import_faiss(purpose: str) -> ModuleType:
    """The faiss library. Raises FeatureIndexError, which says what it is needed for, where it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise FeatureIndexError(f'{purpose} needs faiss; pip install "adapter-llm[retrieval]"') from error
    return faiss


def _other_metric(path: Path) -> str:
    return f"{path} is an index of distances, not of inner products; build it again with IndexFlatIP"


def _flattened(path: Path, kind: str) -> Tensor:
    """The vectors of any index that can give them back, in memory; what it stored compressed is only approximate."""
    faiss = import_faiss(f"{path} is an index of faiss that is not flat ({kind}), and to flatten it")
    try:
        index = faiss.read_index(str(path))
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise FeatureIndexError(_other_metric(path))
        if (lists := faiss.try_extract_index_ivf(index)) is not None:
            lists.make_direct_map()  # in which list each vector is; without it none can be given back
        if index.ntotal:
            index.reconstruct(0)  # one alone says that it cannot; many at once, on threads, end the process instead
        vectors = torch.empty(index.ntotal, index.d)
        for start in range(0, index.ntotal, ROWS_AT_ONCE):
            count = min(ROWS_AT_ONCE, index.ntotal - start)
            vectors[start : start + count] = torch.from_numpy(index.reconstruct_n(start, count))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[-160:]
        raise FeatureIndexError(f"{path} ({kind}) cannot be flattened ({reason}); give a flat index") from error
    if not len(vectors):
        raise FeatureIndexError(f"{path} holds no vectors; give an index that does")
    return vectors.view(torch.uint8)
