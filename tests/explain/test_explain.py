"""An explanation as the pipeline's user gets it."""

import ast
from pathlib import Path

import folders
import pytest
import tiny
import torch

from adapter_llm import processing
from adapter_llm.explain import Explanation, explain
from adapter_llm.explain.answer import gate_factors, token_texts
from adapter_llm.explain.rollout import connector_rollout
from adapter_llm.explain.views import views
from adapter_llm.pipeline import Pipeline
from adapter_llm.retrieval import FeatureIndex, RetrievalOptions
from imagebind_encoder import MediaError

ROOT = Path(__file__).parent.parent.parent
QUESTION = "What is in this picture?"
LAYERS, HEADS, QUERIES, FEATURES = 3, 6, 4, 7


@pytest.fixture
def one():
    return folders.picture(1)


@pytest.fixture
def two():
    return folders.picture(2, 80, 40)


@pytest.fixture
def explained(pipe, one):
    return explain(pipe, QUESTION, image=one, max_new_tokens=9)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"num_beams": 3}, {"context": "Rain."}])
def test_the_answer_is_that_of_ask(pipe, one, options):
    options = {**options, "image": one, "max_new_tokens": 12}
    told = explain(pipe, QUESTION, **options)
    assert told.answer == pipe.ask(QUESTION, **options)
    assert told.question == QUESTION


def test_without_a_prompt_a_description_is_explained(pipe, one):
    told = explain(pipe, image=one, max_new_tokens=6)
    assert told.question == "Describe this picture."
    assert told.answer == pipe.ask(image=one, max_new_tokens=6)


def test_a_conversation_is_known_by_its_last_question(pipe, one):
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    messages.append({"role": "user", "content": QUESTION})
    assert explain(pipe, messages, image=one, max_new_tokens=5).question == QUESTION


def test_shapes(explained):
    text = len(explained.tokens)
    assert explained.gates.shape == (LAYERS, HEADS)
    assert explained.attention.shape == explained.contribution.shape == (LAYERS, HEADS, QUERIES, text)
    assert explained.gain.shape == (text - explained.prompt_length,) == (9,)
    assert explained.layers == (2, 3, 4)
    assert explained.share.shape == (text,)
    assert explained.mean_attention.shape == (QUERIES, text)
    for tensor in (explained.gates, explained.attention, explained.contribution, explained.gain):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad


def test_sums(explained):
    tiny.assert_close(explained.attention.sum(2), torch.ones(LAYERS, HEADS, len(explained.tokens)))
    tiny.assert_close(explained.mean_attention.sum(0), torch.ones(len(explained.tokens)))
    assert (explained.contribution.sum(2) < 1).all()
    assert (explained.contribution > 0).all()
    (patch_map,) = explained.patch_maps
    assert patch_map.shape == (3, 3)
    tiny.assert_close(patch_map.sum()[None], torch.ones(1))


def test_means_weigh_heads_by_what_they_contributed():
    torch.manual_seed(1)
    attention = torch.softmax(torch.randn(2, 3, 4, 5), dim=2)
    contribution = attention * torch.rand(2, 3, 1, 5)
    contribution[..., 4] = 0  # where nothing was contributed
    told = Explanation(
        "?", "!", tuple("abcde"), 3, (1, 2), torch.zeros(2, 3), attention, contribution, torch.zeros(2), ()
    )  # fmt: skip
    for at in range(5):
        shares = [(attention[i, j, :, at], contribution[i, j, :, at].sum()) for i in range(2) for j in range(3)]
        total = sum(weight for _, weight in shares)
        mean = sum(part * (weight / total if total else 1 / 6) for part, weight in shares)
        tiny.assert_close(told.mean_attention[:, at], mean)
        assert told.share[at] == pytest.approx(float(total) / 6)
    assert told.writing == slice(2, 4)


def test_tokens_are_the_prompt_and_the_answer(pipe, explained):
    """Each token's text is what it adds, so together they are the text."""
    ids = pipe.processor.tokenize([QUESTION], [True], pipe.device)[0][0].tolist()
    assert explained.prompt_length == len(ids)
    assert "".join(explained.tokens[: len(ids)]) == pipe.processor.tokenizer.decode(ids)
    with folders.says(pipe, "A dog\non the grass."):
        told = explain(pipe, QUESTION, image=folders.picture(1))
    assert told.answer == "A dog\non the grass." == "".join(told.tokens[told.prompt_length :])


