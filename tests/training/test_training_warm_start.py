"""The native warm start, against doing it one text at a time, and against structure that was planted."""

import copy

import folders
import pytest
import torch
from torch.nn import functional as F

from adapter_llm.adapter import AdapterTokens
from adapter_llm.config import AdapterConfig, ConnectorConfig
from adapter_llm.connector import build_connector
from adapter_llm.warm_start import native_tokens, regress, share

TEXTS = [
    ("This is a photo of", "a cat"),
    ("This is a photo of", "a dog and a cat on the grass, in the rain"),
    ("The picture shows this:", "x"),  # fewer tokens than slots
    ("The picture shows this:", "An owl sits."),
    ("In", "the rain"),
]


@pytest.fixture(scope="module")
def llama(decoder):
    return folders.build(decoder)[0].llama


def one_at_a_time(llama, tokenizer, lead, words, query_layer, query_len):
    """What each layer's k_proj is given at the words, by asking k_proj.

    Slot s is the word at s / Q of the way; a word that begins exactly there is still the one before.
    """
    given = []
    hooks = [
        layer.self_attn.k_proj.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0][0]))
        for layer in llama.model.layers
    ]
    start = len(tokenizer(lead, add_special_tokens=False).input_ids)
    ids = tokenizer(f"{lead} {words}", add_special_tokens=False).input_ids
    with torch.inference_mode():
        llama(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    spoken = len(ids) - start
    at = [start + max(0, (slot * spoken * 1000 - slot) // (query_len * 1000)) for slot in range(query_len)]
    return torch.stack([hidden[at] for hidden in given[-query_layer:]])


@pytest.mark.parametrize("query_layer, query_len", [(3, 4), (5, 1), (1, 7)])
def test_native_tokens_are_what_the_layers_see(llama, tokenizer, query_layer, query_len):
    found = native_tokens(llama, tokenizer, TEXTS, query_layer, query_len, batch_size=2)
    assert found.shape == (len(TEXTS), query_layer, query_len, 48)
    assert found.dtype == torch.float16
    for row, (lead, words) in zip(found.float(), TEXTS, strict=True):
        expected = one_at_a_time(llama, tokenizer, lead, words, query_layer, query_len)
        torch.testing.assert_close(row, expected, rtol=2e-3, atol=1e-3)  # float16 has 11 bits
    assert (found[0].float() - found[4].float()).abs().max() > 0.1


def test_padding_changes_nothing(llama, tokenizer):
    alone = native_tokens(llama, tokenizer, TEXTS, 3, 4, batch_size=1)
    together = native_tokens(llama, tokenizer, TEXTS, 3, 4, batch_size=64)
    torch.testing.assert_close(together, alone, rtol=2e-3, atol=1e-3)
    reversed_order = native_tokens(llama, tokenizer, TEXTS[::-1], 3, 4, batch_size=2)
    torch.testing.assert_close(reversed_order.flip(0), alone, rtol=2e-3, atol=1e-3)


def test_no_hooks_stay_behind(llama, tokenizer, monkeypatch):
    def hooks():
        return [sorted(module._forward_hooks) for module in llama.model.layers.modules()]

    before = hooks()
    native_tokens(llama, tokenizer, TEXTS[:1], 3, 4)
    assert hooks() == before
    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "norm", None)
        with pytest.raises(TypeError):
            native_tokens(llama, tokenizer, TEXTS[:1], 3, 4)
    assert hooks() == before


def planted(texts=9, layers=4, slots=3, size=6):
    """Targets that are exactly scale_l * tokens, layers of very different loudness."""
    tokens = torch.randn(texts, slots, size)
    scale = (torch.rand(layers, size) + 0.3) * torch.tensor([0.1, 1.0, 3.0, 20.0])[:layers, None]
    return tokens, scale, scale[None, :, None] * tokens[:, None]


def test_share_finds_what_was_planted():
    """Scale and tokens are known up to one factor a channel; their product is the targets, all of them."""
    tokens, scale, targets = planted()
    found, fitted, explained = share(targets, torch.ones_like(scale))
    assert explained == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(fitted[None, :, None] * found[:, None], targets, rtol=1e-4, atol=1e-5)
    factor = fitted / scale
    torch.testing.assert_close(factor, factor[:1].expand_as(factor), rtol=1e-4, atol=0)
    torch.testing.assert_close(found * factor[0], tokens, rtol=1e-4, atol=1e-5)


def test_share_leaves_the_scale_it_was_given():
    start = torch.ones(4, 6)
    share(planted()[2], start)
    assert torch.equal(start, torch.ones(4, 6))


def test_share_without_scales_is_the_mean_weighted_by_loudness():
    tokens, _, targets = planted()
    found, fitted, explained = share(targets, None)
    power = targets.square().mean((0, 2, 3), keepdim=True)
    assert torch.equal(fitted, torch.ones(4, 6))
    torch.testing.assert_close(found, (targets / power).sum(1) / (1 / power).sum(1))
    assert explained < 0.9
    same = tokens[:, None].expand(-1, 4, -1, -1)
    assert share(same, None)[2] == pytest.approx(1, abs=1e-6)


def test_noise_is_not_explained():
    _, scale, targets = planted(texts=400)
    noise = torch.randn_like(targets) * targets.square().mean((0, 2, 3), keepdim=True).sqrt()
    assert share(targets + noise, scale)[2] == pytest.approx(
        0.5 + 0.5 / 4, abs=0.05
    )  # one token set fits 1 of 4 noises
    assert share(torch.randn(400, 4, 3, 6), torch.ones(4, 6))[2] < 0.4


def warm(layer_scale=True, steps=500, rows=12):
    """A regression on targets of rank one; each row of the targets has a feature vector of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        sizes = ConnectorConfig(width=24, depth=1, heads=3, mlp_ratio=1.5)
        connector = build_connector(sizes, 20, 3, 48)
        adapter = AdapterTokens(AdapterConfig(query_len=3, query_layer=4, layer_scale=layer_scale), 48, 6)
        _, _, targets = planted(rows, 4, 3, 48)
        if not layer_scale:
            targets = targets[:, 1:2].expand(-1, 4, -1, -1).clone()
        targets += torch.randn(1, 4, 3, 48)
        features = F.normalize(torch.randn(rows, 2, 20), dim=-1)
        original = targets.clone()

        def sample(count):
            chosen = torch.randint(rows, (count,))
            return features[chosen], chosen

        before = copy.deepcopy(connector)
        explained = regress(connector, adapter, targets, sample, steps, batch_size=24, learning_rate=3e-3, gate=0.37)
    return connector, adapter, original, features, explained, before


@pytest.mark.parametrize("layer_scale", [True, False])
def test_regression_tells_the_adapter_what_the_layers_see(layer_scale):
    connector, adapter, targets, features, explained, before = warm(layer_scale)
    mean = targets.mean(0)
    torch.testing.assert_close(adapter.queries.detach(), mean)
    assert torch.equal(adapter.gates, torch.full_like(adapter.gates, 0.37))

    def missed(network):
        with torch.inference_mode():
            return [
                float(
                    (adapter(network(features)) - targets)[:, k].square().mean()
                    / (targets - mean)[:, k].square().mean()
                )
                for k in range(4)
            ]

    assert explained > 0.7
    assert max(missed(connector)) < 0.3  # in every layer, the quiet ones too
    assert min(missed(before)) > 0.9


def test_the_scale_carries_the_size_that_the_connectors_norm_takes_away():
    """What the connector must give has size 1 in every channel, and times the scale it is what layers share."""
    _, _, targets = planted(30, 4, 3, 48)
    targets += torch.randn_like(targets) * targets.square().mean((0, 2, 3), keepdim=True).sqrt()
    targets -= targets.mean(0)
    tokens, scale, _ = share(targets, targets.square().mean((0, 2)).sqrt())
    size = tokens.square().mean((0, 1)).sqrt()
    assert (size - 1).abs().min() > 0.02
    connector = build_connector(ConnectorConfig(width=24, depth=1, heads=3, mlp_ratio=1.5), 20, 3, 48)
    adapter = AdapterTokens(AdapterConfig(query_len=3, query_layer=4, layer_scale=True), 48, 6)
    regress(connector, adapter, targets.clone(), lambda n: (torch.randn(n, 2, 20), torch.zeros(n, dtype=int)), 1, 2)
    torch.testing.assert_close(adapter.scale.detach(), scale * size, rtol=1e-3, atol=1e-5)


def test_more_steps_explain_more():
    assert warm(steps=12)[4] < warm()[4]


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_any_number_of_steps_will_do(steps):
    """With 10 the schedule's rise of 10 % was one step long, and it divided by zero."""
    assert warm(steps=steps)[4] < 1
