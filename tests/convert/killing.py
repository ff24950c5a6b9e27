"""Conversions that are killed in the middle, in processes of their own; run as a script by the tests.

Prints, for each place where a conversion was killed, how many tensors the next run had to read.
"""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch

from adapter_llm.convert import folder as engine
from adapter_llm.tensorfiles import TensorSpec, writing

SIZES = (3, 700, 41, 0, 5, 900, 64, 2)
TENSORS = {f"t{n}": torch.arange(n * 1000, n * 1000 + size * 6, dtype=torch.float32).view(size, 6).bfloat16()
           for n, size in enumerate(SIZES)}  # fmt: skip
SPECS = {name: TensorSpec.of(tensor) for name, tensor in TENSORS.items()}
TOTAL = sum(spec.nbytes for spec in SPECS.values())
writing.NOTE_EVERY = 5000


def convert(kind, output, read):
    if kind == "folder":
        with engine.output_folder(output, "job", 2 * TOTAL) as folder:
            folder.write("a.json", "{}")
            folder.tensors("one.safetensors", SPECS, read)
            folder.pth("two.pth", SPECS, read, "model", {"config": {"x": 1}})
    else:
        with engine.output_file(output, "job", TOTAL) as file:
            file.pth(SPECS, read)


def reader(count, deadly):
    """Reads in two blocks; the process dies within the tensor number `deadly`, with one block written."""

    def read(name):
        count.append(name)
        tensor = TENSORS[name]
        half = tensor.shape[0] // 2
        yield tensor[:half]
        if len(count) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        yield tensor[half:]

    return read


def main(place, *deaths):
    for name in deaths:
        kind, death = name.rstrip("0123456789"), int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))
        child = os.fork()
        if child == 0:
            convert(kind, Path(place) / name, reader([], death))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert not (Path(place) / name).exists()
        count = []
        convert(kind, Path(place) / name, reader(count, 0))
        print(name, len(count))


if __name__ == "__main__":
    main(*sys.argv[1:])
