"""Laws of AdapterLLM as a whole: what features become, what learns, what a loss is."""

import itertools
import math

import pytest
import tiny
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from adapter_llm.adapter import AdapterTokens
from adapter_llm.config import AdapterConfig
from adapter_llm.model import AdapterLLM, MediaBatch, mix
from imagebind_encoder import Modality

every_decoder = pytest.mark.parametrize("kind", tiny.DECODERS)


def example(batch=3):
    """A padded training batch: input_ids, attention_mask, labels."""
    ids, mask = tiny.padded(tiny.prompts(9, 6, 8)[:batch], left=False)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :4] = -100
    return ids, mask, labels


@every_decoder
def test_loss_is_the_one_transformers_computes(kind):
    model = tiny.adapter_llm(kind)
    ids, mask, labels = example()

    def gradients(loss):
        model.zero_grad()
        loss.backward()
        return {name: value.grad.clone() for name, value in model.adapter.named_parameters()}

    losses = [
        model.loss(ids, mask, labels, model.adapt(tiny.features(3))),
        model(ids, mask, model.adapt(tiny.features(3)), labels=labels).loss,
    ]
    assert math.isclose(*(loss.item() for loss in losses), rel_tol=1e-6)
    ours, theirs = map(gradients, losses)
    for name, gradient in theirs.items():
        tiny.assert_close(ours[name], gradient, 1e-4)


def test_loss_is_the_same_padded_on_either_side():
    model = tiny.adapter_llm()
    ids, mask, labels = example()
    state = model.adapt(tiny.features(3))
    left_ids, left_mask = tiny.padded([row[keep.bool()] for row, keep in zip(ids, mask)])
    left_labels, _ = tiny.padded([row[keep.bool()] for row, keep in zip(labels, mask)])
    left_labels = left_labels.masked_fill(left_mask == 0, -100)
    right, left = model.loss(ids, mask, labels, state), model.loss(left_ids, left_mask, left_labels, state)
    assert math.isclose(right.item(), left.item(), rel_tol=1e-6)


def test_loss_counts_what_is_labelled_and_nothing_else():
    model = tiny.adapter_llm()
    ids, mask, labels = example()
    state = model.adapt(tiny.features(3))
    losses = []
    for row, column in (labels != -100).nonzero().tolist():
        alone = torch.full_like(labels, -100)
        alone[row, column] = labels[row, column]
        losses.append(model.loss(ids, mask, alone, state))
    assert len(losses) == 5 + 2 + 4
    seen = []
    with model.llama.lm_head.register_forward_pre_hook(lambda head, inputs: seen.append(inputs[0].shape)):
        tiny.assert_close(torch.stack(losses).mean(), model.loss(ids, mask, labels, state))
    assert seen == [(11, tiny.HIDDEN)], "logits of tokens without a label are work for nothing"


