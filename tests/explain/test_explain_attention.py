"""What is written down of a pass is what the pass computed, and writing it down changes nothing."""

from threading import Thread

import oracle
import pytest
import stored
import tiny
import torch
from torch import nn

import adapter_llm.llama
from adapter_llm.adapter import AdapterState
from adapter_llm.config import DecoderConfig
from adapter_llm.decoder import load_decoder
from adapter_llm.explain.answer import gate_factors
from adapter_llm.explain.attention import _recording, record
from adapter_llm.llama import ATTENTION
from adapter_llm.model import AdapterLLM

every_decoder = pytest.mark.parametrize("kind", tiny.DECODERS)
every_query_len = pytest.mark.parametrize("query_len", [1, tiny.QUERY_LEN])
LENGTH = 11


def text():
    return tiny.prompts(LENGTH)[0][None]


@torch.no_grad()
def written_out(monkeypatch, model, changes=None):
    """Attention and contribution (L, H, Q, T), by the decoder that is written out."""
    heads, gates = [], iter(gate_factors(model.adapter).flatten())

    def attend(query, key, value, causal):
        output = original(query, key, value, causal)
        if causal:
            heads.append([output.norm(dim=-1)])
        else:
            weights = torch.softmax(query @ key.T / query.shape[-1] ** 0.5, dim=-1).T
            heads[-1] += [weights, weights * (next(gates).abs() * value.norm(dim=-1))[:, None]]
        return output

    original = oracle.attend
    monkeypatch.setattr(oracle, "attend", attend)
    tokens = model.adapter(model.connector(tiny.features(1)))[0]
    weights = changes["weights"] if changes else model.llama.state_dict()
    oracle.logits(
        weights, model.llama.config, text()[0], tokens, model.adapter.gates, model.adapter.gate_scale,
        changes and changes["changes"],
    )  # fmt: skip
    shape = (*model.adapter.gates.shape, -1, LENGTH)
    adapted = heads[-len(model.adapter.gates.flatten()) :]
    attention = torch.stack([weights for _, weights, _ in adapted]).view(shape)
    contribution = torch.stack([parts / (parts.sum(0) + norms) for norms, _, parts in adapted]).view(shape)
    return attention, contribution


@every_query_len
@pytest.mark.parametrize("query_layer", [tiny.QUERY_LAYER, tiny.LAYERS])
@pytest.mark.parametrize("kind", ["llama", "llama-mha", "llama-tied"])
@pytest.mark.parametrize("gate_scale", [False, True])
@torch.no_grad()
def test_it_is_what_the_written_out_decoder_computes(monkeypatch, kind, query_len, query_layer, gate_scale):
    model = tiny.adapter_llm(kind, query_len, query_layer, gate_scale=gate_scale)
    recording = record(model, text(), model.adapt(tiny.features(1)), keep=1)
    attention, contribution = written_out(monkeypatch, model)
    assert recording.attention.shape == (query_layer, tiny.HEADS, query_len, LENGTH)
    tiny.assert_close(recording.attention, attention)
    tiny.assert_close(recording.contribution, contribution)


@torch.no_grad()
def test_it_is_so_with_low_rank_updates_biases_and_norms(monkeypatch, tmp_path):
    base = stored.save(tmp_path / "llama")
    changes = stored.changes(stored.ALL)
    llama = load_decoder(
        base, torch.float32, config=stored.ALL, changes=changes, adapted_layers=tiny.QUERY_LAYER
    )[0]  # fmt: skip
    model = AdapterLLM(nn.Identity(), nn.Identity(), stored.adapter(), llama).eval()
    monkeypatch.setattr(tiny, "features", lambda batch: stored.query_tokens(batch))
    recording = record(model, text(), model.adapt(stored.query_tokens()), keep=1)
    attention, contribution = written_out(
        monkeypatch, model, {"weights": stored.llama().state_dict(), "changes": changes}
    )
    tiny.assert_close(recording.attention, attention, 1e-4)
    tiny.assert_close(recording.contribution, contribution, 1e-4)


@every_decoder
@every_query_len
@torch.no_grad()
def test_weights_times_values_are_what_each_layer_added_to_its_text(monkeypatch, kind, query_len):
    """For decoders that are not written out: norms of queries, biases, heads of other sizes."""
    model = tiny.adapter_llm(kind, query_len)
    state, text_alone, with_adapter = model.adapt(tiny.features(1)), [], []

    def sdpa(*args, **kwargs):
        text_alone.append(original(*args, **kwargs)[0])
        return text_alone[-1], None

    original = adapter_llm.llama.sdpa_attention_forward
    monkeypatch.setattr(adapter_llm.llama, "sdpa_attention_forward", sdpa)
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, inputs: with_adapter.append(inputs[0]))
        for layer in model.llama.model.layers
    ]
    model(text(), state=state, use_cache=False)
    for hook in hooks:
        hook.remove()
    recording = record(model, text(), state, keep=1)
    for row, layer in enumerate(range(tiny.LAYERS - tiny.QUERY_LAYER, tiny.LAYERS)):
        plain = text_alone[layer][0].transpose(0, 1)  # (H, T, P)
        added = with_adapter[layer][0].unflatten(-1, (tiny.HEADS, -1)).transpose(0, 1) - plain
        tiny.assert_close(recording.attention[row].mT @ state.values[0, row], added, 1e-4)
        parts = recording.attention[row] * state.values[0, row].norm(dim=-1, keepdim=True)
        share = parts / (parts.sum(1, keepdim=True) + plain.norm(dim=-1)[:, None])
        tiny.assert_close(recording.contribution[row], share)
    tiny.assert_close(recording.attention.sum(2), torch.ones(tiny.QUERY_LAYER, tiny.HEADS, LENGTH))


