"""Captions a second: the job of `python -m adapter_llm caption` against a loop of single `generate` calls.

    python benchmarks/captions.py PHOTOS [--count 64] [--rounds 3] [--batch-sizes 1 4 16 64] [--threads N]

Same model, prompt and pictures for all, each picture read and encoded. The loop does one picture after another with
transformers' own `generate`. All variants take turns in one process; the table has medians over the rounds, of ratios
too. The last column is what a million pictures would take at that speed.
"""

import argparse
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


def singly(pipe: Pipeline, photos: list[Path], options: GenerationOptions) -> tuple[float, int]:
    """Seconds, and tokens that were written, of a loop over single calls."""
    began, tokens = time.perf_counter(), 0
    for photo in photos:
        state = pipe.adapt(image=photo)
        ids, mask = pipe.processor.tokenize([describe(["image"])], [True], pipe.device)
        pad = pipe.processor.pad_token_id
        output = pipe.model.generate(ids, mask, state, pad_token_id=pad, **options.to_kwargs())
        pipe.processor.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        tokens += output.shape[1] - ids.shape[1]
    return time.perf_counter() - began, tokens


def together(model: Loaded, photos: list[Path], options: GenerationOptions, size: int) -> tuple[float, int]:
    """The same of the command's job, which writes rows, too."""
    caption = CaptionOptions(generation=options, batch_size=size)
    job = Job(model, [str(photo) for photo in photos], SourceOptions(("image",)), caption)
    with tempfile.TemporaryDirectory() as folder:
        output = open_output(Path(folder) / "rows.jsonl")
        outcome = run_job(job, output, show=False)
        output.close()
    assert outcome.captioned == len(photos), outcome
    return outcome.seconds, outcome.tokens


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
    args = parser.parse_args()
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
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(args.rounds):
        for name, run in variants.items():
            seconds, tokens = run()
            speeds[name].append(len(photos) / seconds)
            print(f"round {number + 1}, {name}: {seconds:.1f} s, {tokens} tokens", file=sys.stderr)
    base = speeds["generate, one by one"]
    print(f"{len(photos)} pictures, {found.identity.name}, {found.identity.dtype}, {torch.get_num_threads()} threads\n")
    print("| | captions/s | x of single calls | hours for a million |\n|---|---|---|---|")
    for name, values in speeds.items():
        ratio = statistics.median(value / one for value, one in zip(values, base, strict=True))
        speed = statistics.median(values)
        print(f"| {name} | {speed:.2f} | {ratio:.2f} | {1e6 / speed / 3600:.0f} |")


if __name__ == "__main__":
    main()
