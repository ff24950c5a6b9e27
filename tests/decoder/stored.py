"""A LLaMA on disk, and what weights may change in it. Heads do not add up to the hidden size, so no width is another.

A stored model is small numbers of float16; a change is large enough to be felt in every logit.
"""

from pathlib import Path

import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapter_llm.adapter import AdapterTokens
from adapter_llm.config import AdapterConfig, DecoderConfig
from adapter_llm.lora import change_shapes

HEAD_SIZE = 10
RANK = 3
ALL = DecoderConfig(biases=True, norms=True, lora_rank=RANK)
CONFIGS = {
    "biases": DecoderConfig(biases=True),
    "norms": DecoderConfig(norms=True),
    "lora": DecoderConfig(lora_rank=RANK),
    "all": ALL,
}
GREEDY = dict(do_sample=False, max_new_tokens=9)


def llama(seed: int = 1, **changes) -> LlamaForCausalLM:
    """Float32, of numbers that float16 holds exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**{**tiny.SIZES, "head_dim": HEAD_SIZE, **changes}))
        model.generation_config.max_length = 77
        return tiny.shake(model, 0.02).half().float().eval()


def tokenizer(size: int = tiny.VOCAB) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{number}": number for number in range(size)}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="w0", bos_token="w1")


def save(folder: Path, model=None, dtype: torch.dtype = torch.float16, **options) -> Path:
    model = llama() if model is None else model
    model.to(dtype).save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)
    return folder


def changes(config: DecoderConfig, sizes=None, seed: int = 5) -> dict[str, torch.Tensor]:
    """Random changes; norms around the base's, low-rank updates as large as the weights themselves."""
    generator = torch.Generator().manual_seed(seed)
    sizes = LlamaConfig(**{**tiny.SIZES, "head_dim": HEAD_SIZE}) if sizes is None else sizes
    made = {}
    for name, shape in change_shapes(config, sizes).items():
        made[name] = torch.randn(shape, generator=generator) * 0.3
        if name.endswith("norm.weight"):
            made[name] += 1
    return made


def adapter(gate_scale: bool = True, seed: int = 6) -> AdapterTokens:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = AdapterConfig(tiny.QUERY_LEN, tiny.QUERY_LAYER, gate_scale=gate_scale)
        return tiny.shake(AdapterTokens(sizes, tiny.HIDDEN, tiny.HEADS), 0.7)


def query_tokens(batch: int = 1, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, tiny.QUERY_LEN, tiny.HIDDEN, generator=generator)
