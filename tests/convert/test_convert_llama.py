"""LLaMA in Meta's layout: a Hugging Face folder that computes the same, and back to the same bytes."""

import json
import shutil

import meta_models
import pytest
import torch
from safetensors.torch import load_file

from adapter_llm.convert import llama
from adapter_llm.convert.llama import from_gguf, from_meta, to_meta
from adapter_llm.convert.meta_folder import open_meta
from adapter_llm.convert.meta_layout import Params, expected_shapes, is_table

WHOLE = {"config.json", "generation_config.json", "meta.json", "meta.safetensors", "model.safetensors",
         "tokenizer.json", "tokenizer.model", "tokenizer_config.json"}  # fmt: skip
OURS = {"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm"}  # fmt: skip


def names(folder):
    return {path.name for path in folder.iterdir()}


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()


def same_files(one, other):
    """Two folders in Meta's layout, tensor by tensor and byte by byte."""
    assert names(one) == names(other)
    for path in one.iterdir():
        if path.suffix != ".pth":
            assert path.read_bytes() == (other / path.name).read_bytes()
            continue
        before, after = (torch.load(folder / path.name, weights_only=True) for folder in (one, other))
        assert set(before) == set(after)
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype
            assert torch.equal(tensor.flatten().view(torch.uint8), after[name].flatten().view(torch.uint8)), name


