"""Language models that are not whole, not one, or not the one that is asked for: a sentence each, before long work."""

import json
import shutil
from types import SimpleNamespace

import pytest
import stored
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig, MistralConfig, MistralForCausalLM

from adapter_llm.config import DecoderConfig
from adapter_llm.decoder import load_decoder, tokenizer_fingerprint
from adapter_llm.sources import CheckpointError

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
FIRST = "model-00002-of-"  # a shard in the middle


@pytest.fixture
def copy(sharded, tmp_path):
    return shutil.copytree(sharded, tmp_path / "llama")


@pytest.fixture
def single(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "llama")


def shard(folder):
    return next(path for path in folder.iterdir() if path.name.startswith(FIRST))


def refusal(folder, dtype=torch.float16, config=stored.ALL, **options):
    options = {"changes": stored.changes(config), **options}
    with pytest.raises(CheckpointError) as caught:
        load_decoder(folder, dtype, config=config, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 800
    return message


WAYS = {
    "as stored": (torch.float16, DecoderConfig()),
    "converted": (torch.bfloat16, DecoderConfig()),
    "changed": (torch.float16, stored.ALL),
}
every_way = pytest.mark.parametrize("dtype, config", WAYS.values(), ids=WAYS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_shards_and_types_make_no_difference(folder, sharded, dtype):
    """Loaded by transformers or put together here, in one file or in several: the same bits."""
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    (text,) = tiny.prompts(9)
    for source in (folder, sharded):
        llama, tokenizer = load_decoder(source, dtype)
        assert {name: tuple(t.shape) for name, t in llama.state_dict().items()} == {
            name: tuple(t.shape) for name, t in expected.state_dict().items()
        }
        for name, tensor in expected.state_dict().items():
            assert torch.equal(llama.state_dict()[name], tensor) and llama.state_dict()[name].dtype == dtype, name
        assert torch.equal(llama(text[None]).logits, expected(text[None]).logits)
        assert tokenizer("w5 w7").input_ids == [5, 7]
        assert not llama.training and not any(parameter.requires_grad for parameter in llama.parameters())


@pytest.mark.parametrize("file_dtype, dtype, by_transformers", [
    (torch.float16, torch.float16, True), (torch.bfloat16, torch.bfloat16, True),
    (torch.float16, torch.bfloat16, False), (torch.bfloat16, torch.float32, False),
])  # fmt: skip
def test_who_loads_what(tmp_path, monkeypatch, file_dtype, dtype, by_transformers):
    """transformers converts with the whole model mapped: 12 GB of pages beside 12 GB of numbers, for LLaMA 7B."""
    stored.save(tmp_path, dtype=file_dtype)
    called = []
    original = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: called.append(a) or original(*a, **k))
    assert load_decoder(tmp_path, dtype)[0].dtype == dtype
    assert bool(called) == by_transformers


# what publishers recommend for their chats: with these, no token comes twice
SETTINGS = {"repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "max_length": 3, "do_sample": True, "min_p": 0.5}


@pytest.mark.parametrize("place", [None, "disk"])
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
@every_way
@torch.no_grad()
def test_settings_for_generation_do_not_leak_in(single, tmp_path, dtype, config, name, place):
    """Neither out of their own file nor, as older models have them, out of the config."""
    options = {"config": config, "changes": stored.changes(config), "device_map": place, "offload_folder": tmp_path}
    (text,) = tiny.prompts(9)
    plain = load_decoder(single, dtype, **options)[0].generate(text[None], **stored.GREEDY)
    assert len(set(plain[0, 9:].tolist())) < plain.shape[1] - 9, "a token has to come twice, or nothing is tested"
    values = json.loads((single / name).read_text())
    tokens = {"bos_token_id": 3, "eos_token_id": [4, 6], "pad_token_id": 5}
    (single / "generation_config.json").unlink()
    (single / name).write_text(json.dumps({**values, **SETTINGS, **tokens}))
    llama = load_decoder(single, dtype, **options)[0]
    assert llama.generation_config.to_dict() == GenerationConfig(**tokens).to_dict()
    assert torch.equal(llama.generate(text[None], **stored.GREEDY, eos_token_id=2), plain)


def test_a_tokenizer_is_its_tokens_and_their_numbers(tmp_path):
    """However it is loaded and stored, and whatever else it does; what was added later counts."""
    words = stored.tokenizer()
    expected = tokenizer_fingerprint(words)
    assert len(expected) == 64 and set(expected) <= set("0123456789abcdef")
    words.save_pretrained(tmp_path)
    words.padding_side, words.chat_template = "left", "{{ messages }}"
    assert tokenizer_fingerprint(words) == expected
    assert tokenizer_fingerprint(type(words).from_pretrained(tmp_path)) == expected
    vocabulary = dict(reversed(words.get_vocab().items()))
    assert tokenizer_fingerprint(SimpleNamespace(get_vocab=lambda: vocabulary)) == expected
    vocabulary["w8"], vocabulary["w9"] = vocabulary["w9"], vocabulary["w8"]
    found = {expected, tokenizer_fingerprint(SimpleNamespace(get_vocab=lambda: vocabulary))}
    found.add(tokenizer_fingerprint(stored.tokenizer(tiny.VOCAB - 1)))
    words.add_tokens(["later"])
    assert len(found | {tokenizer_fingerprint(words)}) == 4


@every_way
def test_truncated_shard(copy, dtype, config):
    path = shard(copy)
    path.write_bytes(path.read_bytes()[:-100])
    assert "get it again" in refusal(copy, dtype, config)


@every_way
def test_web_page_for_a_shard(copy, dtype, config):
    shard(copy).write_text("<html>Sign in</html>")
    assert "get it again" in refusal(copy, dtype, config)


@every_way
def test_missing_shard(copy, dtype, config):
    path = shard(copy)
    path.unlink()
    message = refusal(copy, dtype, config)
    assert path.name in message and "get" in message


@every_way
def test_missing_tensors(single, dtype, config):
    tensors = load_file(single / WHOLE)
    del tensors["model.layers.3.mlp.up_proj.weight"], tensors["model.norm.weight"]
    save_file(tensors, single / WHOLE, {"format": "pt"})
    message = refusal(single, dtype, config)
    assert "lacks model.layers.3.mlp.up_proj.weight" in message and "whole" in message
    assert ("model.norm.weight" in message) == (not config), "a norm that is replaced anyway may be missing"


@every_way
def test_tensors_that_have_no_place(single, dtype, config):
    tensors = load_file(single / WHOLE)
    tensors["model.layers.3.self_attn.k_norm.weight"] = torch.ones(4).half()
    save_file(tensors, single / WHOLE, {"format": "pt"})
    message = refusal(single, dtype, config)
    assert "not what its config.json says: unexpected model.layers.3.self_attn.k_norm.weight" in message


@every_way
def test_tables_that_old_versions_stored_are_no_tensors(single, dtype, config):
    tensors = load_file(single / WHOLE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
    save_file(tensors, single / WHOLE, {"format": "pt"})
    load_decoder(single, dtype, config=config, changes=stored.changes(config))


@every_way
def test_config_of_another_size(single, dtype, config):
    data = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps({**data, "intermediate_size": 72}))
    assert "fit" in refusal(single, dtype, config) if config else "get" in refusal(single, dtype, config)
    shapes = stored.llama(intermediate_size=72).config
    if config:
        message = refusal(single, dtype, config, changes=stored.changes(config, shapes))
        assert "mlp.gate_proj.weight has shape (56, 48) instead of (72, 48)" in message


@every_way
def test_config_without_sizes(single, dtype, config):
    (single / "config.json").write_text('{"model_type": "llama"}')
    refusal(single, dtype, config)
    for nothing in ("{}", "no json", "[]"):
        (single / "config.json").write_text(nothing)
        refusal(single, dtype, config)


@pytest.mark.parametrize("size, value", [("num_hidden_layers", 7), ("vocab_size", 177), ("hidden_size", 60)])
def test_nothing_is_made_up_for_a_config_of_another_size(single, monkeypatch, size, value):
    """transformers fills what is missing with random numbers, gigabytes of them if need be, and then says so."""
    data = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps({**data, size: value}))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)
    message = refusal(single, torch.float16, DecoderConfig())
    assert "it has 5 layers, 101 tokens and hidden size 48 instead of " in message and str(value) in message


