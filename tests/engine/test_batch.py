"""Rows that are written together: what each says, whoever joins and leaves beside it, is what it says alone."""

import random

import folders
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from adapter_llm.batch import RunningBatch
from adapter_llm.llama import attach_adapter
from adapter_llm.model import adapter_kwargs
from adapter_llm.results import GenerationOptions
from adapter_llm.sampling import draw, generator, probabilities

QUESTIONS = ["Hi", "What is in this picture?", "Is it raining on the grass, or is it not?", "A dog and a cat. " * 6]
WAYS = [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 0.7, "top_p": 0.8, "seed": 3}, {"stop": ("e", "ab")}]


def requests(count=12):
    """Questions of different lengths, with and without media, that end at different times, drawn in different ways."""
    for number in range(count):
        media = {} if number % 3 == 2 else {"image": folders.picture(number % 5)}
        yield QUESTIONS[number % 4], {**media, **WAYS[number % 4], "max_new_tokens": 3 + 5 * number % 23}


@pytest.fixture(scope="module")
def alone(pipe):
    return [pipe.result(question, **options) for question, options in requests()]


def same(result, other):
    return (result.text, result.n_tokens, result.finish_reason) == (other.text, other.n_tokens, other.finish_reason)


def finish(batch):
    while batch:
        batch.step()


def test_the_questions_differ(alone):
    """Without this every law below would hold for a model that always says the same."""
    assert len({result.text for result in alone}) > 8
    assert len({result.n_tokens for result in alone}) > 5


