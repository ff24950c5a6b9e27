"""Wrong files, wrong parts: one sentence, exit code 1, nothing written. And how it goes where all is right."""

import json
import shutil

import pytest
import torch
from originals import IMAGEBIND_LLM, V2
from safetensors.torch import load_file, save_file

from adapter_llm.__main__ import main
from adapter_llm.checkpoint import from_pretrained
from adapter_llm.convert.keys import QUERIES
from adapter_llm.sources import CheckpointError

both = pytest.mark.parametrize("family", [V2, IMAGEBIND_LLM], indirect=True)
v2_only = pytest.mark.parametrize("family", [V2], indirect=True)


@pytest.fixture(autouse=True)
def _no_lasting_quiet(monkeypatch):
    monkeypatch.setattr("adapter_llm.cli.quiet", lambda: None)


def arguments(family, source=None, **other):
    chosen = {"encoder": family.encoder, "llm": family.base, **other}
    words = ["convert", str(source or family.adapter_file(family.first))]
    if family.name == V2:
        words += ["--connector-heads", str(family.sizes["v_num_heads"])]
    return words + [word for name, value in chosen.items() if value for word in (f"--{name}", str(value))]


def refused(words, output, capsys):
    assert main([*words, "--output", str(output)]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, err
    left = sorted(path.name for path in output.parent.glob(f"{output.name}*"))
    assert left in ([], [output.name]), left
    return err


def edited(family, target, edit):
    content = torch.load(family.adapter_file(family.first), weights_only=True)
    edit(content["model"])
    torch.save(content, target)
    return target


def reworded(folder, config):
    """Another config in a folder whose manifest does not know of it."""
    (folder / "config.json").write_text(json.dumps(config))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"].pop("config.json", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))


@both
def test_convert_from_the_command_line(family, tmp_path, capsys):
    assert main([*arguments(family), "--output", str(tmp_path / "new")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'new'}\n"
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert {"config.json", "manifest.json", "encoder.safetensors", "adapter.safetensors"} <= names
    assert names <= {"config.json", "manifest.json", "encoder.safetensors", "adapter.safetensors", "kept.safetensors"}
    assert load_file(tmp_path / "new" / "adapter.safetensors").keys() == load_file(
        family.weights(family.first) / "adapter.safetensors"
    ).keys()
    assert main(["convert", str(tmp_path / "new"), "--back", "--output", str(tmp_path / "back.pth")]) == 0
    assert (tmp_path / "back.pth").is_file()


@v2_only
def test_the_encoder_may_be_given_as_it_was_published(family, tmp_path):
    """Folders made in two steps and in one are the same, and what was made on the way is gone."""
    width = load_file(family.encoder / "encoder.safetensors")["projection.weight"].shape[1]
    if family.sizes["clip_heads"] * 64 != width:
        pytest.skip("this CLIP has heads of another size than the published ones")
    assert main([*arguments(family, encoder=family.clip_file), "--output", str(tmp_path / "new")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    made, wanted = (load_file(folder / "encoder.safetensors") for folder in (tmp_path / "new", family.encoder))
    assert made.keys() == wanted.keys() and all(torch.equal(made[key], wanted[key]) for key in made)


@both
@pytest.mark.parametrize("missing", ["encoder", "llm"])
def test_an_adapter_needs_its_parts(family, missing, tmp_path, capsys):
    message = refused(arguments(family, **{missing: None}), tmp_path / "new", capsys)
    assert "is an adapter alone: give the encoder it was trained with, --encoder" in message and "--llm" in message


@both
def test_a_base_of_another_size_is_refused_by_both_names(family, tmp_path, capsys):
    """LLaMA 13B under a 7B adapter."""
    larger = shutil.copytree(family.base, tmp_path / "larger")
    config = json.loads((larger / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (larger / "config.json").write_text(json.dumps(config))
    message = refused(arguments(family, llm=larger), tmp_path / "new", capsys)
    layers = family.sizes["llama"]["n_layers"]
    assert f"{layers} layers" in message and f"{larger} has" in message and f"{layers + 1} layers" in message


@both
def test_a_base_in_metas_layout_is_to_be_converted_first(family, tmp_path, capsys):
    message = refused(arguments(family, llm=family.folder / "llama" / "7B"), tmp_path / "new", capsys)
    assert "is a LLaMA in Meta's layout; convert it first: python -m adapter_llm convert" in message


def lose_a_part_of_a_layer(model):
    names = [name for name in model if name.endswith(("lora_wq_l2.weight", "wo.bias"))]
    model.pop(names[-1] if names else pytest.skip("no file here changes the decoder"))


@both
@pytest.mark.parametrize("edit, words", [
    (lambda model: model.pop(next(n for n in model if n.endswith("norm_1.weight") or n.endswith("norm1.weight"))),
     ["lacks", "norm"]),
    (lambda model: model.update({"surprise.weight": torch.zeros(2)}), ["has the unknown surprise.weight"]),
    (lose_a_part_of_a_layer, ["lacks llama.layers."]),
    (lambda model: model.update({n: t[:-1] for n, t in model.items() if n in QUERIES.values()}), ["rows of"]),
])  # fmt: skip
def test_keys_that_are_missing_or_unknown_are_listed(family, edit, words, tmp_path, capsys):
    source = edited(family, tmp_path / "edited.pth", edit)
    message = refused(arguments(family, source), tmp_path / "new", capsys)
    assert all(word in message for word in words), message


@both
@pytest.mark.parametrize("kind", ["html", "truncated", "code", "empty", "text"])
def test_what_is_no_weights_file_is_refused_and_never_run(family, kind, tmp_path, capsys):
    source, good = tmp_path / "x.pth", family.adapter_file(family.first).read_bytes()
    marker = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (type(marker).touch, (marker,))

    if kind == "code":
        torch.save({"model": Code()}, source)
    else:
        half = good[: len(good) // 2]
        source.write_bytes({"html": b"<!DOCTYPE html><html>", "truncated": half, "empty": b"", "text": b"hello"}[kind])
    message = refused(arguments(family, source), tmp_path / "new", capsys)
    assert str(source) in message and not marker.exists()


@both
def test_the_encoder_of_the_other_family_is_refused(family, tmp_path, capsys):
    config = json.loads((family.encoder / "config.json").read_text())
    other = shutil.copytree(family.encoder, tmp_path / "other")
    wrong = {"width": 12, "depth": 1, "heads": 2}
    if "kind" in config["encoder"]:
        config["encoder"] = {"embedding_dim": 20, "trunks": {"vision": wrong}}
    else:
        config["encoder"] = {"kind": "clip", "embedding_dim": 20, **wrong}
    reworded(other, config)
    message = refused(arguments(family, encoder=other), tmp_path / "new", capsys)
    wanted = "a CLIP encoder (OpenAI's ViT-L-14.pt)" if family.name == V2 else "an ImageBind encoder"
    assert f"needs {wanted}" in message and "another was given with --encoder" in message


@v2_only
def test_an_encoder_of_another_width_is_refused(family, tmp_path, capsys):
    other = shutil.copytree(family.encoder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["encoder"]["embedding_dim"] += 1
    reworded(other, config)
    message = refused(arguments(family, encoder=other), tmp_path / "new", capsys)
    assert "does not fit the encoder and the base model given: connector.input_proj.weight" in message


@both
def test_an_output_that_is_in_use_is_left_alone(family, tmp_path, capsys):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "thesis.txt").write_text("mine")
    refused(arguments(family), tmp_path / "new", capsys)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["thesis.txt"]


@both
def test_the_base_must_be_the_one_of_the_conversion(family, tmp_path):
    weights = family.weights(family.first)
    other = shutil.copytree(family.base, tmp_path / "other")
    [shard] = other.glob("model*.safetensors")
    tensors = load_file(shard)
    tensors["model.norm.weight"] += 1
    save_file(tensors, shard, {"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        from_pretrained(weights, other)
    message = str(caught.value)
    recorded = json.loads((weights / "manifest.json").read_text())["decoder"]
    assert str(weights) in message and str(other) in message and recorded["fingerprint"][:12] in message
    assert "--allow-base-mismatch" in message
    loaded = from_pretrained(weights, other, allow_base_mismatch=True)
    tensor = loaded.model.llama.model.norm.weight
    if not loaded.config.decoder.norms:
        assert torch.equal(tensor, tensors["model.norm.weight"].float())


@both
def test_weights_know_where_their_base_is(family, tmp_path):
    """By a path from the weights folder, so that both may move together; if it is gone, that is said."""
    weights = family.weights(family.first)
    shutil.copytree(weights, tmp_path / "a" / weights.name)
    shutil.copytree(family.base, tmp_path / "a" / family.base.name)
    moved = tmp_path / "a" / weights.name
    assert from_pretrained(moved).model.llama.config.num_hidden_layers == family.sizes["llama"]["n_layers"]
    shutil.rmtree(tmp_path / "a" / family.base.name)
    with pytest.raises(CheckpointError, match=r"which is no longer at .*; give it with --llm"):
        from_pretrained(moved)


@both
@pytest.mark.parametrize("change", ["extra", "missing", "shape"])
def test_changes_of_the_decoder_are_loaded_strictly(family, change, tmp_path):
    names = filter(family.weights, map(family.variant, family.cases))
    name = next((name for name in names if family.checkpoint(name).changes), None)
    if name is None:
        pytest.skip("no file here changes the decoder")
    damaged = shutil.copytree(family.weights(name), tmp_path / "damaged")
    tensors = load_file(damaged / "adapter.safetensors")
    key = next(key for key in tensors if key.startswith("decoder."))
    if change == "extra":
        tensors["decoder.layers.0.self_attn.k_proj.bias"] = torch.zeros(3)
    elif change == "missing":
        tensors.pop(key)
    else:
        tensors[key] = tensors[key][:-1].clone()
    save_file(tensors, damaged / "adapter.safetensors")
    manifest = json.loads((damaged / "manifest.json").read_text())
    manifest["files"].pop("adapter.safetensors")
    (damaged / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"adapter.safetensors does not fit its config.json"):
        from_pretrained(damaged, family.base)


@v2_only
def test_an_encoder_alone_answers_nothing(family):
    with pytest.raises(CheckpointError, match="lacks adapter.safetensors"):
        from_pretrained(family.encoder)


@v2_only
def test_corrected_adapters_see_colours_in_their_order(family, tmp_path):
    words = arguments(family)
    assert main([*words, "--output", str(tmp_path / "published")]) == 0
    assert main([*words, "--corrected", "--output", str(tmp_path / "corrected")]) == 0
    for name, channels, empty in (("published", "bgr", True), ("corrected", "rgb", False)):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert (config["encoder"]["image"]["channels"], config["prompt"]["empty_input"]) == (channels, empty)


@both
def test_the_tokenizer_must_be_the_one_of_the_conversion(family, tmp_path):
    """Two tokens that have changed places are garbage no size or weight tells of."""
    weights = family.weights(family.first)
    other = shutil.copytree(family.base, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    one, two = list(vocab)[-2:]
    vocab[one], vocab[two] = vocab[two], vocab[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="tokenizer"):
        from_pretrained(weights, other)
    assert from_pretrained(weights, other, allow_base_mismatch=True)
    assert from_pretrained(weights, family.base)
