"""Where the time of one `python demo.py --image ... --prompt ...` goes, from the shell's point of view.

    python benchmarks/startup.py --image photo.jpg [--weights DIR] [--llm DIR] [--runs 7]

Each run is a process of its own. Runs of plain demo.py and of demo.py with a clock in it take turns, after one
of each that does not count (it may fetch weights, and it fills the file cache). Medians over the runs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PHASES = {
    "start": "python starts",
    "torch": "import torch",
    "transformers": "import transformers",
    "timm": "import timm (and torchvision)",
    "project": "import adapter_llm",
    "picture": "open the picture",
    "decoder": "load decoder and tokenizer",
    "weights": "check and load encoder, adapter",
    "preprocess": "picture to tensor",
    "encode": "encode",
    "adapt": "connector, adapter keys and values",
    "first": "prompt and first token",
    "tokens": "the other tokens",
    "exit": "python ends",
}


class Clock:
    """Seconds by phase; what a phase inside another takes is its own."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.open = []

    def timed(self, phase, function):
        def call(*args, **kwargs):
            began = time.perf_counter()
            self.open.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                whole = time.perf_counter() - began
                self.seconds[phase] += whole - self.open.pop()
                if self.open:
                    self.open[-1] += whole

        return call

    def wrap(self, owner, name, phase):
        setattr(owner, name, self.timed(phase, getattr(owner, name)))


def timed_demo(began: float, arguments: list[str]) -> int:
    """demo.main with a clock in it; the last line on stderr is what it read."""
    clock = Clock()
    clock.seconds["start"] = time.time() - began
    import demo
    from adapter_llm import cli

    def import_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, TextStreamer  # noqa: F401

    def import_timm():
        import timm.models.vision_transformer  # noqa: F401

    def import_project():
        import adapter_llm.pipeline  # noqa: F401

    cli.quiet()
    clock.timed("torch", lambda: __import__("torch"))()
    clock.timed("transformers", import_transformers)()
    clock.timed("timm", import_timm)()
    clock.timed("project", import_project)()

    from adapter_llm import checkpoint, pipeline, processing
    from adapter_llm.model import AdapterLLM

    clock.wrap(cli, "open_images", "picture")
    clock.wrap(pipeline, "from_pretrained", "weights")
    clock.wrap(checkpoint, "load_decoder", "decoder")
    clock.wrap(processing, "load_media", "preprocess")
    clock.wrap(AdapterLLM, "encode", "encode")
    clock.wrap(AdapterLLM, "adapt", "adapt")
    began_generating, ends = [], []
    generate = AdapterLLM.generate

    def counted(model, *args, **kwargs):
        began_generating.append(time.perf_counter())
        with model.llama.register_forward_hook(lambda *_: ends.append(time.perf_counter())):
            return generate(model, *args, **kwargs)

    AdapterLLM.generate = counted
    code = demo.main(arguments)
    if ends:
        clock.seconds["first"] = ends[0] - began_generating[0]
        clock.seconds["tokens"] = ends[-1] - ends[0]
    reading = {"seconds": clock.seconds, "tokens": len(ends), "ended": time.time()}
    print(json.dumps(reading), file=sys.stderr, flush=True)
    return code


def run(command: list[str]) -> tuple[float, subprocess.CompletedProcess]:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return seconds, done


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--prompt", default="What is in this picture?")
    parser.add_argument("--weights", help="default: what demo.py takes")
    parser.add_argument("--llm")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()

    asked = ["--image", os.path.abspath(args.image), "--prompt", args.prompt]
    asked += ["--max-new-tokens", str(args.max_new_tokens)]
    for name in ("weights", "llm"):
        value = getattr(args, name)
        if value:  # the processes run in the project's folder, so a path must not depend on this one
            asked += [f"--{name}", os.path.abspath(value) if os.path.exists(value) else value]
    plain, whole, readings = [], [], []
    for _ in range(args.runs + 1):
        plain.append(run([sys.executable, "demo.py", *asked])[0])
        began = time.time()
        seconds, done = run([sys.executable, __file__, "--inside", str(began), *asked])
        whole.append(seconds)
        reading = json.loads(done.stderr.splitlines()[-1])
        reading["seconds"]["exit"] = began + seconds - reading["ended"]
        readings.append(reading)
    plain, whole, readings = plain[1:], whole[1:], readings[1:]

    total = statistics.median(whole)
    print(f"{'phase':36}{'seconds':>9}{'share':>8}")
    medians = {phase: statistics.median(reading["seconds"][phase] for reading in readings) for phase in PHASES}
    for phase, title in PHASES.items():
        print(f"{title:36}{medians[phase]:9.3f}{medians[phase] / total:8.0%}")
    print(f"{'not in any of these':36}{total - sum(medians.values()):9.3f}")
    print(f"{'whole, with the clock in it':36}{total:9.3f}    {min(whole):.3f} to {max(whole):.3f}")
    print(f"{'python demo.py, as it is':36}{statistics.median(plain):9.3f}    {min(plain):.3f} to {max(plain):.3f}")
    others = readings[0]["tokens"] - 1
    if others > 0:
        print(f"{'a token (of ' + str(others) + ' after the first)':36}{medians['tokens'] / others:9.4f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        sys.exit(timed_demo(float(sys.argv[2]), sys.argv[3:]))
    sys.exit(main())