@every_way
def test_shards_of_two_models(copy, tmp_path, dtype, config):
    other = stored.save(tmp_path / "other", stored.llama(intermediate_size=72, vocab_size=51), max_shard_size="40KB")
    shutil.copy(shard(other), shard(copy))
    assert "get" in refusal(copy, dtype, config)


@every_way
def test_tokenizer_of_a_larger_model(single, dtype, config):
    larger = stored.tokenizer(tiny.VOCAB + 1)
    larger.save_pretrained(single)
    assert "is of another model: it has 102 tokens, and the language model 101" in refusal(single, dtype, config)
    own = stored.tokenizer()
    own.add_tokens(["<pad>", "<more>"])
    own.save_pretrained(single)
    load_decoder(single, dtype, config=config, changes=stored.changes(config))


def test_an_index_that_is_none(copy):
    for text in ("", "[]", '{"weight_map": 3}', "{}"):
        (copy / INDEX).write_text(text)
        assert f"{INDEX} is no index of weights" in refusal(copy)


def test_an_index_that_promises_what_is_not_there(copy):
    index = json.loads((copy / INDEX).read_text())
    index["weight_map"]["model.layers.9.mlp.up_proj.weight"] = shard(copy).name
    (copy / INDEX).write_text(json.dumps(index))
    assert f"{shard(copy)} does not hold model.layers.9.mlp.up_proj.weight" in refusal(copy)


