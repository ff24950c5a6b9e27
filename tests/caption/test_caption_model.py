"""What captions say of their model: the same for the same model, another for any that answers otherwise."""

import shutil
from pathlib import Path

import folders
import pytest
import torch

from adapter_llm.caption.model import ModelFolders
from adapter_llm.indexing import build_index
from adapter_llm.sources import CheckpointError


@pytest.fixture
def places(weights, decoder, tmp_path):
    """Copies of the weights and their decoder to change."""
    return (Path(shutil.copytree(weights, tmp_path / "tiny")), Path(shutil.copytree(decoder, tmp_path / "decoder")))


def found(places, **options):
    return ModelFolders.find(places[0], str(places[1]), **{"device": "cpu", "dtype": "float32", **options})


def test_the_same_model_has_the_same_identity_wherever_it_lies(places, weights, decoder, tmp_path):
    here = found(places).identity
    assert here.name == f"tiny@{here.fingerprint[:8]}" and here.dtype == "float32"
    there = found((weights, decoder)).identity
    assert there.fingerprint == here.fingerprint and there.name != here.name
    moved = places[0].rename(tmp_path / "moved")
    assert found((f"{moved}/", places[1])).identity.name == f"moved@{here.fingerprint[:8]}"


def change_tensor(path, name):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors[name] = tensors[name] + 1
    save_file(tensors, path, metadata={"format": "pt"})


def first_tensor(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return sorted(file.keys())[0]


@pytest.mark.parametrize("change", ["encoder", "adapter", "config", "decoder", "tokenizer", "template"])
def test_whatever_answers_depend_on_makes_another(places, change):
    weights, decoder = places
    before = found(places).identity
    if change in ("encoder", "adapter"):
        path = weights / f"{change}.safetensors"
        change_tensor(path, first_tensor(path))
        folders.reseal(weights)
    elif change == "config":
        folders.change_json(weights / "config.json", lambda values: values["prompt"].update(system="You hear."))
        folders.reseal(weights)
    elif change == "decoder":
        path = decoder / "model.safetensors"
        change_tensor(path, "model.norm.weight")
    elif change == "tokenizer":
        folders.change_json(decoder / "tokenizer.json", lambda values: values.update(truncation=None, padding=None))
        (decoder / "tokenizer.json").write_text((decoder / "tokenizer.json").read_text() + "\n")
    else:
        (decoder / "chat_template.jinja").write_text("{{ messages }}")
    assert found(places).identity.fingerprint != before.fingerprint


def test_settings_index_and_dtype_count(places, pipe, tmp_path):
    folders.picture(1).save(tmp_path / "1.png")
    folders.picture(2).save(tmp_path / "2.png")
    for number, names in enumerate([["1.png"], ["1.png", "2.png"]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name in names:
            shutil.copy(tmp_path / name, folder / name)
        build_index(pipe, folder, tmp_path / f"{number}.index")
    ways = [{}, {"settings": {"imu.rate": 50}}, {"settings": {"imu.rate": 60}},
            {"index": str(tmp_path / "0.index")}, {"index": str(tmp_path / "1.index")}]  # fmt: skip
    assert len({found(places, **way).identity.fingerprint for way in ways}) == len(ways)
    assert found(places, faithful=True).identity.fingerprint != found(places).identity.fingerprint
    elsewhere = {"device_map": "auto", "offload_folder": str(tmp_path), "allow_base_mismatch": True}
    assert found(places, **elsewhere).identity == found(places).identity
    other = found(places, dtype="bfloat16").identity
    assert other.dtype == "bfloat16" and other.fingerprint == found(places).identity.fingerprint
    assert found(places, dtype="auto").identity.dtype in ("float32", "bfloat16")


def test_a_folder_without_a_manifest_of_files_is_known_by_its_files(places):
    before = found(places).identity
    folders.change_json(places[0] / "manifest.json", lambda values: values.update(files={}))
    assert found(places).identity == before


def test_loading(places, pipe):
    model = found(places, settings={"imu.rate": 50})
    assert model.keywords == pipe.keywords == ["image", "video", "imu"]
    loaded = model.load({"imu"})
    assert loaded.keywords == ["imu"] and loaded.config.encoder.imu.rate == 50
    assert next(loaded.model.llama.parameters()).dtype == torch.float32
    asked = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adapter_llm.pipeline.Pipeline.from_pretrained", lambda *args, **options: asked.update(options))
        placing = {"faithful": True, "allow_base_mismatch": True, "device_map": "auto", "offload_folder": "x"}
        found(places, **placing).load()
    assert asked.items() >= placing.items()
    assert found(places, dtype="bfloat16").load().model.llama.dtype == torch.bfloat16


def test_what_is_wrong_is_known_when_it_is_found(places, tmp_path):
    with pytest.raises(CheckpointError, match="there is no weights folder"):
        ModelFolders.find(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"there is no setting 'imu.speed'"):
        found(places, settings={"imu.speed": 1})
    with pytest.raises(FileNotFoundError):
        found(places, index=str(tmp_path / "no.index"))
    with pytest.raises(ValueError, match="float16 is slower than float32 on the CPU"):
        found(places, dtype="float16")
    (places[1] / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a whole safetensors file"):
        found(places)
