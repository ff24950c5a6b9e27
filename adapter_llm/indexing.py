"""A feature index of media, from Python: what blends look for neighbours in, and what is searched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .pipeline import Pipeline
from .retrieval import FeatureIndex
from .space.embedder import Embedder, fingerprint_of
from .space.files import find_media
from .space.index import IndexFile
from .space.job import EmbedOptions, run_job


def embedder_of(pipe: Pipeline) -> Embedder:
    """The encoder that a pipeline has loaded, as a maker of vectors."""
    return Embedder(pipe.model.encoder, pipe.config.encoder, fingerprint_of(pipe.manifest))


def build_index(
    pipe: Pipeline,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path,
    options: EmbedOptions = EmbedOptions(),
) -> FeatureIndex:
    """Encode files, folders and globs and write their features as an index: `python -m adapter_llm index` with a
    pipeline that is there already.

    Each of an input's features becomes an entry of its own, of unit length; their id is the path. A file that cannot
    be read is named on stderr and left out. Raises ValueError if nothing is left.
    """
    given = [inputs] if isinstance(inputs, (str, Path)) else inputs
    found = find_media(map(str, given), pipe.keywords)
    embedder = embedder_of(pipe)
    kept = replace(options, tokens=True, normalized=True)
    run_job(embedder, found, output, IndexFile(embedder.fingerprint), kept)
    return FeatureIndex.load(output)
