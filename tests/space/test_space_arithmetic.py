"""How vectors of the shared space are made, added, compared, and turned into probabilities."""

import pytest
import torch
from torch.nn import functional as F

from adapter_llm.space import LOGIT_SCALE, classify, combine, similarity, vector_of


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_a_vector_is_the_mean_direction_of_the_features():
    features = torch.randn(5, 3, 7)
    expected = torch.stack([(rows / rows.norm(dim=1, keepdim=True)).mean(0) for rows in features])
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(vector_of(features), expected)
    torch.testing.assert_close(vector_of(features[2]), expected[2])


def test_lengths_of_features_do_not_count():
    features = torch.randn(4, 3, 7)
    torch.testing.assert_close(vector_of(features * torch.rand(4, 3, 1).add(0.1)), vector_of(features))


def test_a_single_feature_is_its_direction():
    features = torch.randn(4, 1, 7)
    torch.testing.assert_close(vector_of(features), F.normalize(features[:, 0], dim=-1))


def test_half_precision_is_computed_in_full():
    features = torch.randn(2, 3, 7).bfloat16()
    assert torch.equal(vector_of(features), vector_of(features.float()))


def test_combine_adds_directions():
    a, b = unit(7), unit(7)
    torch.testing.assert_close(combine([a]), a)
    torch.testing.assert_close(combine([a, b]), F.normalize(a + b, dim=0))
    torch.testing.assert_close(combine([a, b], [2, 0.5]), F.normalize(2 * a + 0.5 * b, dim=0))
    torch.testing.assert_close(combine([a * 9, b / 9], [2, 0.5]), F.normalize(2 * a + 0.5 * b, dim=0))
    torch.testing.assert_close(combine(torch.stack([a, b]), [-1, 3]), F.normalize(3 * b - a, dim=0))
    torch.testing.assert_close(combine([a, b], [4, 1]), combine([b, a], [0.25, 1]))
    torch.testing.assert_close(combine([a, b], [1, 0]), a)
    torch.testing.assert_close(combine([a], [-1]), -a)


@pytest.mark.parametrize("vectors, weights, message", [
    ([], None, "no vectors to combine"),
    ([torch.ones(3)], [], "1 vectors need as many finite weights"),
    ([torch.ones(3)], [1, 2], "1 vectors need as many finite weights"),
    ([torch.ones(3)], [float("nan")], "finite weights"),
    ([torch.ones(3)], [float("inf")], "finite weights"),
    ([torch.ones(3), torch.ones(3) * 2], [1, -1], "cancel each other out"),
    ([torch.ones(3)], [0], "cancel each other out"),
    ([torch.zeros(3)], [1], "cancel each other out"),
])  # fmt: skip
def test_what_cannot_be_combined(vectors, weights, message):
    with pytest.raises(ValueError, match=message):
        combine(vectors, weights)


def test_similarity_is_the_cosine_of_each_with_each():
    a, b = torch.randn(4, 7), torch.randn(5, 7)
    expected = torch.stack([torch.cosine_similarity(row[None], b) for row in a])
    torch.testing.assert_close(similarity(a, b), expected)
    torch.testing.assert_close(similarity(a[1], b), expected[1])
    torch.testing.assert_close(similarity(a * 3, b / 7), expected)
    torch.testing.assert_close(similarity(a, a).diagonal(), torch.ones(4))


def test_probabilities_of_labels():
    vectors, labels = torch.randn(4, 7), torch.randn(5, 7)
    found = classify(vectors, labels, 8.0)
    torch.testing.assert_close(found, torch.softmax(8 * similarity(vectors, labels), dim=-1))
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(4))
    torch.testing.assert_close(classify(vectors[2], labels, 8.0), found[2])
    assert torch.equal(classify(vectors, labels, 50.0).argmax(-1), found.argmax(-1))
    assert (classify(vectors, labels, 50.0).amax(-1) > found.amax(-1)).all()
    torch.testing.assert_close(classify(vectors, labels), classify(vectors, labels, LOGIT_SCALE))
