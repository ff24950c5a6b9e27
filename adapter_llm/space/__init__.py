"""The shared space as a tool: vectors of files, their sums, what is near them, and which label fits."""

from .arithmetic import LOGIT_SCALE, classify, combine, similarity, vector_of

__all__ = ["LOGIT_SCALE", "classify", "combine", "similarity", "vector_of"]
