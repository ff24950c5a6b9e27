"""Tokens a second of the running batch against transformers' generate, same model, same pictures, interleaved.

    python benchmarks/writing.py photos/*.jpg [--batch-sizes 1 4 16] [--rounds 3] [--tokens 48] [--threads 2]

Both write greedily; rows that end leave our batch, and stay in the other. Quote the ratios, not the seconds.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

QUESTION = "Describe this picture."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", nargs="+")
    parser.add_argument("--weights", default=str(ROOT / "weights" / "default"))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()

    import torch

    from adapter_llm.pipeline import Pipeline
    from adapter_llm.processing import media_items
    from adapter_llm.results import GenerationOptions

    if args.threads:
        torch.set_num_threads(args.threads)
    pipe, options = Pipeline.from_pretrained(args.weights, media=["image"]), GenerationOptions(args.tokens)
    for size in args.batch_sizes:
        photos = [args.photos[number % len(args.photos)] for number in range(size)]
        state = pipe.perception.adapt([pipe.processor.load(media_items(image=photo)) for photo in photos])
        questions, media = [QUESTION] * size, [True] * size

        def generate(questions=questions, media=media, state=state) -> None:
            ids, mask = pipe.processor.tokenize(questions, media, pipe.device)
            pipe.model.generate(ids, mask, state, pad_token_id=pipe.processor.pad_token_id, **options.to_kwargs())

        def write(questions=questions, media=media, state=state) -> int:
            return sum(map(len, pipe.answerer.generate(questions, state, media, options)))

        tokens, seconds = write(), {generate: [], write: []}
        generate()
        for _ in range(args.rounds):
            for work, found in seconds.items():
                began = time.perf_counter()
                work()
                found.append(time.perf_counter() - began)
        stock, own = (median(found) for found in seconds.values())
        speeds = f"{tokens / stock:.1f} and {tokens / own:.1f} tokens/s"
        print(f"batch {size}: {speeds}, ours {stock / own:.2f} x", flush=True)


if __name__ == "__main__":
    main()
