"""The published checkpoint layout and ours: one table of keys, read in both directions.

`from_official` and `to_official` only rename, tensors are passed on as they are, so a round
trip changes no byte. They and `config_from_official` look at names and shapes alone: tensors
on the meta device will do, for callers that move the real ones file to file.
"""

from .keys import KeyMismatchError, causal_mask, from_official, to_official
from .load import load_official
from .sizes import PUBLISHED_HEADS, config_from_official
from .table import TEXT_MASK, key_table

__all__ = [
    "PUBLISHED_HEADS",
    "TEXT_MASK",
    "KeyMismatchError",
    "causal_mask",
    "config_from_official",
    "from_official",
    "key_table",
    "load_official",
    "to_official",
]
