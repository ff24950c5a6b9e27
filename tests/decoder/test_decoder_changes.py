"""Laws of a decoder that weights change: it computes what is written out in the oracle, and learns what it should."""

import oracle
import pytest
import stored
import tiny
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from adapter_llm.config import DecoderConfig
from adapter_llm.decoder import load_decoder
from adapter_llm.llama import attach_adapter, project_adapter
from adapter_llm.lora import LoraLinear, change_shapes

every_config = pytest.mark.parametrize("config", stored.CONFIGS.values(), ids=stored.CONFIGS)
every_type = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def load(folder, config, dtype=torch.float32, **options):
    options = {"changes": stored.changes(config), "adapted_layers": tiny.QUERY_LAYER, **options}
    return attach_adapter(load_decoder(folder, dtype, config=config, **options)[0])


def test_names_of_changes_are_those_of_a_weights_folder():
    sizes = stored.llama().config
    hidden, inner, queries, keys = tiny.HIDDEN, tiny.INTERMEDIATE, 6 * 10, 2 * 10
    wide = {
        "self_attn.q_proj": (hidden, queries), "self_attn.k_proj": (hidden, keys), "self_attn.v_proj": (hidden, keys),
        "self_attn.o_proj": (queries, hidden), "mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }  # fmt: skip
    biases, norms, lora = {}, {"norm.weight": (hidden,)}, {}
    for layer in range(tiny.LAYERS):
        for name, (wide_in, wide_out) in wide.items():
            lora[f"layers.{layer}.{name}.lora_down"] = (3, wide_in)
            lora[f"layers.{layer}.{name}.lora_up"] = (wide_out, 3)
            if name not in ("self_attn.k_proj", "self_attn.v_proj"):
                biases[f"layers.{layer}.{name}.bias"] = (wide_out,)
        norms[f"layers.{layer}.input_layernorm.weight"] = (hidden,)
        norms[f"layers.{layer}.post_attention_layernorm.weight"] = (hidden,)
    assert change_shapes(DecoderConfig(), sizes) == {}
    assert change_shapes(DecoderConfig(biases=True), sizes) == biases
    assert change_shapes(DecoderConfig(norms=True), sizes) == norms
    assert change_shapes(DecoderConfig(lora_rank=3), sizes) == lora
    assert change_shapes(stored.ALL, sizes) == {**biases, **norms, **lora}
    base = {f"model.{name}" for name in (*biases, *norms)} & set(stored.llama().state_dict())
    assert base == {f"model.{name}" for name in norms}, "norms are the decoder's own, biases are not"


@every_config
@pytest.mark.parametrize("merge", [True, False])
@torch.no_grad()
def test_changed_decoder_equals_the_written_out_one(folder, config, merge):
    llama, base, adapter = load(folder, config, merge=merge), stored.llama(), stored.adapter()
    (text,), tokens = tiny.prompts(11), adapter(stored.query_tokens())
    told = [base.state_dict(), base.config, text, tokens[0], adapter.gates, adapter.gate_scale]
    expected = oracle.logits(*told, stored.changes(config))
    state = project_adapter(llama, tokens, adapter.gates, adapter.gate_scale)
    tiny.assert_close(llama(text[None], **state.as_kwargs()).logits[0], expected, 2e-5)
    assert (expected - oracle.logits(*told)).abs().max() > 0.5 * expected.std(), "the changes have to be felt"
    plain = oracle.logits(*told[:3], None, adapter.gates, changes=stored.changes(config))
    tiny.assert_close(llama(text[None]).logits[0], plain, 2e-5)


@every_config
@pytest.mark.parametrize("merge", [True, False])
@torch.no_grad()
def test_adapter_keys_and_values_are_the_base_models(folder, config, merge):
    adapter = stored.adapter()
    tokens = adapter(stored.query_tokens(2))
    changed, base = (
        project_adapter(llama, tokens, adapter.gates, adapter.gate_scale)
        for llama in (load(folder, config, merge=merge), stored.llama())
    )
    tiny.assert_close(changed.keys, base.keys, 5e-6)
    tiny.assert_close(changed.values, base.values, 5e-6)


@every_config
@pytest.mark.parametrize("merge", [True, False])
def test_gradients_are_those_of_the_written_out_model(folder, config, merge):
    """Of all that the weights change, of the gates and their scale, and of the adapter tokens.

    Merged, no low-rank update learns, but what is before it in the model still does.
    """
    llama, base = load(folder, config, merge=merge), stored.llama()
    (text,), changes, adapter = tiny.prompts(11), stored.changes(config), stored.adapter()
    tokens = adapter(stored.query_tokens()).detach().requires_grad_()
    free = {name: tensor.clone().requires_grad_() for name, tensor in changes.items()}
    logits = oracle.logits(
        base.state_dict(), base.config, text, tokens[0], adapter.gates, adapter.gate_scale, free
    )
    inputs = {**free, "gates": adapter.gates, "gate_scale": adapter.gate_scale, "tokens": tokens}
    loss = F.cross_entropy(logits[:-1], text[1:])
    expected = dict(zip(inputs, torch.autograd.grad(loss, inputs.values()), strict=True))

    named = {name.removeprefix("model."): parameter for name, parameter in llama.named_parameters()}
    own = {name: named[name] for name in changes if not (merge and "lora" in name)}
    for parameter in own.values():
        parameter.requires_grad_()
    state = project_adapter(llama, tokens, adapter.gates, adapter.gate_scale)
    loss = F.cross_entropy(llama(text[None], **state.as_kwargs()).logits[0, :-1], text[1:])
    inputs = {**own, "gates": adapter.gates, "gate_scale": adapter.gate_scale, "tokens": tokens}
    for (name, gradient) in zip(inputs, torch.autograd.grad(loss, inputs.values()), strict=True):
        assert gradient.abs().max() > 0, name
        tiny.assert_close(gradient, expected[name], 1e-4)


@every_type
@pytest.mark.parametrize("file_dtype", [torch.float16, torch.float32, torch.bfloat16], ids=str)
def test_sums_are_made_in_float32_and_rounded_once(tmp_path, dtype, file_dtype):
    stored.save(tmp_path, dtype=file_dtype)
    llama, changes = load(tmp_path, stored.ALL, dtype), stored.changes(stored.ALL)
    base = stored.llama().to(file_dtype).float().state_dict()
    for name, tensor in llama.state_dict().items():
        linear = name.removeprefix("model.").removesuffix(".weight")
        if name.removeprefix("model.") in changes:
            expected = changes[name.removeprefix("model.")]
        elif name.endswith(("k_proj.bias", "v_proj.bias")):
            expected = torch.zeros(20)
        elif f"{linear}.lora_up" in changes:
            expected = base[name] + changes[f"{linear}.lora_up"] @ changes[f"{linear}.lora_down"]
        else:
            expected = base[name]
        if "lora" in name:
            assert tensor.dtype == torch.float32 and torch.equal(tensor, expected)
            continue
        assert tensor.dtype == dtype, name
        # sums in another order may end on either side of the middle between two numbers of the smaller type
        torch.testing.assert_close(tensor, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)
        assert (tensor == expected.to(dtype)).float().mean() > 0.99 or dtype == torch.float32, name


@torch.no_grad()
def test_large_tensors_are_changed_in_pieces(folder, monkeypatch):
    expected = load(folder, stored.ALL).state_dict()
    monkeypatch.setattr("adapter_llm.shards.SLAB", 4 * tiny.HIDDEN * 7)  # 7 rows of most, and no whole number of them
    actual = load(folder, stored.ALL).state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-6, atol=1e-6)


