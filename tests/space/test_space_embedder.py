"""The encoder alone: what it embeds, one by one and together, and where it comes from."""

import json

import numpy
import pytest
import tiny_space as tiny
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from adapter_llm.config import AdapterLLMConfig, ClipConfig
from adapter_llm.encoders import build_encoder
from adapter_llm.manifest import Manifest
from adapter_llm.processing import InputOptions
from adapter_llm.sources import CheckpointError, record_of
from adapter_llm.space import LOGIT_SCALE, combine, vector_of
from adapter_llm.space.embedder import Embedder, EncoderFolder, features_of, fingerprint_of


def test_a_vector_is_made_by_the_one_rule(embedder, media):
    for keyword, source in (("image", media / "0.png"), ("audio", media / "a.wav"), ("text", "a dog")):
        [features] = embedder.encode([embedder.load(keyword, source)])
        assert features.shape == (1, tiny.FEATURES, tiny.WIDTH)
        found = embedder.embed(**{keyword: source})
        torch.testing.assert_close(found, vector_of(features)[0])
        raw = embedder.embed(normalized=False, **{keyword: source})
        torch.testing.assert_close(raw, features[0].mean(0))


def test_raw_vectors_of_words_make_logits(embedder, media):
    """A picture's direction times a text's raw vector is the cosine times the learned scale, as in ImageBind."""
    config = tiny.encoder_config()
    one_token = all(features_of(config, kind) == 1 for kind in config.trunks)
    assert not one_token  # the mean of several tokens is shorter; its length says how much they agree
    [words] = embedder.encode([embedder.load("text", "a dog")])
    torch.testing.assert_close(words.norm(dim=-1), torch.full((1, tiny.FEATURES), embedder.logit_scale))


def test_the_scale_has_a_limit(folder):
    embedder = folder.load("cpu", modalities=["text"])
    with torch.no_grad():
        embedder.encoder.postprocessors["text"].log_scale.fill_(6.0)
    assert embedder.logit_scale == 100.0
    [words] = embedder.encode([embedder.load("text", "a dog")])
    torch.testing.assert_close(words.norm(dim=-1), torch.full((1, tiny.FEATURES), 100.0))


def test_several_inputs_are_combined(embedder, media):
    pictures = [embedder.embed(image=media / name) for name in ("0.png", "1.png")]
    vectors = [*pictures, embedder.embed(text="snow")]
    found = embedder.embed(
        image=[(media / "0.png", 2.0), media / "1.png"], text=("snow", -0.5), weights={"image": 0.5, "text": 3}
    )
    torch.testing.assert_close(found, combine(vectors, [1.0, 0.5, -1.5]))


def test_pools_of_windows(embedder, media):
    [kept] = embedder.encode([embedder.load("audio", media / "a.wav", InputOptions(window=0.25, pool="none"))])
    assert kept.shape == (4, tiny.FEATURES, tiny.WIDTH)
    for pool, expected in (("mean", kept.mean(0)), ("max", kept.amax(0))):
        found = embedder.embed(window=0.25, pool=pool, audio=media / "a.wav")
        torch.testing.assert_close(found, vector_of(expected))
    with pytest.raises(ValueError, match="one vector is made of all windows"):
        embedder.embed(pool="none", audio=media / "a.wav")


def test_texts_in_batches(embedder):
    texts = ["a dog", "a cat", "a car on the road"]
    found = embedder.embed_texts(texts, batch_size=2)
    torch.testing.assert_close(found, torch.stack([embedder.embed(text=text) for text in texts]))


@pytest.mark.parametrize("media, message", [
    ({}, "there is nothing to embed; give image or video or audio"),
    ({"image": []}, "there is nothing to embed"),
    ({"smell": "x"}, "unknown media smell"),
    ({"thermal": "x"}, "these weights take image, video, audio, text, depth, imu, point, not thermal"),
    ({"image": "missing.png"}, "there is no file 'missing.png'"),
])  # fmt: skip
def test_what_cannot_be_embedded(embedder, media, message):
    with pytest.raises(ValueError, match=message):
        embedder.embed(**media)


