"""What makes two folders the same language model, and what makes them different ones."""

import json
import shutil
import time

import pytest
import stored
import tiny
import torch
from safetensors.torch import load_file, save_file

from adapter_llm.shards import fingerprint
from adapter_llm.sources import CheckpointError

WHOLE = "model.safetensors"


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "llama")


def rewritten(folder, change):
    tensors = load_file(folder / WHOLE)
    change(tensors)
    save_file(tensors, folder / WHOLE, {"format": "pt"})
    return fingerprint(folder)


def test_files_and_types_make_no_difference(folder, sharded, copy, tmp_path):
    expected = fingerprint(folder)
    assert len(expected) == 64 and set(expected) <= set("0123456789abcdef")
    assert fingerprint(str(sharded)) == expected
    assert fingerprint(stored.save(tmp_path / "wide", dtype=torch.float32)) == expected
    assert fingerprint(stored.save(tmp_path / "other", dtype=torch.float32, max_shard_size="90KB")) == expected
    torch.save(load_file(copy / WHOLE), copy / "pytorch_model.bin")
    (copy / WHOLE).unlink()
    assert fingerprint(copy) == expected
    for path in copy.glob("*token*"):
        path.unlink()
    assert fingerprint(copy) == expected


@pytest.mark.parametrize("change", [
    {"rms_norm_eps": 3e-4}, {"rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}},
    {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 2.0}},
])  # fmt: skip
def test_positions_and_epsilon_count_though_no_tensor_tells_of_them(copy, change):
    config = json.loads((copy / "config.json").read_text())
    before = fingerprint(copy)
    (copy / "config.json").write_text(json.dumps({**config, **change}))
    assert fingerprint(copy) != before


def test_older_configs_say_the_same_in_other_words(copy):
    config = json.loads((copy / "config.json").read_text())
    before, rope = fingerprint(copy), config.pop("rope_parameters")
    (copy / "config.json").write_text(json.dumps({**config, "rope_theta": rope["rope_theta"], "rope_scaling": None}))
    assert fingerprint(copy) == before


def test_what_counts_as_a_copy(folder, tmp_path):
    """float16 and float32 ones do, of whatever the weights were made in; those that bfloat16 rounded do not."""
    rounded = stored.save(tmp_path / "rounded", dtype=torch.bfloat16)
    assert fingerprint(rounded) != fingerprint(folder)
    for dtype in (torch.float16, torch.float32):
        model = stored.llama().bfloat16()
        assert fingerprint(stored.save(tmp_path / str(dtype), model, dtype)) == fingerprint(rounded)


def test_one_number_makes_a_difference_where_it_is_looked_at(folder, copy):
    expected = fingerprint(folder)

    def last(tensors):
        tensors["model.layers.2.mlp.up_proj.weight"][-1, -1] += 0.01

    def short(tensors):
        tensors["model.layers.2.input_layernorm.weight"][17] += 0.01

    for change in (last, short):
        shutil.copy(folder / WHOLE, copy / WHOLE)
        assert rewritten(copy, change) != expected


def test_numbers_that_change_everywhere_are_noticed_anywhere(folder, copy):
    """Of a tensor, however large, and whichever it is."""
    expected = {fingerprint(folder)}
    for number, name in enumerate(load_file(folder / WHOLE), 1):
        shutil.copy(folder / WHOLE, copy / WHOLE)
        expected.add(rewritten(copy, lambda tensors, name=name: tensors[name].mul_(1.01)))
        assert len(expected) == number + 1, name


def test_names_and_shapes_make_a_difference(folder, copy):
    first, second = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
    found = {fingerprint(folder)}

    def swapped(tensors):
        tensors[first], tensors[second] = tensors[second], tensors[first]

    def reshaped(tensors):
        tensors[first] = tensors[first].view(-1, 24)

    def dropped(tensors):
        del tensors[first]

    def renamed(tensors):
        tensors["model.norm.weights"] = tensors.pop("model.norm.weight")

    for change in (swapped, reshaped, dropped, renamed):
        shutil.copy(folder / WHOLE, copy / WHOLE)
        found.add(rewritten(copy, change))
    assert len(found) == 5
    assert fingerprint(stored.save(copy, stored.llama(seed=2))) not in found


def test_what_other_versions_of_transformers_store_makes_none(folder, copy, tmp_path):
    def tables(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)

    assert rewritten(copy, tables) == fingerprint(folder)
    tied = stored.save(tmp_path / "tied", stored.llama(tie_word_embeddings=True))
    expected = fingerprint(tied)

    def head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert rewritten(tied, head) == expected != fingerprint(folder)


def test_a_large_model_takes_no_time(tmp_path):
    """The time goes by the number of tensors, not by what they hold: here 300 of 4 MB, mapped and not read."""
    large = torch.empty(2**21, dtype=torch.float16)
    torch.save({f"model.{number}": large for number in range(300)}, tmp_path / "pytorch_model.bin")
    fingerprint(tmp_path)
    start = time.process_time()
    fingerprint(tmp_path)
    assert time.process_time() - start < 0.5


def test_folders_that_hold_no_model(tmp_path, copy):
    with pytest.raises(CheckpointError, match=r"holds no weights of a language model \(model.safetensors or"):
        fingerprint(tmp_path)
    (copy / WHOLE).write_bytes((copy / WHOLE).read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="model.safetensors is not a whole safetensors file .*; get it again"):
        fingerprint(copy)
    (tmp_path / "pytorch_model.bin").write_text("<html>")
    with pytest.raises(CheckpointError, match="pytorch_model.bin is not a whole file of weights .*; get it again"):
        fingerprint(tmp_path)


def test_pickles_with_code_are_not_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"model.norm.weight": torch.ones(tiny.HIDDEN), "trap": Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="is not a whole file of weights"):
        fingerprint(tmp_path)
    assert not (tmp_path / "sprung").exists()
