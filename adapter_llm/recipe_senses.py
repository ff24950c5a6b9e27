"""How `weights/default` learned about sounds, words and movement: more trunks in the space of its photos, and then
one more stage with the language model, in which photos are asked about as before.

    a trunk a modality (train_audio, train_text, train_imu) -> features -> connector and adapter (language model)
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from imagebind_encoder.config import INPUTS, EncoderConfig, Modality
from imagebind_encoder.media.text import tokenize
from imagebind_encoder.modeling import ImageBindEncoder

from .checkpoint import Checkpoint, build_parts, read_tensors, save_pretrained
from .config import AdapterLLMConfig
from .fetch import decoder_folder, fetch
from .manifest import Manifest
from .model import AdapterLLM
from .parts import ALL_MINILM_L6_V2, SMOLLM2
from .recipe import Examples, Photos, RecipeConfig, prepare
from .senses import (
    MOTION_QUESTIONS,
    SOUND_QUESTIONS,
    TEXT_QUESTIONS,
    Sense,
    SenseExamples,
    imagine_sounds,
)
from .sentences import SentenceEncoder
from .sounds import Sound
from .sources import ADAPTER, CONFIG, ENCODER, MANIFEST
from .train import TrainConfig, fit
from .train_text import encode_short
from .vocabulary import Concept, load_concepts, with_article


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
        inputs |= {name: getattr(other, name) for name in INPUTS if name in list(map(str, other.trunks))}
    return EncoderConfig(first.embedding_dim, trunks, **inputs)


def read_trunk(path: Path) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """A trunk as `save_trunk` writes it: NAME.json, an encoder's config, beside NAME.safetensors."""
    config = EncoderConfig.from_dict(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    return config, load_file(path.with_suffix(".safetensors"))


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
    missing = [name for name in missing if ".backbone." not in name]
    if missing or unknown:
        raise ValueError(f"the trunks do not fit together: {', '.join([*missing, *unknown])}")
    return joined, encoder, read_tensors(weights / ADAPTER)


def sound_sense(sounds: Sequence[Sound], sentences: SentenceEncoder, config: SensesConfig) -> Sense:
    """Questions about imagined sounds, which are what the audio trunk makes of real ones."""
    names = torch.stack([F.normalize(sentences(sound.sentences()).mean(0), dim=-1) for sound in sounds])
    captions = F.normalize(sentences([sound.caption for sound in sounds]), dim=-1)
    features, labels = imagine_sounds(names, captions, config.imagined)
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
