"""Peak memory of loading a large language model, and whether a model in parts says the same as a whole one.

    python benchmarks/big_model.py [--stored bfloat16] [--dtype bfloat16] [--layers 22] [--tokens 8] [--folder DIR]

A LLaMA of TinyLlama's sizes, 1.1 billion random numbers, is written in shards to a temporary folder (in DIR), tensor
by tensor. Each way of loading it gets a process of its own: as it is; with low-rank updates, biases and norms; and
both again with all but a few layers on the disk. The limit is the bytes of the weights that are kept in memory plus
1 GB. Peak memory is VmHWM, the largest resident set the system saw: it counts the libraries and every page of a
mapped file that was touched, as long as it was mapped. Linux only. Exit status 1 if a limit is passed or tokens differ.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from adapter_llm.config import DecoderConfig

ALLOWANCE = 1e9
CHANGES = DecoderConfig(biases=True, norms=True, lora_rank=16)
QUERY_LEN, IN_MEMORY = 10, 4  # IN_MEMORY: layers that an offloaded model keeps
SIZES = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4,
    "vocab_size": 32000, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
}  # fmt: skip
WAYS = {  # changed, offloaded
    "as it is": (False, False),
    "changed": (True, False),
    "as it is, offloaded": (False, True),
    "changed, offloaded": (True, True),
}


def write_model(folder: Path, sizes: dict[str, float], dtype: torch.dtype) -> int:
    """A sharded Hugging Face folder of random numbers, a layer a file; how many numbers those are."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(**sizes, dtype=dtype, eos_token_id=None)
    config.save_pretrained(folder)
    words = {f"w{number}": number for number in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        layer = re.match(r"model\.layers\.\d+\.", name)
        shards.setdefault(layer[0] if layer else name, []).append(name)
    places = {}
    for number, names in enumerate(shards.values(), 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: torch.randn(shapes[name]).mul_(0.02).to(dtype) for name in names}
        for name, tensor in tensors.items():
            if "norm" in name:
                tensor.fill_(1)
            places[name] = file
        save_file(tensors, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(shape.numel() for shape in shapes.values())


def write_changes(folder: Path, config: DecoderConfig, path: Path) -> None:
    """Random low-rank updates, biases and norms for a model."""
    from transformers import AutoConfig

    from adapter_llm.lora import change_shapes

    shapes = change_shapes(config, AutoConfig.from_pretrained(folder))
    tensors = {name: torch.randn(shape) * 0.03 + name.endswith("norm.weight") for name, shape in shapes.items()}
    save_file(tensors, path)


def memory(what: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) * 1024


def load_and_answer(arguments) -> dict:
    """What a process of its own measures: one way of loading, then a few tokens with an adapter."""
    from adapter_llm.adapter import AdapterTokens
    from adapter_llm.config import AdapterConfig
    from adapter_llm.decoder import load_decoder
    from adapter_llm.llama import attach_adapter, execution_device, project_adapter

    libraries = memory("VmHWM")
    folder = Path(arguments.folder)
    changed, offloaded = WAYS[arguments.way]
    options = {}
    if offloaded:
        places = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "lm_head")}
        for layer in range(arguments.layers):
            places[f"model.layers.{layer}"] = "cpu" if layer < IN_MEMORY else "disk"
        options = {"device_map": places, "offload_folder": folder / "offloaded"}
    if changed:
        with safe_open(folder / "changes.safetensors", framework="pt") as file:
            options["changes"] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        options |= {"config": CHANGES, "adapted_layers": arguments.layers - 1}
    start = time.perf_counter()
    llama, _ = load_decoder(folder, getattr(torch, arguments.dtype), **options)
    seconds = time.perf_counter() - start
    options.clear()
    loading = memory("VmHWM")
    kept = sum(parameter.nbytes for parameter in llama.parameters() if parameter.device.type != "meta")

    sizes = llama.config
    torch.manual_seed(1)
    tokens = AdapterTokens(
        AdapterConfig(QUERY_LEN, arguments.layers - 1), sizes.hidden_size, sizes.num_attention_heads
    )
    torch.nn.init.normal_(tokens.gates)
    attach_adapter(llama)
    prompt = torch.randint(sizes.vocab_size, (1, 12)).to(execution_device(llama))
    with torch.inference_mode():
        state = project_adapter(llama, tokens(torch.randn(1, QUERY_LEN, sizes.hidden_size)), tokens.gates)
        start = time.perf_counter()
        written = llama.generate(prompt, do_sample=False, max_new_tokens=arguments.tokens, **state.as_kwargs())
    return {
        "libraries": libraries, "loading": loading, "running": memory("VmHWM"), "kept": kept, "seconds": seconds,
        "per_token": (time.perf_counter() - start) / arguments.tokens, "tokens": written[0, 12:].tolist(),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the temporary folder goes")
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--stored", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(load_and_answer(arguments)))
        return 0

    stored = getattr(torch, arguments.stored)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        count = write_model(Path(folder), {**SIZES, "num_hidden_layers": arguments.layers}, stored)
        write_changes(Path(folder), CHANGES, Path(folder) / "changes.safetensors")
        print(f"{count / 1e9:.2f} billion parameters, stored in {arguments.stored}, used in {arguments.dtype}; MB")
        titles = (("kept", 7), ("limit", 7), ("loading", 9), ("running", 9), ("libraries", 11), ("load s", 8))
        print(" " * 20 + "".join(f"{title:>{width}}" for title, width in titles) + f"{'ms/token':>10}")
        found, passed = {}, True
        for way in WAYS:
            command = [sys.executable, __file__, "--folder", folder, "--way", way, "--layers", str(arguments.layers)]
            command += ["--dtype", arguments.dtype, "--tokens", str(arguments.tokens)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[way] = result = json.loads(answer.stdout.splitlines()[-1])
            limit = result["kept"] + ALLOWANCE
            passed &= result["loading"] <= limit
            columns = (result["kept"], limit, result["loading"], result["running"], result["libraries"])
            kept, limit, loading, running, libraries = (f"{value / 1e6:.0f}" for value in columns)
            print(f"{way:20}{kept:>7}{limit:>7}{loading:>9}{running:>9}{libraries:>11}", end="")
            print(f"{result['seconds']:8.1f}{result['per_token'] * 1e3:10.0f}")
    for way in ("as it is", "changed"):
        same = found[way]["tokens"] == found[f"{way}, offloaded"]["tokens"]
        passed &= same
        print(f"{way}: the offloaded model writes {'the same' if same else 'OTHER'} tokens")
    print("all within the limit" if passed else "FAILED")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