def test_characters_of_several_tokens_belong_to_the_last_of_them(pipe):
    words = pipe.processor.tokenizer
    for text in ("é你好 🐕🐕🐕 x", "naïve"):
        found = list(token_texts(words, words(text).input_ids))
        assert "".join(found).replace("\ufffd", "") == text
        assert len(found) == len(words(text).input_ids)


def test_gates_are_what_heads_are_multiplied_by(pipe, explained):
    assert torch.equal(explained.gates, torch.tanh(pipe.model.adapter.gates.detach()))
    model = tiny.adapter_llm(gate_scale=True)
    expected = torch.tanh(model.adapter.gates) * model.adapter.gate_scale[:, None]
    assert torch.equal(gate_factors(model.adapter), expected.detach())


@torch.no_grad()
def test_gain_is_what_the_adapter_did_to_the_answer(pipe, one, explained):
    state = pipe.adapt(image=one)
    asked = pipe.processor.tokenize([QUESTION], [True], pipe.device)[0]
    new = pipe.answerer.generate([QUESTION], state, [True], pipe.perception.request(QUESTION, {"max_new_tokens": 9}).options)[0]
    ids = torch.cat([asked, torch.tensor([new])], dim=1)
    told, plain = (torch.log_softmax(pipe.model(ids, state=given).logits[0], -1) for given in (state, None))
    expected = [told[at, ids[0, at + 1]] - plain[at, ids[0, at + 1]] for at in range(*explained.writing.indices(99))]
    assert len(expected) == 9
    tiny.assert_close(explained.gain, torch.stack(expected), 1e-4)
    assert (told[explained.writing].argmax(-1) == torch.tensor(new)).all(), "greedy, so each is the likeliest"


def test_shut_gates_explain_nothing(weights, decoder, one):
    pipe = Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")
    with torch.no_grad():
        pipe.model.adapter.gates.zero_()
    told = explain(pipe, QUESTION, image=one, max_new_tokens=6)
    for tensor in (told.gates, told.contribution, told.gain, told.share):
        assert not tensor.any()
    tiny.assert_close(told.mean_attention, told.attention.mean((0, 1)))
    (patch_map,) = told.patch_maps
    shares = connector_rollout(pipe.model.connector, pipe.features(image=one)).mean(0)
    (expected,) = views(pipe.model.encoder, pipe.perception.request(None, {"image": one}).seen.items[0], shares, pipe.device)
    tiny.assert_close(patch_map, expected.patch_map)


def test_blanks_around_an_answer_are_tokens_and_not_the_answer(pipe, one):
    with folders.says(pipe, " \n A dog<|im_start|> here. \n"):
        told = explain(pipe, QUESTION, image=one)
    assert told.answer == "A dog here."
    assert "".join(told.tokens[told.prompt_length :]) == " \n A dog<|im_start|> here. \n"


def test_an_empty_answer_is_explained(pipe, one):
    with folders.says(pipe, ""):
        told = explain(pipe, QUESTION, image=one)
    assert (told.answer, len(told.tokens)) == ("", told.prompt_length)
    assert told.gain.shape == (0,)
    assert told.attention[..., told.writing].shape[-1] == 0


def test_the_connector_looked_by_what_the_decoder_took(pipe, one, explained):
    taken = explained.contribution.sum((0, 1, 3))
    features = pipe.features(image=one)
    attention = taken / taken.sum() @ connector_rollout(pipe.model.connector, features)
    loaded = pipe.perception.request(None, {"image": one}).seen.items[0]
    (expected,) = views(pipe.model.encoder, loaded, attention, pipe.device)
    tiny.assert_close(explained.patch_maps[0], expected.patch_map)
    assert torch.equal(explained.views[0].shown, expected.shown)


@pytest.mark.parametrize("mix", ["average", "concat"])
def test_several_pictures_have_a_map_each(pipe, one, two, mix):
    """Side by side each has its own features' attention; averaged, all have that of the mean."""
    media = {"image": [one, (two, 0), (two, 0.5)], "mix": mix, "max_new_tokens": 5}
    told = explain(pipe, QUESTION, **media)
    assert told.answer == pipe.ask(QUESTION, **media)
    assert len(told.patch_maps) == 2, "what weighs nothing was not looked at"
    taken = told.contribution.sum((0, 1, 3))
    features = pipe.features(image=media["image"], mix=mix)
    attention = taken / taken.sum() @ connector_rollout(pipe.model.connector, features)
    assert len(attention) == (2 * FEATURES if mix == "concat" else FEATURES)
    items = pipe.perception.request(None, {"image": [one, two]}).seen.items
    for number, (view, loaded) in enumerate(zip(told.views, items, strict=True)):
        start = number * FEATURES if mix == "concat" else 0
        (expected,) = views(pipe.model.encoder, loaded, attention[start : start + FEATURES], pipe.device)
        tiny.assert_close(view.patch_map, expected.patch_map)
        assert torch.equal(view.shown, expected.shown)


