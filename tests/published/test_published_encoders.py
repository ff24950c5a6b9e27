"""Encoders as they were published, given to an adapter or converted alone: what is refused and what is left."""

import argparse
import json
import shutil

import pytest
import torch
from originals import IMAGEBIND_LLM, V2
from safetensors.torch import load_file, save_file
from test_published_refusals import arguments, edited, refused, v2_only
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from adapter_llm.__main__ import main
from adapter_llm.checkpoint import build_encoder, from_pretrained
from adapter_llm.config import AdapterLLMConfig
from adapter_llm.convert import ConversionError, convert, convert_back
from adapter_llm.convert.encoders import plan_encoder

both = pytest.mark.parametrize("family", [V2, IMAGEBIND_LLM], indirect=True)


@pytest.fixture(autouse=True)
def _no_lasting_quiet(monkeypatch):
    monkeypatch.setattr("adapter_llm.cli.quiet", lambda: None)


def published(family):
    """The encoder's published file, if the heads that are taken for granted can be those of such sizes."""
    path = family.clip_file if family.name == V2 else family.imagebind_file
    try:
        plan_encoder(path)
    except ConversionError as error:
        if "give its heads" not in str(error):
            raise
        pytest.skip(f"this encoder is of another kind than the published ones: {error}")
    return path


@both
def test_a_refusal_leaves_nothing_of_a_published_encoder(family, tmp_path, capsys):
    """It was once converted beside the output, left there, and taken for the next adapter's encoder."""
    broken = edited(family, tmp_path / "broken.pth", lambda model: model.update({"surprise": torch.zeros(1)}))
    refused(arguments(family, broken, encoder=published(family)), tmp_path / "new", capsys)
    other = torch.load(published(family), weights_only=True)
    other = {name: tensor + 1 if name.endswith("bias") else tensor for name, tensor in other.items()}
    torch.save(other, tmp_path / "other.pth")
    assert main([*arguments(family, encoder=tmp_path / "other.pth"), "--output", str(tmp_path / "new")]) == 0
    made = load_file(tmp_path / "new" / "encoder.safetensors")
    wanted = load_file(family.encoder / "encoder.safetensors")
    assert made.keys() == wanted.keys() and any(not torch.equal(made[key], wanted[key]) for key in made)


@v2_only
def test_folders_beside_the_output_are_none_of_our_business(family, tmp_path):
    mine = shutil.copytree(family.encoder, tmp_path / "new.encoder")
    assert main([*arguments(family), "--output", str(tmp_path / "new")]) == 0
    assert sorted(path.name for path in mine.iterdir()) == sorted(path.name for path in family.encoder.iterdir())


@both
def test_a_damaged_encoder_gets_no_fresh_hash(family, tmp_path, capsys):
    damaged = shutil.copytree(family.encoder, tmp_path / "damaged")
    data = bytearray((damaged / "encoder.safetensors").read_bytes())
    data[-5] ^= 1
    (damaged / "encoder.safetensors").write_bytes(data)
    message = refused(arguments(family, encoder=damaged), tmp_path / "new", capsys)
    assert "encoder.safetensors is not the file its manifest describes" in message


@v2_only
def test_a_file_that_lost_its_lora_is_not_taken_for_another_kind(family, tmp_path, capsys):
    names = filter(family.weights, family.published)
    name = next((n for n in names if family.checkpoint(n).config.decoder.lora_rank), None)
    if name is None:
        pytest.skip("no file here has LoRA")
    content = torch.load(family.adapter_file(name), weights_only=True)
    model = content["model"]
    plain = {key: tensor for key, tensor in model.items() if "lora" not in key and "new_gate" not in key}
    torch.save({**content, "model": plain}, tmp_path / "x.pth")
    message = refused(arguments(family, tmp_path / "x.pth"), tmp_path / "new", capsys)
    assert "says w_lora True of itself and has no LoRA" in message
    unbiased = {key: tensor for key, tensor in model.items() if not (key.startswith("llama") and key.endswith("bias"))}
    torch.save({"model": unbiased}, tmp_path / "y.pth")
    message = refused(arguments(family, tmp_path / "y.pth"), tmp_path / "new", capsys)
    assert "has LoRA and no biases, which the originals only write together" in message


@both
@pytest.mark.parametrize("name, shape", [("gate", (4,)), ("query", (7,)), ("gate", (1, 0, 1, 1))])
def test_shapes_that_say_nothing_are_one_sentence(family, name, shape, tmp_path, capsys):
    def edit(model):
        ending = "attention.gate" if name == "gate" else "_query.weight"
        for key in [key for key in model if key.endswith(ending) and not key.startswith("visual_query")]:
            model[key] = torch.zeros(shape)

    message = refused(arguments(family, edited(family, tmp_path / "x.pth", edit)), tmp_path / "new", capsys)
    assert "axes, and has" in message


@both
def test_a_short_tensor_is_found_before_anything_is_written(family, tmp_path, capsys):
    content = torch.load(published(family), weights_only=True)
    name = next(key for key in content if key.endswith(("ln_pre.weight", "norm_1.weight")))
    content[name] = content[name][:-1].clone()
    torch.save(content, tmp_path / "x.pth")
    message = refused(["convert", str(tmp_path / "x.pth")], tmp_path / "new", capsys)
    assert "is not a whole encoder" in message and "instead of" in message


@both
@pytest.mark.parametrize("option", [["--connector-heads", "4"], ["--corrected"], ["--llm", "x"], ["--tokenizer", "x"]])
def test_options_that_mean_nothing_are_refused(family, option, tmp_path, capsys):
    message = refused(["convert", str(published(family)), *option], tmp_path / "new", capsys)
    assert "to which nothing is to be said of" in message and option[0].strip("-").replace("-", " ") in message


