"""Nearest stored features, and what is made of them: the blend before the connector, the image-generation vector."""

from .blend import RetrievalOptions, blend, generation_vector
from .files import FeatureIndexError
from .index import FeatureIndex

__all__ = ["FeatureIndex", "FeatureIndexError", "RetrievalOptions", "blend", "generation_vector"]
