"""What an index changes in an answer, how one is made of a folder, and the vector for image generation."""

import folders
import pytest
import torch
from torch.nn import functional as F

from adapter_llm.indexing import build_index
from adapter_llm.pipeline import Pipeline
from adapter_llm.retrieval import FeatureIndex, RetrievalOptions, blend
from imagebind_encoder.media import load_image

QUESTION = "What is in this picture?"
WIDTH, COUNT = 20, 7  # of a feature, and features a picture


@pytest.fixture
def one():
    return folders.picture(1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index.safetensors"
    FeatureIndex(F.normalize(torch.randn(60, WIDTH, generator=torch.Generator().manual_seed(5)), dim=-1)).save(path)
    return path


@pytest.fixture(scope="module")
def looking(weights, decoder, stored):
    return Pipeline.from_pretrained(weights, decoder, device="cpu", dtype="float32", index=stored)


def test_features_are_blended_before_the_connector(pipe, looking, stored, one):
    plain = pipe.features(image=one)
    options = RetrievalOptions(neighbours=3, sharpness=7.0, weight=0.8)
    expected = blend(plain[None], FeatureIndex.load(stored), options)[0]
    torch.testing.assert_close(looking.features(image=one, retrieval=options), expected)
    assert (expected - plain).abs().max() > 0.1
    assert torch.equal(looking.features(image=one), blend(plain[None], FeatureIndex.load(stored))[0])


def test_weight_0_is_as_if_there_were_no_index(pipe, looking, one):
    nothing = RetrievalOptions(weight=0)
    assert torch.equal(looking.features(image=one, retrieval=nothing), pipe.features(image=one))
    expected = pipe.ask(QUESTION, image=one, max_new_tokens=12)
    assert looking.ask(QUESTION, image=one, retrieval=nothing, max_new_tokens=12) == expected
    assert looking.ask(QUESTION, image=one, max_new_tokens=12) != expected


def test_batches_are_blended_row_by_row(looking, photos):
    options = RetrievalOptions(neighbours=4, weight=0.6)
    batched = looking.caption([*photos, "missing.png"], QUESTION, batch_size=3, retrieval=options, max_new_tokens=9)
    alone = [looking.ask(QUESTION, image=photo, retrieval=options, max_new_tokens=9) for photo in photos]
    assert [result.text for result in batched[:-1]] == alone
    assert "missing.png" in batched[-1].error


def test_settings_without_an_index_are_refused(pipe, one):
    with pytest.raises(ValueError, match="there is no index to look into; give one when the pipeline is loaded"):
        pipe.ask(QUESTION, image=one, retrieval=RetrievalOptions())


def test_an_index_of_faiss_serves_as_well(weights, decoder, looking, stored, tmp_path, one):
    FeatureIndex.load(stored).to_faiss(tmp_path / "knn.index")
    pipe = Pipeline.from_pretrained(weights, decoder, device="cpu", dtype="float32", index=tmp_path / "knn.index")
    assert torch.equal(pipe.features(image=one), looking.features(image=one))


def test_an_index_of_other_features_is_refused(weights, decoder, tmp_path):
    FeatureIndex(torch.ones(3, WIDTH + 1)).save(tmp_path / "other")
    with pytest.raises(ValueError, match="the index holds vectors of 21 numbers and these weights make 20"):
        Pipeline.from_pretrained(weights, decoder, device="cpu", index=tmp_path / "other")


def test_a_folder_becomes_an_index(pipe, photos, tmp_path, capsys):
    (tmp_path / "below").mkdir()
    for photo in photos[:3]:
        (tmp_path / "below" / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no media")
    index = build_index(pipe, tmp_path, tmp_path / "index")
    assert index.ids == [str(tmp_path / "below" / photo.name) for photo in photos[:3] for _ in range(COUNT)]
    expected = torch.cat([F.normalize(pipe.features(image=photo), dim=-1) for photo in photos[:3]])
    torch.testing.assert_close(index.vectors(), expected)
    err = capsys.readouterr().err
    assert err.startswith("left out: ") and "broken.png" in err and err.count("\n") == 1
    again = build_index(pipe, [tmp_path / "below", photos[3]], tmp_path / "index")
    assert again.ids[::COUNT] == [*index.ids[::COUNT], str(photos[3])]


@pytest.mark.parametrize("names, message", [
    ([], "there is nothing to encode; give files, or folders with files of the kinds that are read"),
    (["x.png"], "none of the 1 inputs can be read, so .*index is not written"),
])  # fmt: skip
def test_folders_without_anything_to_see(pipe, names, message, tmp_path):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        build_index(pipe, tmp_path, tmp_path / "index")
    with pytest.raises(ValueError, match="none of the 1 inputs can be read"):
        build_index(pipe, tmp_path / "nowhere", tmp_path / "index")


def test_the_vector_for_image_generation(pipe, looking, one):
    other = folders.picture(2)
    tensors = torch.stack([load_image(picture, pipe.config.encoder.image) for picture in (one, other)])
    outputs = pipe.model.encoder.head_outputs({"vision": tensors})["vision"][:, 0]
    vector = pipe.image_embeds(image=[(one, 0.75), (other, 0.25)])
    expected = outputs[:1] * 0.75 + outputs[1:] * 0.25
    torch.testing.assert_close(vector, expected, rtol=1e-5, atol=1e-5)
    blended = looking.image_embeds(image=[(one, 0.75), (other, 0.25)])
    torch.testing.assert_close(blended.norm(), vector.norm())
    assert (blended - vector).abs().max() > 1e-2


def test_a_context_reaches_the_prompt(pipe, one):
    plain = pipe.result(QUESTION, image=one, max_new_tokens=5)
    about = pipe.result(QUESTION, image=one, context="It was taken at sea.", max_new_tokens=5)
    assert (about.prompt, about.text != plain.text) == (QUESTION, True)
    messages = [{"role": "user", "content": f"{QUESTION}\n\nIt was taken at sea."}]
    assert about.text == pipe.ask(messages, image=one, max_new_tokens=5)


def test_answers_end_where_the_language_model_does(pipe):
    """The tiny decoder has room for 512 tokens of prompt and answer together."""
    empty = len(pipe.processor.tokenize(["a"], [False], pipe.device)[0][0])
    question = "a " * (500 - empty)
    length = len(pipe.processor.tokenize([question], [False], pipe.device)[0][0])
    assert pipe.result(question, max_new_tokens=64).n_tokens <= 512 - length < 64
    with pytest.raises(ValueError, match=r"a prompt has \d+ tokens, and prompt and answer together may have 512"):
        pipe.ask("a b " * 400, max_new_tokens=3)