def test_raw_vectors_are_of_one_input(embedder):
    with pytest.raises(ValueError, match="several inputs are combined by their directions; give one"):
        embedder.embed(normalized=False, text=["a", "b"])


def test_a_trunk_that_was_not_loaded(folder):
    part = folder.load("cpu", modalities=["vision"])
    assert part.keywords == ["image", "video"] and part.logit_scale == LOGIT_SCALE
    assert part.fingerprint == folder.fingerprint


def test_the_same_weights_have_the_same_fingerprint(weights, folder, tmp_path):
    manifest = json.loads((weights / "manifest.json").read_text())
    assert fingerprint_of(Manifest()) == ""
    tiny.save_encoder(tmp_path / "again")
    assert EncoderFolder.find(tmp_path / "again").fingerprint == folder.fingerprint
    manifest["files"] = {}  # made by hand, without hashes
    (tmp_path / "again" / "manifest.json").write_text(json.dumps(manifest))
    assert EncoderFolder.find(tmp_path / "again").fingerprint == folder.fingerprint


def test_folders_that_lack_something(weights, tmp_path):
    with pytest.raises(CheckpointError, match="there is no weights folder"):
        Embedder.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_bytes((weights / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"lacks manifest.json, encoder.safetensors; give a complete folder"):
        Embedder.from_pretrained(tmp_path)


def test_clip_sees_pictures(tmp_path):
    """CLIP's features are all its tokens; they become one vector by the same rule."""
    sizes = {"embedding_dim": 14, "width": 24, "depth": 2, "heads": 3, "patch_size": 10}
    config = ClipConfig.from_dict({**sizes, "image": {"size": 40}})
    encoder = build_encoder(config, None)
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(AdapterLLMConfig(config).to_dict()))
    manifest = Manifest(files={"encoder.safetensors": record_of(tmp_path / "encoder.safetensors")})
    (tmp_path / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    embedder = Embedder.from_pretrained(tmp_path, device="cpu")
    picture = Image.new("RGB", (50, 40), "teal")
    [features] = embedder.encode([embedder.load("image", picture)])
    assert features.shape == (1, 17, 14) and features_of(config, "vision") == 17
    expected = F.normalize(F.normalize(features[0], dim=-1).mean(0), dim=-1)
    torch.testing.assert_close(embedder.embed(image=picture), expected)
    assert embedder.keywords == ["image"] and embedder.logit_scale == LOGIT_SCALE


def test_trunks_with_other_numbers_of_class_tokens_are_combined(embedder, media):
    Image.fromarray(numpy.arange(900, dtype=numpy.uint16).reshape(30, 30) + 500).save(media / "depth.png")
    given = {"image": media / "0.png", "depth": media / "depth.png"}
    apart = [embedder.embed(**{keyword: source}) for keyword, source in given.items()]
    torch.testing.assert_close(embedder.embed(**given), combine(apart))


def test_weights_of_unknown_media(embedder):
    with pytest.raises(ValueError, match="unknown media txt; there are image, video, audio, text"):
        embedder.embed(text="a dog", weights={"txt": 5})


def test_no_texts(embedder):
    with pytest.raises(ValueError, match="there are no texts to embed; give at least one"):
        embedder.embed_texts([])


def test_the_scale_has_the_ceiling_that_embeddings_have(folder):
    embedder = folder.load("cpu", modalities=["text"])
    with torch.no_grad():
        embedder.encoder.postprocessors["text"].log_scale.fill_(7.0)
    [features] = embedder.encode([embedder.load("text", "a dog")])
    assert embedder.logit_scale == pytest.approx(float(features[0, 0].norm())) == pytest.approx(100.0)


@pytest.mark.parametrize("given, message", [
    (("a.png", "b.png"), "several sources go in a list"), (("a.png", 1e39), "the weight of 'a.png' is 1e.39"),
    (("a.png", -1e39), "the weight of 'a.png' is -1e.39"),
])  # fmt: skip
def test_sources_and_weights_are_sorted_as_everywhere(embedder, given, message):
    with pytest.raises(ValueError, match=message):
        embedder.embed(image=given)
