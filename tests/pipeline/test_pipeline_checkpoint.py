"""Weights folders: what is saved is what is loaded, and what is wrong is said before anything slow begins."""

import errno
import json
import os
import shutil

import folders
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from adapter_llm import checkpoint
from adapter_llm.checkpoint import CheckpointError, from_pretrained, save_pretrained
from adapter_llm.decoder import tokenizer_fingerprint
from adapter_llm.manifest import DecoderRecord, Manifest
from adapter_llm.pipeline import Pipeline
from imagebind_encoder import Modality

ENCODER, ADAPTER = "encoder.safetensors", "adapter.safetensors"


def logits(model, ids=(5, 6, 7)):
    generator = torch.Generator().manual_seed(3)
    inputs = {
        Modality.VISION: torch.randn(2, 3, 42, 42, generator=generator),
        Modality.IMU: torch.randn(2, 6, 80, generator=generator),
    }
    with torch.inference_mode():
        features = model.encoder(inputs)
        state = model.adapt(features[Modality.VISION] + features[Modality.IMU])
        return features, model(torch.tensor([ids, ids]), None, state).logits


def test_what_is_saved_is_what_is_loaded(saved, decoder):
    folder, model = saved
    features, expected = logits(model)
    loaded_features, found = logits(from_pretrained(folder, decoder).model)
    assert all(torch.equal(features[modality], loaded_features[modality]) for modality in features)
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], found[1]), "pictures must make a difference, or this test says nothing"


def test_default_is_half_precision_and_loads_as_float32(saved, decoder, tmp_path):
    _, model = saved
    save_pretrained(tmp_path / "half", model, folders.config(), folders.build(decoder)[1])
    floating = [t for name in (ENCODER, ADAPTER) for t in load_file(tmp_path / "half" / name).values()]
    assert {tensor.dtype for tensor in floating} == {torch.float16}
    loaded = from_pretrained(tmp_path / "half", decoder).model
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not loaded.training
    for module, original in ((loaded.encoder, model.encoder), (loaded.connector, model.connector)):
        for name, value in original.state_dict().items():
            assert torch.equal(module.state_dict()[name], value.half().float()), name
    difference = (logits(loaded)[1] - logits(model)[1]).abs().max() / logits(model)[1].std()
    assert difference < 0.05


def test_saved_keys_are_exactly_those_of_the_parts(saved):
    folder, model = saved
    assert sorted(path.name for path in folder.iterdir()) == [ADAPTER, "config.json", ENCODER, "manifest.json"]
    assert set(load_file(folder / ENCODER)) == set(model.encoder.state_dict())
    wanted = {f"connector.{name}" for name in model.connector.state_dict()}
    wanted |= {f"adapter.{name}" for name in model.adapter.state_dict()}
    assert set(load_file(folder / ADAPTER)) == wanted
    assert {"adapter.queries", "adapter.gates", "adapter.scale", "connector.queries"} <= wanted
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {"config.json", ENCODER, ADAPTER}


def edit(name, change):
    """A damage to a tensor file that the manifest agrees with."""

    def damage(folder):
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name)
        folders.reseal(folder)

    return damage


def cut(name, sealed):
    def damage(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-10])
        if sealed:
            folders.reseal(folder)

    return damage


def flip(folder):
    path = folder / ADAPTER
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def json_edit(name, change):
    return lambda folder: folders.change_json(folder / name, change)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