@both
def test_training_checkpoints_are_adapters_too(family, tmp_path):
    """The originals' training saves its arguments, a Namespace, and its optimiser beside the weights."""
    content = torch.load(family.adapter_file(family.first), weights_only=True)
    state = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-3}]}
    content |= {"optimizer": state, "epoch": 3, "args": argparse.Namespace(lr=1e-3)}
    torch.save(content, tmp_path / "x.pth")
    assert main([*arguments(family, tmp_path / "x.pth"), "--output", str(tmp_path / "new")]) == 0
    extra = json.loads((tmp_path / "new" / "manifest.json").read_text())["origin"]["extra"]
    assert extra["epoch"] == 3 and not {"args", "optimizer"} & extra.keys()
    convert_back(tmp_path / "new", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert back.keys() == content["model"].keys()
    assert all(torch.equal(back[key], content["model"][key]) for key in back)


@v2_only
def test_places_are_counted_without_links(family, tmp_path):
    (tmp_path / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "deeper")
    assert main([*arguments(family), "--output", str(tmp_path / "link" / "new")]) == 0
    assert from_pretrained(tmp_path / "link" / "new").config.prompt.template == "alpaca"
    assert from_pretrained(tmp_path / "deep" / "deeper" / "new")


@both
def test_nothing_is_written_under_a_name_that_lies(family, tmp_path, capsys):
    message = refused(["convert", str(family.weights(family.first)), "--back"], tmp_path / "x.safetensors", capsys)
    assert "published files are torch's .pth" in message


def test_an_index_never_replaces_a_file(golden, tmp_path, capsys):
    source = golden / IMAGEBIND_LLM / "knn.index"
    if not source.exists():
        pytest.skip(f"no {source}")
    (tmp_path / "mine").write_text("a thesis")
    assert str(tmp_path / "mine") in refused(["convert", str(source)], tmp_path / "mine", capsys)
    assert (tmp_path / "mine").read_text() == "a thesis"
    assert main(["convert", str(source), "--output", str(tmp_path / "deep" / "index")]) == 0
    assert main(["convert", str(tmp_path / "deep" / "index"), "--back", "--output", str(tmp_path / "knn.index")]) == 0
    assert (tmp_path / "knn.index").read_bytes() == source.read_bytes()
    again = ["convert", str(tmp_path / "deep" / "index"), "--back", "--output", str(tmp_path / "knn.index")]
    assert main(again) == 1 and "is there already" in capsys.readouterr().err


@both
def test_a_base_that_is_not_whole_is_found_at_conversion(family, tmp_path, capsys):
    broken = shutil.copytree(family.base, tmp_path / "broken")
    [shard] = broken.glob("model*.safetensors")
    tensors = load_file(shard)
    tensors.pop("model.norm.weight")
    save_file(tensors, shard, {"format": "pt"})
    message = refused(arguments(family, llm=broken), tmp_path / "new", capsys)
    assert "is not a whole language model" in message and "model.norm.weight" in message


@v2_only
def test_a_bias_of_another_width_is_one_sentence(family, tmp_path, capsys):
    def edit(model):
        names = [name for name in model if name.endswith("wq.bias")]
        if not names:
            pytest.skip("no file here has biases")
        model[names[0]] = torch.zeros(10)

    message = refused(arguments(family, edited(family, tmp_path / "x.pth", edit)), tmp_path / "new", capsys)
    assert "wq.bias (10,)" in message or "q_proj.bias (10,) instead of" in message


def hugging_face_clip(folder, **changes):
    sizes = dict(hidden_size=48, intermediate_size=192, projection_dim=20, num_hidden_layers=2,
                 num_attention_heads=3, image_size=42, patch_size=14)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(4)
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**sizes, **changes}))
        with torch.no_grad():
            for parameter in clip.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
    clip.save_pretrained(folder)
    return clip.eval()


@torch.no_grad()
def test_a_hugging_face_clip_has_its_own_heads(tmp_path):
    clip = hugging_face_clip(tmp_path / "clip")
    convert(tmp_path / "clip", tmp_path / "new")
    config = AdapterLLMConfig.load(tmp_path / "new" / "config.json").encoder
    assert (config.heads, config.depth, config.width, config.patch_size, config.image.size) == (3, 2, 48, 14, 42)
    encoder = build_encoder(config, None)
    encoder.load_state_dict(load_file(tmp_path / "new" / "encoder.safetensors"))
    images = torch.randn(2, 3, 42, 42)
    tokens = clip.visual_projection(clip.vision_model.post_layernorm(clip.vision_model(images).last_hidden_state))
    torch.testing.assert_close(encoder({"vision": images})["vision"], tokens)
    torch.testing.assert_close(encoder({"vision": images})["vision"][:, 0], clip(images).image_embeds)


def test_a_hugging_face_clip_goes_back_to_its_own_names_with_its_text_tower(tmp_path):
    hugging_face_clip(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(path) | {"text_model.x.weight": torch.ones(3), "logit_scale": torch.tensor(4.6)}
    save_file(tensors, path, {"format": "pt"})
    convert(tmp_path / "clip", tmp_path / "new")
    convert_back(tmp_path / "new", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == tensors.keys() and all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"layer_norm_eps": 1e-6}])
def test_a_clip_of_another_kind_is_refused(tmp_path, change):
    hugging_face_clip(tmp_path / "clip", **change)
    with pytest.raises(ConversionError, match="LLaMA-Adapter V2 was trained with CLIP's own, quick_gelu and 1e-05"):
        convert(tmp_path / "clip", tmp_path / "new")
    assert not list(tmp_path.glob("new*"))
