"""Peak memory of converting a LLaMA of full size, there and back, against its largest tensor plus 500 MB.

    python benchmarks/convert_memory.py [--work DIR] [--shards N] [--scale N]

The model is synthetic: the names, shapes and types of the published 7B files, all zeros, as files with holes in them
that take no room. What is made of them does, 13.5 GB each way. Memory is the largest resident set the system saw,
libraries included. Exit status 1 if it is above the limit.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMS = {"dim": 4096, "multiple_of": 256, "n_heads": 32, "n_layers": 32, "norm_eps": 1e-06, "vocab_size": -1}
WIDTH, ROWS = 11008, 32000
ALLOWANCE = 500e6

# each runs in a process of its own: a child's peak would start at its parent's
MAKE = """
import json, random, sys
from pathlib import Path
import sentencepiece, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from adapter_llm.convert.meta_layout import Params, expected_shapes, weights
from adapter_llm.tensorfiles import TensorSpec
folder, params, width, rows, shards = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
random.seed(0)
words = ["".join(random.choices("abcdefghijklmnoprstuvw", k=random.randint(2, 9))) for _ in range(4 * rows)]
lines = (" ".join(random.choices(words, k=12)) for _ in range(rows))
with (folder / "tokenizer.model").open("wb") as file:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=file, vocab_size=rows, model_type="bpe", byte_fallback=True, pad_id=-1,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2, num_threads=1,
    )
(folder / "params.json").write_text(params)
table = Params.parse(params, "params.json")
shapes = dict(expected_shapes(table, rows, width))
for index in range(shards):
    with FakeTensorMode():
        tensors = {}
        for weight in weights(table):
            spec = weight.divide(TensorSpec(shapes[weight.theirs], torch.float16), shards)
            tensors[weight.theirs] = torch.empty(spec.shape, dtype=spec.dtype)
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, folder / f"consolidated.{index:02d}.pth")
print(max(torch.Size(shape).numel() for shape in shapes.values()) * 2)
"""
CONVERT = """
import sys
from pathlib import Path
from adapter_llm import cli
cli.quiet()
from adapter_llm.convert import llama
getattr(llama, sys.argv[1])(Path(sys.argv[2]), Path(sys.argv[3]))
cli.leave(0)
"""


def run(code: str, *arguments: object) -> tuple[str, int, float]:
    """What a child printed, its largest resident set in bytes, and its seconds."""
    start = time.perf_counter()
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    output = child.stdout.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"a step failed with status {child.returncode}")
    return output, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, help="folder on a disk with 28 GB free; default: the temporary one")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--scale", type=int, default=1, help="divide widths and vocabulary by this, for a quick run")
    args = parser.parse_args()

    params = {**PARAMS, "dim": PARAMS["dim"] // args.scale}
    width, rows = WIDTH // args.scale, max(1000, ROWS // args.scale)
    above = False
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        meta, folder, back = (Path(work) / name for name in ("meta", "folder", "back"))
        meta.mkdir()
        output, _, _ = run(MAKE, meta, json.dumps(params), width, rows, args.shards)
        largest = int(output)
        total = sum(path.stat().st_size for path in meta.glob("*.pth"))
        limit = largest + ALLOWANCE
        _, libraries, _ = run("import torch; from adapter_llm import cli; cli.leave(0)")
        sizes = {"model": total, "largest tensor": largest, "torch alone": libraries, "limit": limit}
        for label, size in sizes.items():
            print(f"{label:16}{size / 1e6:10.1f} MB")
        for step, source, target in (("from_meta", meta, folder), ("to_meta", folder, back)):
            _, peak, seconds = run(CONVERT, step, source, target)
            print(f"{step:16}{peak / 1e6:10.1f} MB   {seconds:6.0f} s   {peak / limit:.2f} of the limit")
            above |= peak > limit
            shutil.rmtree(source)
    return above


if __name__ == "__main__":
    sys.exit(main())
