"""Folders of language models and of CLIP, and this project's own: what they are and what they lack."""

import json
from pathlib import Path

import made_files as made
import pytest
import torch
from made_files import identify_names, told
from safetensors.torch import save_file

from adapter_llm.identify import IdentifyError, identify
from adapter_llm.retrieval import FeatureIndex
from imagebind_encoder.schema import ConfigError

ROOT = Path(__file__).parent.parent.parent


def test_meta_folder(tmp_path):
    found = identify(made.llama_meta(tmp_path / "7B"))
    assert told(found) == ("llama-meta", None)
    assert found.sizes == {
        "layers": 4, "hidden_size": 24, "heads": 6, "kv_heads": 3, "vocab_size": 50, "shards": 1,
        "intermediate_size": 40,
    }  # fmt: skip
    assert [file.name for file in found.files] == ["params.json", "consolidated.00.pth", "tokenizer.model"]
    assert found.needs == () and found.parts == {"tokenizer": True}
    (tmp_path / "tokenizer.model").unlink()
    assert "tokenizer.model" in identify(tmp_path / "7B").needs[0]
    (tmp_path / "7B" / "tokenizer.model").write_bytes(b"any")
    assert identify(tmp_path / "7B").needs == ()


def test_meta_folder_of_several_shards(tmp_path):
    folder = made.llama_meta(tmp_path / "13B", shards=2)
    sizes = identify(folder).sizes
    assert told(identify(folder)) == ("llama-meta", None)
    assert (sizes["shards"], sizes["vocab_size"], sizes["hidden_size"], sizes["intermediate_size"]) == (2, 50, 24, 40)
    lost = folder / "consolidated.01.pth"
    lost.rename(folder / "consolidated.02.pth")
    assert identify(folder).missing == ("consolidated.01.pth",)
    (folder / "consolidated.02.pth").rename(lost)
    torch.save({name: tensor.float() for name, tensor in made.llama_shard(2).items()}, lost)
    assert "do not all belong to one model" in identify(folder).problems[0]
    torch.save(made.llama_shard(2), lost)
    torch.save(made.llama_shard(2), folder / "consolidated.02.pth")
    assert "3 shards of a model that was cut into 2" in identify(folder).problems[0]
    (folder / "consolidated.00.pth").unlink()
    assert identify(folder).missing == ("consolidated.00.pth",)


def test_meta_folder_whose_vocabulary_is_shared_out(tmp_path):
    """LLaMA 3 cuts its embeddings into rows, not columns."""
    folder = made.llama_meta(tmp_path / "8B", shards=2)
    tensors = made.llama_shard(2) | {"tok_embeddings.weight": torch.zeros(made.VOCABULARY // 2, made.HIDDEN).half()}
    for shard in folder.glob("*.pth"):
        torch.save(tensors, shard)
    assert told(identify(folder)) == ("llama-meta", None)
    assert identify(folder).sizes["vocab_size"] == made.VOCABULARY


def test_meta_folder_with_the_params_of_another(tmp_path):
    folder = made.llama_meta(tmp_path / "7B", dim=30)
    assert "params.json says dim 30, and the weights have 24" in identify(folder).problems[0]
    (folder / "params.json").unlink()
    found = identify(folder)
    assert found.missing == ("params.json",) and found.sizes["layers"] == 4
    (folder / "params.json").write_text("{")
    with pytest.raises(IdentifyError, match="params.json cannot be read as JSON"):
        identify(folder)
    (folder / "params.json").write_text('{"dim": "24", "n_layers": 99999999999}')
    found = identify(folder)
    assert found.sizes["hidden_size"] == 24 and 0 < len(found.missing) < 10000
    (folder / "consolidated.00.pth").unlink()
    with pytest.raises(IdentifyError, match="no consolidated"):
        identify(folder)


def hugging_face(folder, tensors=None, tokenizer=True, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(made.hf_config(**changes)))
    save_file(made.llama_hf() if tensors is None else tensors, folder / "model.safetensors")
    if tokenizer:
        (folder / "tokenizer.json").write_text("{}")
    return folder


def test_hugging_face_folder(tmp_path):
    found = identify(hugging_face(tmp_path))
    assert told(found) == ("llama-hf", "llama")
    assert found.sizes == {
        "layers": 4, "hidden_size": 24, "heads": 6, "kv_heads": 3, "intermediate_size": 40, "vocab_size": 50,
    }  # fmt: skip
    assert [file.name for file in found.files] == ["config.json", "tokenizer.json", "model.safetensors"]
    for key in made.llama_hf():
        some = {name: tensor for name, tensor in made.llama_hf().items() if name != key}
        assert identify(hugging_face(tmp_path, some)).missing == (key,)
    tables = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2), "odd.weight": torch.zeros(1)}
    assert identify(hugging_face(tmp_path, made.llama_hf() | tables)).unexpected == ("odd.weight",)
    biases = {f"model.layers.{i}.self_attn.{name}_proj.bias": torch.zeros(3) for i in range(4) for name in "qkvo"}
    assert identify(hugging_face(tmp_path, made.llama_hf() | biases)).unexpected == ()
    lost, _ = biases.popitem()
    assert identify(hugging_face(tmp_path, made.llama_hf() | biases)).missing == (lost,)