@every_decoder
@every_query_len
@torch.no_grad()
def test_logits_are_those_of_an_ordinary_pass_bit_for_bit(kind, query_len):
    model = tiny.adapter_llm(kind, query_len)
    state = model.adapt(tiny.features(1))
    ordinary = model(text(), state=state, use_cache=False, logits_to_keep=5).logits[0]
    assert torch.equal(record(model, text(), state, keep=5).logits, ordinary)
    whole = model(text(), state=state).logits[0]
    tiny.assert_close(record(model, text(), state, keep=LENGTH).logits, whole, 1e-6)


@every_query_len
@torch.no_grad()
def test_shut_gates_contribute_nothing(query_len):
    model = tiny.adapter_llm(query_len=query_len, gates="zero")
    recording = record(model, text(), model.adapt(tiny.features(1)), keep=1)
    assert not recording.contribution.any()
    tiny.assert_close(recording.attention.sum(2), torch.ones(tiny.QUERY_LAYER, tiny.HEADS, LENGTH))
    model.adapter.gates[1, 2] = -0.7
    contribution = record(model, text(), model.adapt(tiny.features(1)), keep=1).contribution
    assert (contribution[1, 2] > 0).all()
    assert contribution.sum() == contribution[1, 2].sum()
    assert (contribution.sum(2) < 1).all()


@torch.no_grad()
def test_nothing_at_all_is_no_division_by_zero():
    model = tiny.adapter_llm()
    state = model.adapt(tiny.features(1))
    silent = AdapterState(state.keys, torch.zeros_like(state.values))
    for layer in model.llama.model.layers:
        layer.self_attn.v_proj.weight.zero_()
    assert not record(model, text(), silent, keep=1).contribution.any()


@torch.no_grad()
def test_half_precision_is_weighed_in_full():
    model = tiny.adapter_llm()
    model.llama.bfloat16()
    state = model.adapt(tiny.features(1))
    recording = record(model, text(), AdapterState(state.keys.bfloat16(), state.values.bfloat16()), keep=2)
    assert recording.attention.dtype == recording.contribution.dtype == recording.logits.dtype == torch.float32
    tiny.assert_close(recording.attention.sum(2), torch.ones(tiny.QUERY_LAYER, tiny.HEADS, LENGTH), 1e-6)


@torch.no_grad()
def test_a_decoder_on_the_disk_says_the_same(tmp_path, caplog):
    caplog.set_level("ERROR", logger="accelerate.big_modeling")
    base = stored.save(tmp_path / "llama", max_shard_size="40KB")
    recordings = []
    for place in (None, {"": "disk"}):
        llama = load_decoder(
            base, torch.float32, config=DecoderConfig(), changes={}, adapted_layers=tiny.QUERY_LAYER,
            device_map=place, offload_folder=tmp_path / "offload",
        )[0]  # fmt: skip
        model = AdapterLLM(nn.Identity(), nn.Identity(), stored.adapter(), llama).eval()
        recordings.append(record(model, text(), model.adapt(stored.query_tokens()), keep=3))
    assert any(parameter.device.type == "meta" for parameter in llama.parameters())
    for name in ("logits", "attention", "contribution"):
        assert torch.equal(*(getattr(recording, name) for recording in recordings)), name


@torch.no_grad()
def test_the_decoder_is_left_as_it_was():
    model = tiny.adapter_llm()
    state = model.adapt(tiny.features(1))
    record(model, text(), state, keep=1)
    assert model.llama.config._attn_implementation == ATTENTION
    with pytest.raises(IndexError):
        record(model, torch.full((1, 3), tiny.VOCAB), state, keep=1)
    assert model.llama.config._attn_implementation == ATTENTION


@torch.no_grad()
def test_others_may_use_the_decoder_meanwhile():
    """The name of the attention is one setting for all threads: their passes must not be written down, nor change."""
    model = tiny.adapter_llm()
    mine, theirs = (model.adapt(tiny.features(1, seed=seed)) for seed in (3, 4))
    ids, mask = tiny.padded(tiny.prompts(7, 4, seed=9))
    both = model.adapt(tiny.features(2))
    expected = model(ids, mask, both).logits
    with _recording(model.llama):
        assert torch.equal(model(ids, mask, both).logits, expected)
        assert torch.equal(model(ids[:1]).logits, tiny.decoder()(ids[:1]).logits)
    alone, found = [record(model, text(), state, keep=1).attention for state in (mine, theirs)], {}

    def work(state, number):
        with torch.no_grad():
            found[number] = [record(model, text(), state, keep=1).attention for _ in range(10)]

    threads = [Thread(target=work, args=(state, number)) for number, state in enumerate((mine, theirs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, alone[number]) for number in (0, 1) for one in found[number])
