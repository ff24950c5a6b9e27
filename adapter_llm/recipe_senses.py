"""How `weights/default` learned about sounds, words and movement: more trunks in the space of its photos, and then
one more stage with the language model, in which photos are asked about as before.

    a trunk a modality (train_audio, train_text, train_imu) -> features -> connector and adapter (language model)
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import INPUTS, EncoderConfig, Modality
from imagebind_encoder.media.text import tokenize
from imagebind_encoder.modeling import ImageBindEncoder

from .checkpoint import BACKBONE_PREFIX, Checkpoint, build_parts, read_tensors, save_pretrained
from .config import AdapterLLMConfig
from .fetch import decoder_folder, fetch
from .manifest import Manifest
from .model import AdapterLLM
from .parts import ALL_MINILM_L6_V2, SMOLLM2
from .recipe import Examples, Photos, RecipeConfig, prepare
from .recipe_trunks import TrunksConfig, class_embeddings, make_trunks, motion_features, read_trunk
from .senses import (
    MOTION_QUESTIONS,
    SOUND_QUESTIONS,
    TEXT_QUESTIONS,
    Sense,
    SenseExamples,
    imagine_sounds,
)
from .sentences import SentenceEncoder
from .sounds import Sound, read_sounds
from .sources import ADAPTER, CONFIG, ENCODER, MANIFEST, WEIGHTS_FILES, find_folder
from .train import TrainConfig, fit
from .train_encoder import EMBEDDING_DIM
from .train_text import encode_short
from .vocabulary import Concept, load_concepts, with_article

TEXT_SCALES = (5.0, 7.0, 10.0, 14.3, 20.0, 25.0, 30.0, 40.0, 50.0, 70.0, 100.0)  # 100: the most an encoder allows


@dataclass(frozen=True)
class SensesConfig:
    """Settings of the stage; the manifest records them."""

    steps: int = 380
    batch_size: int = 16
    rate: float = 2.5e-4  # of the connector, the static queries and the scales, at its highest
    sound_share: float = 0.27  # of the examples
    text_share: float = 0.1
    motion_share: float = 0.04  # the rest are photos
    film_share: float = 0.15  # of the photos, asked about as films
    yes_no: float = 0.7  # of the questions about objects in photos
    scene_share: float = 0.33
    imagined: int = 60  # sounds a class
    noise: float = 0.01


def join_encoders(first: EncoderConfig, *others: EncoderConfig) -> EncoderConfig:
    """One encoder with all their trunks; each modality's input settings are those of the one that has it."""
    trunks, inputs = dict(first.trunks), {name: getattr(first, name) for name in INPUTS}
    for other in others:
        if other.embedding_dim != first.embedding_dim:
            raise ValueError(
                f"trunks of {first.embedding_dim} and {other.embedding_dim} numbers do not share a space; "
                "train them for the same one"
            )
        trunks |= other.trunks
        own = {str(name) for name in other.trunks} | ({"image", "video"} if Modality.VISION in other.trunks else set())
        inputs |= {name: getattr(other, name) for name in INPUTS if name in own}
    return EncoderConfig(first.embedding_dim, trunks, **inputs)


def add_trunks(weights: Path, trunks: Sequence[Path]) -> tuple[AdapterLLMConfig, ImageBindEncoder, dict[str, Tensor]]:
    """The config of a weights folder with further trunks, its encoder with theirs, and its adapter's tensors.

    A modality that the weights have already is replaced. The backbone of the vision trunk, which is not in the
    folder, stays as it is made: `save_pretrained` leaves it out again.
    """
    config = AdapterLLMConfig.load(weights / CONFIG)
    found = [read_trunk(path) for path in trunks]
    joined = replace(config, encoder=join_encoders(config.encoder, *(one for one, _ in found)))
    tensors = read_tensors(weights / ENCODER)
    for other, own in found:
        replaced = tuple(f".{name}." for name in other.trunks)
        tensors = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in replaced)}
        tensors |= own
    encoder = ImageBindEncoder(joined.encoder).eval()
    missing, unknown = encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    missing = [name for name in missing if not name.startswith(BACKBONE_PREFIX)]
    if missing or unknown:
        raise ValueError(
            f"the trunks lack {', '.join(missing) or 'nothing'} and have {', '.join(unknown) or 'nothing'} too much; "
            "delete their files and make them again"
        )
    return joined, encoder, read_tensors(weights / ADAPTER)


def sound_sense(sounds: Sequence[Sound], sentences: SentenceEncoder, config: SensesConfig) -> Sense:
    """Questions about imagined sounds, which are what the audio trunk makes of real ones."""
    features, labels = imagine_sounds(*class_embeddings(sounds, sentences), config.imagined)
    rows = [sounds[label] for label in labels.tolist()]
    return Sense(features, [(sound.caption,) for sound in rows], SOUND_QUESTIONS, config.sound_share, rows)


@torch.inference_mode()
def text_sense(
    texts: Sequence[str], encoder: ImageBindEncoder, sentences: SentenceEncoder, config: SensesConfig
) -> Sense:
    """Questions about texts, as the text trunk reads them and as the sentence encoder does, which it is to resemble."""
    ids = tokenize(texts, stem=encoder.config.trunks[Modality.TEXT].stem)
    read = torch.cat([encode_short(encoder, part) for part in ids.split(64)])
    true = F.normalize(sentences(texts), dim=-1)[:, None].expand_as(read)
    features = torch.cat([read, true]).clone()
    return Sense(features, [(text,) for text in texts] * 2, TEXT_QUESTIONS, config.text_share)


