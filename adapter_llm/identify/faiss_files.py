"""Indexes of faiss, by their header."""

from __future__ import annotations

from pathlib import Path

from ..retrieval.files import FLOAT_BYTES, is_faiss
from ..retrieval.flat import HEADER, INNER_PRODUCT, OTHER_METRICS, UNUSED
from .found import FAISS, Found, IdentifyError

METRICS = {0: "inner product", 1: "L2"}


def identify_faiss(path: Path, head: bytes) -> Found | None:
    """None for a file that is no index of faiss. Raises IdentifyError for one that ends within its header."""
    flat = head[:4] in (INNER_PRODUCT, *OTHER_METRICS)
    if not is_faiss(head) or (not flat and len(head) < HEADER.size):
        return None
    if len(head) < HEADER.size:
        raise IdentifyError(f"{path} is an index of faiss and ends within its header; download it again")
    kind, width, rows, *unused, _, metric, floats = HEADER.unpack_from(head)
    if unused != [UNUSED] * 2:  # letters at the beginning of a text may look like a kind
        return None
    problems, size, wanted = [], path.stat().st_size, HEADER.size + FLOAT_BYTES * floats
    if flat and (floats != width * rows or size != wanted):
        problems.append(f"damaged or cut off: {size} bytes, where {rows} vectors of {width} numbers take {wanted}")
    variant = f"{'flat' if flat else kind.decode()}, {METRICS.get(metric, 'another metric')}"
    sizes = {"embedding_dim": width, "vectors": rows}
    notes = () if flat else ("not a flat index: its vectors may be there only approximately",)
    return Found.of(path, FAISS, {}, (path,), variant=variant, sizes=sizes, notes=notes, problems=problems)
