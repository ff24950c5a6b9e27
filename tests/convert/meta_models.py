"""Random LLaMAs in Meta's layout, as published ones are cut into shards, and what they compute: an oracle."""

import json
import shutil

import torch
from torch.nn import functional as F

ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
COLUMNS = ("wo", "w2")
PARAMS = {"dim": 24, "multiple_of": 4, "n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "norm_eps": 1e-3, "vocab_size": -1}
WIDTH = 44  # of the feed-forward


def train_tokenizer(path, pieces):
    """A sentencepiece model with LLaMA's settings, of about so many pieces; returns it and their number."""
    import sentencepiece

    text = [f"word{n} and {chr(97 + n % 26) * (n % 5 + 1)} number {n * 7}" for n in range(400)]
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text), model_writer=file, vocab_size=pieces, model_type="bpe", byte_fallback=True,
            pad_id=-1, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            character_coverage=1.0, hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
    return path, sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size()


def random_tensors(params, rows, width=WIDTH, dtype=torch.float16):
    """All tensors of a model but its tables, whole."""
    dim = params["dim"]
    keys = params.get("n_kv_heads", params["n_heads"]) * dim // params["n_heads"]
    shapes = {"tok_embeddings.weight": (rows, dim)}
    for i in range(params["n_layers"]):
        attention = {"wq": (dim, dim), "wk": (keys, dim), "wv": (keys, dim), "wo": (dim, dim)}
        shapes |= {f"layers.{i}.attention.{name}.weight": shape for name, shape in attention.items()}
        forward = {"w1": (width, dim), "w2": (dim, width), "w3": (width, dim)}
        shapes |= {f"layers.{i}.feed_forward.{name}.weight": shape for name, shape in forward.items()}
        shapes |= {f"layers.{i}.{name}.weight": (dim,) for name in ("attention_norm", "ffn_norm")}
    shapes |= {"norm.weight": (dim,), "output.weight": (rows, dim)}
    return {
        name: (torch.randn(shape) / 5 + ("norm" in name)).to(dtype) if len(shape) == 1
        else (torch.randn(shape) / 4).to(dtype)
        for name, shape in shapes.items()
    }  # fmt: skip


def cut(tensors, shards, tokens="columns"):
    """The tensors of each shard."""
    found = [{} for _ in range(shards)]
    for name, tensor in tensors.items():
        part = name.split(".")[-2]
        if part in ROWS or (part == "tok_embeddings" and tokens == "rows"):
            parts = tensor.chunk(shards)
        elif part in COLUMNS or part == "tok_embeddings":
            parts = tensor.chunk(shards, dim=1)
        else:
            parts = [tensor] * shards
        for shard, piece in zip(found, parts, strict=True):
            shard[name] = piece.clone()
    return found


def write_base(folder, tokenizer, rows, shards=1, tokens="columns", params=PARAMS, dtype=torch.float16, beside=False):
    """A folder as published; the tokenizer in it, or `beside` it. Returns the folder and the tensors, whole."""
    folder.mkdir(parents=True)
    tensors = random_tensors(params, rows, dtype=dtype)
    for index, shard in enumerate(cut(tensors, shards, tokens)):
        shard["rope.freqs"] = torch.rand(5) + index
        torch.save(shard, folder / f"consolidated.{index:02d}.pth")
    (folder / "params.json").write_text(json.dumps(params) + "\r\n", newline="")
    shutil.copy(tokenizer, (folder.parent if beside else folder) / "tokenizer.model")
    return folder, tensors


def logits(tensors, params, ids, theta=10000.0):
    """Every token's next-token scores, (T,) to (T, V), in float64, as the original computes them."""
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    heads, size = params["n_heads"], params["dim"] // params["n_heads"]
    groups = heads // params.get("n_kv_heads", heads)
    angles = torch.outer(torch.arange(len(ids)), theta ** (-torch.arange(0, size, 2) / size)).double()
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]  # (T, 1, P / 2)

    def norm(x, name):
        return x * (x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]).rsqrt() * tensors[name]

    def rotate(x):  # neighbours are the two parts of a complex number
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)

    x = tensors["tok_embeddings.weight"][ids]
    mask = torch.full((len(ids), len(ids)), -torch.inf, dtype=torch.float64).triu(1)
    for i in range(params["n_layers"]):
        at = {name.removeprefix(f"layers.{i}."): tensor for name, tensor in tensors.items()}
        h = norm(x, f"layers.{i}.attention_norm.weight")
        q, k, v = (F.linear(h, at[f"attention.w{name}.weight"]).unflatten(-1, (-1, size)) for name in "qkv")
        q, k, v = rotate(q), rotate(k).repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
        scores = torch.einsum("qhp,khp->hqk", q, k) / size**0.5 + mask
        mixed = torch.einsum("hqk,khp->qhp", scores.softmax(-1), v).flatten(1)
        x = x + F.linear(mixed, at["attention.wo.weight"])
        h = norm(x, f"layers.{i}.ffn_norm.weight")
        gate, up = (F.linear(h, at[f"feed_forward.{name}.weight"]) for name in ("w1", "w3"))
        x = x + F.linear(F.silu(gate) * up, at["feed_forward.w2.weight"])
    return F.linear(norm(x, "norm.weight"), tensors["output.weight"])


def gguf_file(path):
    """A tiny LLaMA as GGUF, with random weights."""
    import gguf
    import numpy

    writer, size = gguf.GGUFWriter(path, "llama"), 16
    writer.add_context_length(64)
    writer.add_embedding_length(size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(24)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(n) for n in range(len(tokens))])
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (len(tokens), size), "output_norm": (size,), "output": (len(tokens), size)}
    shapes |= {f"blk.0.attn_{name}": (rows, size) for name, rows in (("q", 16), ("k", 8), ("v", 8), ("output", 16))}
    shapes |= {"blk.0.ffn_gate": (24, size), "blk.0.ffn_up": (24, size), "blk.0.ffn_down": (size, 24)}
    shapes |= {"blk.0.attn_norm": (size,), "blk.0.ffn_norm": (size,)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.random.randn(*shape).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