def test_only_keys_and_values_that_the_adapter_needs_remember_their_update(folder):
    def remembered(llama):
        return {name for name, module in llama.named_modules() if isinstance(module, LoraLinear)}

    keys_and_values = {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (2, 3, 4) for name in "kv"
    }
    assert remembered(load(folder, stored.ALL)) == keys_and_values
    assert remembered(load(folder, stored.ALL, adapted_layers=0)) == set()
    assert remembered(load(folder, DecoderConfig(biases=True, norms=True))) == set()
    assert len(remembered(load(folder, stored.ALL, merge=False, adapted_layers=0))) == 7 * tiny.LAYERS


@torch.no_grad()
def test_bfloat16_keys_are_nearly_as_good_as_those_of_the_unmerged_layer(folder):
    """Rounding the sum and taking the update away again must not cost more than rounding does anyway."""
    torch.manual_seed(3)
    llama, base = load(folder, stored.ALL, torch.bfloat16), stored.llama()
    x = torch.randn(200, tiny.HIDDEN).bfloat16()
    for layer in range(2, tiny.LAYERS):
        for name in ("k_proj", "v_proj"):
            merged = getattr(llama.model.layers[layer].self_attn, name)
            weight = getattr(base.model.layers[layer].self_attn, name).weight
            exact = x.double() @ weight.double().T
            unmerged = (x @ weight.bfloat16().T - exact).square().mean().sqrt()
            update = (merged.lora_up @ merged.lora_down).square().mean() / weight.square().mean()
            assert update > 0.5, "a large one, or there is nothing to see"
            assert (merged(x, plain=True) - exact).square().mean().sqrt() < 2.5 * unmerged


