"""Captions a second: the job of `python -m adapter_llm caption` against a loop of single `generate` calls.

    python benchmarks/captions.py PHOTOS [--count 64] [--rounds 3] [--batch-sizes 1 4 16 64] [--processor-time]

Same model, prompt and pictures for all, each picture read and encoded. The loop does one picture after another with
transformers' own `generate`. All variants take turns in one process; the table has medians over the rounds, of ratios
too. The last columns: what a million pictures would take at that speed, and how many captions are not those of the
loop (in bfloat16 rounding depends on how many rows are computed together). On a machine where other programs run,
`--processor-time` counts this process's seconds instead of the clock's; it means something with one thread.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from adapter_llm.caption.captioner import CaptionOptions
from adapter_llm.caption.inputs import SourceOptions
from adapter_llm.caption.job import Job, run_job
from adapter_llm.caption.model import ModelFolders
from adapter_llm.caption.outputs import open_output
from adapter_llm.cli import keep_memory
from adapter_llm.pipeline import Pipeline
from adapter_llm.prompts import describe
from adapter_llm.results import GenerationOptions

SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Loaded:
    """A model that a job need not load again."""

    pipe: Pipeline
    found: ModelFolders

    @property
    def identity(self):
        return self.found.identity

    def load(self, keywords) -> Pipeline:
        return self.pipe


def singly(pipe: Pipeline, photos: list[Path], options: GenerationOptions) -> dict[str, str]:
    """A loop over single calls: captions by paths."""
    captions = {}
    for photo in photos:
        state = pipe.adapt(image=photo)
        ids, mask = pipe.processor.tokenize([describe(["image"])], [True], pipe.device)
        pad = pipe.processor.pad_token_id
        output = pipe.model.generate(ids, mask, state, pad_token_id=pad, **options.to_kwargs())
        text = pipe.processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        captions[str(photo)] = text.strip()
    return captions


def together(model: Loaded, photos: list[Path], options: GenerationOptions, size: int) -> dict[str, str]:
    """The command's job, which writes rows, too."""
    caption = CaptionOptions(generation=options, batch_size=size)
    job = Job(model, [str(photo) for photo in photos], SourceOptions(("image",)), caption)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        output = open_output(rows)
        run_job(job, output, show=False)
        output.close()
        return {row["path"]: row["caption"] for row in map(json.loads, rows.read_text().splitlines())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", type=Path, help="a folder")
    parser.add_argument("--count", type=int, default=64, help="pictures a turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--weights", default=str(ROOT / "weights" / "default"))
    parser.add_argument("--llm")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processor-time", action="store_true")
    args = parser.parse_args()
    keep_memory()  # as the command does
    if args.threads:
        torch.set_num_threads(args.threads)
    photos = sorted(path for path in args.photos.rglob("*") if path.suffix.lower() in SUFFIXES)[: args.count]
    found = ModelFolders.find(args.weights, args.llm, device=args.device, dtype=args.dtype)
    model = Loaded(found.load(["image"]), found)
    options = GenerationOptions(max_new_tokens=args.max_new_tokens)
    variants = {"generate, one by one": lambda: singly(model.pipe, photos, options)}
    variants |= {f"caption --batch-size {n}": lambda n=n: together(model, photos, options, n) for n in args.batch_sizes}
    singly(model.pipe, photos[:2], options)
    together(model, photos[:4], options, 2)
    clock = time.process_time if args.processor_time else time.perf_counter
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    captions: dict[str, dict[str, str]] = {}
    for number in range(args.rounds):
        for name, run in variants.items():
            began = clock()
            captions[name] = run()
            seconds = clock() - began
            speeds[name].append(len(photos) / seconds)
            print(f"round {number + 1}, {name}: {seconds:.1f} s", file=sys.stderr)
    base, single = speeds["generate, one by one"], captions["generate, one by one"]
    print(f"{len(photos)} pictures, {found.identity.name}, {found.identity.dtype}, {torch.get_num_threads()} threads\n")
    print("| | captions/s | x of single calls | hours for a million | other captions |\n|---|---|---|---|---|")
    for name, values in speeds.items():
        ratio = statistics.median(value / one for value, one in zip(values, base, strict=True))
        speed = statistics.median(values)
        others = sum(caption != single[path] for path, caption in captions[name].items())
        print(f"| {name} | {speed:.2f} | {ratio:.2f} | {1e6 / speed / 3600:.0f} | {others} |")


if __name__ == "__main__":
    main()
