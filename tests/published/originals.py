"""The recorded originals: files, cases and numbers of a golden folder, and the same files as this project loads them.

Nothing here knows which cases, names of prompts or sizes a folder holds.
"""

import functools
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapter_llm.checkpoint import from_pretrained
from adapter_llm.convert.adapters import convert_adapter
from adapter_llm.convert.encoders import convert_encoder
from adapter_llm.convert.llama import from_meta
from adapter_llm.model import MediaBatch
from adapter_llm.pipeline import Pipeline
from adapter_llm.retrieval import FeatureIndex, RetrievalOptions, blend
from imagebind_encoder import Modality
from imagebind_encoder.modalities import PointStemConfig

V2, IMAGEBIND_LLM = "adapter_v2", "imagebind_llm"
MODALITIES = {"Image": "vision", "Video": "vision", "TextLong": "text"}
REMOVED = re.compile(r"(\S+\.pth) with every key ending in (\w+) removed")


def assert_close(actual, expected, limit, what):
    """max |difference| over the root mean square of what is expected, whole tensors."""
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    error = float((actual.detach() - expected).abs().max() / expected.square().mean().sqrt())
    assert error <= limit, f"{what}: {error:.1e}"


class Family:
    """`adapter_v2` or `imagebind_llm` of a golden folder, converted into `work`."""

    def __init__(self, golden: Path, name: str, work: Path) -> None:
        self.golden, self.name, self.folder, self.work = golden, name, golden / name, work
        content = json.loads((self.folder / "cases.json").read_text())
        self.cases, self.sizes, self.prompts = content["cases"], content["sizes"], content["prompts"]
        self.point, self.published = content.get("point"), content.get("checkpoints", {})
        self.recorded = load_file(self.folder / "io.safetensors")
        self.loaded = {}

    @functools.cached_property
    def base(self) -> Path:
        target = self.work / "base"
        from_meta(self.folder / "llama" / "7B", target)
        return target

    @functools.cached_property
    def encoder(self) -> Path:
        target = self.work / "encoder"
        if self.name == V2:
            convert_encoder(self.clip_file, target, heads=self.sizes["clip_heads"])
        else:
            kwargs = json.loads((self.golden / "imagebind" / "config.json").read_text())["model_kwargs"]
            heads = {m: kwargs[f"{m}_num_heads"] for m in Modality if f"{m}_num_heads" in kwargs}
            convert_encoder(self.imagebind_file, target, **self.encoder_sizes(heads))
        return target

    def encoder_sizes(self, heads: dict) -> dict:
        """What the shapes of an ImageBind file do not tell."""
        if not self.has_points:
            return {"heads": heads}
        point = self.point
        return {
            "heads": {**heads, Modality.POINT: point["num_heads"]},
            "point": PointStemConfig(point["num_group"], point["group_size"], start=point["fps_start_index"]),
        }

    @property
    def has_clip(self) -> bool:
        return (self.folder / "clip_vision.pth").exists()

    @property
    def has_points(self) -> bool:
        return (self.folder / "imagebind_point_extra.pth").exists()

    @functools.cached_property
    def clip_file(self) -> Path:
        """The recorded CLIP, or a random one of the same output width where the folder has none."""
        if self.has_clip:
            return self.folder / "clip_vision.pth"
        width, patch, out = 64 * self.sizes["clip_heads"], 14, self.sizes["clip"]["embed_dim"]
        shapes = {"class_embedding": (width,), "positional_embedding": (5, width), "proj": (width, out),
                  "conv1.weight": (width, 3, patch, patch)}  # fmt: skip
        block = "transformer.resblocks.0."
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,),
                   f"{block}attn.out_proj.weight": (width, width), f"{block}mlp.c_fc.weight": (4 * width, width),
                   f"{block}mlp.c_fc.bias": (4 * width,), f"{block}mlp.c_proj.weight": (width, 4 * width)}  # fmt: skip
        vectors = [f"{block}{n}" for n in ("attn.out_proj.bias", "mlp.c_proj.bias")]
        norms = ("ln_pre", "ln_post", f"{block}ln_1", f"{block}ln_2")
        vectors += [f"{norm}.{leaf}" for norm in norms for leaf in ("weight", "bias")]
        shapes |= dict.fromkeys(vectors, (width,))
        torch.save({f"visual.{n}": torch.randn(s) for n, s in shapes.items()}, self.work / "clip.pth")
        return self.work / "clip.pth"

    @functools.cached_property
    def imagebind_file(self) -> Path:
        tensors = torch.load(self.golden / "imagebind" / "imagebind_small.pth", weights_only=True)
        if self.has_points:
            tensors |= torch.load(self.folder / "imagebind_point_extra.pth", weights_only=True)
        torch.save(tensors, self.work / "imagebind.pth")
        return self.work / "imagebind.pth"

    def adapter_file(self, name: str) -> Path | None:
        """A published adapter file by what `checkpoints` or a case calls it; None if the folder lacks it."""
        described = self.published.get(name, name)
        removed = REMOVED.fullmatch(described)
        if not removed:
            path = self.folder / described
            return path if path.exists() else None
        source = self.folder / removed[1]
        if not source.exists():
            return None
        content = torch.load(source, weights_only=True)
        content["model"] = {key: value for key, value in content["model"].items() if not key.endswith(removed[2])}
        target = self.work / f"{name}.pth"
        torch.save(content, target)
        return target

    def weights(self, name: str) -> Path | None:
        """The weights folder made of a published file; None if the folder lacks it."""
        path, target = self.adapter_file(name), self.work / f"weights-{Path(name).stem}"
        if path is not None and not target.exists():
            heads = {"connector_heads": self.sizes["v_num_heads"]} if self.name == V2 else {}
            convert_adapter(path, target, encoder=self.encoder, llm=self.base, **heads)
        return path and target

    def checkpoint(self, name: str, merge: bool = True):
        if (name, merge) not in self.loaded:
            self.loaded[name, merge] = from_pretrained(self.weights(name), dtype=torch.float32, merge=merge)
        return self.loaded[name, merge]

    def pipeline(self, name: str, faithful: bool = True) -> Pipeline:
        return Pipeline(self.checkpoint(name), faithful=faithful)

    @functools.cached_property
    def first(self) -> str:
        """The first adapter, by what the cases call it, whose file the folder has."""
        names = map(self.variant, self.cases)
        return next((name for name in names if self.weights(name)), None) or pytest.skip(f"no adapter in {self.folder}")

    def variant(self, case: str) -> str:
        described = self.cases[case]
        return described["variant"] if "variant" in described else described["checkpoint"]

    @torch.no_grad()
    def features(self, case: str):
        """What the connector reads, (B, N, E), of a case; None where the folder lacks an input."""
        model, described = self.checkpoint(self.variant(case)).model, self.cases[case]
        if self.name == V2:
            rows = described["image_rows"]
            if self.has_clip:
                images = self.recorded["in.images"].float()[rows]
                media = {Modality.VISION: MediaBatch(images, torch.arange(len(rows)), torch.ones(len(rows)))}
                return model.encode(media, len(rows))[0]
            tokens = self.recorded["out.clip_tokens"].float()
            return tokens[rows] if max(rows) < len(tokens) else None
        media, batch = self.media(described["inputs"])
        if media is None:
            return self.recorded.get(f"out.{case}.features")
        features = model.encode(media, batch)[0]
        if not described.get("knn"):
            return features
        return blend(features, self.index, self.retrieval(described)) if self.index else None

    def media(self, inputs: dict):
        """The inputs of an ImageBind-LLM case as the model takes them, and how many questions they are.

        (None, 0) where one is missing, or where two are of one modality and so cannot be one tensor.
        """
        media, batch, available = {}, 1, self.modalities
        for name, entry in inputs.items():
            where, key, row = entry["where"]
            modality = Modality(MODALITIES.get(name, name.lower()))
            recorded = self.golden / where / "io.safetensors"
            tensors = load_file(recorded) if recorded.exists() else {}
            if modality not in available or key not in tensors or modality in media:
                return None, 0
            rows = entry.get("rows", [row])
            batch = max(batch, len(rows))
            tensor = tensors[key][rows]
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            weights = torch.full((len(rows),), float(entry["weight"]))
            media[modality] = MediaBatch(tensor, torch.arange(len(rows)), weights)
        return media, batch

    @functools.cached_property
    def modalities(self):
        return json.loads((self.encoder / "config.json").read_text())["encoder"]["trunks"].keys()

    @functools.cached_property
    def index(self) -> FeatureIndex | None:
        path = self.folder / "knn.index"
        return FeatureIndex.from_faiss(path) if path.exists() else None

    def retrieval(self, described: dict) -> RetrievalOptions:
        names = {"cache_size": "neighbours", "cache_t": "sharpness", "cache_weight": "weight"}
        return RetrievalOptions(**{ours: described[theirs] for theirs, ours in names.items() if theirs in described})

    def sequences(self, case: str) -> torch.Tensor:
        """Every token a case went through, (B, T): the prompts, then what was predicted."""
        described = self.cases[case]
        start = described["prefill_length"]
        rows = []
        for prompt, steps in zip(described["prompt_token_ids"], described["argmax_ids_per_step"], strict=True):
            rows.append([prompt[t] if t < len(prompt) else steps[t - start] for t in range(start + len(steps))])
        return torch.tensor(rows)
