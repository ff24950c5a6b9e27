"""Files of tensors, one tensor at a time: what is larger than memory goes through all the same."""

from .reading import open_tensors
from .specs import TensorFile, TensorFileError, TensorSpec
from .writing import write_pth, write_safetensors

__all__ = ["TensorFile", "TensorFileError", "TensorSpec", "open_tensors", "write_pth", "write_safetensors"]