def test_pickled_weights_run_as_they_are_and_cannot_be_changed(folder, tmp_path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.save(load_file(tmp_path / WHOLE), tmp_path / "pytorch_model.bin")
    (tmp_path / WHOLE).unlink()
    expected = load_decoder(folder, torch.bfloat16)[0].state_dict()
    for name, tensor in load_decoder(tmp_path, torch.bfloat16)[0].state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert "has no safetensors; save it as such" in refusal(tmp_path)


def test_head_that_is_stored_beside_tied_embeddings(tmp_path):
    """transformers takes a head that differs from the embeddings, whatever the config says of it."""
    stored.save(tmp_path, stored.llama(tie_word_embeddings=True))
    tensors = load_file(tmp_path / WHOLE)
    head = torch.randn(tiny.VOCAB, tiny.HIDDEN).half()
    save_file({**tensors, "lm_head.weight": head}, tmp_path / WHOLE, {"format": "pt"})
    for dtype, config in WAYS.values():
        llama = load_decoder(tmp_path, dtype, config=config, changes=stored.changes(config))[0]
        assert torch.equal(llama.lm_head.weight, head.to(dtype))
        assert torch.equal(llama.model.embed_tokens.weight, tensors["model.embed_tokens.weight"].to(dtype))


def test_other_architectures_can_be_run_and_not_changed(tmp_path):
    model = MistralForCausalLM(MistralConfig(**tiny.SIZES))
    stored.save(tmp_path, model)
    for dtype in (torch.float16, torch.float32):
        assert isinstance(load_decoder(tmp_path, dtype)[0], MistralForCausalLM)
    assert "these weights change a LLaMA, and" in refusal(tmp_path, changes=stored.changes(stored.ALL, model.config))


def test_a_decoder_that_has_biases_gets_no_others(tmp_path):
    stored.save(tmp_path, stored.llama(attention_bias=True))
    assert "these weights bring biases, and" in refusal(tmp_path)
    config = DecoderConfig(lora_rank=stored.RANK)
    llama = load_decoder(tmp_path, torch.float32, config=config, changes=stored.changes(config))[0]
    bias = load_file(tmp_path / WHOLE)["model.layers.2.self_attn.k_proj.bias"]
    assert torch.equal(llama.model.layers[2].self_attn.k_proj.bias, bias.float()) and bias.any()


@pytest.mark.parametrize("spoil, message", [
    (lambda changes: changes.pop("layers.1.mlp.up_proj.bias"), "missing layers.1.mlp.up_proj.bias"),
    (lambda changes: changes.update({"layers.1.mlp.bias": torch.ones(3)}), "unexpected layers.1.mlp.bias"),
    (lambda changes: changes.update({"norm.weight": torch.ones(3)}), r"norm.weight has shape (3,) instead of (48,)"),
    (lambda changes: changes.clear(), f"and {len(stored.changes(stored.ALL)) - 8} more"),
])  # fmt: skip
def test_changes_that_are_not_those_of_the_config(folder, spoil, message):
    changes = stored.changes(stored.ALL)
    spoil(changes)
    found = refusal(folder, changes=changes)
    assert f"the weights' changes to the language model do not fit {folder}: " in found and message in found


def test_changes_that_the_config_does_not_know(folder):
    message = refusal(folder, config=DecoderConfig(), changes=stored.changes(DecoderConfig(norms=True)))
    assert "unexpected layers.0.input_layernorm.weight" in message