def gradients_after_loss(model):
    model.llama.requires_grad_(False)
    model.loss(*example(), model.adapt(tiny.features(3))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@every_decoder
@pytest.mark.parametrize("connector", ["visual_query", "bridge"])
def test_gradients_reach_everything_that_learns_and_not_the_decoder(kind, connector):
    query_len = tiny.FEATURES if connector == "bridge" else tiny.QUERY_LEN
    for name, gradient in gradients_after_loss(tiny.adapter_llm(kind, query_len, connector=connector)).items():
        if name.startswith(("llama.", "encoder.")):
            assert gradient is None, name
        else:
            assert gradient is not None and gradient.isfinite().all(), name
            rows = gradient.flatten(1) if name.startswith("adapter.") else gradient.flatten()[None]
            assert (rows.abs().amax(dim=1) > 0).all(), f"{name}: a layer learns nothing"


@every_decoder
def test_a_new_adapter_learns_through_its_gates_first(kind):
    fresh = AdapterTokens(AdapterConfig(tiny.QUERY_LEN, tiny.QUERY_LAYER), tiny.HIDDEN, tiny.HEADS)
    assert torch.equal(fresh.gates, torch.zeros(tiny.QUERY_LAYER, tiny.HEADS))
    gradients = gradients_after_loss(tiny.adapter_llm(kind, gates="zero"))
    assert gradients["adapter.gates"].abs().min() > 0
    assert gradients["adapter.queries"].abs().max() == 0


def test_adapter_tokens_are_query_plus_scaled_query_tokens():
    torch.manual_seed(3)
    tokens = AdapterTokens(AdapterConfig(tiny.QUERY_LEN, tiny.QUERY_LAYER, layer_scale=True), tiny.HIDDEN, tiny.HEADS)
    shapes = {name: tuple(parameter.shape) for name, parameter in tokens.named_parameters()}
    assert shapes == {
        "queries": (tiny.QUERY_LAYER, tiny.QUERY_LEN, tiny.HIDDEN),
        "gates": (tiny.QUERY_LAYER, tiny.HEADS),
        "scale": (tiny.QUERY_LAYER, tiny.HIDDEN),
    }
    assert list(tokens.state_dict()) == list(shapes)
    plain = AdapterTokens(AdapterConfig(tiny.QUERY_LEN, tiny.QUERY_LAYER), tiny.HIDDEN, tiny.HEADS)
    assert list(plain.state_dict()) == ["queries", "gates"]
    plain.load_state_dict({"queries": tokens.queries, "gates": tokens.gates})
    given = torch.randn(2, tiny.QUERY_LEN, tiny.HIDDEN)
    assert torch.equal(tokens(given), plain(given)), "a scale starts at 1"
    tiny.shake(tokens, 0.5)
    for row, layer in itertools.product(range(2), range(tiny.QUERY_LAYER)):
        expected = tokens.queries[layer] + tokens.scale[layer] * given[row]
        tiny.assert_close(tokens(given)[row, layer], expected)


def test_gate_scale_is_there_if_the_config_says_so_and_starts_at_one():
    tokens = AdapterTokens(AdapterConfig(tiny.QUERY_LEN, tiny.QUERY_LAYER, gate_scale=True), tiny.HIDDEN, tiny.HEADS)
    assert list(tokens.state_dict()) == ["queries", "gates", "gate_scale"]
    assert torch.equal(tokens.gate_scale, torch.ones(tiny.QUERY_LAYER))
    assert AdapterTokens(AdapterConfig(4, 3), tiny.HIDDEN, tiny.HEADS).gate_scale is None


@every_decoder
@pytest.mark.parametrize("query_len", [1, tiny.QUERY_LEN])
@torch.no_grad()
def test_gate_scale_is_a_factor_on_what_each_layer_is_told(kind, query_len):
    model, without = tiny.adapter_llm(kind, query_len, gate_scale=True), tiny.adapter_llm(kind, query_len)
    without.adapter.load_state_dict({k: v for k, v in model.adapter.state_dict().items() if k != "gate_scale"})
    without.connector.load_state_dict(model.connector.state_dict())
    ids, mask = tiny.padded(tiny.prompts(9, 6))
    features = tiny.features(2)
    expected, plain = without.adapt(features), without(ids, mask).logits
    model.adapter.gate_scale.fill_(1)
    state = model.adapt(features)
    assert torch.equal(state.keys, expected.keys) and torch.equal(state.values, expected.values)
    model.adapter.gate_scale.copy_(torch.tensor([0.5, -2.0, 3.0]))
    state = model.adapt(features)
    assert torch.equal(state.keys, expected.keys)
    tiny.assert_close(state.values, expected.values * model.adapter.gate_scale[None, :, None, None, None], 1e-6)
    assert not torch.allclose(model(ids, mask, state).logits, without(ids, mask, expected).logits, rtol=0.01)
    model.adapter.gate_scale.zero_()
    assert torch.equal(model(ids, mask, model.adapt(features)).logits, plain), "closed in every layer"
    model.adapter.gate_scale.fill_(2), model.adapter.gates.zero_()
    assert torch.equal(model(ids, mask, model.adapt(features)).logits, plain), "twice nothing is nothing"


@every_decoder
def test_gate_scale_learns_in_every_layer(kind):
    model = tiny.adapter_llm(kind, gate_scale=True)
    gradient = gradients_after_loss(model)["adapter.gate_scale"]
    assert gradient.shape == (tiny.QUERY_LAYER,) and gradient.abs().min() > 0
    step = 1e-3
    for layer in range(tiny.QUERY_LAYER):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                model.adapter.gate_scale[layer] += sign * step
                losses.append(model.loss(*example(), model.adapt(tiny.features(3))))
                model.adapter.gate_scale[layer] -= sign * step
        assert math.isclose((losses[0] - losses[1]) / (2 * step), gradient[layer], rel_tol=0.03, abs_tol=2e-4)


def test_adapter_of_another_decoder_is_refused():
    sizes = (tiny.QUERY_LEN, tiny.LAYERS + 1)
    for tokens, message in (
        (AdapterTokens(AdapterConfig(*sizes), tiny.HIDDEN, tiny.HEADS), "6 layers or more, 6 heads and hidden size 48"),
        (AdapterTokens(AdapterConfig(4, 3), 40, tiny.HEADS), "3 layers or more, 6 heads and hidden size 40"),
        (AdapterTokens(AdapterConfig(4, 3), tiny.HIDDEN, 12), "3 layers or more, 12 heads and hidden size 48"),
    ):
        with pytest.raises(ValueError, match=f"{message}, and LlamaForCausalLM has 5, 6 and 48"):
            AdapterLLM(tiny.encoder(), torch.nn.Identity(), tokens, tiny.decoder())


UNIT = torch.nn.functional.normalize


def test_mix_is_the_weighted_mean_of_unit_features():
    features = tiny.features(3) * torch.tensor([5.0, 0.2, 3.0])[:, None, None]
    rows, weights = torch.tensor([1, 0, 1]), torch.tensor([0.5, 2.0, 1.5])
    mixed = mix(features, rows, weights, 4)
    unit = UNIT(features, dim=-1)
    assert mixed.shape == (4, tiny.FEATURES, tiny.FEATURES_DIM)
    tiny.assert_close(mixed[0], unit[1] * 2 / (2 + 1e-6), 1e-6)
    tiny.assert_close(mixed[1], (0.5 * unit[0] + 1.5 * unit[2]) / (2 + 1e-6), 1e-6)
    assert not mixed[2:].any(), "rows without items are zeros"
    assert (mixed[1].norm(dim=-1) < 0.99).all(), "a mean of unit vectors is not normalised again"


def test_mix_knows_no_order_and_only_shares():
    features, rows = tiny.features(6), torch.tensor([0, 1, 0, 1, 1, 0])
    weights = torch.tensor([0.3, 1.0, 2.0, 0.1, 4.0, 0.7])
    expected = mix(features, rows, weights, 2)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]):
        tiny.assert_close(mix(features[order], rows[order], weights[order], 2), expected, 1e-6)
    tiny.assert_close(mix(features, rows, weights * 7, 2), expected, 1e-5)
    equal = mix(features, rows, torch.full((6,), 0.4), 2)
    tiny.assert_close(equal[0], UNIT(features, dim=-1)[rows == 0].mean(0), 1e-5)
    assert torch.isfinite(mix(features, rows, torch.zeros(6), 2)).all()