@torch.inference_mode()
def fit_text_scale(encoder: ImageBindEncoder, photos: Tensor, labels: Tensor, concepts: Sequence[Concept]) -> float:
    """Set how sharply texts tell photos apart: the scale at which they give labels the best likelihood.

    `photos` are features (M, N, E), `labels` (M,) the classes they show; the texts are "a photo of a goldfish", of
    these classes.
    """
    shown, wanted = labels.unique(return_inverse=True)
    texts = [f"a photo of {with_article(concepts[label].name)}" for label in shown.tolist()]
    words = encode_short(encoder, tokenize(texts, stem=encoder.config.trunks[Modality.TEXT].stem))
    cosine = F.normalize(photos.mean(1), dim=-1) @ F.normalize(words.mean(1), dim=-1).T
    scale = min(TEXT_SCALES, key=lambda scale: float(F.cross_entropy(scale * cosine, wanted)))
    encoder.postprocessors["text"].log_scale.fill_(math.log(scale))
    return scale


def train_senses(
    data: Path, wordnet: Path, sounds: Path, motion: Path, weights: Path, work: Path, output: Path,
    config: SensesConfig = SensesConfig(), trunks: TrunksConfig = TrunksConfig(),
) -> Checkpoint:
    """Train the trunks that `work` lacks, then add them with `make_senses`; see docs/training.md for the folders.

    Raises ValueError, FileNotFoundError or CheckpointError before anything long for data or weights that will not do.
    """
    weights = find_folder(weights, "weights", WEIGHTS_FILES)
    size = AdapterLLMConfig.load(weights / CONFIG).encoder.embedding_dim
    if size != EMBEDDING_DIM:
        raise ValueError(
            f"the embedding space of {weights} has {size} numbers, that of the sentences {EMBEDDING_DIM}; "
            "start from weights that train-default made"
        )
    classes, _ = read_sounds(sounds)
    captions = [caption for photo in Photos.read(data).scenes for caption in photo.captions]
    sentences = SentenceEncoder(fetch(ALL_MINILM_L6_V2))
    made = make_trunks(wordnet, load_concepts(wordnet), captions, sounds, motion, sentences, work, trunks)
    moving = motion_features(motion, work / "imu")
    return make_senses(weights, made, classes, moving, data, wordnet, work, output, config)


def make_senses(
    weights: Path,
    trunks: Sequence[Path],
    sounds: Sequence[Sound],
    motion: tuple[Tensor, Sequence[str]],
    data: Path,
    wordnet: Path,
    work: Path,
    output: Path,
    config: SensesConfig = SensesConfig(),
) -> Checkpoint:
    """Add trunks to weights that `recipe.make_default` made, and train connector and adapter on all they sense.

    `motion` are features (M, N, E) of recordings and a sentence for each; `work` is where `make_default` left
    the photos' features.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(3)
    torch.set_flush_denormal(True)
    photos, concepts = Photos.read(data), load_concepts(wordnet)
    recipe = RecipeConfig(yes_no=config.yes_no, scene_share=config.scene_share)
    _, features = prepare(photos, concepts, recipe, work)
    sizes, encoder, tensors = add_trunks(weights, trunks)
    fit_text_scale(encoder, features["objects"][0], features["labels"], concepts)
    folder = decoder_folder(SMOLLM2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llama = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval().requires_grad_(False)
    parts = build_parts(sizes, llama.config, device="cpu")
    for name in ("connector", "adapter"):
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        parts[name].load_state_dict({key: value.float() for key, value in own.items()})
    model = AdapterLLM(llama=llama, **{**parts, "encoder": encoder})
    sentences = SentenceEncoder(fetch(ALL_MINILM_L6_V2))
    senses = [
        sound_sense(sounds, sentences, config),
        text_sense(texts_of(photos, concepts, sounds, motion[1]), encoder, sentences, config),
        Sense(motion[0], [(said,) for said in motion[1]], MOTION_QUESTIONS, config.motion_share),
    ]
    drawn = Examples(photos, concepts, features, recipe)
    drawn.rng = random.Random(3)
    examples = SenseExamples(senses, drawn.draw, config.film_share, config.noise, seed=3)
    before = Manifest.load(weights / MANIFEST)
    manifest = replace(before, training={**before.training, "senses": asdict(config)}, quality={})
    settings = TrainConfig(
        steps=config.steps, batch_size=config.batch_size, connector_rate=config.rate, tokens_rate=config.rate,
        gate_rate=2e-3, seed=3, save_every=100,
    )  # fmt: skip

    def save(folder: Path) -> None:
        save_pretrained(folder, model, sizes, manifest)

    fit(model, tokenizer, sizes.prompt, examples.draw, settings, save, output)
    return Checkpoint(model.eval(), tokenizer, sizes, manifest)


def texts_of(
    photos: Photos, concepts: Sequence[Concept], sounds: Sequence[Sound], motion: Sequence[str]
) -> list[str]:
    """What people may write about things: captions, photos of things, sounds, movement."""
    return [
        *(caption for photo in photos.scenes for caption in photo.captions),
        *(f"a photo of {with_article(concept.name)}" for concept in concepts),
        *(sound.caption for sound in sounds),
        *dict.fromkeys(motion),
    ]