CONFIG, MANIFEST = "config.json", "manifest.json"
DAMAGES = {
    "extra key": (edit(ENCODER, lambda t: t.update(junk=torch.ones(1))), [ENCODER, "unexpected junk"]),
    "missing key": (edit(ADAPTER, lambda t: t.pop("adapter.gates")), [ADAPTER, "missing adapter.gates"]),
    "misshapen": (
        edit(ADAPTER, lambda t: t.update({"adapter.gates": t["adapter.gates"].T.contiguous()})),
        [ADAPTER, "adapter.gates", "(6, 3) instead of (3, 6)"],
    ),
    "integers": (
        edit(ADAPTER, lambda t: t.update({"adapter.gates": t["adapter.gates"].long()})),
        [ADAPTER, "adapter.gates", "torch.int64"],
    ),
    "many missing": (edit(ENCODER, lambda t: t.clear()), [ENCODER, "missing stems.vision", "more"]),
    "no tensors at all": (lambda f: [write(ENCODER, "x" * 99)(f), folders.reseal(f)], [ENCODER, "safetensors file"]),
    "truncated": (cut(ADAPTER, sealed=False), [ADAPTER, "bytes instead of"]),
    "truncated, sealed": (cut(ENCODER, sealed=True), [ENCODER, "not a whole safetensors file"]),
    "wrong hash": (flip, [ADAPTER, "SHA-256"]),
    "config top": (json_edit(CONFIG, lambda c: c.update(speed=1)), [CONFIG, "unknown key 'speed'"]),
    "config connector": (json_edit(CONFIG, lambda c: c["connector"].update(wdth=1)), [CONFIG, "'wdth'", "connector"]),
    "config prompt": (json_edit(CONFIG, lambda c: c["prompt"].update(sytem="")), [CONFIG, "'sytem'", "prompt"]),
    "config encoder": (json_edit(CONFIG, lambda c: c["encoder"].update(dim=1)), [CONFIG, "'dim'", "encoder"]),
    "config trunk": (
        json_edit(CONFIG, lambda c: c["encoder"]["trunks"]["imu"].update(cls=1)), [CONFIG, "'cls'", "trunks.imu"]
    ),
    "config stem": (
        json_edit(CONFIG, lambda c: c["encoder"]["trunks"]["vision"]["stem"].update(pad=1)),
        [CONFIG, "'pad'", "trunks.vision.stem"],
    ),
    "config no JSON": (write(CONFIG, "{"), [CONFIG, "line 1"]),
    "config too deep": (
        lambda f: [json_edit(CONFIG, lambda c: c["adapter"].update(query_layer=6))(f), folders.reseal(f)],
        ["query_layer is 6", "5 layers"],
    ),
    "manifest top": (json_edit(MANIFEST, lambda m: m.update(author="x")), [MANIFEST, "'author'"]),
    "manifest decoder": (json_edit(MANIFEST, lambda m: m["decoder"].update(size=1)), [MANIFEST, "'size'", "decoder"]),
    "manifest file": (
        json_edit(MANIFEST, lambda m: m["files"][ADAPTER].update(md5="x")), [MANIFEST, "'md5'", f"files.{ADAPTER}"]
    ),
    "manifest files": (json_edit(MANIFEST, lambda m: m.update(files=[1])), [MANIFEST, "files must map"]),
    "manifest backbone": (
        json_edit(MANIFEST, lambda m: m.update(backbone={"package": "x", "url": "y"})), [MANIFEST, "'url'", "backbone"]
    ),
    "manifest format": (json_edit(MANIFEST, lambda m: m.update(format=2)), [MANIFEST, "format 2", "update"]),
    "manifest no JSON": (write(MANIFEST, ""), [MANIFEST, "line 1"]),
    "manifest list": (write(MANIFEST, "[]"), [MANIFEST, "must be a mapping"]),
    "manifest lists more": (
        json_edit(MANIFEST, lambda m: m["files"].update({"more.bin": {"bytes": 1, "sha256": ""}})),
        ["more.bin", "is missing"],
    ),
    **{
        f"no {name}": (lambda folder, name=name: (folder / name).unlink(), [f"lacks {name}", "complete"])
        for name in (CONFIG, MANIFEST, ENCODER, ADAPTER)
    },
}  # fmt: skip


@pytest.fixture
def no_decoder(monkeypatch):
    """Loading the decoder, the slow part, fails the test."""

    def explode(*args, **kwargs):
        raise AssertionError("the decoder was loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", explode)


def refusal(*args, **kwargs):
    """The one line with which loading is refused."""
    with pytest.raises((RuntimeError, ValueError)) as caught:
        Pipeline.from_pretrained(*args, device="cpu", dtype="float32", **kwargs)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert len(text) < 1000
    return text


def test_the_decoder_would_explode(weights, decoder, no_decoder):
    with pytest.raises(AssertionError, match="the decoder was loaded"):
        Pipeline.from_pretrained(weights, llm=decoder, dtype="float32")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_refused_before_the_decoder_is_loaded(damage, copy, decoder, no_decoder):
    break_it, words = DAMAGES[damage]
    break_it(copy)
    text = refusal(copy, llm=decoder)
    missing = [word for word in words if word not in text]
    assert not missing, text