def media():
    generator = torch.Generator().manual_seed(9)
    images, motion = torch.randn(3, 3, 42, 42, generator=generator), torch.randn(1, 6, 80, generator=generator)
    return {
        Modality.VISION: MediaBatch(images, torch.tensor([3, 0, 3]), torch.tensor([1.0, 1.0, 0.5])),
        Modality.IMU: MediaBatch(motion, torch.tensor([3]), torch.tensor([2.0])),
    }


@torch.no_grad()
def test_encode_mixes_modalities_row_by_row():
    model = tiny.adapter_llm()
    features, present = model.encode(media(), batch_size=5)
    assert features.shape == (5, tiny.FEATURES, tiny.FEATURES_DIM)
    assert present.tolist() == [True, False, False, True, False]
    images = UNIT(model.encoder({"vision": media()["vision"].tensor})["vision"], dim=-1)
    motion = UNIT(model.encoder({"imu": media()["imu"].tensor})["imu"], dim=-1)
    tiny.assert_close(features[0], images[1])
    tiny.assert_close(features[3], (images[0] + 0.5 * images[2] + 2 * motion[0]) / 3.5)
    assert not features[[1, 2, 4]].any()
    turned, _ = model.encode(dict(reversed(media().items())), batch_size=5)
    tiny.assert_close(turned, features, 1e-6)
    with pytest.raises(ValueError, match="at least one modality; without media call generate without a state"):
        model.encode({}, batch_size=5)


@torch.no_grad()
def test_rows_that_are_not_present_get_closed_gates():
    model = tiny.adapter_llm()
    features, present = model.encode(media(), batch_size=5)
    state, open_state = model.adapt(features, present), model.adapt(features)
    assert torch.equal(state.keys, open_state.keys)
    assert torch.equal(state.values[present], open_state.values[present])
    assert not state.values[~present].any() and open_state.values[~present].any()


@torch.no_grad()
def test_from_media_to_text_in_two_steps():
    """Encode once, ask many times: nothing is remembered between the calls but what the caller holds."""
    model = tiny.adapter_llm()
    features, present = model.encode(media(), batch_size=5)
    state = model.adapt(features, present)
    for ids, mask in (tiny.padded(tiny.prompts(3, 4, 5, 6, 7)), tiny.padded(tiny.prompts(9, 2, 5, 1, 1))):
        output = model(ids, mask, state)
        assert isinstance(output, CausalLMOutputWithPast)
        text = model.generate(ids, mask, state, do_sample=False, max_new_tokens=3)
        assert text.shape == (5, ids.shape[1] + 3)
        assert torch.equal(text[:, ids.shape[1]], output.logits[:, -1].argmax(-1))


@torch.no_grad()
def test_features_of_any_dtype_are_taken():
    model = tiny.adapter_llm()
    expected = model.adapt(tiny.features(2))
    actual = model.adapt(tiny.features(2).double())
    assert torch.equal(actual.keys, expected.keys) and actual.values.dtype == torch.float32


@torch.no_grad()
def test_bf16_decoder_with_a_float32_adapter():
    model = tiny.adapter_llm()
    ids, mask = tiny.padded(tiny.prompts(3, 6))
    expected = model(ids, mask, model.adapt(tiny.features(2))).logits
    model.llama.to(torch.bfloat16)
    state = model.adapt(tiny.features(2))
    assert state.keys.dtype == state.values.dtype == torch.bfloat16
    real = mask.bool()
    tiny.assert_close(model(ids, mask, state).logits.float()[real], expected[real], 0.2)
