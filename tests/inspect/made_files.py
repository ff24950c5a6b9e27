"""Published files in small, written out key by key: names and shapes as the originals save them, numbers of no use."""

import json
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from adapter_llm.identify.families import identify_tensors
from adapter_llm.tensorfiles import TensorFile, TensorSpec

LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY = 4, 24, 6, 3, 40, 50
QUERY_LEN, ADAPTED, WIDTH, BLOCKS, FEATURES, RANK = 5, 3, 16, 2, 14, 2
KEYS = HIDDEN // HEADS * KV_HEADS  # rows of the key and value projections
LINEAR = {
    "attention.wq": (HIDDEN, HIDDEN),
    "attention.wk": (KEYS, HIDDEN),
    "attention.wv": (KEYS, HIDDEN),
    "attention.wo": (HIDDEN, HIDDEN),
    "feed_forward.w1": (INNER, HIDDEN),
    "feed_forward.w2": (HIDDEN, INNER),
    "feed_forward.w3": (INNER, HIDDEN),
}
BIASED = ("attention.wq", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")
GATE_TYPE = torch.float16


def zeros(shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def decoder(biases=True, norms=True, lora=True):
    """What an adapter file may hold of LLaMA itself."""
    shapes = {}
    for layer in range(LAYERS):
        start = f"llama.layers.{layer}."
        if biases:
            shapes |= {f"{start}{name}.bias": LINEAR[name][:1] for name in BIASED}
        if norms:
            shapes |= {f"{start}{name}.weight": (HIDDEN,) for name in ("attention_norm", "ffn_norm")}
        if lora:
            for name, (out, into) in LINEAR.items():
                module, _, matrix = name.partition(".")
                shapes[f"{start}{module}.lora_{matrix}_l1.weight"] = (RANK, into)
                shapes[f"{start}{module}.lora_{matrix}_l2.weight"] = (out, RANK)
    return shapes | ({"llama.norm.weight": (HIDDEN,)} if norms else {})


def gates(name="gate", shape=(1, HEADS, 1, 1)):
    return {
        f"llama.layers.{layer}.attention.{name}": torch.zeros(shape, dtype=GATE_TYPE) for layer in range(LAYERS)
    }


def adapter_v2(biases=True, norms=True, lora=True, new_gate=True):
    shapes = linear("clip_proj", WIDTH, FEATURES) | norm("clip_proj_norm", WIDTH)
    shapes |= {"visual_query.weight": (QUERY_LEN, WIDTH), "adapter_query.weight": (ADAPTED * QUERY_LEN, HIDDEN)}
    for block in range(BLOCKS):
        start = f"visual_blocks.{block}."
        shapes |= norm(f"{start}norm1", WIDTH) | linear(f"{start}attn.qkv", 3 * WIDTH, WIDTH)
        shapes |= linear(f"{start}attn.proj", WIDTH, WIDTH) | norm(f"{start}norm2", WIDTH)
        shapes |= linear(f"{start}mlp.fc1", 64, WIDTH) | linear(f"{start}mlp.fc2", WIDTH, 64)
    shapes |= linear("visual_proj", HIDDEN, WIDTH) | norm("visual_proj_norm", HIDDEN)
    tensors = zeros(shapes | decoder(biases, norms, lora)) | gates()
    return tensors | (gates("new_gate", (1, 1, 1, 1)) if new_gate else {})


def imagebind_llm(finetuned=True, legacy=False):
    shapes = linear("image_bind_proj", HIDDEN, FEATURES) | {"prefix_query.weight": (LAYERS, HIDDEN)}
    for step in (1, 2, 3):
        parts = {f"image_bind_norm_{step}": (HIDDEN,)}
        parts |= {f"image_bind_f{number}_{step}": (96, HIDDEN) for number in (1, 3)}
        parts[f"image_bind_f2_{step}"] = (HIDDEN, 96)
        shapes |= {f"{name}.weight": shape for name, shape in parts.items()}
        if legacy:
            shapes |= {f"{name}.bias": shape[:1] for name, shape in parts.items()}
    return zeros(shapes | decoder(biases=finetuned, lora=finetuned)) | gates()


def clip_openai(text=False):
    shapes = {"class_embedding": (WIDTH,), "positional_embedding": (10, WIDTH), "proj": (WIDTH, FEATURES)}
    shapes |= {"conv1.weight": (WIDTH, 3, 7, 7)} | norm("ln_pre", WIDTH) | norm("ln_post", WIDTH)
    for block in range(BLOCKS):
        start = f"transformer.resblocks.{block}."
        shapes |= {f"{start}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{start}attn.in_proj_bias": (3 * WIDTH,)}
        shapes |= linear(f"{start}attn.out_proj", WIDTH, WIDTH) | norm(f"{start}ln_1", WIDTH)
        shapes |= linear(f"{start}mlp.c_fc", 64, WIDTH) | linear(f"{start}mlp.c_proj", WIDTH, 64)
        shapes |= norm(f"{start}ln_2", WIDTH)
    shapes = {f"visual.{name}": shape for name, shape in shapes.items()}
    return zeros(shapes | ({"text_projection": (9, 8), "transformer.resblocks.0.ln_1.bias": (9,)} if text else {}))


def clip_hf():
    start = "vision_model.embeddings."
    shapes = {f"{start}class_embedding": (WIDTH,), f"{start}position_embedding.weight": (10, WIDTH)}
    shapes |= {f"{start}patch_embedding.weight": (WIDTH, 3, 7, 7), "visual_projection.weight": (FEATURES, WIDTH)}
    shapes |= norm("vision_model.pre_layrnorm", WIDTH) | norm("vision_model.post_layernorm", WIDTH)
    for block in range(BLOCKS):
        start = f"vision_model.encoder.layers.{block}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{start}self_attn.{name}", WIDTH, WIDTH)
        shapes |= norm(f"{start}layer_norm1", WIDTH) | norm(f"{start}layer_norm2", WIDTH)
        shapes |= linear(f"{start}mlp.fc1", 64, WIDTH) | linear(f"{start}mlp.fc2", WIDTH, 64)
    return zeros(shapes)


def llama_shard(shards=1):
    """One of `shards` files in Meta's layout: rows of some matrices are shared out, columns of the others."""
    shapes = {"tok_embeddings.weight": (VOCABULARY, HIDDEN // shards), "output.weight": (VOCABULARY // shards, HIDDEN)}
    shapes |= {"norm.weight": (HIDDEN,), "rope.freqs": (2,)}
    for layer in range(LAYERS):
        start = f"layers.{layer}."
        for name, (out, into) in LINEAR.items():
            by_column = name in ("attention.wo", "feed_forward.w2")
            shapes[f"{start}{name}.weight"] = (out, into // shards) if by_column else (out // shards, into)
        shapes |= {f"{start}{name}.weight": (HIDDEN,) for name in ("attention_norm", "ffn_norm")}
    return {name: tensor.half() for name, tensor in zeros(shapes).items()}


def llama_meta(folder, shards=1, **params):
    folder.mkdir(parents=True, exist_ok=True)
    values = {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "vocab_size": -1} | params
    (folder / "params.json").write_text(json.dumps(values))
    for shard in range(shards):
        torch.save(llama_shard(shards), folder / f"consolidated.{shard:02d}.pth")
    (folder.parent / "tokenizer.model").write_bytes(b"any")
    return folder


def llama_hf(tied=False):
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    shapes |= {} if tied else {"lm_head.weight": (VOCABULARY, HIDDEN)}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        for name, rows in (("q", HIDDEN), ("k", KEYS), ("v", KEYS), ("o", HIDDEN)):
            shapes[f"{start}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
        for name, shape in (("gate", (INNER, HIDDEN)), ("up", (INNER, HIDDEN)), ("down", (HIDDEN, INNER))):
            shapes[f"{start}mlp.{name}_proj.weight"] = shape
        shapes |= {f"{start}{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")}
    return zeros(shapes)


def hf_config(**changes):
    values = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN}
    values |= {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS}
    return values | {"intermediate_size": INNER, "vocab_size": VOCABULARY} | changes


def write_hollow(path, shapes, wrapper=None):
    """A .pth of {name: (shape, type)} whose data is a hole in the file, so that any size takes no room."""
    with FakeTensorMode():
        tensors = {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, (shape, kind) in shapes.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save({wrapper: tensors} if wrapper else tensors, path)


def told(found):
    """That nothing is wrong with what was found, and its kind."""
    assert (found.missing, found.unexpected, found.problems) == ((), (), ())
    return found.family, found.variant


def identify_names(tensors, **extra):
    """What a file of these tensors is, without writing it."""
    specs = {name: TensorSpec.of(tensor) for name, tensor in tensors.items()}
    return identify_tensors(TensorFile(Path(__file__), specs, None, extra=extra))
