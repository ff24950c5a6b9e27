"""Peak memory of converting ImageBind, CLIP and adapter files at full size, there and back.

    python benchmarks/convert_published.py --work DIR

The files have the names, shapes and types of the published ones (`tests/golden/layouts`) and hold zeros that take no
room on the disk; what is converted does, some 15 GB. Each conversion is a process of its own; its largest resident
set, libraries included, is held against its largest tensor plus 500 MB.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
LAYOUTS = ROOT / "tests" / "golden" / "layouts"
ALLOWANCE = 500e6
PEAK = """
import sys
from adapter_llm.__main__ import main
code = main(sys.argv[1:])
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.stdout.flush()
import os
os._exit(code)
"""


def hollow_pth(layout: str, path: Path, wrapper: str | None = None) -> int:
    """A .pth file of zeros; the bytes of its largest tensor."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    keys = json.loads((LAYOUTS / f"{layout}.json").read_text())["keys"]
    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=getattr(torch, dtype)) for name, (shape, dtype) in keys.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors if wrapper is None else {wrapper: tensors}, path)
    mask = tensors.get("modality_preprocessors.text.mask")
    if mask is not None:  # the one tensor whose numbers are looked at
        with FakeTensorMode():
            place = torch.load(path, weights_only=True)["modality_preprocessors.text.mask"].untyped_storage()
        with path.open("r+b") as file:
            file.seek(place._checkpoint_offset)
            file.write(torch.full(tuple(mask.shape), -math.inf).triu(1).numpy().tobytes())
    return max(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def hollow_base(folder: Path) -> None:
    """A LLaMA 7B in the Hugging Face layout, of zeros, without a tokenizer's vocabulary but for one word."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(architectures=["LlamaForCausalLM"], dtype="float16")
    config.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a"))).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def report(name: str, largest: int, words: list[str]) -> None:
    started = time.monotonic()
    command = [sys.executable, "-c", PEAK, "convert", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    peak = 1024 * int(done.stdout.split()[-1])
    limit = largest + ALLOWANCE
    seconds = time.monotonic() - started
    print(f"{name:34} {largest / 1e6:8.0f} {limit / 1e6:8.0f} {peak / 1e6:8.0f} {peak / limit:6.2f} {seconds:6.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="an empty folder with 15 GB to spare")
    work = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    huge, clip = hollow_pth("imagebind_huge", work / "huge.pth"), hollow_pth("clip_vit_l14_visual", work / "clip.pth")
    llm = hollow_pth("imagebind_llm_7B", work / "7B.pth", "model")
    v2 = hollow_pth("adapter_v2_LORA-BIAS-7B", work / "v2.pth", "model")
    hollow_base(work / "base")
    print(f"{'MB':34} {'tensor':>8} {'limit':>8} {'peak':>8} {'ratio':>6}")
    place = {name: str(work / name) for name in ("huge.pth", "clip.pth", "7B.pth", "v2.pth", "base")}
    report("ImageBind", huge, [place["huge.pth"], "--output", str(work / "huge")])
    report("CLIP ViT-L/14, visual", clip, [place["clip.pth"], "--output", str(work / "clip")])
    parts = ["--llm", place["base"], "--output"]
    report("ImageBind-LLM 7B", llm, [place["7B.pth"], "--encoder", str(work / "huge"), *parts, str(work / "llm")])
    report("V2 LORA-BIAS-7B", v2, [place["v2.pth"], "--encoder", str(work / "clip"), *parts, str(work / "v2")])
    report("ImageBind-LLM 7B, back", llm, [str(work / "llm"), "--back", "--output", str(work / "7B-again.pth")])
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
