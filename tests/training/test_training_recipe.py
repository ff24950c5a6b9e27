"""How the recipe mixes its examples, on features that say themselves where they are from."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from adapter_llm.data import IS_THERE, CaptionedImage, is_held_out
from adapter_llm.evaluate import LabelledImage
from adapter_llm.recipe import OBJECTS_HELD_OUT, SCENES_HELD_OUT, Examples, Photos, RecipeConfig, default_config
from adapter_llm.vocabulary import Concept, with_article

CLASSES, VIEWS, COPIES, DRAWS = 20, 3, 4, 6000
IMAGINED, OBJECT, SCENE = 0.0, 1.0, 2.0  # the first number of a feature
CONCEPTS = [
    Concept(f"n{n:02}", (f"thing{chr(97 + n)}",), "", ("animal",) if n % 2 else ("tool",)) for n in range(CLASSES)
]
OBJECTS = [LabelledImage(Path(f"o{n}.jpg"), f"n{n:02}", "x") for n in range(5)]
SCENES = [CaptionedImage(Path(f"s{n}.jpg"), (f"Scene {n} one.", f"Scene {n} two.")) for n in range(6)]
RIGHT = torch.tensor([[1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 0]]).bool()


def marked(kind, *shape):
    """Features (..., 2, 3) that hold their kind and their own place."""
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).float()
    return torch.cat([torch.full((*shape, 1), kind), places], -1)[..., None, :].expand(*shape, 2, 3).clone()


def examples(**changes):
    config = RecipeConfig(**{"noise": 0.0, "real_share": 0.2, "scene_share": 0.38, **changes})
    features = {
        "classes": torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(1)),
        "imagined": marked(IMAGINED, CLASSES, COPIES),
        "imagined_labels": (torch.arange(CLASSES)[:, None] + torch.arange(COPIES))
        % CLASSES,  # often not the wanted one
        "objects": marked(OBJECT, VIEWS, len(OBJECTS)),
        "labels": torch.tensor([3, 1, 4, 1, 5]),
        "right": RIGHT,
        "scenes": marked(SCENE, VIEWS, len(SCENES)),
    }
    return Examples(Photos(OBJECTS, SCENES), CONCEPTS, features, config)


def test_shares_are_kept():
    kinds = Counter(float(example.features[0, 0]) for example in examples().draw(DRAWS))
    shares = {kind: count / DRAWS for kind, count in kinds.items()}
    # four standard deviations of a share of 6000 are at most 0.026
    assert shares == pytest.approx({SCENE: 0.38, OBJECT: 0.62 * 0.2, IMAGINED: 0.62 * 0.8}, abs=0.026)
    assert {float(e.features[0, 0]) for e in examples(scene_share=1.0).draw(50)} == {SCENE}
    assert {float(e.features[0, 0]) for e in examples(scene_share=0.0, real_share=1.0).draw(50)} == {OBJECT}
    assert {float(e.features[0, 0]) for e in examples(scene_share=0.0, real_share=0.0).draw(50)} == {IMAGINED}


def label_of(features, mixture):
    kind, one, other = (int(number) for number in features[0])
    if kind == OBJECT:
        assert mixture.features["right"][one, other]  # what the classifier got wrong is never shown as right
        return int(mixture.features["labels"][other])
    return int(mixture.features["imagined_labels"][one, other])


def test_answers_belong_to_what_is_drawn():
    mixture, seen = examples(), Counter()
    for example in mixture.draw(DRAWS):
        if example.features[0, 0] == SCENE:
            photo = int(example.features[0, 2])
            assert example.answer in SCENES[photo].captions or example.answer.startswith(
                ("No, there is no", "Yes, there")
            )
            seen["scene", photo] += 1
            continue
        label = label_of(example.features, mixture)
        name = with_article(CONCEPTS[label].name)
        assert (
            f"a photo of {name}" in example.answer or example.answer == f"This is a kind of {CONCEPTS[label].kinds[0]}."
        )
        if example.answer.startswith("No, "):
            assert name not in example.question
            assert CONCEPTS[label].kinds[0] not in example.question
        seen["label", label] += 1
    assert len([key for key in seen if key[0] == "scene"]) == len(SCENES)
    assert len([key for key in seen if key[0] == "label"]) == CLASSES


def test_others_are_never_the_thing_itself():
    mixture = examples()
    for label in range(CLASSES):
        lists = [mixture.others(label) for _ in range(40)]
        assert all(CONCEPTS[label] not in others and len(others) >= 11 for others in lists)
        assert len({tuple(o.synset for o in others) for others in lists}) > 5  # the similar ones, and random ones
        similar = [CONCEPTS[n] for n in mixture.similar[label]]
        assert sum(others == similar for others in lists) < 20


def test_noise_is_as_loud_as_configured():
    quiet, loud = (examples(noise=level, scene_share=1.0).draw(2000) for level in (0.0, 0.5))
    assert all(torch.equal(e.features, e.features.round()) for e in quiet)
    differences = torch.stack(
        [e.features - e.features.round() for e in examples(noise=0.05, scene_share=1.0).draw(500)]
    )
    assert float(differences.std()) == pytest.approx(0.05, rel=0.1)
    assert len(loud) == 2000


def test_the_same_mixture_every_time():
    one, other = ([(e.question, e.answer, e.features.tolist()) for e in examples().draw(200)] for _ in range(2))
    assert one == other


def test_the_warm_start_says_names_and_captions():
    mixture = examples()
    texts, kinds, sample = mixture.texts()
    assert len(kinds) == len(texts)
    for concept, (lead, words) in zip(CONCEPTS, kinds):
        assert (lead, words) == ("This is a kind of", ", ".join(concept.kinds[:3]) or "thing")
    assert texts[:CLASSES] == [("This is a photo of", with_article(concept.name)) for concept in CONCEPTS]
    captions = [caption for photo in SCENES for caption in photo.captions]
    assert texts[CLASSES:] == [("The picture shows this:", caption) for caption in captions]
    features, rows = sample(DRAWS)
    assert features.shape == (DRAWS, 2, 3)
    scenes = 0
    for feature, row in zip(features, rows.tolist(), strict=True):
        if feature[0, 0] == SCENE:
            scenes += 1
            assert re.fullmatch(rf"Scene {int(feature[0, 2])} (one|two)\.", texts[row][1])
        else:
            assert row == label_of(feature, mixture)
    assert scenes / DRAWS == pytest.approx(0.38, abs=0.026)
    assert set(rows.tolist()) == set(range(len(texts)))


def test_photos_that_are_held_out_are_not_read(tmp_path):
    for kind, header in (("objects", "image,synset,label\n"), ("scenes", "image,caption\n")):
        (tmp_path / kind).mkdir()
        names = [f"{n}.jpg" for n in range(40)]
        for name in names:
            (tmp_path / kind / name).touch()
        rest = "n01440764,tench" if kind == "objects" else "a dog"
        (tmp_path / f"{kind}.csv").write_text(header + "".join(f"{name},{rest}\n" for name in names))
    photos = Photos.read(tmp_path)
    assert (OBJECTS_HELD_OUT, SCENES_HELD_OUT) == (0.3, 0.2)
    assert [p.path.name for p in photos.objects] == [name for name in names if not is_held_out(name, 0.3)]
    assert [p.path.name for p in photos.scenes] == [name for name in names if not is_held_out(name, 0.2)]
    assert 0 < len(photos.objects) < len(photos.scenes) < 40


def test_the_defaults_fit_each_other():
    config = default_config()
    assert config.encoder.embedding_dim == config.encoder.trunks["vision"].width
    assert all("{}" in template for template in IS_THERE)
