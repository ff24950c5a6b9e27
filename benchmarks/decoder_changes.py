"""What low-rank updates, biases and norms cost a decoded token: a decoder with them against the same without, batch 1.

    python benchmarks/decoder_changes.py [--dtype bfloat16] [--rank 16] [--tokens 64] [--rounds 15]

Random weights of SmolLM2-135M's sizes with a small vocabulary, both decoders with an adapter in every layer but the
first. The two take turns, and each round's ratio is taken by itself; --also-unmerged adds a third, whose low-rank
updates are not added to the weights, as in training. Exit status 1 if the median ratio is above --limit.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from adapter_overhead import interleaved
from big_model import write_changes, write_model
from safetensors.torch import load_file

from adapter_llm.adapter import AdapterTokens
from adapter_llm.config import AdapterConfig, DecoderConfig
from adapter_llm.decoder import load_decoder
from adapter_llm.llama import attach_adapter, project_adapter

SIZES = {
    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
    "num_hidden_layers": 30, "vocab_size": 512, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
}  # fmt: skip
QUERY_LEN = 10


@torch.inference_mode()
def prepared(llama, tokens, query_tokens):
    """A decoder and the adapter's keyword arguments for it."""
    state = project_adapter(attach_adapter(llama), tokens(query_tokens), tokens.gates)
    return llama, state.as_kwargs()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=24, help="tokens before the first decoded one")
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded in a turn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--also-unmerged", action="store_true")
    parser.add_argument("--limit", type=float, default=1.05, help="largest acceptable median ratio")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    dtype, config = getattr(torch, arguments.dtype), DecoderConfig(biases=True, norms=True, lora_rank=arguments.rank)
    adapted = SIZES["num_hidden_layers"] - 1
    tokens = AdapterTokens(AdapterConfig(QUERY_LEN, adapted), SIZES["hidden_size"], SIZES["num_attention_heads"])
    torch.nn.init.normal_(tokens.gates)
    query_tokens = torch.randn(1, QUERY_LEN, SIZES["hidden_size"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, SIZES, dtype)
        write_changes(folder, config, folder / "changes.safetensors")
        options = {"config": config, "changes": load_file(folder / "changes.safetensors"), "adapted_layers": adapted}
        loaded = {"as it is": load_decoder(folder, dtype), "changed": load_decoder(folder, dtype, **options)}
        if arguments.also_unmerged:
            loaded["changed, not merged"] = load_decoder(folder, dtype, **options, merge=False)
        decoders = {name: prepared(llama, tokens, query_tokens) for name, (llama, _) in loaded.items()}
        prompt = torch.randint(10, SIZES["vocab_size"], (1, arguments.prompt))
        times = interleaved(decoders, prompt, arguments.tokens, arguments.rounds)

    print(f"{arguments.dtype}, {torch.get_num_threads()} threads, rank {arguments.rank}, {arguments.rounds} rounds")
    print(f"{'':20}{'ms/token':>9}{'tokens/s':>10}{'ratio':>8}{'middle half of the rounds':>28}")
    ratios = {}
    for name, values in times.items():
        middle = statistics.median(values)
        every = sorted(slow / fast for fast, slow in zip(times["as it is"], values, strict=True))
        ratios[name] = statistics.median(every)
        low, high = every[len(every) // 4], every[-1 - len(every) // 4]
        print(f"{name:20}{middle * 1e3:9.2f}{1 / middle:10.1f}{ratios[name]:8.3f}{low:21.3f} - {high:.3f}")
    return int(ratios["changed"] > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
