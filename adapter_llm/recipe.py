"""How `weights/default` was made: every step from public packages and labelled photos, in one run.

    photos -> classifier -> class tokens (solved) -> features -> connector (warm start, then language model)

`data` is a folder with objects.csv, objects/, scenes.csv and scenes/ (see docs/training.md). Each step leaves
its result in `work`; a run that was stopped goes on from there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.modeling import ImageBindEncoder

from .checkpoint import BACKBONE_PREFIX, Checkpoint, build_parts, read_tensors, save_pretrained
from .config import AdapterConfig, AdapterLLMConfig, ConnectorConfig, PromptConfig
from .data import CaptionedImage, Example, ask_about_concept, ask_about_scene, is_held_out, read_captions, scene_words
from .evaluate import LabelledImage, read_labels
from .fetch import backbone_file, decoder_folder, fetch
from .manifest import DecoderRecord, Manifest
from .model import AdapterLLM
from .parts import ALL_MINILM_L6_V2, EFFICIENTNET_LITE2, SMOLLM2
from .sentences import SentenceEncoder
from .train import TrainConfig, fit
from .train_encoder import finish, imagine, nearest, pool_photos, solve_vision, vision_config
from .vocabulary import Concept, load_concepts, with_article
from .warm_start import native_tokens, regress

OBJECTS_HELD_OUT, SCENES_HELD_OUT = 0.3, 0.2  # shares of photos that training never sees
NAME_SLOTS, KIND_SLOTS = 8, 4  # of the query tokens: what it is called, what it is
LICENCE = "Apache-2.0 for encoder.safetensors and adapter.safetensors; the fetched parts keep their own"


@dataclass(frozen=True)
class RecipeConfig:
    """Settings of the default run; the manifest records them."""

    views: int = 4  # of each photo: as it is, and random cuts
    imagined: int = 24  # sets of features a class, made from photos of other classes
    warm_steps: int = 1600
    steps: int = 2200
    batch_size: int = 16
    real_share: float = 0.3  # of the object examples; the rest is imagined
    scene_share: float = 0.38
    yes_no: float = 0.6  # of the questions about objects
    noise: float = 0.01  # standard deviation, on features of unit length


def default_config() -> AdapterLLMConfig:
    return AdapterLLMConfig(
        encoder=vision_config(),
        connector=ConnectorConfig(width=384, depth=2, heads=6),
        adapter=AdapterConfig(query_len=NAME_SLOTS + KIND_SLOTS, query_layer=16, layer_scale=True),
        prompt=PromptConfig(system=""),
    )


@dataclass(frozen=True)
class Photos:
    """What training may see."""

    objects: list[LabelledImage]
    scenes: list[CaptionedImage]

    @classmethod
    def read(cls, data: Path) -> Photos:
        objects = read_labels(data / "objects.csv", data / "objects")
        scenes = read_captions(data / "scenes.csv", data / "scenes")
        return cls(
            [photo for photo in objects if not is_held_out(photo.path.name, OBJECTS_HELD_OUT)],
            [photo for photo in scenes if not is_held_out(photo.path.name, SCENES_HELD_OUT)],
        )


def prepare(
    photos: Photos, concepts: Sequence[Concept], config: RecipeConfig, work: Path
) -> tuple[ImageBindEncoder, dict[str, Tensor]]:
    """The encoder, solved, and the features to train on; both kept in `work`.

    Features: `imagined` (classes, K, N, E) with what each is of, `imagined_labels`; `objects` (V, M, N, E) with
    `labels` (M,) and where the classifier is `right` (V, M); `scenes` (V, M, N, E); `classes` (classes, E).
    """
    encoder = ImageBindEncoder(vision_config()).eval()
    backbone = read_tensors(backbone_file(EFFICIENTNET_LITE2))
    encoder.load_state_dict({BACKBONE_PREFIX + key: value for key, value in backbone.items()}, strict=False)
    encoder_file, features_file = work / "encoder.safetensors", work / "features.safetensors"
    if features_file.exists() and encoder_file.exists():
        encoder.load_state_dict(load_file(encoder_file), strict=False)
        return encoder, load_file(features_file)

    sentences = SentenceEncoder(fetch(ALL_MINILM_L6_V2))
    classes = torch.stack([F.normalize(sentences(c.sentences()).mean(0), dim=-1) for c in concepts])
    captions = torch.stack([F.normalize(sentences(p.captions).mean(0), dim=-1) for p in photos.scenes])
    index = {concept.synset: number for number, concept in enumerate(concepts)}
    labels = torch.tensor([index[photo.synset] for photo in photos.objects])
    objects = pool_photos(encoder, [photo.path for photo in photos.objects], config.views)
    scenes = solve_vision(
        encoder, classes, pool_photos(encoder, [photo.path for photo in photos.scenes], config.views, 1), captions
    )
    stem = encoder.stems["vision"]
    with torch.inference_mode():
        seen = finish(encoder, stem.summarise(objects.flatten(0, 1))).unflatten(0, objects.shape[:2])
        right = stem.backbone.classifier(objects).argmax(-1) == labels
    imagined, imagined_labels = imagine(
        encoder, objects.flatten(0, 1), labels.repeat(config.views), classes, config.imagined
    )
    features = {
        "classes": classes, "labels": labels, "right": right, "objects": seen, "scenes": scenes,
        "imagined": imagined, "imagined_labels": imagined_labels,
    }  # fmt: skip
    features = {key: value.clone() for key, value in features.items()}
    save_file({k: v for k, v in encoder.state_dict().items() if not k.startswith(BACKBONE_PREFIX)}, encoder_file)
    save_file(features, features_file)
    return encoder, features


class Examples:
    """Draws features, and questions about them, as the recipe mixes them."""

    def __init__(
        self, photos: Photos, concepts: Sequence[Concept], features: dict[str, Tensor], config: RecipeConfig
    ) -> None:
        self.concepts, self.features, self.config = concepts, features, config
        self.captions = [photo.captions for photo in photos.scenes]
        self.similar = nearest(features["classes"], 12).tolist()
        self.right = features["right"].nonzero().tolist()
        self.rng = random.Random(0)

    def draw_object(self) -> tuple[Tensor, int]:
        """Features (N, E) and the class they show, by the classifier's own judgement."""
        if self.rng.random() < self.config.real_share:
            view, photo = self.rng.choice(self.right)
            return self.features["objects"][view, photo], int(self.features["labels"][photo])
        imagined, labels = self.features["imagined"], self.features["imagined_labels"]
        wanted, copy = self.rng.randrange(len(imagined)), self.rng.randrange(imagined.shape[1])
        return imagined[wanted, copy], int(labels[wanted, copy])

    def draw_scene(self) -> tuple[Tensor, int]:
        """Features (N, E) and the number of the photo."""
        scenes = self.features["scenes"]
        photo = self.rng.randrange(scenes.shape[1])
        return scenes[self.rng.randrange(scenes.shape[0]), photo], photo

    def draw(self, count: int) -> list[Example]:
        examples = []
        for _ in range(count):
            if self.rng.random() < self.config.scene_share:
                features, photo = self.draw_scene()
                question, answer = ask_about_scene(self.captions[photo], self.rng)
            else:
                features, label = self.draw_object()
                question, answer = ask_about_concept(
                    self.concepts[label], self.others(label), self.rng, self.config.yes_no
                )
            noisy = features + self.config.noise * torch.randn(features.shape)
            examples.append(Example(noisy, question, answer))
        return examples

    def others(self, label: int) -> list[Concept]:
        """Classes it is not: now and then the most similar ones."""
        if self.rng.random() < 0.15:
            return [self.concepts[other] for other in self.similar[label]]
        numbers = self.rng.sample(range(len(self.concepts)), len(self.similar[label]))
        return [self.concepts[other] for other in numbers if other != label]

    def texts(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]], Callable]:
        """What the warm start shall say, as (lead, words): names, and kinds; a sampler of features and their row.

        The kinds are there for questions: "dog" in the question meets "dog" among the adapter tokens.
        """
        names = [("This is a photo of", with_article(concept.name)) for concept in self.concepts]
        kinds = [("This is a kind of", ", ".join(concept.kinds[:3]) or "thing") for concept in self.concepts]
        first = []
        for captions in self.captions:
            first.append(len(names))
            names += [("The picture shows this:", caption) for caption in captions]
            kinds += [("This is a picture of", ", ".join(scene_words(captions)[:4]) or "things")] * len(captions)

        def sample(count: int) -> tuple[Tensor, Tensor]:
            drawn = []
            for _ in range(count):
                if self.rng.random() < self.config.scene_share:
                    features, photo = self.draw_scene()
                    drawn.append((features, first[photo] + self.rng.randrange(len(self.captions[photo]))))
                else:
                    drawn.append(self.draw_object())
            return torch.stack([features for features, _ in drawn]), torch.tensor([row for _, row in drawn])

        return names, kinds, sample