def test_hugging_face_folder_with_shared_embeddings(tmp_path):
    tied = made.llama_hf(tied=True)
    assert identify(hugging_face(tmp_path, tied)).missing == ("lm_head.weight",)
    assert told(identify(hugging_face(tmp_path, tied, tie_word_embeddings=True))) == ("llama-hf", "llama")


def test_hugging_face_folder_of_two_models(tmp_path):
    problems = identify(hugging_face(tmp_path, vocab_size=51, hidden_size=32)).problems
    assert "config.json says vocab_size 51, and the weights have 50" in problems[0]
    assert "config.json says hidden_size 32, and the weights have 24" in problems[1]


def test_hugging_face_folder_in_shards(tmp_path):
    folder = hugging_face(tmp_path, tokenizer=False)
    (folder / "model.safetensors").unlink()
    assert identify(folder).missing == ("model.safetensors",)
    tensors = list(made.llama_hf().items())
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, some in zip(names, (tensors[:9], tensors[9:]), strict=True):
        save_file(dict(some), folder / name)
    places = {key: names[index >= 9] for index, (key, _) in enumerate(tensors)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    found = identify(folder)
    assert told(found) == ("llama-hf", "llama")
    assert "tokenizer" in found.needs[0]
    (folder / names[1]).unlink()
    assert identify(folder).missing == (names[1],)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(IdentifyError, match="does not say where the weights are"):
        identify(folder)


def test_other_language_models(tmp_path):
    qwen = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    assert told(identify(hugging_face(tmp_path, {"any": torch.zeros(1)}, **qwen))) == ("llama-hf", "qwen2")
    bert = {"architectures": ["BertModel"], "model_type": "bert"}
    assert "BertModel" in identify(hugging_face(tmp_path, {"any": torch.zeros(1)}, **bert)).notes[0]


def test_clip_in_either_layout(tmp_path):
    assert identify_names(made.clip_openai(text=True)).parts == {"vision": True, "text": True}
    assert told(identify_names(made.clip_openai(text=True))) == ("clip-openai", None)
    with pytest.raises(IdentifyError, match="ResNet"):
        identify_names(made.clip_openai() | {"visual.layer1.0.conv1.weight": torch.zeros(1)})
    tensors = made.clip_hf() | {"text_model.final_layer_norm.bias": torch.zeros(3), "logit_scale": torch.zeros(())}
    save_file(tensors, tmp_path / "model.safetensors")
    assert told(identify(tmp_path / "model.safetensors")) == ("clip-hf", None)
    config = {"model_type": "clip", "vision_config": {"num_attention_heads": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = identify(tmp_path)
    assert told(found) == ("clip-hf", None)
    assert found.sizes["heads"] == 8 and found.path == tmp_path
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(IdentifyError, match="CLIP folder without model.safetensors"):
        identify(tmp_path)


def test_default_weights():
    found = identify(ROOT / "weights/default")
    assert told(found) == ("weights", "imagebind")
    manifest = json.loads((ROOT / "weights/default/manifest.json").read_text())["decoder"]
    assert manifest["name"] in found.needs[0] and f"{manifest['num_hidden_layers']} layers" in found.needs[0]
    assert found.parts["adapter"] and not found.parts["changes of the decoder"]
    assert {file.name for file in found.files} == {
        "adapter.safetensors", "config.json", "encoder.safetensors", "manifest.json",
    }  # fmt: skip


def own_folder(folder, *names):
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((ROOT / "weights/default" / name).read_bytes())
    return folder


def test_own_folder_in_pieces(tmp_path):
    found = identify(own_folder(tmp_path / "a", "adapter.safetensors", "manifest.json"))
    assert (found.family, found.missing) == ("weights", ("config.json", "encoder.safetensors"))
    found = identify(own_folder(tmp_path / "b", "encoder.safetensors", "config.json"))
    assert (found.family, found.missing) == ("encoder", ("manifest.json",))
    assert "query_len" not in found.sizes and found.parts == {}
    folder = own_folder(tmp_path / "c", "adapter.safetensors", "config.json")
    (folder / "config.json").write_text('{"encoder": 3}')
    with pytest.raises(ConfigError, match=r"config\.json"):
        identify(folder)


def test_feature_index(tmp_path):
    FeatureIndex(torch.randn(5, 3), [f"photo {number}" for number in range(5)]).save(tmp_path / "photos.index")
    found = identify(tmp_path / "photos.index")
    assert told(found) == ("feature-index", None)
    assert found.sizes == {"embedding_dim": 3, "vectors": 5} and found.parts == {"ids": True}
    FeatureIndex(torch.randn(5, 3)).save(tmp_path / "photos.index")
    assert identify(tmp_path / "photos.index").parts == {"ids": False}
    save_file({"vectors": torch.zeros(5, 3)}, tmp_path / "photos.index")
    with pytest.raises(IdentifyError, match="no known family"):
        identify(tmp_path / "photos.index")
