"""What a file is: every published one is known for what it is, in any size, whole or not, and without being read."""

import itertools
import json
import time
from pathlib import Path

import made_files as made
import pytest
import torch
from made_files import identify_names, told
from safetensors.torch import save_file

from adapter_llm.identify import TITLES, Found, identify

GOLDEN = {
    "imagebind/imagebind_small.pth": ("imagebind", None),
    "imagebind_llm/imagebind_point_extra.pth": ("imagebind-point", None),
    "imagebind_llm/7B.pth": ("imagebind-llm", "finetune"),
    "imagebind_llm/7B-pretrained.pth": ("imagebind-llm", "pretrain"),
    "imagebind_llm/7B-legacy-bridge.pth": ("imagebind-llm", "finetune-legacy"),
    "imagebind_llm/llama/7B": ("llama-meta", None),
    "imagebind_llm/knn.index": ("faiss-index", "flat, inner product"),
    "adapter_v2/BIAS-7B.pth": ("adapter-v2", "BIAS"),
    "adapter_v2/LORA-BIAS-7B.pth": ("adapter-v2", "LORA-BIAS"),
    "adapter_v2/CAPTION-7B.pth": ("adapter-v2", "CAPTION"),
    "adapter_v2/clip_vision.pth": ("clip-openai", None),
    "adapter_v2/llama/7B": ("llama-meta", None),
}
LAYOUTS = {
    "adapter_v2_BIAS-7B": ("adapter-v2", "BIAS"),
    "adapter_v2_CAPTION-7B": ("adapter-v2", "CAPTION"),
    "adapter_v2_LORA-BIAS-7B": ("adapter-v2", "LORA-BIAS"),
    "adapter_v2_LORA-BIAS-7B-v21": ("adapter-v2", "LORA-BIAS"),
    "clip_vit_l14_visual": ("clip-openai", None),
    "imagebind_huge": ("imagebind", None),
    "imagebind_w3D": ("imagebind-point", None),
    "imagebind_llm_7B": ("imagebind-llm", "finetune"),
    "imagebind_llm_7B-pretrained": ("imagebind-llm", "pretrain"),
    "imagebind_llm_7B_legacy_bridge": ("imagebind-llm", "finetune-legacy"),
    "llama_7B_meta": ("llama-meta", None),
}


def present(path):
    return path if path.exists() else pytest.skip(f"no {path.name} in {path.parent}")


def bytes_read():
    counters = Path("/proc/self/io")
    if not counters.exists():
        pytest.skip("this system does not count what a process reads")
    return int(counters.read_text().split()[1])


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_files_are_known(golden, name):
    assert told(identify(present(golden / name))) == GOLDEN[name]


@pytest.mark.parametrize("name", ["adapter_v2", "imagebind_llm"])
def test_sizes_of_an_adapter_are_those_of_its_base(golden, name):
    params = json.loads(present(golden / name / "llama/7B/params.json").read_text())
    base = identify(golden / name / "llama/7B").sizes
    wanted = {"layers": params["n_layers"], "hidden_size": params["dim"], "heads": params["n_heads"]}
    assert {size: base[size] for size in wanted} == wanted
    adapters = [identify(path).sizes for path in sorted((golden / name).glob("*7B*.pth"))]
    if not adapters:
        pytest.skip(f"no adapters of {name} in the golden folder")
    for sizes in adapters:
        assert {size: sizes[size] for size in wanted} == wanted
        assert sizes.get("intermediate_size", base["intermediate_size"]) == base["intermediate_size"]