def make_default(data: Path, wordnet: Path, output: Path, work: Path, config: RecipeConfig) -> Checkpoint:
    """Train the default weights into `output`, keeping what can be used again in `work`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # tiny probabilities would slow every product with them a hundredfold
    photos, concepts = Photos.read(data), load_concepts(wordnet)
    encoder, features = prepare(photos, concepts, config, work)
    folder = decoder_folder(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)
    sizes = default_config()
    torch.manual_seed(0)
    parts = build_parts(sizes, llama.config, device="cpu")
    model = AdapterLLM(llama=llama, **{**parts, "encoder": encoder})
    examples = Examples(photos, concepts, features, config)
    names, kinds, sample = examples.texts()
    native = torch.cat(
        [
            native_tokens(llama, tokenizer, names, sizes.adapter.query_layer, NAME_SLOTS),
            native_tokens(llama, tokenizer, kinds, sizes.adapter.query_layer, KIND_SLOTS),
        ],
        dim=2,
    )
    regress(model.connector, model.adapter, native, sample, config.warm_steps)
    del native

    manifest = Manifest(
        decoder=DecoderRecord.of(llama.config, "SmolLM2-135M-Instruct", SMOLLM2),
        backbone=EFFICIENTNET_LITE2,
        licence=LICENCE,
        training={
            "recipe": asdict(config),
            "objects": f"{len(photos.objects)} photos with one label each, {OBJECTS_HELD_OUT:.0%} of all held out",
            "scenes": f"{len(photos.scenes)} photos with five captions each, {SCENES_HELD_OUT:.0%} of all held out",
            "classes": "names and definitions of 1000 ImageNet classes (timm), kinds from WordNet",
            "embedding_space": f"{ALL_MINILM_L6_V2.title}, {ALL_MINILM_L6_V2.licence}",
        },
    )
    settings = TrainConfig(steps=config.steps, batch_size=config.batch_size)

    def save(folder: Path) -> None:
        save_pretrained(folder, model, sizes, manifest)

    fit(model, tokenizer, sizes.prompt, examples.draw, settings, save, output)
    return Checkpoint(model.eval(), tokenizer, sizes, manifest)
