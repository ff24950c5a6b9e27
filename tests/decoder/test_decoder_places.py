"""A decoder in parts, on the processor and on the disk, writes what it writes as a whole."""

import errno
import gc
import os
from pathlib import Path

import pytest
import stored
import tiny
import torch
from torch import nn

from adapter_llm.config import DecoderConfig
from adapter_llm.decoder import load_decoder
from adapter_llm.llama import attach_adapter, execution_device, project_adapter
from adapter_llm.model import AdapterLLM
from adapter_llm.shards import Shards
from adapter_llm.sources import CheckpointError

MAPS = Path("/proc/self/maps")
PARTS = ("model.embed_tokens", *(f"model.layers.{layer}" for layer in range(tiny.LAYERS)), "model.norm", "lm_head")
PLACES = {
    "cpu": "cpu",
    "disk": "disk",
    "whole": {"": "disk"},
    "most": {part: "cpu" if part in (PARTS[0], PARTS[1], PARTS[-1]) else "disk" for part in PARTS},
    "embeddings": {part: "disk" if part == PARTS[0] else "cpu" for part in PARTS},
    "inside": {**{part: "cpu" for part in PARTS[:-3]}, **{part: "disk" for part in PARTS[-2:]},
               "model.layers.4.self_attn": "disk", "model.layers.4.mlp": "cpu",
               "model.layers.4.input_layernorm": "cpu", "model.layers.4.post_attention_layernorm": "disk"},
    "auto": "auto",
    "little": ("auto", {"cpu": "120KB"}),
    "sequential": ("sequential", {"cpu": "120KB"}),
}  # fmt: skip
every_place = pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
both = pytest.mark.parametrize("config", [DecoderConfig(), stored.ALL], ids=["plain", "changed"])
types = pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["converted", "as-stored"])


@pytest.fixture(autouse=True)
def _quiet(caplog):
    """accelerate says, as a warning, that parameters on the disk are on the disk."""
    caplog.set_level("ERROR", logger="accelerate.big_modeling")


def load(folder, config, dtype=torch.float32, place=None, offload=None, **options):
    place, memory = place if isinstance(place, tuple) else (place, None)
    options = {"device_map": place, "max_memory": memory, "offload_folder": offload, **options}
    changes = stored.changes(config)
    return load_decoder(folder, dtype, config=config, changes=changes, adapted_layers=tiny.QUERY_LAYER, **options)[0]


@torch.no_grad()
def answers(llama):
    """Greedy tokens and all logits, with an adapter, of two texts of different lengths."""
    model = AdapterLLM(nn.Identity(), nn.Identity(), stored.adapter(), llama)
    ids, mask = tiny.padded(tiny.prompts(9, 5))
    state = model.adapt(stored.query_tokens(2))
    assert state.keys.device == state.values.device == model.adapter.queries.device
    return model.generate(ids, mask, state, **stored.GREEDY), model(ids, mask, state).logits


@every_place
@both
@types
def test_parts_write_what_the_whole_writes(sharded, tmp_path, dtype, config, place):
    expected, whole_logits = answers(load(sharded, config, dtype))
    llama = load(sharded, config, dtype, place, tmp_path)
    tokens, logits = answers(llama)
    assert torch.equal(tokens, expected)
    assert torch.equal(logits, whole_logits)
    on_disk = sum(parameter.device.type == "meta" for parameter in llama.parameters())
    assert (on_disk > 0) == (place not in ("cpu", "auto")), "a test without a part on the disk tests nothing"
    assert execution_device(llama) == torch.device("cpu")


@both
def test_tied_embeddings_on_the_disk(tmp_path, config):
    stored.save(tmp_path / "tied", stored.llama(tie_word_embeddings=True), max_shard_size="40KB")
    expected, whole_logits = answers(load(tmp_path / "tied", config))
    together = {"lm_head": "disk", "model.embed_tokens": "disk"}
    for place in ("disk", PLACES["most"] | together, ("auto", {"cpu": "99KB"})):
        tokens, logits = answers(load(tmp_path / "tied", config, torch.float32, place, tmp_path))
        assert torch.equal(tokens, expected) and torch.equal(logits, whole_logits)


def test_unmerged_updates_on_the_disk(sharded, tmp_path):
    expected, whole_logits = answers(load(sharded, stored.ALL, merge=False))
    tokens, logits = answers(load(sharded, stored.ALL, torch.float32, PLACES["most"], tmp_path, merge=False))
    assert torch.equal(tokens, expected) and torch.equal(logits, whole_logits)


