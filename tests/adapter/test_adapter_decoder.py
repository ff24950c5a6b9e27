"""Laws of gated adapter attention in a stock decoder."""

import pytest
import tiny
import torch
from oracle import logits as oracle_logits
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from adapter_llm.adapter import AdapterState
from adapter_llm.llama import attach_adapter

every_decoder = pytest.mark.parametrize("kind", tiny.DECODERS)
GREEDY = dict(do_sample=False, max_new_tokens=9)


@every_decoder
@torch.no_grad()
def test_zero_gates_and_no_state_leave_every_bit_alone(kind):
    stock, model = tiny.decoder(kind), tiny.adapter_llm(kind, gates="zero")
    ids, mask = tiny.padded(tiny.prompts(9, 9))
    state = model.adapt(tiny.features(2))
    expected = stock(ids).logits
    assert stock.config._attn_implementation == "sdpa"
    assert torch.equal(model(ids).logits, expected)
    assert torch.equal(model(ids, state=state).logits, expected)
    ids = stock.generate(ids, attention_mask=mask, **GREEDY)
    for given in (None, state):
        assert torch.equal(model.generate(ids[:, :9], mask, given, **GREEDY), ids)


@every_decoder
@torch.no_grad()
def test_zero_gates_leave_padded_batches_alone(kind):
    stock, model = tiny.decoder(kind), tiny.adapter_llm(kind, gates="zero")
    ids, mask = tiny.padded(tiny.prompts(3, 9, 5))
    expected = stock.generate(ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **GREEDY)
    for state in (None, model.adapt(tiny.features(3))):
        actual = model.generate(ids, mask, state, output_logits=True, return_dict_in_generate=True, **GREEDY)
        assert torch.equal(actual.sequences, expected.sequences)
        assert torch.equal(torch.stack(actual.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("query_layer", [tiny.QUERY_LAYER, tiny.LAYERS])
@pytest.mark.parametrize("query_len", [1, tiny.QUERY_LEN])
@pytest.mark.parametrize("kind", ["llama", "llama-mha", "llama-tied"])
@pytest.mark.parametrize("gate_scale", [False, True])
@torch.no_grad()
def test_logits_equal_the_written_out_model(kind, query_len, query_layer, gate_scale):
    model = tiny.adapter_llm(kind, query_len, query_layer, gate_scale=gate_scale)
    text, features = tiny.prompts(11)[0], tiny.features(1)
    adapter = model.adapter(model.connector(features))[0]
    assert adapter.shape == (query_layer, query_len, tiny.HIDDEN)
    weights, config = model.llama.state_dict(), model.llama.config
    actual = model(text[None], state=model.adapt(features)).logits[0]
    gates, scale = model.adapter.gates, model.adapter.gate_scale
    tiny.assert_close(actual, oracle_logits(weights, config, text, adapter, gates, scale))
    plain = oracle_logits(weights, config, text, None, model.adapter.gates)
    tiny.assert_close(model(text[None]).logits[0], plain)
    assert (actual - plain).abs().max() > 0.1 * plain.std()


@every_decoder
@torch.no_grad()
def test_layers_below_the_adapted_ones_see_nothing(kind):
    model = tiny.adapter_llm(kind)
    (ids,) = tiny.prompts(6)
    plain = model(ids[None], output_hidden_states=True).hidden_states
    told = model(ids[None], state=model.adapt(tiny.features(1)), output_hidden_states=True).hidden_states
    untouched = tiny.LAYERS - tiny.QUERY_LAYER + 1  # the embeddings come first
    for depth, (before, after) in enumerate(zip(plain, told, strict=True)):
        assert torch.equal(before, after) == (depth < untouched), depth


@every_decoder
@pytest.mark.parametrize("query_len", [1, tiny.QUERY_LEN])
@torch.no_grad()
def test_cache_changes_nothing(kind, query_len):
    model = tiny.adapter_llm(kind, query_len)
    ids, mask = tiny.padded(tiny.prompts(8, 12))
    state = model.adapt(tiny.features(2))
    whole = model(ids, mask, state, use_cache=False).logits
    output = model(ids[:, :7], mask[:, :7], state, use_cache=True)
    steps = [output.logits]
    for step in range(7, 12):
        output = model(ids[:, step : step + 1], mask[:, : step + 1], state, past_key_values=output.past_key_values)
        steps.append(output.logits)
    real = mask.bool()
    tiny.assert_close(torch.cat(steps, dim=1)[real], whole[real])


@torch.no_grad()
def test_generate_equals_growing_the_text_by_hand():
    model = tiny.adapter_llm()
    (ids,) = tiny.prompts(5)
    state = model.adapt(tiny.features(1))
    grown = ids[None]
    for _ in range(9):
        grown = torch.cat([grown, model(grown, state=state, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(model.generate(ids[None], torch.ones_like(ids[None]), state, **GREEDY), grown)


@every_decoder
@torch.no_grad()
def test_pads_change_nothing(kind):
    """An attention registered without a mask function is given no mask: pads were read as text, off by 0.3."""
    model = tiny.adapter_llm(kind)
    (ids,) = tiny.prompts(6)
    alone = model(ids[None], state=model.adapt(tiny.features(1))).logits[0]
    for pad in (0, 77):
        long = torch.cat([torch.full((5,), pad), ids])[None]
        mask = torch.tensor([[0] * 5 + [1] * 6])
        state = model.adapt(tiny.features(1))
        tiny.assert_close(model(long, mask, state).logits[0, 5:], alone)
        right = torch.cat([ids, torch.full((5,), pad)])[None]
        tiny.assert_close(model(right, mask.flip(1), state).logits[0, :6], alone)


@every_decoder
@pytest.mark.parametrize("query_len", [1, tiny.QUERY_LEN])
@torch.no_grad()
def test_batch_equals_one_by_one(kind, query_len):
    """Prompts of other lengths, another picture each, and one row without any."""
    model = tiny.adapter_llm(kind, query_len)
    rows, features = tiny.prompts(3, 9, 5, 7), tiny.features(4)
    present = torch.tensor([True, False, True, True])
    options = dict(output_logits=True, return_dict_in_generate=True, **GREEDY)
    ids, mask = tiny.padded(rows)
    together = model.generate(ids, mask, model.adapt(features, present), **options)
    logits = torch.stack(together.logits, dim=1)
    for row, text in enumerate(rows):
        state = model.adapt(features[row : row + 1]) if present[row] else None
        alone = model.generate(text[None], torch.ones_like(text[None]), state, **options)
        assert torch.equal(together.sequences[row, 9:], alone.sequences[0, len(text) :])
        tiny.assert_close(logits[row : row + 1], torch.stack(alone.logits, dim=1))
        assert state is None or not torch.allclose(logits[row], model_plain(model, text, options), rtol=0.01)


def model_plain(model, text, options):
    return torch.stack(model.generate(text[None], torch.ones_like(text[None]), None, **options).logits, dim=1)[0]


@torch.no_grad()
def test_row_without_media_has_the_plain_logits_bit_for_bit():
    model = tiny.adapter_llm()
    ids, mask = tiny.padded(tiny.prompts(6, 6))
    state = model.adapt(tiny.features(2), torch.tensor([True, False]))
    told, plain = model(ids, mask, state).logits, model(ids, mask).logits
    assert torch.equal(told[1], plain[1])
    assert not torch.allclose(told[0], plain[0], rtol=0.01)


@every_decoder
@torch.no_grad()
def test_beams_of_a_batch_equal_beams_of_each_row(kind):
    model = tiny.adapter_llm(kind)
    rows, features = tiny.prompts(4, 6), tiny.features(2)
    options = dict(num_beams=3, num_return_sequences=3, return_dict_in_generate=True, output_scores=True, **GREEDY)
    ids, mask = tiny.padded(rows)
    together = model.generate(ids, mask, model.adapt(features), **options)
    assert together.sequences.shape == (6, 15)
    for row, text in enumerate(rows):
        state = model.adapt(features[row : row + 1])
        alone = model.generate(text[None], torch.ones_like(text[None]), state, **options)
        beams = slice(3 * row, 3 * row + 3)
        assert torch.equal(together.sequences[beams, 6:], alone.sequences[:, len(text) :])
        tiny.assert_close(together.sequences_scores[beams], alone.sequences_scores)
        # each beam's score is the mean log probability that the model gives it when it reads the whole text
        read = model(alone.sequences, state=state[torch.zeros(3, dtype=int)]).logits.log_softmax(-1)
        chosen = read[:, len(text) - 1 : -1].gather(-1, alone.sequences[:, len(text) :, None])
        tiny.assert_close(chosen.mean(dim=(1, 2)), alone.sequences_scores, 1e-4)


@torch.no_grad()
def test_return_sequences_equal_rows_repeated_by_hand():
    model = tiny.adapter_llm()
    ids, mask = tiny.padded(tiny.prompts(4, 6))
    state = model.adapt(tiny.features(2))
    torch.manual_seed(8)
    drawn = model.generate(ids, mask, state, do_sample=True, max_new_tokens=9, num_return_sequences=3)
    repeat = torch.tensor([0, 0, 0, 1, 1, 1])
    torch.manual_seed(8)
    by_hand = model.generate(ids[repeat], mask[repeat], state[repeat], do_sample=True, max_new_tokens=9)
    assert torch.equal(drawn, by_hand)
    assert len({tuple(row.tolist()) for row in drawn}) == 6


@torch.no_grad()
def test_a_seed_gives_the_same_text_again():
    model = tiny.adapter_llm()
    ids, mask = tiny.padded(tiny.prompts(4, 6))
    state = model.adapt(tiny.features(2))

    def draw(seed):
        torch.manual_seed(seed)
        return model.generate(ids, mask, state, do_sample=True, temperature=1.5, top_p=0.9, max_new_tokens=9)

    first, other = draw(5), draw(6)
    assert torch.equal(first, draw(5))
    assert not torch.equal(first, other)


@every_decoder
@torch.no_grad()
def test_state_has_the_documented_shapes(kind):
    model = tiny.adapter_llm(kind)
    heads, kv_heads, size = tiny.HEADS, model.llama.config.num_key_value_heads, 10 if kind == "qwen3" else 8
    state = model.adapt(tiny.features(9))
    assert state.keys.shape == (9, tiny.QUERY_LAYER, kv_heads, tiny.QUERY_LEN, size)
    assert state.values.shape == (9, tiny.QUERY_LAYER, heads, tiny.QUERY_LEN, size)
    assert len(state) == 9


@every_decoder
@torch.no_grad()
def test_state_is_each_layers_own_projection_with_gated_values(kind):
    model = tiny.adapter_llm(kind)
    tokens = model.adapter(model.connector(tiny.features(2)))
    state = model.adapt(tiny.features(2))
    for index, layer in enumerate(model.llama.model.layers[-tiny.QUERY_LAYER :]):
        attention = layer.self_attn
        for head in range(tiny.HEADS):
            kv = head // (tiny.HEADS // model.llama.config.num_key_value_heads)
            rows = slice(kv * attention.head_dim, (kv + 1) * attention.head_dim)
            key, value = attention.k_proj(tokens[:, index])[..., rows], attention.v_proj(tokens[:, index])[..., rows]
            if kind == "qwen3":
                key = attention.k_norm(key)
            tiny.assert_close(state.keys[:, index, kv], key)
            tiny.assert_close(state.values[:, index, head], torch.tanh(model.adapter.gates[index, head]) * value)


def test_rows_of_a_state():
    model = tiny.adapter_llm()
    state = model.adapt(tiny.features(5))
    for rows in (slice(1, 3), torch.tensor([4, 0, 0]), torch.tensor([True, False, True, False, False])):
        part = state[rows]
        assert isinstance(part, AdapterState) and len(part) == len(torch.arange(5)[rows])
        assert torch.equal(part.keys, state.keys[rows]) and torch.equal(part.values, state.values[rows])
    assert state.as_kwargs().keys() == {"adapter_keys", "adapter_values"}


def test_nothing_about_an_input_stays_on_the_model():
    model = tiny.adapter_llm()
    ids, mask = tiny.padded(tiny.prompts(4, 6))
    buffers = {name for name, _ in model.named_buffers()}
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    before = model.generate(ids, mask, **GREEDY)
    model.generate(ids, mask, model.adapt(tiny.features(2)), **GREEDY)
    assert torch.equal(model.generate(ids, mask, **GREEDY), before)
    assert buffers == {name for name, _ in model.named_buffers()}
    assert attributes == {name: set(vars(module)) for name, module in model.named_modules()}


@every_decoder
@torch.no_grad()
def test_attached_decoder_is_saved_as_a_stock_one(kind, tmp_path):
    model = tiny.adapter_llm(kind)
    stock = tiny.decoder(kind)
    model.llama.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(stock)
    assert loaded.config.architectures == [type(stock).__name__]
    assert loaded.config._attn_implementation == "sdpa"
    assert "gated_adapter" not in (tmp_path / "config.json").read_text()
    assert {key: value.shape for key, value in loaded.state_dict().items()} == {
        key: value.shape for key, value in stock.state_dict().items()
    }
    (ids,) = tiny.prompts(6)
    assert torch.equal(loaded.eval()(ids[None]).logits, stock(ids[None]).logits)


def test_attaching_twice_is_attaching_once():
    llama = tiny.decoder()
    once = attach_adapter(llama)
    kind = type(once)
    assert once is llama and isinstance(llama, type(tiny.decoder()))
    assert attach_adapter(once) is llama and type(llama) is kind
    assert type(tiny.decoder()) is not kind, "the class itself must stay stock"


def test_other_architectures_are_refused_and_left_alone():
    model = GPT2LMHeadModel(GPT2Config(n_embd=12, n_layer=1, n_head=2, vocab_size=31, n_positions=17))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not a LLaMA-family model: it has no model.layers"):
        attach_adapter(model)
    assert type(model) is GPT2LMHeadModel


def test_decoder_without_separate_projections_is_refused():
    llama = tiny.decoder()
    del llama.model.layers[0].self_attn.k_proj
    with pytest.raises(ValueError, match="has no k_proj and v_proj in its layers; give a LLaMA-family model"):
        attach_adapter(llama)
