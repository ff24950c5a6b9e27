"""Cuts the small part of the golden data that this repository carries for encoder and images.

    python tests/golden/extract.py DIR        DIR: the full golden folder; writes beside this file

Same layout and file names as the full folder, so one set of tests reads both. Kept are the two
modalities with the smallest weights and one picture, by far the largest part:
- imu: the first sample, every fifth token;
- text: all samples, with the vocabulary cut to the ids in use. They are renumbered in order, so
  the largest id, where the feature is read, stays the largest;
- layouts/imagebind_huge.json without white space.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PICTURES = ("palette",)
OUTPUTS = ("stem_tokens", "trunk_tokens", "pre_post", "embedding")


def extract_encoder(source: Path, target: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    weights = torch.load(source / "imagebind_small.pth", weights_only=True)
    io = load_file(source / "io.safetensors")
    kept = {"in.imu": io["in.imu"][:1].clone()}
    for output in OUTPUTS:
        value = io[f"out.imu.{output}"][:1]
        if value.ndim == 3:
            kept[f"out.imu.{output}.every5"] = value[:, ::5].clone()
        else:
            kept[f"out.imu.{output}"] = value.clone()
        kept[f"out.text.{output}"] = io[f"out.text.{output}"]
    ids, kept["in.text"] = io["in.text"].unique(return_inverse=True)

    weights = {key: value.clone() for key, value in weights.items() if key.split(".")[1] in ("imu", "text")}
    embedding = "modality_preprocessors.text.token_embedding.weight"
    weights[embedding] = weights[embedding][ids].clone()
    cases = config["cases"]
    cases["imu"]["shape"][0] = 1
    config["cases"] = {name: cases[name] for name in ("imu", "text")}
    config["fixed_by_the_reference"]["text_vocab"] = len(ids)

    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    torch.save(weights, target / "imagebind_small.pth")
    save_file(kept, target / "io.safetensors")


def extract_pictures(source: Path, target: Path) -> None:
    described = json.loads((source / "preprocess.json").read_text())["images"]
    pixels = load_file(source / "images.safetensors")
    (target / "inputs").mkdir(parents=True, exist_ok=True)
    images = {name: described[name] for name in PICTURES}
    for entry in images.values():
        (target / entry["file"]).write_bytes((source / entry["file"]).read_bytes())
    (target / "preprocess.json").write_text(json.dumps({"images": images}, indent=1) + "\n")
    save_file({f"{name}.imagebind_uint8": pixels[f"{name}.imagebind_uint8"] for name in PICTURES},
              target / "images.safetensors")  # fmt: skip


def extract_layout(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(json.loads(source.read_text()), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    full, here = Path(sys.argv[1]), Path(__file__).parent
    extract_encoder(full / "imagebind", here / "imagebind")
    extract_pictures(full / "preprocess", here / "preprocess")
    extract_layout(full / "layouts" / "imagebind_huge.json", here / "layouts" / "imagebind_huge.json")
