"""Peak memory of one `python demo.py --image ... --prompt ...` against the bytes of the weights it uses.

    python benchmarks/memory.py --image photo.jpg [--weights DIR] [--llm DIR] [--runs 3]

The limit is 1.6 times the bytes of the weights' files (decoder, encoder, backbone, adapter) plus 600 MB, which
the libraries need. Memory is the largest resident set the system saw. Exit status 1 if the largest run is above.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from adapter_llm.fetch import backbone_file  # no torch here: a child's peak would start at its parent's
from adapter_llm.manifest import Manifest
from adapter_llm.sources import ADAPTER, ENCODER, MANIFEST, WEIGHTS_FILES, find_decoder, find_folder

FACTOR, ALLOWANCE = 1.6, 600e6


def weights_in_use(weights: str, llm: str | None) -> dict[str, int]:
    """Bytes of each part's files; of the encoder's, those of the trunk for pictures, the only one that is loaded."""
    folder = find_folder(weights, "weights", WEIGHTS_FILES)
    manifest = Manifest.load(folder / MANIFEST)
    decoder = find_decoder(llm, manifest, folder)
    files = {
        "decoder": sorted(decoder.glob("*.safetensors")),
        "adapter": [folder / ADAPTER],
        "backbone": [] if manifest.backbone is None else [backbone_file(manifest.backbone)],
    }
    sizes = {part: sum(path.stat().st_size for path in paths) for part, paths in files.items()}
    with (folder / ENCODER).open("rb") as file:  # a safetensors file begins with its header's length and its header
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    spans = [entry["data_offsets"] for name, entry in header.items() if ".vision." in name]
    sizes["encoder"] = sum(end - start for start, end in spans)
    return sizes


def peak(command: list[str]) -> int:
    """The largest resident set, in bytes, of a command that has to succeed."""
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)} failed with status {child.returncode}")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", required=True)
    parser.add_argument("--prompt", default="What is in this picture?")
    parser.add_argument("--weights", default=str(ROOT / "weights" / "default"))
    parser.add_argument("--llm")
    parser.add_argument("--dtype", default="auto", help="as demo.py takes it; float32 doubles a bfloat16 decoder")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()

    sizes = weights_in_use(args.weights, args.llm)
    asked = ["--image", os.path.abspath(args.image), "--prompt", args.prompt, "--dtype", args.dtype]
    for name in ("weights", "llm"):
        value = getattr(args, name)
        if value:
            asked += [f"--{name}", os.path.abspath(value) if os.path.exists(value) else value]
    libraries = peak([sys.executable, "-c", "import timm, transformers.models.llama.modeling_llama"])
    peaks = [peak([sys.executable, "demo.py", *asked]) for _ in range(args.runs)]

    total = sum(sizes.values())
    limit = FACTOR * total + ALLOWANCE
    for part, size in sizes.items():
        print(f"{part:24}{size / 1e6:10.1f} MB")
    print(f"{'weights in use':24}{total / 1e6:10.1f} MB")
    print(f"{'libraries alone':24}{libraries / 1e6:10.1f} MB")
    print(f"{'peak of ' + str(args.runs) + ' runs':24}{max(peaks) / 1e6:10.1f} MB")
    print(f"{'limit':24}{limit / 1e6:10.1f} MB  ({FACTOR} x weights + {ALLOWANCE / 1e6:.0f} MB)")
    print(f"{'peak / limit':24}{max(peaks) / limit:10.2f}")
    print(f"{'(peak - 600 MB) / weights':24}{(max(peaks) - ALLOWANCE) / total:9.2f}")
    return max(peaks) > limit


if __name__ == "__main__":
    sys.exit(main())
