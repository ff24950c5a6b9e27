"""Questions and answers: what a picture changes, what it must not change, and what is refused."""

import gc
import weakref

import folders
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from adapter_llm.pipeline import Pipeline
from adapter_llm.processing import media_items
from adapter_llm.results import GenerationOptions
from imagebind_encoder import MediaError

QUESTION = "What is in this picture?"


@pytest.fixture
def one():
    return folders.picture(1)


@pytest.fixture
def two():
    return folders.picture(2, 80, 40)


def test_pictures_change_the_answer(pipe, one, two):
    """Without this every law below would hold for a model that is blind."""
    answers = {pipe.ask(QUESTION, image=image, max_new_tokens=12) for image in (None, one, two)}
    assert len(answers) == 3
    assert all(answers)


@pytest.mark.parametrize("beams", [1, 3])
def test_without_a_picture_it_is_the_language_model(pipe, decoder, beams):
    """Its own chat template, no system message of ours, the same words as from transformers alone."""
    tokenizer, llama = AutoTokenizer.from_pretrained(decoder), LlamaForCausalLM.from_pretrained(decoder).eval()
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = llama.generate(**ids, max_new_tokens=20, do_sample=False, num_beams=beams)
    answer = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert pipe.ask(QUESTION, max_new_tokens=20, num_beams=beams) == answer


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"num_beams": 3}])
def test_a_state_is_as_good_as_the_picture(pipe, one, two, options):
    state = pipe.adapt(image=[one, (two, 0.5)])
    for question in (QUESTION, "Is it raining?"):
        expected = pipe.ask(question, image=[one, (two, 0.5)], max_new_tokens=12, **options)
        assert pipe.ask(question, state=state, max_new_tokens=12, **options) == expected


def test_result_has_the_numbers(pipe, one):
    result = pipe.result(QUESTION, image=one, max_new_tokens=5)
    assert (result.prompt, result.n_tokens, result.finish_reason) == (QUESTION, 5, "length")
    assert result.error is None
    assert result.seconds > 0
    assert result.text == pipe.ask(QUESTION, image=one, max_new_tokens=5)
    assert result.to_dict()["n_tokens"] == 5


def test_result_stops_where_the_decoder_ends(pipe):
    words = pipe.processor.tokenizer("A dog.").input_ids
    with folders.says(pipe, "A dog.") as calls:
        result = pipe.result(QUESTION, max_new_tokens=50)
    assert (result.text, result.n_tokens, result.finish_reason) == ("A dog.", len(words), "stop")
    assert len(calls) == len(words) + 1
    with folders.says(pipe, "A dog."):
        exact = pipe.result(QUESTION, max_new_tokens=len(words))
    assert (exact.text, exact.n_tokens, exact.finish_reason) == ("A dog.", len(words), "length")


def test_answers_are_stripped_and_hold_no_special_tokens(pipe):
    with folders.says(pipe, " \n A dog<|im_start|> here. \n"):
        assert pipe.ask(QUESTION) == "A dog here."


def test_without_a_prompt_a_description_is_asked_for(pipe, one):
    result = pipe.result(image=one, max_new_tokens=6)
    assert result.prompt == "Describe this picture."
    assert pipe.ask("Describe this picture.", image=one, max_new_tokens=6) == result.text
    with pytest.raises(ValueError, match="neither a prompt nor anything to describe"):
        pipe.ask()


def test_conversations(pipe, one):
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": QUESTION},
    ]
    long, short = (pipe.result(given, image=one, max_new_tokens=12) for given in (messages, messages[-1:]))
    assert long.prompt == QUESTION
    assert long.text != short.text, "what was said before counts"
    assert short.text == pipe.ask(QUESTION, image=one, max_new_tokens=12)


@pytest.mark.parametrize("prompt", ["", "  \n", [], [{"role": "user", "content": " "}]])
def test_empty_prompts_are_refused(pipe, prompt, one):
    with pytest.raises(ValueError, match="the prompt is empty"):
        pipe.ask(prompt, image=one)


def test_seeds(pipe, one):
    def draw(seed):
        return pipe.ask(QUESTION, image=one, temperature=1.0, seed=seed, max_new_tokens=16)

    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = draw(1)
    assert torch.equal(torch.get_rng_state(), before), "the program's own random numbers are not ours"
    torch.manual_seed(8)
    assert draw(1) == first
    assert draw(2) != first
    assert draw(None) != draw(None)


def test_sampling_follows_temperature_and_top_p(pipe, one):
    greedy = pipe.ask(QUESTION, image=one, max_new_tokens=16)
    assert pipe.ask(QUESTION, image=one, max_new_tokens=16, temperature=1e-4, seed=1) == greedy
    assert pipe.ask(QUESTION, image=one, max_new_tokens=16, temperature=1.0, top_p=1e-6, seed=1) == greedy
    assert pipe.ask(QUESTION, image=one, max_new_tokens=16, temperature=1.0, top_p=1.0, seed=1) != greedy


def test_sampling_is_not_cut_to_the_likeliest_fifty():
    """generate's own default of top_k would be."""
    assert GenerationOptions(temperature=1.0).to_kwargs()["top_k"] == 0