@torch.no_grad()
def test_nothing_is_fetched_that_is_not_run(sharded, tmp_path):
    """Adapter tokens go through k_proj and v_proj alone, and the weights leave again."""
    llama = attach_adapter(load(sharded, stored.ALL, torch.float32, "disk", tmp_path))
    called = []
    for name, module in llama.named_modules():
        module.register_forward_pre_hook(lambda module, inputs, name=name: called.append(name))
    adapter = stored.adapter()
    project_adapter(llama, adapter(stored.query_tokens()), adapter.gates)
    assert called == [f"model.layers.{layer}.self_attn.{name}_proj" for layer in (2, 3, 4) for name in "kv"]
    assert all(parameter.device.type == "meta" for parameter in llama.parameters())


def test_only_what_changes_is_written_and_it_goes_with_the_decoder(sharded, tmp_path):
    llama = load(sharded, stored.ALL, torch.float16, "disk", tmp_path)
    (folder,) = tmp_path.iterdir()
    (file,) = folder.iterdir()
    changed = sum(p.nbytes for name, p in llama.model.named_parameters() if name != "embed_tokens.weight")
    assert changed <= file.stat().st_size < changed + 20_000
    other = load(sharded, stored.ALL, torch.float16, "disk", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, "two decoders may share an offload_folder"
    del llama
    gc.collect()
    assert len(list(tmp_path.iterdir())) == 1 and not folder.exists()
    answers(other)
    del other
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_changes_nothing_needs_no_folder(sharded):
    answers(load(sharded, DecoderConfig(), torch.float16, "disk"))
    answers(load(sharded, DecoderConfig(), torch.bfloat16, "disk"))


def test_a_device_is_a_place_for_all(folder):
    for llama in (load(folder, stored.ALL, device="cpu"), load(folder, DecoderConfig(), device=torch.device("cpu"))):
        assert {parameter.device.type for parameter in llama.parameters()} == {"cpu"}
        assert not hasattr(llama, "_hf_hook") and execution_device(llama) == torch.device("cpu")


def test_inputs_go_where_the_first_layer_runs():
    llama = tiny.decoder().to("meta")
    assert execution_device(llama) == torch.device("cpu")
    llama.lm_head.to_empty(device="cpu")
    assert execution_device(llama) == torch.device("cpu")


@pytest.mark.parametrize("place, config, message", [
    ({"": "cpu", "lm_head": "disk"}, DecoderConfig(), r"places the whole model \(''\) and parts of it; give a place"),
    ({"": "cpu", "lm_head": "disk"}, stored.ALL, r"places the whole model \(''\) and parts of it; give a place to"),
    ({"lm_head": "cpu"}, stored.ALL, r"the device map has no place for model\.embed_tokens\.weight; add one, or ask"),
    ("disk", stored.ALL, "has to stay on the disk; give offload_folder, or more memory"),
    ("nowhere", stored.ALL, "cannot be loaded"),
    ("nowhere", DecoderConfig(), "cannot be loaded"),
])  # fmt: skip
def test_places_that_do_not_work_are_one_sentence(folder, place, config, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder, config, torch.float16, place)
    assert "\n" not in str(caught.value)


def test_tied_embeddings_in_two_places_are_refused(tmp_path):
    stored.save(tmp_path, stored.llama(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match="model.embed_tokens and lm_head are one here; give both the same place"):
        load(tmp_path, stored.ALL, torch.float32, PLACES["embeddings"], tmp_path)


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's list of memory maps")
@both
def test_no_map_outlives_the_tensor_it_was_made_for(sharded, config):
    """A map of a shard counts every page that was read from it, for as long as anything of it is in use."""
    llama = load(sharded, config, torch.bfloat16)
    assert str(sharded) not in MAPS.read_text()
    assert llama is not None


@pytest.mark.skipif(not MAPS.exists(), reason="needs Linux's list of memory maps")
def test_pieces_of_a_tensor_are_mapped_one_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("adapter_llm.shards.SLAB", 4 * tiny.HIDDEN * 10)
    shards = Shards(folder)
    seen = []
    for rows, values in shards.slabs("model.layers.1.mlp.up_proj.weight"):
        seen.append((rows, len(values), MAPS.read_text().count(f"{folder}/model")))
        del values
    assert [rows.start for rows, _, _ in seen] == [0, 10, 20, 30, 40, 50]
    assert [length for _, length, _ in seen] == [10, 10, 10, 10, 10, 6]
    assert {maps for _, _, maps in seen} == {1}
    assert str(folder) not in MAPS.read_text()


def test_an_offload_folder_that_is_a_file(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"changed weights cannot be written to .*file .*; make room, or name"):
        load(folder, stored.ALL, torch.float16, "disk", tmp_path / "file")


def test_a_full_disk_leaves_nothing_behind(folder, tmp_path, monkeypatch):
    def write(path, specs, read):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adapter_llm.assembly.write_safetensors", write)
    with pytest.raises(CheckpointError, match="No space left on device.*; make room, or name another"):
        load(folder, stored.ALL, torch.float16, "disk", tmp_path)
    gc.collect()
    assert not list(tmp_path.iterdir())
