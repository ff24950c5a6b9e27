"""Random models so small that a law costs milliseconds. No two sizes are equal, so no two can be swapped unseen."""

import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from adapter_llm.adapter import AdapterTokens
from adapter_llm.config import AdapterConfig, ConnectorConfig
from adapter_llm.connector import build_connector
from adapter_llm.model import AdapterLLM
from imagebind_encoder import EncoderConfig, ImageBindEncoder, PatchStemConfig, TrunkConfig

HIDDEN = 48  # D
HEADS = 6  # H
KV_HEADS = 2  # K
HEAD_SIZE = 8  # P; 10 for the Qwen 3 decoder, whose heads do not add up to its width
LAYERS = 5
QUERY_LAYER = 3  # L
QUERY_LEN = 4  # Q
FEATURES = 7  # N
FEATURES_DIM = 20  # E
WIDTH = 24  # of the connector's blocks
VOCAB = 101
INTERMEDIATE = 56

SIZES = dict(
    hidden_size=HIDDEN,
    num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS,
    num_hidden_layers=LAYERS,
    intermediate_size=INTERMEDIATE,
    vocab_size=VOCAB,
    max_position_embeddings=64,
    initializer_range=0.15,
    tie_word_embeddings=False,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=None,  # random models end by chance; nothing here wants that
    use_cache=True,
)
DECODERS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "llama-mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": HEADS}),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (MistralForCausalLM, MistralConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 10}),
}


def shake(module: nn.Module, amount: float) -> nn.Module:
    """Away from the constants that fresh norms, biases and gates start with."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return module


def decoder(kind: str = "llama", seed: int = 1):
    """A stock decoder; two of a kind and seed are equal."""
    model_class, config_class, changes = DECODERS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = config_class(**{**SIZES, **changes}, attn_implementation="sdpa")
        return shake(model_class(config), 0.02).eval()


def encoder() -> ImageBindEncoder:
    vision = PatchStemConfig(channels=3, size=(2, 42, 42), kernel=(2, 14, 14), stride=(2, 14, 14), norm=False)
    imu = PatchStemConfig(channels=6, size=(80,), kernel=(8,), stride=(8,))
    trunks = {
        "vision": TrunkConfig(12, 1, 3, num_cls_tokens=FEATURES, stem=vision),
        "imu": TrunkConfig(22, 1, 2, num_cls_tokens=FEATURES, stem=imu),
    }
    return shake(ImageBindEncoder(EncoderConfig(FEATURES_DIM, trunks)), 0.2).eval()


def adapter_llm(
    kind: str = "llama",
    query_len: int = QUERY_LEN,
    query_layer: int = QUERY_LAYER,
    connector: str = "visual_query",
    gates: str = "open",
    seed: int = 2,
    gate_scale: bool = False,
) -> AdapterLLM:
    """All four parts. Gates are "open" (random, none small) or "zero", as a new adapter has them."""
    llama = decoder(kind)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = ConnectorConfig(kind=connector, width=WIDTH, depth=2, heads=3, mlp_ratio=1.5)
        parts = build_connector(sizes, FEATURES_DIM, query_len, HIDDEN)
        tokens = AdapterTokens(AdapterConfig(query_len, query_layer, True, gate_scale), HIDDEN, HEADS)
        shake(parts, 0.1), shake(tokens, 0.2)
        with torch.no_grad():
            if gates == "zero":
                tokens.gates.zero_()
            else:
                tokens.gates.copy_(tokens.gates.sign() * (0.5 + tokens.gates.abs()))
        return AdapterLLM(encoder(), parts, tokens, llama).eval()


def features(batch: int, count: int = FEATURES, seed: int = 3) -> torch.Tensor:
    """(B, N, E) as an encoder gives them: of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(batch, count, FEATURES_DIM, generator=generator), dim=-1)


def prompts(*lengths: int, seed: int = 4) -> list[torch.Tensor]:
    """Token ids of prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, VOCAB, (length,), generator=generator) for length in lengths]


def padded(rows: list[torch.Tensor], left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and attention_mask (B, T)."""
    side = "left" if left else "right"
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side=side)
    ones = [torch.ones_like(row) for row in rows]
    return ids, nn.utils.rnn.pad_sequence(ones, batch_first=True, padding_side=side)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    """The largest difference, over the root mean square of what is expected."""
    assert actual.shape == expected.shape
    actual, expected = actual.detach(), expected.detach()
    error = float((actual - expected).abs().max() / expected.square().mean().sqrt())
    assert error <= relative, f"relative error {error:.2e}"