def test_sizes_of_the_encoder_are_those_it_was_made_with(golden):
    config = json.loads(present(golden / "imagebind/config.json").read_text())
    wanted, found = config["model_kwargs"], identify(golden / "imagebind/imagebind_small.pth")
    modalities = [name for name, there in found.parts.items() if there]
    assert modalities and found.sizes["embedding_dim"] == wanted["out_embed_dim"]
    for name in modalities:
        assert found.sizes[f"{name}_layers"] == wanted[f"{name}_num_blocks"]
        assert found.sizes[f"{name}_width"] == wanted[f"{name}_embed_dim"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_full_size_files_are_known_at_once_and_not_read(golden, name, tmp_path):
    """Every published layout at its real size, up to 13 GB, as a file of which only the directory is there."""
    layout = json.loads(present(golden / "layouts" / f"{name}.json").read_text())
    path = tmp_path / "consolidated.00.pth"
    made.write_hollow(path, layout["keys"], "model" if "7B" in name and "meta" not in name else None)
    if "params_json" in layout:
        path = tmp_path
        (path / "params.json").write_text(layout["params_json"])
    before, start = bytes_read(), time.perf_counter()
    found = identify(path)
    assert time.perf_counter() - start < 10
    assert bytes_read() - before < 64e6
    assert told(found) == LAYOUTS[name]
    assert found.bytes > 200e6 and found.tensors == layout["n_tensors"]


def test_sizes_are_read_off_every_kind():
    v2 = identify_names(made.adapter_v2())
    assert v2.sizes == {
        "layers": 4, "hidden_size": 24, "heads": 6, "kv_heads": 3, "intermediate_size": 40, "lora_rank": 2,
        "query_len": 5, "query_layer": 3, "connector_width": 16, "connector_depth": 2, "encoder_dim": 14,
    }  # fmt: skip
    assert v2.needs[0] == "a LLaMA base with hidden size 24, 4 layers, 6 heads, feed-forward size 40"
    assert "CLIP vision transformer with 14 features" in v2.needs[1]
    assert v2.dtypes == {"float32": v2.tensors - 8, "float16": 8}
    llm = identify_names(made.imagebind_llm())
    assert llm.sizes == {
        "layers": 4, "hidden_size": 24, "heads": 6, "kv_heads": 3, "intermediate_size": 40, "lora_rank": 2,
        "query_len": 1, "query_layer": 4, "connector_depth": 3, "encoder_dim": 14,
    }  # fmt: skip
    assert "ImageBind encoder with 14 features" in llm.needs[1]
    for tensors in (made.clip_openai(), made.clip_hf()):
        clip = identify_names(tensors)
        assert clip.sizes == {"layers": 2, "width": 16, "embedding_dim": 14, "patch_size": 7, "image_size": 21}


@pytest.mark.parametrize("made_of, variant", [
    ({"lora": False, "new_gate": False}, "BIAS"), ({}, "LORA-BIAS"), ({"new_gate": False}, "LORA-BIAS"),
    ({"lora": False, "biases": False, "norms": False, "new_gate": False}, "CAPTION"),
    ({"lora": False, "biases": False, "new_gate": False}, "CAPTION"),
])  # fmt: skip
def test_variants_of_v2(made_of, variant):
    found = identify_names(made.adapter_v2(**made_of))
    assert told(found) == ("adapter-v2", variant)
    assert list(found.parts.values()) == [
        made_of.get(name, True) for name in ("biases", "norms", "lora", "new_gate")
    ]
    assert any("new_gate" in note for note in found.notes) == (made_of == {"new_gate": False})


@pytest.mark.parametrize("finetuned, legacy, variant", [
    (True, False, "finetune"), (False, False, "pretrain"), (True, True, "finetune-legacy"),
    (False, True, "pretrain-legacy"),
])  # fmt: skip
def test_variants_of_imagebind_llm(finetuned, legacy, variant):
    found = identify_names(made.imagebind_llm(finetuned, legacy))
    assert told(found) == ("imagebind-llm", variant)
    assert found.parts["bridge biases"] == legacy and found.parts["decoder norms"]


@pytest.mark.parametrize("tensors", [
    made.adapter_v2(), made.imagebind_llm(legacy=True), made.clip_openai(), made.clip_hf(),
], ids=["v2", "llm", "clip-openai", "clip-hf"])  # fmt: skip
def test_every_key_is_missed_and_every_other_is_too_many(tensors):
    family = identify_names(tensors).family
    unused = "llama.layers.0.attention.gate" if family == "adapter-v2" else None  # of a layer that is not adapted
    for key in tensors:
        found = identify_names({name: tensor for name, tensor in tensors.items() if name != key})
        assert found.family == family
        assert found.missing == (() if key == unused else (key,))
        assert found.unexpected == ()
        odd = f"{key}_too"
        assert identify_names({**tensors, odd: torch.zeros(1)}).unexpected == (odd,)


def test_every_key_of_the_encoder_is_missed(golden):
    tensors = torch.load(present(golden / "imagebind/imagebind_small.pth"), weights_only=True)
    for key in itertools.islice(tensors, 0, None, 3):
        found = identify_names({name: tensor for name, tensor in tensors.items() if name != key})
        assert (found.family, found.missing, found.unexpected) == ("imagebind", (key,), ())
    assert identify_names({**tensors, "modality_trunks.text.odd": torch.zeros(1)}).unexpected == (
        "modality_trunks.text.odd",
    )


def test_a_lost_last_layer_is_missed_too():
    """The rows of prefix_query count the layers, whatever keys are there."""
    tensors = {name: t for name, t in made.imagebind_llm().items() if not name.startswith("llama.layers.3.")}
    found = identify_names(tensors)
    assert found.sizes["layers"] == 4
    assert len(found.missing) == 22 and all(key.startswith("llama.layers.3.") for key in found.missing)


def test_a_made_up_layer_number_does_not_fill_the_memory():
    tensors = made.adapter_v2() | {"llama.layers.99999999999.attention.gate": torch.zeros(1, 6, 1, 1)}
    found = identify_names(tensors)
    assert found.missing and len(found.missing) < 100 * len(tensors)


def test_a_training_run_is_not_an_exported_adapter():
    for base in ("llama.tok_embeddings.weight", "clip.visual.proj", "image_bind.modality_heads.imu.3.weight"):
        for tensors, family in ((made.adapter_v2(), "adapter-v2"), (made.imagebind_llm(), "imagebind-llm")):
            found = identify_names({**tensors, base: torch.zeros(3)})
            assert found.family == family
            assert found.unexpected == (base,)
            assert "export the adapter alone" in found.problems[0]


def test_what_does_not_fit_together_is_a_problem():
    tensors = made.adapter_v2()
    tensors["adapter_query.weight"] = torch.zeros(made.ADAPTED * made.QUERY_LEN + 1, made.HIDDEN)
    assert "no whole layers of 5" in identify_names(tensors).problems[0]
    assert "w_lora False, but LoRA is there" in identify_names(made.adapter_v2(), config={"w_lora": False}).notes[0]
    plain = made.adapter_v2(lora=False, new_gate=False)
    assert "w_lora True, but LoRA is not there" in identify_names(plain, config={"w_lora": True}).notes[0]
    for tensors, config in ((made.adapter_v2(), {"w_lora": True}), (plain, {"w_lora": False}), (plain, {})):
        assert "w_lora" not in " ".join(identify_names(tensors, config=config).notes)


def test_the_wrapper_and_either_format_make_no_difference(tmp_path):
    tensors = made.adapter_v2()
    torch.save({"model": tensors, "config": {"w_lora": True}}, tmp_path / "wrapped.pth")
    torch.save(tensors, tmp_path / "older.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "plain.safetensors")
    found = [identify(path) for path in sorted(tmp_path.iterdir())]
    assert [told(each) for each in found] == [("adapter-v2", "LORA-BIAS")] * 3
    assert found[0].sizes == found[1].sizes == found[2].sizes
    assert [each.bytes for each in found] == [path.stat().st_size for path in sorted(tmp_path.iterdir())]
    assert found[0].title == TITLES["adapter-v2"]


def test_the_older_format_is_not_read_into_memory(tmp_path):
    tensors = made.clip_openai() | {"text_projection": torch.zeros(5_000_000)}
    torch.save(tensors, tmp_path / "small.pth", _use_new_zipfile_serialization=False)
    identify(tmp_path / "small.pth")  # imports what it needs
    before = bytes_read()
    assert identify(tmp_path / "small.pth").family == "clip-openai"
    assert bytes_read() - before < 10e6


def test_what_is_found_is_a_record():
    found = identify_names(made.clip_openai())
    assert isinstance(found, Found)
    with pytest.raises(AttributeError):
        found.family = "other"
