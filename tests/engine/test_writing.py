"""Text while it is written: certain once taken, whole when joined, cut where it was to stop."""

import folders
import pytest
import torch

from adapter_llm.results import GenerationOptions
from adapter_llm.writing import Draft

QUESTION = "What is in this picture?"


def drafted(pipe, text, **options):
    """A draft that will say this text, and the logits that make it."""
    words = pipe.processor.tokenizer
    ids = words(text).input_ids
    draft = Draft(QUESTION, [5], None, GenerationOptions(**options), 500, words, pipe.answerer.end_tokens(), "cpu")
    return draft, [*ids, words.eos_token_id]


def write(draft, ids):
    """Every take, the last one after its end."""
    takes = []
    for token in ids:
        if draft.finish_reason is None:
            draft.add(token, torch.zeros(300).index_fill(0, torch.tensor([token]), 9.0))
            takes.append(draft.take())
    assert draft.finish_reason
    assert draft.take() == "" or takes.append(draft.take())
    return takes


TEXTS = [
    "A dog 🐕 and a 👩‍👩‍👧 on the grass.", "🐕", "日本語の写真です。 犬", "Zwölf Boxkämpfer\njagen Viktor.\n",
    "naïve ☕\n\n☕ x", "  leading and trailing  \n", "a  b\t c", "", " ", "\u3000a\u3000",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("every", [1, 3])
def test_what_is_taken_joins_to_the_answer(pipe, text, every):
    draft, ids = drafted(pipe, text)
    takes = []
    for number, token in enumerate(ids):
        draft.add(token, torch.zeros(300))
        if number % every == 0:
            takes.append(draft.take())
    takes.append(draft.take())
    assert "".join(takes) == draft.result().text == text.strip()
    assert not any("\ufffd" in piece for piece in takes)


@pytest.mark.parametrize(("text", "stop", "answer"), [
    ("one two three", ("two",), "one"),
    ("one two three", ("three", "two"), "one"),
    ("one two three", ("two", "e t"), "on"),
    ("one two three", ("four",), "one two three"),
    ("one\n\ntwo", ("\n\n",), "one"),
    ("aab aac", ("aac",), "aab"),
    ("ababac", ("abac",), "ab"),
    ("🐕🐕x", ("🐕🐕",), ""),
    ("a 🐕 b", ("🐕",), "a"),
    ("stop", ("s",), ""),
    ("the end", ("ended",), "the end"),
])  # fmt: skip
def test_stop_texts(pipe, text, stop, answer):
    draft, ids = drafted(pipe, text, stop=stop)
    takes = write(draft, ids)
    assert "".join(takes) == draft.result().text == answer
    assert draft.finish_reason == "stop"
    if answer != text:
        assert draft.n_tokens < len(ids), "what comes behind is not written"


def test_nothing_is_told_that_may_be_the_beginning_of_a_stop_text(pipe):
    draft, ids = drafted(pipe, "one END of it", stop=("END.",))
    told, read = "", []
    for token in ids:
        draft.add(token, torch.zeros(300))
        told += draft.take()
        read.append(token)
        if pipe.processor.tokenizer.decode(read).endswith(("E", "EN", "END")):
            assert told == "one"
    assert told == "one END of it"


def test_ends_of_an_answer(pipe):
    draft, ids = drafted(pipe, "A dog.")
    with pytest.raises(ValueError, match="still being written"):
        draft.result()
    write(draft, ids)
    assert (draft.n_tokens, draft.finish_reason) == (len(ids) - 1, "stop")
    draft.end("cancelled")
    assert draft.finish_reason == "stop", "an end is an end"


def test_log_probabilities(pipe):
    result = pipe.result(QUESTION, image=folders.picture(1), max_new_tokens=6, top_logprobs=3)
    plain = pipe.result(QUESTION, image=folders.picture(1), max_new_tokens=6)
    assert plain.logprobs is None
    assert plain.text == result.text
    assert len(result.logprobs) == result.n_tokens
    assert "".join(entry.token for entry in result.logprobs).strip().startswith(result.text[:4])
    state = pipe.adapt(image=folders.picture(1))
    ids, mask = pipe.processor.tokenize([QUESTION], [True], pipe.device)
    written = pipe.answerer.generate([QUESTION], state, [True], GenerationOptions(6))[0]
    text = torch.cat([ids, torch.tensor([written])], dim=1)
    with torch.inference_mode():
        logits = pipe.model(text, torch.ones_like(text), state).logits[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    for place, entry in enumerate(result.logprobs):
        assert entry.logprob == pytest.approx(float(logits[place, written[place]]), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(logits[place].topk(3).values.tolist(), abs=1e-4)
        assert entry.top[0] == (entry.token, entry.logprob), "greedy takes the likeliest"


def test_log_probabilities_are_those_before_temperature(pipe):
    cold, warm = (
        pipe.result(QUESTION, max_new_tokens=1, temperature=warmth, top_p=1e-6, seed=1, top_logprobs=2)
        for warmth in (0.0, 1.7)
    )
    assert cold.logprobs == warm.logprobs


@pytest.mark.parametrize("wrong", [
    {"stop": "end"}, {"stop": ("",)}, {"stop": (3,)}, {"top_logprobs": -1}, {"seed": -1}, {"seed": 2**63},
    {"num_beams": 2, "stop": ("x",)}, {"num_beams": 2, "top_logprobs": 0},
])  # fmt: skip
def test_wrong_options(wrong):
    with pytest.raises(ValueError, match=next(reversed(wrong)) + "|beams"):
        GenerationOptions(**wrong)