@pytest.mark.parametrize("options", [
    {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}, {"max_new_tokens": 0}, {"num_beams": 0},
    {"temperature": float("nan")}, {"top_p": float("nan")}, {"temperature": float("inf")},
])  # fmt: skip
@pytest.mark.parametrize("call", ["ask", "stream", "result", "caption"])
def test_settings_out_of_range_are_refused_at_once(pipe, call, options, monkeypatch):
    monkeypatch.setattr(pipe.model.encoder, "forward", None)
    subject = {"sources": ["x.png"]} if call == "caption" else {"prompt": QUESTION}
    with pytest.raises(ValueError, match="must be"):
        getattr(pipe, call)(**subject, **options)


def test_unknown_settings_are_refused(pipe):
    with pytest.raises(TypeError, match="temprature"):
        pipe.ask(QUESTION, temprature=1.0)


def mixed(pipe, *entries, **options):
    return pipe.features(image=list(entries), **options)


def near(left, right):
    return (left - right).abs().max() <= 3e-6 * right.abs().max()


def test_the_same_picture_twice_is_the_picture(pipe, one):
    alone = mixed(pipe, one)
    for entries in ([one, one], [(one, 0.3), (one, 0.7)], [(one, 5.0)], [(one, 2.0), (one, 0.0)]):
        assert near(mixed(pipe, *entries), alone)


def test_weights_are_shares_whose_order_does_not_matter(pipe, one, two):
    expected = 0.75 * mixed(pipe, one) + 0.25 * mixed(pipe, two)
    assert near(mixed(pipe, (one, 3), two), expected)
    assert near(mixed(pipe, two, (one, 3)), expected)
    assert near(mixed(pipe, (one, 0.3), (two, 0.1), weights={"image": 10.0}), expected)
    assert not near(mixed(pipe, one, (two, 3)), expected)
    assert near(mixed(pipe, one, (two, 0)), mixed(pipe, one))
    assert pipe.ask(QUESTION, image=[(one, 3), two], max_new_tokens=9) == pipe.ask(
        QUESTION, image=[two, (one, 3)], max_new_tokens=9
    )


@pytest.mark.parametrize("image, words", [
    ([("a.png", 0.0), ("b.png", 0.0)], "all weights are 0"),
    (("a.png", -1), "the weight of 'a.png' is -1"),
    (("a.png", float("nan")), "the weight of 'a.png' is nan"),
    (("a.png", float("inf")), "the weight of 'a.png' is inf"),
])  # fmt: skip
def test_weights_that_make_no_sense(pipe, image, words):
    for call in (pipe.ask, pipe.stream):
        with pytest.raises(ValueError, match=words):
            call(QUESTION, image=image)


def test_media_that_is_not_there(pipe, one, tmp_path):
    with pytest.raises(MediaError, match="missing.png"):
        pipe.ask(QUESTION, image=[one, tmp_path / "missing.png"])
    with pytest.raises(ValueError, match="unknown media smell"):
        media_items({"smell": 1.0}, image=one)
    with pytest.raises(ValueError, match="either media or a state"):
        pipe.ask(QUESTION, image=one, state=pipe.adapt(image=one))
    for call in (pipe.adapt, pipe.embed, pipe.features):
        with pytest.raises(ValueError, match="nothing to look at"):
            call()


def test_no_list_of_pictures_is_no_picture(pipe):
    assert pipe.ask(QUESTION, image=[], max_new_tokens=6) == pipe.ask(QUESTION, max_new_tokens=6)


def test_embeddings(pipe, one, two):
    vector = pipe.embed(image=one)
    assert vector.shape == (20,)
    assert abs(vector.norm() - 1) < 1e-6
    raw = pipe.embed(image=one, normalized=False)
    assert torch.allclose(raw, pipe.features(image=one).mean(0))
    assert torch.allclose(raw / raw.norm(), vector, atol=1e-6)
    assert vector @ pipe.embed(image=two) < 0.999
    assert not vector.requires_grad


def test_nothing_is_remembered_between_calls(pipe, one, two):
    first = pipe.ask(QUESTION, image=one, max_new_tokens=9), pipe.ask(QUESTION, max_new_tokens=9)
    pipe.ask(QUESTION, image=two, max_new_tokens=9)
    assert (pipe.ask(QUESTION, image=one, max_new_tokens=9), pipe.ask(QUESTION, max_new_tokens=9)) == first


def test_a_decoder_without_a_pad_token(weights, decoder, one, pipe):
    other = Pipeline.from_pretrained(weights, llm=decoder, device="cpu", dtype="float32")
    other.processor.tokenizer.pad_token = None
    assert other.processor.pad_token_id == other.processor.tokenizer.eos_token_id
    answers = other.caption([one, one], prompt=[QUESTION, "Is it raining in the picture?"], max_new_tokens=9)
    assert answers[0].text == pipe.ask(QUESTION, image=one, max_new_tokens=9)


def test_a_released_encoder_leaves_its_memory_and_the_states_made_before(weights, decoder, one):
    pipe = Pipeline.from_pretrained(weights, decoder, device="cpu", dtype="float32")
    state = pipe.adapt(image=one)
    expected = pipe.ask(QUESTION, state=state, max_new_tokens=12)
    parameter = weakref.ref(next(pipe.model.encoder.parameters()))
    pipe.release_encoder()
    gc.collect()
    assert parameter() is None
    assert pipe.ask(QUESTION, state=state, max_new_tokens=12) == expected
    for look in (pipe.ask, pipe.embed, pipe.adapt, pipe.image_embeds):
        with pytest.raises(ValueError, match="the encoder was released, so nothing new can be looked at"):
            look(image=one)
    assert pipe.ask(QUESTION, max_new_tokens=3)