def check_logits(folder, tensors, params, theta=10000.0):
    ids = torch.randint(0, tensors["output.weight"].shape[0], (17,))
    wanted = meta_models.logits(tensors, params, ids, theta)
    with torch.inference_mode():
        found = load(folder)(ids[None]).logits[0]
    assert wanted.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("tokens", ["columns", "rows"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_transformers_computes_the_same(tmp_path, base, shards, tokens, dtype):
    folder, tensors = base(shards=shards, tokens=tokens, dtype=dtype)
    from_meta(folder, tmp_path / "hf")
    assert names(tmp_path / "hf") == WHOLE
    check_logits(tmp_path / "hf", tensors, meta_models.PARAMS)
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


def test_a_base_without_grouped_heads(tmp_path, base):
    """And with a base of rotation of its own."""
    params = {**meta_models.PARAMS, "n_heads": 6, "rope_theta": 700.0}
    del params["n_kv_heads"]
    folder, tensors = base(params=params)
    from_meta(folder, tmp_path / "hf")
    check_logits(tmp_path / "hf", tensors, params, theta=700.0)


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("tokens", ["columns", "rows"])
@pytest.mark.parametrize("block", [100, 32 * 2**20])
def test_there_and_back(tmp_path, base, monkeypatch, shards, tokens, block):
    """In blocks of a few rows, too, which never divide a head."""
    from adapter_llm.tensorfiles import specs

    monkeypatch.setattr(specs, "BLOCK", block)
    folder, _ = base(shards=shards, tokens=tokens)
    from_meta(folder, tmp_path / "hf")
    to_meta(tmp_path / "hf", tmp_path / "back")
    same_files(folder, tmp_path / "back")


def test_names_and_the_rows_of_rotated_matrices(tmp_path, base):
    """Each tensor is where transformers has it; rows (2i, 2i + 1) of a head are rows (i, i + P/2)."""
    folder, tensors = base(shards=2)
    from_meta(folder, tmp_path / "hf")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    wanted = {"model.embed_tokens.weight": "tok_embeddings", "model.norm.weight": "norm", "lm_head.weight": "output"}
    for i in range(meta_models.PARAMS["n_layers"]):
        wanted |= {f"model.layers.{i}.{ours}.weight": f"layers.{i}.{theirs}" for theirs, ours in OURS.items()}
    assert set(found) == set(wanted)
    size = meta_models.PARAMS["dim"] // meta_models.PARAMS["n_heads"]
    for ours, theirs in wanted.items():
        tensor = tensors[f"{theirs}.weight"]
        if ours.endswith(("q_proj.weight", "k_proj.weight")):
            order = [head * size + row for head in range(len(tensor) // size)
                     for row in (*range(0, size, 2), *range(1, size, 2))]  # fmt: skip
            tensor = tensor[order]
        assert torch.equal(found[ours], tensor), ours


def test_large_models_are_several_files(tmp_path, base, monkeypatch):
    """None above the limit, but for a tensor that is; the index says what is where, and transformers reads it."""
    folder, tensors = base()
    sizes = sorted((tensor.nbytes for tensor in tensors.values()), reverse=True)
    monkeypatch.setattr(llama, "LARGEST_FILE", sizes[0] - 2)
    from_meta(folder, tmp_path / "hf")
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    files = sorted(name for name in names(tmp_path / "hf") if name.startswith("model-"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    held = {name: load_file(tmp_path / "hf" / name) for name in files}
    assert index["weight_map"] == {key: name for name, content in held.items() for key in content}
    assert index["metadata"] == {"total_size": sum(sizes)}
    bytes_of = [sum(tensor.nbytes for tensor in content.values()) for content in held.values()]
    assert all(held.values())
    assert sorted(bytes_of)[-3] < sizes[0] and len(files) > 3  # the two that are above hold one tensor each
    assert names(tmp_path / "hf") == (WHOLE - {"model.safetensors"}) | set(files) | {"model.safetensors.index.json"}
    check_logits(tmp_path / "hf", tensors, meta_models.PARAMS)
    to_meta(tmp_path / "hf", tmp_path / "back")
    same_files(folder, tmp_path / "back")


def test_the_configs(tmp_path, base, sentencepiece_model):
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    params = {**meta_models.PARAMS, "vocab_size": sentencepiece_model[1]}
    folder, _ = base(params=params, beside=True)
    from_meta(folder, tmp_path / "hf")
    config = AutoConfig.from_pretrained(tmp_path / "hf")
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.bos_token_id, config.eos_token_id, config.vocab_size) == (1, 2, sentencepiece_model[1])
    assert (config.intermediate_size, config.num_key_value_heads) == (meta_models.WIDTH, 2)
    assert (config.rms_norm_eps, config.tie_word_embeddings, config.max_position_embeddings) == (1e-3, False, 2048)
    generation = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 0)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "hf")) == sentencepiece_model[1]
    assert (tmp_path / "hf" / "tokenizer.model").read_bytes() == sentencepiece_model[0].read_bytes()


def test_a_tokenizer_from_elsewhere(tmp_path, base, sentencepiece_model):
    folder, _ = base()
    (folder / "tokenizer.model").unlink()
    from_meta(folder, tmp_path / "hf", sentencepiece_model[0])
    assert names(tmp_path / "hf") == WHOLE


@pytest.mark.parametrize("dim, factor", [(4096, 8.0), (2048, 32.0)])
def test_the_rotation_of_llama_3(dim, factor):
    """The factors of LLaMA 3.1, and of 3.2, whose files say the same."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    values = {"dim": dim, "n_layers": 2, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5, "rope_theta": 500000.0}
    plain = Params.parse(json.dumps(values), "params.json")
    assert plain.rotation() == {"rope_type": "default", "rope_theta": 500000.0} and plain.positions() == 8192
    scaled = Params.parse(json.dumps({**values, "use_scaled_rope": True}), "params.json")
    assert scaled.positions() == 131072
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=32, rope_parameters=scaled.rotation(), max_position_embeddings=131072
    )
    found, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
    speeds = 500000.0 ** (-torch.arange(0, dim // 32, 2) / (dim // 32))
    waves = 2 * torch.pi / speeds
    blend = ((8192 / waves - 1) / 3).clamp(0, 1)  # 0: slowed down, 1: as it was
    torch.testing.assert_close(found, (1 - blend) * speeds / factor + blend * speeds)


def test_the_published_layout(golden):
    """Names and shapes of the 7B model, in both directions."""
    layouts = golden / "layouts" / "llama_7B_meta.json"
    if not layouts.is_file():
        pytest.skip("no layout of LLaMA in the golden folder")
    layout = json.loads(layouts.read_text())
    params = Params.parse(layout["params_json"], "params.json")
    published = {name: tuple(shape) for name, (shape, _) in layout["keys"].items() if not is_table(name)}
    rows, width = published["output.weight"][0], published["layers.0.feed_forward.w1.weight"][0]
    assert dict(expected_shapes(params, rows, width)) == published
    assert list(dict(expected_shapes(params, rows, width))) == list(published)


@pytest.mark.parametrize("family", ["adapter_v2", "imagebind_llm"])
def test_golden_bases(tmp_path, golden, family):
    source = golden / family / "llama" / "7B"
    if not source.is_dir():
        pytest.skip(f"no base of {family} in the golden folder")
    from_meta(source, tmp_path / "hf")
    params = json.loads((source / "params.json").read_text())
    tensors = {}
    for path in sorted(source.glob("*.pth")):
        tensors |= torch.load(path, weights_only=True)
    if len(list(source.glob("*.pth"))) == 1:
        check_logits(tmp_path / "hf", tensors, params)
    to_meta(tmp_path / "hf", tmp_path / "back")
    shutil.copytree(source, tmp_path / "original")
    (tmp_path / "original").chmod(0o755)
    tokenizer = source / "tokenizer.model"
    shutil.copy(tokenizer if tokenizer.is_file() else source.parent / "tokenizer.model", tmp_path / "original")
    same_files(tmp_path / "original", tmp_path / "back")


def test_a_stopped_conversion_goes_on(tmp_path, base, monkeypatch):
    """Both ways; the result is that of one that was never stopped."""
    folder, _ = base(shards=2)
    from_meta(folder, tmp_path / "whole")
    to_meta(tmp_path / "whole", tmp_path / "back")
    blocks, calls = llama.MetaFolder.blocks, []

    def stopping(self, weight):
        calls.append(weight)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return blocks(self, weight)

    monkeypatch.setattr(llama.MetaFolder, "blocks", stopping)
    with pytest.raises(KeyboardInterrupt):
        from_meta(folder, tmp_path / "hf")
    assert "hf" not in names(tmp_path)
    from_meta(folder, tmp_path / "hf")
    assert {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()
    }
    shard_blocks, calls = llama._shard_blocks, []

    def stopping_back(*args):
        calls.append(args)
        if len(calls) == 40:  # in the second of two files
            raise KeyboardInterrupt
        return shard_blocks(*args)

    monkeypatch.setattr(llama, "_shard_blocks", stopping_back)
    with pytest.raises(KeyboardInterrupt):
        to_meta(tmp_path / "whole", tmp_path / "back2")
    assert len(calls) == 40
    to_meta(tmp_path / "whole", tmp_path / "back2")
    assert len(calls) < 80
    same_files(tmp_path / "back", tmp_path / "back2")


def test_changed_tensors_go_back_changed(tmp_path, base):
    folder, tensors = base()
    from_meta(folder, tmp_path / "hf")
    from safetensors.torch import save_file

    found = load_file(tmp_path / "hf" / "model.safetensors")
    found["model.layers.1.mlp.down_proj.weight"] = found["model.layers.1.mlp.down_proj.weight"].float() * 2
    save_file(found, tmp_path / "hf" / "model.safetensors")
    to_meta(tmp_path / "hf", tmp_path / "back")
    after = torch.load(tmp_path / "back" / "consolidated.00.pth", weights_only=True)
    assert torch.equal(after["layers.1.feed_forward.w2.weight"], tensors["layers.1.feed_forward.w2.weight"].float() * 2)


def test_only_what_is_needed_is_read(base, monkeypatch):
    """To open a model reads its norms alone; a block of one matrix reads that block."""
    from adapter_llm.tensorfiles import specs

    folder, _ = base(shards=2)
    read, read_at = [], specs.read_at

    def noted(path, offset, spec):
        read.append(spec.shape)
        return read_at(path, offset, spec)

    monkeypatch.setattr(specs, "read_at", noted)
    model = open_meta(folder)
    assert set(read) == {(24,)}
    read.clear()
    monkeypatch.setattr(specs, "BLOCK", 7 * 48)
    by_name = {weight.theirs: weight for weight in model.weights}
    list(model.blocks(by_name["layers.0.attention.wq.weight"]))
    assert set(read) == {(6, 24)}


@pytest.mark.filterwarnings("ignore")  # of transformers' own, about formats
def test_gguf_becomes_a_folder(tmp_path):
    source = meta_models.gguf_file(tmp_path / "x.gguf")
    from_gguf(source, tmp_path / "hf")
    assert names(tmp_path) == {"x.gguf", "hf"}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names(tmp_path / "hf")
    assert load(tmp_path / "hf").config.hidden_size == 16


@pytest.mark.filterwarnings("ignore")
def test_a_stopped_gguf_conversion_begins_again(tmp_path, monkeypatch):
    """With what the earlier run left lying about."""
    source, replace = meta_models.gguf_file(tmp_path / "x.gguf"), llama.os.replace

    def stopping(old, new):
        if old.name == "model.safetensors" and old.parent.name == "made":
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(llama.os, "replace", stopping)
    with pytest.raises(KeyboardInterrupt):
        from_gguf(source, tmp_path / "hf")
    monkeypatch.undo()
    assert "made" in names(tmp_path / "hf.partial")
    from_gguf(source, tmp_path / "hf")
    assert not {"made", "made.part"} & names(tmp_path / "hf")
    assert names(tmp_path) == {"x.gguf", "hf"}