def test_recordings_read_in_windows_are_read_once_and_have_no_view(pipe, one, monkeypatch):
    def load(keyword, source, *args):
        return original(keyword, source, *args) if keyword == "image" else iter(torch.randn(3, 6, 80, generator=seed()))

    def seed():
        return torch.Generator().manual_seed(1)

    original = processing.load_source
    monkeypatch.setattr(processing, "load_source", load)
    media = {"imu": "x.csv", "image": one, "window": 1.0, "pool": "none", "mix": "concat", "max_new_tokens": 5}
    told = explain(pipe, QUESTION, **media)
    assert told.answer == pipe.ask(QUESTION, **media)
    (view,) = told.views
    taken = told.contribution.sum((0, 1, 3))
    features = pipe.features(**{name: media[name] for name in ("imu", "image", "window", "pool", "mix")})
    assert len(features) == 4 * FEATURES
    attention = (taken / taken.sum() @ connector_rollout(pipe.model.connector, features))[:FEATURES]
    loaded = pipe.perception.request(None, {"image": one}).seen.items[0]
    (expected,) = views(pipe.model.encoder, loaded, attention, pipe.device)
    tiny.assert_close(view.patch_map, expected.patch_map)


def test_neighbours_in_an_index_are_blended_in(weights, decoder, one, tmp_path):
    vectors = torch.nn.functional.normalize(torch.randn(30, 20), dim=-1)
    FeatureIndex.build([(None, vectors)], tmp_path / "x.index")
    pipe = Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32", index=tmp_path / "x.index")
    options = {"image": one, "max_new_tokens": 9}
    whole, half = (explain(pipe, QUESTION, retrieval=RetrievalOptions(weight=weight), **options) for weight in (0, 1))
    assert half.answer == pipe.ask(QUESTION, retrieval=RetrievalOptions(weight=1), **options)
    assert not torch.equal(whole.attention[..., : whole.prompt_length], half.attention[..., : half.prompt_length])


def test_a_state_is_explained_without_views(pipe, one):
    given = ({"image": one}, {"state": pipe.adapt(image=one)})
    whole, told = (explain(pipe, QUESTION, **media, max_new_tokens=9) for media in given)
    assert told.views == () and told.patch_maps == []
    assert told.answer == whole.answer
    for name in ("attention", "contribution", "gain"):
        assert torch.equal(getattr(told, name), getattr(whole, name)), name


def test_it_can_be_explained_after_the_encoder_is_gone(weights, decoder, one):
    pipe = Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")
    state = pipe.adapt(image=one)
    pipe.release_encoder()
    assert explain(pipe, QUESTION, state=state, max_new_tokens=4).attention.any()
    with pytest.raises(ValueError, match="the encoder was released"):
        explain(pipe, QUESTION, image=one)


def test_what_cannot_be_explained(pipe, one, tmp_path):
    with pytest.raises(ValueError, match="there is nothing to explain: without media or a state"):
        explain(pipe, QUESTION)
    with pytest.raises(ValueError, match="neither a prompt nor anything to describe"):
        explain(pipe)
    with pytest.raises(ValueError, match="either media or a state"):
        explain(pipe, QUESTION, image=one, state=pipe.adapt(image=one))
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(MediaError, match=r"x\.png"):
        explain(pipe, QUESTION, image=tmp_path / "x.png")


def test_explaining_changes_nothing(pipe, one):
    before = pipe.ask(QUESTION, image=one, max_new_tokens=9)
    hooks = [module for module in pipe.model.modules() if module._forward_hooks or module._forward_pre_hooks]
    first, second = (explain(pipe, QUESTION, image=one, max_new_tokens=9) for _ in range(2))
    assert pipe.ask(QUESTION, image=one, max_new_tokens=9) == before == first.answer
    assert hooks == [module for module in pipe.model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert torch.equal(first.attention, second.attention)
    assert torch.equal(first.patch_maps[0], second.patch_maps[0])


def test_nothing_is_loaded_unless_it_is_asked_for():
    for name in ("adapter_llm/__init__.py", "adapter_llm/pipeline.py", "adapter_llm/cli.py", "demo.py"):
        for node in ast.parse((ROOT / name).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not {"explain", "plots", "matplotlib"} & set(ast.unparse(node).replace(".", " ").split()), name
