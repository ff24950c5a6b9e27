"""Losses and gradients of the originals' training, through the published files as this project loads them."""

import json

import pytest
import torch
from originals import IMAGEBIND_LLM, V2

from adapter_llm.convert.keys import AdapterLayout
from adapter_llm.convert.relations import reader
from adapter_llm.model import MediaBatch
from adapter_llm.tensorfiles import open_tensors
from imagebind_encoder import Modality

LOSS, GRADIENT = 1e-5, 2e-4  # relative
both = pytest.mark.parametrize("family", [V2, IMAGEBIND_LLM], indirect=True)
FILES = {"main": "7B.pth", "legacy": "7B-legacy-bridge.pth", "pretrained": "7B-pretrained.pth"}


def training_cases(family):
    recorded = json.loads((family.folder / "training.json").read_text())
    for name, entry in recorded.items():
        if isinstance(entry, dict) and "trainable_gradient_norms" in entry:
            variant, _, phase = name.rpartition(".")
            yield variant if family.name == V2 else FILES[variant], phase, entry


def training_features(family, model, images):
    """What the connector reads of the first `images` recorded pictures, one for every row of tokens."""
    if "in.train.features" in family.recorded:
        return family.recorded["in.train.features"]
    if family.name == V2:
        if not family.has_clip:
            pytest.skip("the folder has no CLIP to see the training pictures with")
        pictures = family.recorded["in.images"][:images].float()
    else:
        entry = {"where": ["imagebind", "in.image", 0], "weight": 1.0, "rows": list(range(images))}
        media, _ = family.media({"Image": entry})
        if media is None:
            pytest.skip("the folder has no pictures to train with")
        pictures = media[Modality.VISION].tensor
    batch = MediaBatch(pictures, torch.arange(images), torch.ones(images))
    with torch.no_grad():
        return model.encode({Modality.VISION: batch}, images)[0]


def our_gradients(model):
    """Gradients under the names that tensors have in a weights folder; zeros where there is none."""
    parts = {"connector": model.connector, "adapter": model.adapter, "decoder": model.llama.model}
    return {
        f"{part}.{name}": torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for part, module in parts.items()
        for name, parameter in module.named_parameters()
    }


@both
def test_loss_and_the_gradient_of_every_parameter_that_trains(family):
    if not (family.folder / "training.json").exists():
        pytest.skip(f"no training numbers in {family.folder}")
    tokens, labels = family.recorded["in.train.tokens"], family.recorded["in.train.labels"]
    labels = labels.masked_fill(labels == 0, -100)  # the originals' sign of a token that is not learned
    checked, cases = 0, [case for case in training_cases(family) if family.weights(case[0])]
    if not cases:
        pytest.skip(f"no training numbers of the files in {family.folder}")
    for name, phase, entry in cases:
        model = family.checkpoint(name, merge=False).model
        for part in (model.connector, model.adapter, model.llama):
            part.requires_grad_(True)
            part.zero_grad()
        features = training_features(family, model, len(tokens))
        loss = model.loss(tokens, torch.ones_like(tokens), labels, model.adapt(features))
        assert float(loss.detach()) == pytest.approx(entry["loss"], rel=LOSS), f"{name}.{phase}"
        loss.backward()
        layout = AdapterLayout.of(name, open_tensors(family.adapter_file(name)).specs)
        gradients = our_gradients(model)
        read = reader(layout.relations(), gradients.__getitem__, back=True)  # reorders gradients as it does weights
        for theirs, norm in entry["trainable_gradient_norms"].items():
            if norm is None:  # the originals never use it; neither do we
                assert theirs in layout.kept()
                continue
            found = float(read(theirs).norm())
            assert found == pytest.approx(norm, rel=GRADIENT), f"{name}.{phase} {theirs}"
            checked += 1
        model.requires_grad_(False)
    assert checked


@both
def test_a_batch_without_anything_to_learn_costs_nothing(family):
    model = family.checkpoint(family.first).model
    tokens = torch.randint(3, 50, (2, 7))
    features = torch.randn(2, 1, model.connector.input_proj.in_features)
    loss = model.loss(tokens, torch.ones_like(tokens), torch.full_like(tokens, -100), model.adapt(features))
    assert float(loss.detach()) == 0.0


