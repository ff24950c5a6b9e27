"""What the adapter costs a decoded token: the same language model with and without it, batch 1.

    python benchmarks/adapter_overhead.py --llm DIR [--layers 16] [--query-len 8] [--tokens 64] [--rounds 15]

DIR is a Hugging Face folder of a LLaMA-family model. Adapter weights are random: no picture is needed to time them.
The two take turns round by round, and each round's ratio is taken by itself: other work on the machine slows
both turns of a round alike, but not one round like the next. Exit status 1 if the median ratio is above --limit.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from transformers import AutoModelForCausalLM

from adapter_llm.adapter import AdapterTokens
from adapter_llm.config import AdapterConfig
from adapter_llm.llama import attach_adapter, project_adapter


@torch.inference_mode()
def seconds_per_token(llama, kwargs, prompt, tokens):
    """Greedy decoding with a cache, without `generate`, whose own work would hide a part of the difference."""
    output = llama(prompt, use_cache=True, logits_to_keep=1, **kwargs)
    cache, token = output.past_key_values, output.logits.argmax(-1)
    times = []
    for _ in range(tokens):
        start = time.perf_counter()
        output = llama(token, past_key_values=cache, use_cache=True, **kwargs)
        token = output.logits[:, -1:].argmax(-1)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def interleaved(candidates, prompt, tokens, rounds):
    """Seconds a token of each (decoder, keyword arguments), round by round, in turns of alternating order."""
    times = {name: [] for name in candidates}
    for number in range(-1, rounds):  # the first round warms up and is not counted
        turns = list(candidates.items())
        for name, (llama, kwargs) in turns if number % 2 else turns[::-1]:
            elapsed = seconds_per_token(llama, kwargs, prompt, tokens)
            if number >= 0:
                times[name].append(elapsed)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", required=True, metavar="DIR", help="a Hugging Face folder of a LLaMA-family model")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--layers", type=int, default=16, help="adapted layers (L)")
    parser.add_argument("--query-len", type=int, default=8, help="adapter tokens a layer (Q)")
    parser.add_argument("--prompt", type=int, default=24, help="tokens before the first decoded one")
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded in a turn")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--limit", type=float, default=1.10, help="largest acceptable median ratio")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    plain = AutoModelForCausalLM.from_pretrained(arguments.llm, dtype=dtype).eval()
    adapted = attach_adapter(AutoModelForCausalLM.from_pretrained(arguments.llm, dtype=dtype).eval())
    adapted.load_state_dict(plain.state_dict(), assign=True)  # one copy of the weights for both
    sizes = plain.config
    tokens = AdapterTokens(
        AdapterConfig(arguments.query_len, arguments.layers), sizes.hidden_size, sizes.num_attention_heads
    )
    torch.nn.init.normal_(tokens.gates)
    with torch.inference_mode():
        state = project_adapter(
            adapted, tokens(torch.randn(1, arguments.query_len, sizes.hidden_size)), tokens.gates
        )
    prompt = torch.randint(10, sizes.vocab_size, (1, arguments.prompt))
    candidates = {"without adapter": (plain, {}), "with adapter": (adapted, state.as_kwargs())}

    times = interleaved(candidates, prompt, arguments.tokens, arguments.rounds)
    without, with_adapter = times.values()
    ratios = sorted(slow / fast for fast, slow in zip(without, with_adapter))
    ratio = statistics.median(ratios)

    print(f"{arguments.llm}, {arguments.dtype}, {torch.get_num_threads()} threads, L={arguments.layers}, ", end="")
    print(f"Q={arguments.query_len}, {arguments.rounds} rounds of {arguments.tokens} tokens")
    print(f"{'':16} {'ms/token':>9} {'tokens/s':>9}")
    for name, values in times.items():
        print(f"{name:16} {statistics.median(values) * 1e3:9.2f} {1 / statistics.median(values):9.1f}")
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    print(f"{'ratio':16} {ratio:9.3f}   half of the rounds between {low:.3f} and {high:.3f}, limit {arguments.limit}")
    print("Speeds move with whatever else the machine does; trust the ratio, and it only if its spread is small.")
    return int(ratio > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