@every_type
@torch.no_grad()
def test_changes_that_change_nothing_leave_every_bit_alone(folder, dtype):
    changes = {name: torch.zeros_like(tensor) for name, tensor in stored.changes(stored.ALL).items()}
    base = load_decoder(folder, dtype)[0]
    changes |= {name: base.state_dict()[f"model.{name}"] for name in changes if name.endswith("norm.weight")}
    ids, mask = tiny.padded(tiny.prompts(9, 4))
    changed = load(folder, stored.ALL, dtype, changes=changes)
    unmerged = load(folder, stored.ALL, dtype, changes=changes, merge=False)
    for name, tensor in base.state_dict().items():
        assert torch.equal(changed.state_dict()[name], tensor), name
    expected = base(ids, attention_mask=mask).logits
    tiny.assert_close(changed(ids, attention_mask=mask).logits.float(), expected.float(), 1e-5)
    tiny.assert_close(unmerged(ids, attention_mask=mask).logits.float(), expected.float(), 1e-5)


def test_a_changed_decoder_is_all_that_transformers_would_load(folder):
    changed, plain = load(folder, stored.ALL), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert not changed.training and not any(parameter.requires_grad for parameter in changed.parameters())
    given, expected = changed.config.to_dict(), plain.config.to_dict()
    differing = {key for key in expected if given.get(key) != expected[key]}
    assert differing == {"attention_bias", "mlp_bias"}
    assert {name for name, _ in changed.named_buffers()} == {name for name, _ in plain.named_buffers()}
    for (_, actual), (name, buffer) in zip(changed.named_buffers(), plain.named_buffers(), strict=True):
        assert torch.equal(actual, buffer), name


@torch.no_grad()
def test_a_merged_decoder_can_be_saved_for_plain_transformers(folder, tmp_path):
    llama = load(folder, stored.ALL, adapted_layers=0)
    llama.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    (text,) = tiny.prompts(8)
    assert torch.equal(saved(text[None]).logits, llama(text[None]).logits)


@pytest.mark.parametrize("merge", [True, False])
@torch.no_grad()
def test_updates_beside_weights_of_every_size_and_place(merge):
    base = torch.nn.Linear(7, 5)
    layer = LoraLinear(base, 2, merge)
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == {
        "weight": (5, 7), "bias": (5,), "lora_down": (2, 7), "lora_up": (5, 2),
    }  # fmt: skip
    x = torch.randn(3, 4, 7)
    for plain in (True, False):
        assert torch.equal(layer(x, plain=plain), base(x)), "a new update is none"
    layer.lora_down.normal_(), layer.lora_up.normal_()
    update = x @ layer.lora_down.T @ layer.lora_up.T
    tiny.assert_close(layer(x), base(x) + (0 if merge else update))
    tiny.assert_close(layer(x, plain=True), base(x) - (update if merge else 0))
    half = layer.to(torch.bfloat16)(x.bfloat16(), plain=merge)
    assert half.dtype == torch.bfloat16
