"""A faiss index of features, such as ImageBind-LLM's knn.index, to a feature index of ours, and back."""

from __future__ import annotations

from pathlib import Path

import torch

from ..retrieval import FeatureIndex
from ..retrieval.files import FORMAT
from ..tensorfiles import TensorSpec
from .folder import job_of, output_file


def convert_index(source: Path, output: Path) -> None:
    """Write the feature index, block by block. Raises FeatureIndexError, and ConversionError for a taken place."""
    index = FeatureIndex.from_faiss(source)
    spec = TensorSpec((len(index), index.width), torch.float32)
    with output_file(output, job_of(source), spec.nbytes) as file:
        blocks = (index.vectors(first, last) for first, last in spec.steps())
        file.tensors({"vectors": spec}, lambda name: blocks, {"format": FORMAT})


def export_index(source: Path, output: Path) -> None:
    """Write the faiss index; ids have no place in it. Raises as `convert_index`."""
    index = FeatureIndex.load(source)
    with output_file(output, job_of(source), 4 * len(index) * index.width) as file:
        index.to_faiss(file.path)
