"""Cuts the small part of the golden data that this repository carries.

    PYTHONPATH=. python tests/golden/extract.py DIR        DIR: the full golden folder; writes beside this file

Same layout and file names as the full folder, so one set of tests reads both. Kept are the two
modalities with the smallest weights, one picture, by far the largest part, and one short recording:
- imu: the first sample, every fifth token;
- text: all samples, with the vocabulary cut to the ids in use. They are renumbered in order, so
  the largest id, where the feature is read, stays the largest;
- adapter_v2 and imagebind_llm: one adapter file each, its base model, and the numbers of its cases; no CLIP (its
  tokens are recorded), no inputs that the cut encoder cannot take;
- recordings: every eighth number of what was recorded, of the filter bank the first clip only;
- layouts without white space.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

PICTURES = ("palette",)
SOUNDS = ("mono8k_1s2",)
V2_FILES = ("LORA-BIAS-7B.pth",)
V2_PARTS = ("out.LORA-BIAS.greedy", "out.LORA-BIAS-", "out.clip_tokens", "out.BIAS.sampling", "out.BIAS.greedy.logits")
LLM_FILES, LLM_PARTS = ("7B.pth", "knn.index"), ("out.imu.", "out.knn_", "out.mix.features", "in.knn")
LAYOUTS = ("imagebind_huge", "llama_7B_meta", "clip_vit_l14_visual", "adapter_v2_LORA-BIAS-7B",
           "adapter_v2_CAPTION-7B", "imagebind_llm_7B")  # fmt: skip
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


def extract_sounds(source: Path, target: Path) -> None:
    """To the pictures, whose description is there already."""
    described = json.loads((source / "preprocess.json").read_text())["audio"]
    recorded = load_file(source / "audio.safetensors")
    content = json.loads((target / "preprocess.json").read_text())
    content["audio"] = {name: described[name] for name in SOUNDS}
    (target / "preprocess.json").write_text(json.dumps(content, indent=1) + "\n")
    kept = {}
    for name in SOUNDS:
        (target / described[name]["file"]).write_bytes((source / described[name]["file"]).read_bytes())
        kept[f"{name}.mel.every8"] = recorded[f"{name}.mel"][:1, ..., ::8].clone()
        kept[f"{name}.resampled_16k.every8"] = recorded[f"{name}.resampled_16k"][..., ::8].clone()
    save_file(kept, target / "audio.safetensors")


def extract_family(source: Path, target: Path, files: tuple[str, ...], parts: tuple[str, ...]) -> None:
    (target / "llama" / "7B").mkdir(parents=True, exist_ok=True)
    base = ("llama/7B/consolidated.00.pth", "llama/7B/params.json", "llama/tokenizer.model")
    for name in (*files, *base):
        (target / name).write_bytes((source / name).read_bytes())
    compact(source / "dataset.json", target / "dataset.json")
    io = load_file(source / "io.safetensors")
    kept = {name: value for name, value in io.items() if name.startswith(parts)}
    content = json.loads((source / "cases.json").read_text())
    known = {key.removeprefix("out.").rpartition(".")[0] for key in kept}
    content["cases"] = {name: case for name, case in content["cases"].items() if name in known}
    write(target / "cases.json", content)
    save_file(kept, target / "io.safetensors")


def extract_training(source: Path, target: Path, pictures: Path) -> None:
    """The loss and gradients of ImageBind-LLM, with the features its connector read in place of the pictures.

    They are this project's own: the encoder is proven against the full folder.
    """
    from imagebind_encoder import load_official

    heads = json.loads((pictures / "config.json").read_text())["model_kwargs"]["vision_num_heads"]
    encoder = load_official(pictures / "imagebind_small.pth", ["vision"], {"vision": heads})
    with torch.no_grad():
        images = load_file(pictures / "io.safetensors")["in.image"][:2].float()
        features = torch.nn.functional.normalize(encoder({"vision": images})["vision"], dim=-1) / (1 + 1e-6)
    io, recorded = load_file(target / "io.safetensors"), json.loads((source / "training.json").read_text())
    train = {name: value for name, value in load_file(source / "io.safetensors").items() if "in.train" in name}
    save_file({**io, **train, "in.train.features": features}, target / "io.safetensors")
    write(target / "training.json", {"main.finetune": recorded["main.finetune"]})


def write(target: Path, content: object) -> None:
    target.write_text(json.dumps(content, separators=(",", ":")) + "\n")


def compact(source: Path, target: Path) -> None:
    write(target, json.loads(source.read_text()))


def extract_layout(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    compact(source, target)


if __name__ == "__main__":
    full, here = Path(sys.argv[1]), Path(__file__).parent
    extract_encoder(full / "imagebind", here / "imagebind")
    extract_pictures(full / "preprocess", here / "preprocess")
    extract_sounds(full / "preprocess", here / "preprocess")
    compact(full / "preprocess" / "bpe.json", here / "preprocess" / "bpe.json")
    extract_family(full / "adapter_v2", here / "adapter_v2", V2_FILES, V2_PARTS)
    extract_family(full / "imagebind_llm", here / "imagebind_llm", LLM_FILES, LLM_PARTS)
    extract_training(full / "imagebind_llm", here / "imagebind_llm", full / "imagebind")
    for layout in LAYOUTS:
        extract_layout(full / "layouts" / f"{layout}.json", here / "layouts" / f"{layout}.json")
