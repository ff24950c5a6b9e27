"""The blend of features with their neighbours, and the vector for an image generator: formulas and laws."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from adapter_llm.model import mix
from adapter_llm.retrieval import FeatureIndex, FeatureIndexError, RetrievalOptions, blend, generation_vector
from imagebind_encoder import ConfigError, Modality

STORED, E, B, N = 23, 11, 3, 2


@pytest.fixture
def index():
    return FeatureIndex(F.normalize(torch.randn(STORED, E), dim=-1))


@pytest.fixture
def features():
    return torch.randn(B, N, E)


def by_the_book(feature, vectors, options):
    """One feature (E,), step by step, in float64."""
    feature, vectors = feature.double(), vectors.double()
    scores = [(float(feature @ vector), vector) for vector in vectors]
    best = sorted(scores, key=lambda entry: -entry[0])[: options.neighbours]
    exponents = torch.tensor([options.sharpness * score for score, _ in best], dtype=torch.float64).exp()
    prototype = sum(weight * vector for weight, (_, vector) in zip(exponents / exponents.sum(), best, strict=True))
    prototype = prototype / prototype.norm()
    blended = (1 - options.weight) * feature + options.weight * prototype
    return (blended / blended.norm()).float()


@pytest.mark.parametrize("options", [
    RetrievalOptions(), RetrievalOptions(4, 5.0, 0.8), RetrievalOptions(1), RetrievalOptions(3, 0.0, 0.25),
    RetrievalOptions(100, 2, 1),
])  # fmt: skip
def test_formula(index, features, options):
    expected = torch.stack([by_the_book(row, index.vectors(), options) for row in features.flatten(0, 1)])
    actual = blend(features, index, options)
    assert actual.shape == features.shape
    torch.testing.assert_close(actual, expected.view_as(features), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(actual.norm(dim=-1), torch.ones(B, N))


def test_the_defaults_are_the_originals(index, features):
    assert dataclasses.astuple(RetrievalOptions()) == (10, 20.0, 0.5)
    assert torch.equal(blend(features, index), blend(features, index, RetrievalOptions(10, 20.0, 0.5)))


def test_weight_0_is_the_identity(index, features):
    assert blend(features, index, RetrievalOptions(weight=0)) is features
    assert blend(features.half(), index, RetrievalOptions(weight=0.0)).dtype == torch.float16


def test_every_token_of_every_row_is_alone(index, features):
    whole = blend(features, index)
    for row in range(B):
        for token in range(N):
            alone = blend(features[row : row + 1, token : token + 1], index)
            torch.testing.assert_close(alone[0, 0], whole[row, token], rtol=1e-6, atol=1e-7)


def test_rows_without_media_stay_empty(index, features):
    features[1] = 0
    blended = blend(features, index)
    assert torch.equal(blended[1], torch.zeros(N, E))
    assert torch.equal(blended[0], blend(features[:1], index)[0])


def test_the_dtype_is_kept_and_sums_are_made_in_float32(index, features):
    half, options = features.bfloat16(), RetrievalOptions(weight=0.3)
    assert torch.equal(blend(half, index, options), blend(half.float(), index, options).bfloat16())


def test_scores_are_those_of_the_feature_as_it_is(index, features):
    """Not of its direction: a longer feature is surer of its nearest neighbour."""
    options, features = RetrievalOptions(weight=1), F.normalize(features, dim=-1)
    nearest = index.take(index.search(features.flatten(0, 1), 1)[1][:, 0]).view_as(features)
    likeness = [(blend(scale * features, index, options) * nearest).sum(-1) for scale in (0.1, 1.0, 10.0)]
    assert (likeness[0] < likeness[1]).all() and (likeness[1] < likeness[2]).all()


def test_an_index_of_another_encoder_is_refused(index):
    with pytest.raises(FeatureIndexError, match="holds vectors of 11 numbers .* the same encoder"):
        blend(torch.zeros(B, N, E + 1), index)


@pytest.mark.parametrize("wrong, message", [
    ({"neighbours": 0}, "neighbours must be a positive integer, not 0"),
    ({"neighbours": 2.0}, "neighbours must be a positive integer, not 2.0"),
    ({"neighbours": True}, "neighbours must be a positive integer"),
    ({"sharpness": -1.0}, "sharpness must be a number from 0 up, not -1.0"),
    ({"sharpness": float("nan")}, "sharpness must be a number from 0 up"),
    ({"weight": 1.5}, "weight must be a number from 0 to 1, not 1.5"),
    ({"weight": -0.1}, "weight must be a number from 0 to 1"),
    ({"weight": "half"}, "weight must be a number from 0 to 1, not 'half'"),
])  # fmt: skip
def test_options_out_of_range(wrong, message):
    with pytest.raises(ConfigError, match=f"RetrievalOptions.{message}"):
        RetrievalOptions(**wrong)


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetrievalOptions().weight = 0.1


@pytest.fixture
def outputs():
    return {Modality.VISION: 3 * torch.randn(2, N, E), Modality.AUDIO: torch.randn(3, N, E)}


ROWS, WEIGHTS = torch.tensor([0, 2, 0, 2, 2]), torch.tensor([1.0, 0.5, 2.0, 0.0, 0.25])


def test_generation_vector_is_the_weighted_mean_of_outputs_as_they_are(outputs):
    vector = generation_vector(outputs, ROWS, WEIGHTS, B)
    vision, audio = (output[:, 0] for output in outputs.values())
    assert vector.shape == (B, E)
    torch.testing.assert_close(vector[0], (vision[0] + 2 * audio[0]) / (3 + 1e-6))
    assert torch.equal(vector[1], torch.zeros(E))
    torch.testing.assert_close(vector[2], (0.5 * vision[1] + 0.25 * audio[2]) / (0.75 + 1e-6))


def test_the_share_of_an_item_is_that_of_mix(outputs):
    """Small weights show it: 1e-6 is added to their sum."""
    units = {name: F.normalize(output[:, :1], dim=-1) for name, output in outputs.items()}
    tiny = WEIGHTS * 1e-6
    expected = mix(torch.cat(list(units.values())), ROWS, tiny, B)
    torch.testing.assert_close(generation_vector(units, ROWS, tiny, B), expected[:, 0])


def test_point_clouds_count_a_fifth():
    point, vision = torch.randn(1, 1, E), torch.randn(1, 1, E)
    rows, weights = torch.tensor([0, 0]), torch.tensor([1.0, 1.0])
    vector = generation_vector({"point": point, "vision": vision}, rows, weights)
    torch.testing.assert_close(vector, (point[:, 0] / 5 + vision[:, 0]) / (2 + 1e-6))


def test_generation_vector_with_an_index_turns_and_keeps_its_length(outputs, index):
    options = RetrievalOptions(3, 7.0, 0.4)
    plain = generation_vector(outputs, ROWS, WEIGHTS, B)
    turned = generation_vector(outputs, ROWS, WEIGHTS, B, index, options)
    torch.testing.assert_close(turned.norm(dim=-1), plain.norm(dim=-1))
    torch.testing.assert_close(
        F.normalize(turned, dim=-1), blend(F.normalize(plain, dim=-1), index, options), rtol=1e-5, atol=1e-6
    )
    assert torch.equal(turned[1], torch.zeros(E))
    same = generation_vector(outputs, ROWS, WEIGHTS, B, index, RetrievalOptions(weight=0))
    torch.testing.assert_close(same, plain)
