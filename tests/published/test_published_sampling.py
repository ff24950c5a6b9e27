"""Answers are drawn from the distribution that the originals draw from."""

import re

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapter_llm.results import GenerationOptions

NAME = re.compile(r"out\.(?P<variant>.+)\.sampling\.t(?P<temperature>[\d.]+)\.p(?P<top_p>[\d.]+)")


def drawn_from(logits, options):
    """The probabilities (B, vocabulary) that `generate` draws the first token with, given its logits."""
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=logits.shape[-1], hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                    intermediate_size=6, bos_token_id=1, eos_token_id=2)
    )  # fmt: skip
    with model.lm_head.register_forward_hook(lambda head, inputs, output: logits[:, None].expand_as(output)):
        found = model.generate(
            torch.ones(len(logits), 3, dtype=torch.long), attention_mask=torch.ones(len(logits), 3),
            pad_token_id=0, output_scores=True, return_dict_in_generate=True, **options.to_kwargs(),
        )  # fmt: skip
    return found.scores[0].softmax(-1), found.sequences[:, 3:]


@pytest.mark.parametrize("family", ["adapter_v2", "imagebind_llm"])
def test_recorded_distributions(golden, family):
    if not (golden / family / "io.safetensors").is_file():
        pytest.skip(f"no {family} data in {golden}")
    recorded = load_file(golden / family / "io.safetensors")
    found = [(key, match) for key in recorded if (match := NAME.fullmatch(key))]
    if not found:
        pytest.skip(f"no distributions recorded for {family}")
    for key, match in found:
        logits = recorded[f"out.{match['variant']}.greedy.logits"][:1, 0]
        temperature, top_p = float(match["temperature"]), float(match["top_p"])
        options = GenerationOptions(max_new_tokens=1, temperature=temperature, top_p=top_p)
        probabilities, _ = drawn_from(logits, options)
        torch.testing.assert_close(probabilities, recorded[key].view_as(probabilities), rtol=1e-5, atol=1e-7, msg=key)


def oracle(logits, temperature, top_p):
    """Kept are the tokens whose likelier ones have at most top_p together."""
    probabilities, order = (logits.double() / temperature).softmax(-1).sort(descending=True)
    kept = probabilities * (probabilities.cumsum(-1) - probabilities <= top_p)
    return torch.zeros_like(kept).scatter(-1, order, kept / kept.sum(-1, keepdim=True))


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 3.0])
@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.75, 0.95, 1.0])
def test_temperature_comes_before_the_cut(temperature, top_p):
    logits = torch.randn(5, 70) * 2
    options = GenerationOptions(max_new_tokens=1, temperature=temperature, top_p=top_p)
    expected = oracle(logits, temperature, top_p).float()
    torch.testing.assert_close(drawn_from(logits, options)[0], expected, rtol=1e-4, atol=1e-7)


def test_a_token_exactly_on_the_boundary_is_the_one_difference():
    logits = torch.zeros(1, 4)  # a quarter each
    options = GenerationOptions(max_new_tokens=1, temperature=1.0, top_p=0.5)
    assert drawn_from(logits, options)[0].count_nonzero() == 2
    assert oracle(logits, 1.0, 0.5).count_nonzero() == 3


def test_temperature_0_takes_the_likeliest():
    logits = torch.randn(4, 50)
    assert drawn_from(logits, GenerationOptions(max_new_tokens=1))[1][:, 0].tolist() == logits.argmax(-1).tolist()


def test_published_settings():
    assert GenerationOptions.published() == GenerationOptions(max_new_tokens=256, temperature=0.1, top_p=0.75)
    changed = GenerationOptions.published(temperature=0.0, seed=3)
    assert changed == GenerationOptions(max_new_tokens=256, temperature=0.0, top_p=0.75, seed=3)
    with pytest.raises(ValueError, match="top_p"):
        GenerationOptions.published(top_p=0.0)
