"""Tensors of every kind a file may hold, and how they are compared."""

import torch

from adapter_llm.tensorfiles import TensorSpec

SHARED = torch.randn(6, 8)
TENSORS = {
    "float": torch.randn(3, 4),
    "double": torch.randn(2, 2, 2, dtype=torch.float64),
    "half": torch.randn(70, 3).half(),
    "bfloat": torch.randn(5, 7).bfloat16(),
    "eight": torch.randn(2, 3).to(torch.float8_e4m3fn),
    "long": torch.arange(-4, 5),
    "byte": torch.arange(250, 256, dtype=torch.uint8),
    "bool": torch.tensor([[True, False, False]]),
    "complex": torch.randn(4, dtype=torch.complex64),
    "number": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "hollow": torch.zeros(3, 0, dtype=torch.int32),
    "whole": SHARED,
    "turned": SHARED.T,
    "window": SHARED[2:5, 1:3],
    "rows": SHARED[3:],
    "repeated": SHARED[1].expand(3, 8),
}
OLD = {name: tensor for name, tensor in TENSORS.items() if name != "eight"}  # of which the older format knows nothing


def same(found, wanted):
    """The same shape, type and bits, and laid out in order."""
    bits = [tensor.contiguous().flatten().view(torch.uint8) for tensor in (found, wanted)]
    return (found.shape, found.dtype) == (wanted.shape, wanted.dtype) and found.is_contiguous() and torch.equal(*bits)


def check(file, tensors):
    assert set(file.specs) == set(tensors)
    for name, tensor in tensors.items():
        assert file.specs[name] == TensorSpec.of(tensor), name
        assert same(file.read(name), tensor), name
        blocks = list(file.blocks(name))
        if tensor.dim() and blocks:
            assert same(torch.cat(blocks), tensor), name
            if len(tensor) > 1:
                assert same(file.rows(name, 1, 2), tensor[1:2]), name
        assert file.empty()[name].is_meta
