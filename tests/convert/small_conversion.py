"""A conversion of four small files, and what must have come of it."""

import torch
from safetensors.torch import load_file

from adapter_llm.convert.folder import output_folder
from adapter_llm.tensorfiles import TensorSpec

ONE = {"a": torch.randn(3, 4), "b": torch.randn(7).half()}
TWO = {"c": torch.randn(2, 5), "d": torch.arange(6)}


def specs(tensors):
    return {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}


TOTAL = sum(spec.nbytes for spec in (specs(ONE) | specs(TWO)).values())


def fill(folder, seen=None, stop=None, error=KeyboardInterrupt):
    """Write four files; the reader of tensor `stop` fails."""

    def read(name):
        if name == stop:
            raise error
        if seen is not None:
            seen.append(name)
        return (ONE | TWO)[name]

    folder.write("config.json", "{}\n")
    folder.tensors("one.safetensors", specs(ONE), read, {"by": "us"})
    folder.pth("two.pth", specs(TWO), read, "model", {"config": {"x": 1}})
    folder.write("bytes", b"\x00\xff")


def convert(output, job="job", total=TOTAL, **options):
    with output_folder(output, job, total) as folder:
        fill(folder, **options)


def check(output):
    assert sorted(path.name for path in output.iterdir()) == ["bytes", "config.json", "one.safetensors", "two.pth"]
    assert (output / "config.json").read_text() == "{}\n" and (output / "bytes").read_bytes() == b"\x00\xff"
    found = load_file(output / "one.safetensors") | torch.load(output / "two.pth", weights_only=True)["model"]
    assert set(found) == {"a", "b", "c", "d"}
    assert all(torch.equal(found[name], tensor) for name, tensor in (ONE | TWO).items())


def names(folder):
    return sorted(path.name for path in folder.iterdir())