@pytest.mark.parametrize("name, words", [
    ("nowhere", ["no weights folder", "nowhere"]),
    ("/nowhere/at/all", ["no weights folder", "/nowhere/at/all"]),
    ("../up", ["no weights folder", "../up"]),
    ("owner/name", ["owner/name", "could not be had from the hub", "check the name and the network"]),
])  # fmt: skip
def test_weights_that_are_nowhere(name, words, decoder, no_decoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = refusal(name, llm=decoder)
    assert all(word in text for word in words), text


def test_weights_that_are_a_file(weights, decoder, no_decoder):
    text = refusal(weights / "config.json", llm=decoder)
    assert "config.json is a file" in text


@pytest.mark.parametrize("change, words", [
    ({"num_key_value_heads": 3}, ["num_key_value_heads 3 instead of 2"]),
    ({"hidden_size": 60, "num_hidden_layers": 4}, ["hidden_size 60 instead of 48", "num_hidden_layers 4 instead of 5"]),
    ({"vocab_size": 300}, ["vocab_size 300 instead of"]),
])  # fmt: skip
def test_another_decoder_is_refused_with_both_sizes(change, words, weights, no_decoder, tmp_path):
    folders.save_decoder(tmp_path, **change)
    text = refusal(weights, llm=tmp_path)
    assert all(word in text for word in [*words, "tiny-llama", str(tmp_path), str(weights)]), text


def test_a_decoder_has_to_be_given_or_named(weights, no_decoder):
    assert "need tiny-llama" in refusal(weights)


def test_gguf_files_that_are_none(weights, no_decoder, tmp_path):
    path = tmp_path / "model.gguf"
    assert f"{path} cannot be read" in refusal(weights, llm=path)
    path.write_bytes(b"text")
    assert f"{path} is not a GGUF file" in refusal(weights, llm=path)


@pytest.fixture
def own_decoder(decoder, tmp_path):
    return shutil.copytree(decoder, tmp_path / "decoder")


def test_a_decoder_without_a_config_or_with_a_broken_one(weights, own_decoder, no_decoder):
    (own_decoder / "config.json").write_text('{"model_type": "nothing"}')
    assert f"{own_decoder} is not a language model" in refusal(weights, llm=own_decoder)
    (own_decoder / "config.json").unlink()
    assert f"language model folder {own_decoder} lacks config.json" in refusal(weights, llm=own_decoder)


def test_another_tokenizer_is_refused_unless_insisted_upon(copy, own_decoder):
    """One of the same size with other tokens: the sizes and the weights are right, and every word would be wrong."""
    def record(value):
        folders.change_json(copy / MANIFEST, lambda m: m["decoder"].update(tokenizer=value))

    wanted = tokenizer_fingerprint(folders.tokenizer())
    record(wanted)
    assert from_pretrained(copy, own_decoder).manifest.decoder.tokenizer == wanted

    def swap(content):
        words = content["model"]["vocab"]
        words["a"], words["b"] = words["b"], words["a"]

    folders.change_json(own_decoder / "tokenizer.json", swap)
    text = refusal(copy, llm=own_decoder)
    found = tokenizer_fingerprint(PreTrainedTokenizerFast.from_pretrained(own_decoder))
    assert found != wanted
    named = [str(copy), "tiny-llama", str(own_decoder), wanted[:12], found[:12], "--allow-base-mismatch"]
    assert all(word in text for word in [*named, "tokenizer", "other tokens"]), text
    assert tokenizer_fingerprint(from_pretrained(copy, own_decoder, allow_base_mismatch=True).tokenizer) == found
    record(None)  # as weights converted before it was recorded
    from_pretrained(copy, own_decoder)


def test_a_record_takes_the_fingerprint_of_the_tokenizer(decoder):
    record = DecoderRecord.of(folders.build(decoder)[0].llama.config, "x", fingerprint="a" * 64, tokenizer="b" * 64)
    assert (record.fingerprint, record.tokenizer) == ("a" * 64, "b" * 64)
    written = json.loads(json.dumps(Manifest(record).to_dict()))
    assert written["decoder"]["tokenizer"] == "b" * 64 and Manifest.from_dict(written).decoder == record


def test_a_base_of_other_numbers_is_refused_with_what_counts_as_other(copy, decoder, no_decoder):
    folders.change_json(copy / MANIFEST, lambda m: m["decoder"].update(fingerprint="0" * 64))
    text = refusal(copy, llm=decoder)
    assert "000000000000" in text and "a bfloat16 or quantised copy of the right one counts as another" in text


def test_a_decoder_that_is_cut_short(weights, own_decoder):
    path = own_decoder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert f"language model {own_decoder} cannot be loaded" in refusal(weights, llm=own_decoder)
    path.unlink()
    assert f"language model {own_decoder} cannot be loaded" in refusal(weights, llm=own_decoder)


def test_a_decoder_with_a_tensor_missing_is_not_filled_with_random_numbers(weights, own_decoder):
    path = own_decoder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    text = refusal(weights, llm=own_decoder)
    assert "lacks model.layers.2.mlp.up_proj.weight" in text


def test_a_decoder_without_a_tokenizer(weights, own_decoder):
    for path in own_decoder.glob("tokenizer*"):
        path.unlink()
    assert str(own_decoder) in refusal(weights, llm=own_decoder)


def test_only_the_trunks_in_use_are_built_and_read(copy, decoder):
    edit(ENCODER, lambda t: t.pop("heads.imu.projection.weight"))(copy)
    assert "missing heads.imu" in refusal(copy, llm=decoder)
    encoder = Pipeline.from_pretrained(copy, llm=decoder, dtype="float32", media=["image"]).model.encoder
    assert encoder.modalities == (Modality.VISION,)
    assert not [name for name in encoder.state_dict() if "imu" in name]


def test_modalities_that_are_not_there(weights, decoder, no_decoder):
    assert "unknown media smell; there are image, video" in refusal(weights, llm=decoder, media=["smell"])
    text = refusal(weights, llm=decoder, media=["image", "audio"])
    assert "these weights take image, video, imu, not audio" in text and "weights/README.md" in text


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("survived", range(4))
def test_a_full_disk_leaves_the_folder_as_it_was(survived, saved, copy, decoder, monkeypatch):
    """The disk is full while the first, second, ... file is written; the model to be saved is another one."""
    before, written = contents(copy), []

    def failing(name):
        original = getattr(checkpoint, name)

        def write(*args):
            if len(written) == survived:
                path = args[1] if name == "save_file" else args[0]
                path.write_bytes(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            written.append(name)
            original(*args)

        return write

    for name in ("save_file", "_write_json"):
        monkeypatch.setattr(checkpoint, name, failing(name))
    model, manifest = folders.build(decoder)
    with torch.no_grad():
        model.adapter.gates.zero_()
    with pytest.raises(CheckpointError, match=f"{copy} cannot be written .*No space left on device"):
        save_pretrained(copy, model, folders.config(), manifest, torch.float32)
    assert contents(copy) == before
    monkeypatch.undo()
    assert torch.equal(logits(from_pretrained(copy, decoder).model)[1], logits(saved[1])[1])


def test_a_file_that_the_system_cuts_short(saved, copy, decoder):
    """The same without a simulation: the system refuses files above a size."""
    resource = pytest.importorskip("resource")
    before, limits = contents(copy), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(CheckpointError, match="cannot be written"):
            save_pretrained(copy, saved[1], folders.config(), folders.build(decoder)[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(copy) == before


def test_saving_where_a_file_is(saved, decoder, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(CheckpointError, match="taken cannot be written"):
        save_pretrained(tmp_path / "taken", saved[1], folders.config(), folders.build(decoder)[1])


def test_saving_over_old_weights(saved, copy, decoder):
    model, manifest = folders.build(decoder)
    with torch.no_grad():
        model.adapter.gates.neg_()
    save_pretrained(copy, model, folders.config(), manifest, torch.float32)
    found = logits(from_pretrained(copy, decoder).model)[1]
    assert torch.equal(found, logits(model)[1])
    assert not torch.equal(found, logits(saved[1])[1])
    assert sorted(contents(copy)) == [ADAPTER, "config.json", ENCODER, "manifest.json"]


def test_numbers_too_large_for_half_precision_are_kept_whole(weights, decoder, tmp_path):
    """A batch norm's variance above 65504 would be written as infinity."""
    pipe = Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")
    parameter = next(pipe.model.encoder.parameters())
    with torch.no_grad():
        parameter.view(-1)[0] = 1e6
    save_pretrained(tmp_path / "again", pipe.model, pipe.config, pipe.manifest)
    again = Pipeline.from_pretrained(tmp_path / "again", llm=decoder, device="cpu", dtype="float32")
    assert torch.equal(next(again.model.encoder.parameters()), parameter)