def test_together_as_alone(pipe, alone):
    batch, drafts = pipe.batch(), [pipe.draft(question, **options) for question, options in requests()]
    batch.join(drafts)
    finish(batch)
    assert all(same(draft.result(), result) for draft, result in zip(drafts, alone, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_whoever_comes_and_goes(pipe, alone, seed):
    chance, batch = random.Random(seed), pipe.batch()
    drafts = [pipe.draft(question, **options) for question, options in requests()]
    waiting, cancelled = list(enumerate(drafts)), set()
    while waiting or batch:
        for _ in range(chance.randint(0, 3)):
            if waiting:
                batch.join([draft for _, draft in (waiting.pop() for _ in range(min(len(waiting), 2)))])
        batch.step()
        if batch.drafts and chance.random() < 0.08:
            gone = chance.choice(batch.drafts)
            cancelled.add(drafts.index(gone))
            rows = len(batch)
            batch.leave(gone)
            assert len(batch) == rows - 1
    for number, (draft, result) in enumerate(zip(drafts, alone, strict=True)):
        if number in cancelled:
            assert draft.finish_reason == "cancelled"
            assert result.text.startswith(draft.result().text[:-3])
        else:
            assert same(draft.result(), result)


def test_a_row_that_was_taken_out_goes_on_where_it_was(pipe, alone):
    drafts = [pipe.draft(question, **options) for question, options in requests()]
    batch = pipe.batch()
    batch.join(drafts)
    for _ in range(3):
        batch.step()
    for draft in batch.clear():
        assert draft.ids
        batch.join([draft])
    finish(batch)
    assert all(same(draft.result(), result) for draft, result in zip(drafts, alone, strict=True))


def test_who_ends_leaves_and_room_is_given_back(pipe):
    batch = pipe.batch()
    long, short = (pipe.draft(QUESTIONS[3], max_new_tokens=9), pipe.draft("Hi", max_new_tokens=20))
    with folders.says(pipe, "word " * 20, end=False):
        batch.join([long, short])
        prompt = batch._mask.shape[1] - 1
        ended = [draft for _ in range(8) for draft in batch.step()]
        assert ended == [long]
        assert batch.drafts == [short]
        assert batch._mask.shape[1] - 1 == short.prompt_tokens + 8 < prompt
        assert all(layer.keys.shape[-2] == short.prompt_tokens + 8 for layer in batch._cache.layers)
        finish(batch)
    assert batch._cache is None
    assert short.n_tokens == 20


def test_answers_that_end_with_their_first_token(pipe):
    batch, one = pipe.batch(), pipe.draft("Hi", max_new_tokens=1)
    assert batch.join([one]) == [one]
    assert (one.finish_reason, one.n_tokens, len(batch)) == ("length", 1, 0)
    with folders.says(pipe, ""):
        empty = pipe.draft("Hi")
        assert batch.join([empty]) == [empty]
    assert (empty.finish_reason, empty.n_tokens, empty.result().text) == ("stop", 0, "")
    assert batch.step() == [] == batch.join([])


def test_a_join_that_breaks_leaves_the_batch_as_it_was(pipe, alone):
    given = list(requests())
    batch, first = pipe.batch(), pipe.draft(given[0][0], **given[0][1])
    batch.join([first])
    with pipe.model.llama.register_forward_pre_hook(lambda *_: 1 / 0), pytest.raises(ZeroDivisionError):
        batch.join([pipe.draft(given[1][0], **given[1][1])])
    assert batch.drafts == [first]
    finish(batch)
    assert same(first.result(), alone[0])


def test_each_answer_is_the_one_of_transformers(pipe):
    """Greedy: the loop is ours, so it is held against generate."""
    for question, options in requests():
        if "temperature" in options or "stop" in options:
            continue
        image, most = options.get("image"), options["max_new_tokens"]
        state = None if image is None else pipe.adapt(image=image)
        ids, mask = pipe.processor.tokenize([question], [state is not None], pipe.device)
        output = pipe.model.generate(ids, mask, state, max_new_tokens=most, do_sample=False, pad_token_id=2)
        wanted = [token for token in output[0, ids.shape[1] :].tolist() if token not in pipe.answerer.end_tokens()]
        assert pipe.answerer.generate([question], state, [state is not None], GenerationOptions(most)) == [wanted]


@pytest.mark.parametrize("window", [None, 5])
def test_windows_of_attention(window):
    """Layers that see the last few tokens alone keep to it, padded or not."""
    sizes = dict(
        hidden_size=24, num_attention_heads=3, num_key_value_heads=1, num_hidden_layers=3, intermediate_size=20,
        vocab_size=41, max_position_embeddings=128, initializer_range=0.5, head_dim=8, eos_token_id=None,
    )  # fmt: skip
    kind, config = (LlamaForCausalLM, LlamaConfig) if window is None else (MistralForCausalLM, MistralConfig)
    llama = kind(config(**sizes, **({} if window is None else {"sliding_window": window}))).eval()
    prompts = [torch.randint(3, 41, (length,)).tolist() for length in (3, 11, 7)]
    options = dict(max_new_tokens=12, do_sample=False, pad_token_id=0)
    wanted = [llama.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in prompts]
    attach_adapter(llama)

    def model(input_ids, mask, state, **kwargs):
        places = (mask.cumsum(1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return llama(input_ids, attention_mask=mask, position_ids=places, **adapter_kwargs(state), **kwargs)

    batch = RunningBatch(model, 0, torch.device("cpu"))
    drafts = [_draft(ids) for ids in prompts]
    batch.join(drafts[:2])
    batch.step()
    batch.join(drafts[2:])
    finish(batch)
    assert [draft.ids for draft in drafts] == wanted


def _draft(ids):
    from adapter_llm.writing import Draft

    return Draft("?", ids, None, GenerationOptions(12), 12, None, (), torch.device("cpu"))


def test_draws_follow_their_distribution():
    logits, count = torch.randn(5, generator=torch.Generator().manual_seed(3)), 4000
    chosen = GenerationOptions(temperature=0.8, top_p=0.9)
    drawn = draw(logits.expand(count, 5), [chosen] * count, [generator(seed, "cpu") for seed in range(count)])
    shares = torch.bincount(torch.tensor(drawn), minlength=5) / count
    wanted = probabilities(logits[None], 0.8, 0.9)[0]
    assert (shares - wanted).abs().max() < 0.03
    assert (shares[wanted == 0] == 0).all()
    assert (wanted == 0).any(), "top_p left nothing out"


def test_rows_draw_by_their_own_settings():
    logits = torch.randn(4, 50)
    mixed = [GenerationOptions(), GenerationOptions(temperature=2.0, seed=1), GenerationOptions(temperature=1e-3), GenerationOptions(temperature=2.0, top_p=1e-6)]  # fmt: skip
    best = logits.argmax(-1).tolist()
    seen = set()
    for seed in range(30):
        drawn = draw(logits, mixed, [None, generator(seed, "cpu"), None, None])
        assert [drawn[0], drawn[2], drawn[3]] == [best[0], best[2], best[3]]
        assert drawn[1] == draw(logits[1:2], mixed[1:2], [generator(seed, "cpu")])[0]
        seen.add(drawn[1])
    assert len(seen) > 5


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_next_to_no_temperature_is_none(temperature, top_p):
    logits = torch.randn(3, 50) * 20
    shares = probabilities(logits, temperature, top_p)
    assert torch.equal(shares.argmax(-1), logits.argmax(-1))
    assert torch.allclose(shares.amax(-1), torch.ones(3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("chance", [{}, {"temperature": 1.0, "seed": 1}])
def test_a_row_that_overflows_ends_alone(pipe, alone, bad, chance):
    """In float16 it happens. Neighbours were once written twice."""
    given = list(requests())
    rows = [pipe.draft(question, **options) for question, options in given[:3]]
    poisoned = pipe.draft("zebra", **chance)
    mark = poisoned.input_ids

    def poison(head, inputs, logits):
        if len(batch.drafts) and poisoned in batch.drafts or joining:
            logits = logits.clone()
            logits[-1] = bad
        return logits

    batch, joining = pipe.batch(), []
    batch.join(rows[:2])
    batch.step()
    joining.append(poisoned)
    with pipe.model.llama.lm_head.register_forward_hook(poison):
        assert poisoned in batch.join([rows[2], poisoned])
    joining.clear()
    finish(batch)
    assert (poisoned.finish_reason, poisoned.ids, poisoned.input_ids) == ("error", [], mark)
    assert "no numbers" in poisoned.result().error
    assert all(same(draft.result(), result) for draft, result in zip(rows, alone[:3], strict=True))


def test_who_asks_alone_is_told_of_an_overflow(pipe):
    with pipe.model.llama.lm_head.register_forward_hook(lambda head, inputs, logits: logits * float("nan")):
        for ask in (lambda: pipe.ask("Hi"), lambda: list(pipe.stream("Hi"))):
            with pytest.raises(ArithmeticError, match="no numbers for this input; give another dtype"):
                ask()
        [result] = pipe.caption([folders.picture(1)])
        assert result.finish_reason == "error" and "no numbers" in result.error


def test_a_prompt_that_fills_all_the_room_has_an_empty_answer(pipe):
    from dataclasses import replace

    length = pipe.draft("Hi").prompt_tokens
    answerer = replace(pipe.answerer, max_length=length)
    [result] = answerer.answer(["Hi"], None, [False], GenerationOptions())
    assert (result.text, result.n_tokens, result.finish_reason) == ("", 0, "length")
    with pytest.raises(ValueError, match="shorten it"):
        replace(pipe.answerer, max_length=length - 1).answer(["Hi"], None, [False], GenerationOptions())


def test_drafts_of_questions_without_media(pipe):
    [draft] = pipe.drafts(["Hi"], [[]], GenerationOptions(5))
    assert draft.state is None
    with pytest.raises(ValueError, match="beams"):
        pipe.drafts(["Hi"], [[]], GenerationOptions(5, num_beams=2))
