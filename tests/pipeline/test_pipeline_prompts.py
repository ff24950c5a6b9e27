"""Prompt templates, to the letter."""

import folders
import pytest

from adapter_llm.config import PromptConfig
from adapter_llm.prompts import IGNORED, render, supervise, with_context


@pytest.fixture(scope="module")
def tokenizer():
    return folders.tokenizer()


def text(tokenizer, question, has_media=True, **prompt):
    return tokenizer.decode(render(tokenizer, PromptConfig(**prompt), question, has_media))


def test_chat_is_the_tokenizers_own_template(tokenizer):
    plain = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text(tokenizer, "Hi") == plain
    assert text(tokenizer, "Hi", has_media=False) == plain
    assert text(tokenizer, [{"role": "user", "content": "Hi"}]) == plain


def test_system_message_comes_with_media_alone(tokenizer):
    system = "<|im_start|>system\nLook.<|im_end|>\n"
    with_media, without = (text(tokenizer, "Hi", has_media=seen, system="Look.") for seen in (True, False))
    assert with_media == system + without
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Hi"}]
    assert text(tokenizer, own, system="Look.") == text(tokenizer, own)


def test_conversations_keep_their_order(tokenizer):
    messages = [{"role": role, "content": said} for role, said in (("user", "a"), ("assistant", "b"), ("user", "c"))]
    wanted = "user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"
    assert text(tokenizer, messages) == f"<|im_start|>{wanted}<|im_start|>assistant\n"
    assert [message["content"] for message in messages] == ["a", "b", "c"]


def test_alpaca_is_what_the_published_adapters_were_trained_on(tokenizer):
    wanted = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nWhat is it?\n\n### Response:"
    )
    assert text(tokenizer, "What is it?", template="alpaca", system="unused") == wanted
    messages = [{"role": "user", "content": "before"}, {"role": "user", "content": "What is it?"}]
    assert text(tokenizer, messages, template="alpaca") == wanted


def test_alpaca_has_a_place_for_a_context(tokenizer):
    wanted = (
        "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
        "response that appropriately completes the request.\n\n### Instruction:\nWhat is it?\n\n### Input:\n"
        "an {engine} starts\n\n### Response:"
    )
    asked = [{"role": "user", "content": "before"}, {"role": "user", "content": "What is it?"}]
    for question in ("What is it?", asked):
        for empty in (True, False):
            asked = with_context(question, "an {engine} starts")
            assert text(tokenizer, asked, template="alpaca", empty_input=empty) == wanted
    only_the_last = [{"role": "user", "content": "a", "context": "b"}, {"role": "user", "content": "What is it?"}]
    plain = text(tokenizer, "What is it?", template="alpaca")
    assert text(tokenizer, only_the_last, template="alpaca", empty_input=True) == plain


def test_an_empty_context_is_one_for_v2_alone(tokenizer):
    plain = text(tokenizer, "What is it?", template="alpaca")
    with_input = text(tokenizer, with_context("What is it?", " "), template="alpaca").replace("\n \n", "\n\n")
    cases = [(None, True, plain), ("", True, with_input), (None, False, plain), ("", False, plain)]
    for context, empty, wanted in cases:
        asked = with_context("What is it?", context)
        assert text(tokenizer, asked, template="alpaca", empty_input=empty) == wanted


def test_a_chat_gets_the_context_below_the_question(tokenizer):
    assert text(tokenizer, with_context("Hi", "It rains.")) == text(tokenizer, "Hi\n\nIt rains.")
    assert text(tokenizer, with_context("Hi", "")) == text(tokenizer, "Hi")
    messages = [
        {"role": "user", "content": "a", "context": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d", "context": None},
    ]
    spelled_out = [{"role": "user", "content": "a\n\nb"}, *messages[1:2], {"role": "user", "content": "d"}]
    assert text(tokenizer, messages, system="Look.") == text(tokenizer, spelled_out, system="Look.")
    assert messages[0]["context"] == "b"


def test_with_context_changes_a_copy():
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert with_context(messages, "c") == [messages[0], {"role": "user", "content": "b", "context": "c"}]
    assert messages == [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert with_context(messages, None) is messages
    assert with_context("a", None) == "a"
    assert with_context("a", "") == [{"role": "user", "content": "a", "context": ""}]
    assert with_context([], "c") == []


@pytest.mark.parametrize("template", ["chat", "alpaca"])
def test_a_context_that_is_no_text(tokenizer, template):
    with pytest.raises(ValueError, match="the context of a message must be a text, not 3"):
        text(tokenizer, with_context("Hi", 3), template=template)


def test_braces_in_a_question_are_text(tokenizer):
    assert "{question} {0} {{x}}" in text(tokenizer, "{question} {0} {{x}}", template="alpaca")
    assert "{{ x }} {% y %}" in text(tokenizer, "{{ x }} {% y %}")


def test_tokenizers_without_a_chat_template():
    tokenizer = folders.tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        text(tokenizer, "Hi")
    assert text(tokenizer, "Hi", template="alpaca")


@pytest.mark.parametrize("template", ["chat", "alpaca"])
@pytest.mark.parametrize("question", ["", " \n", []])
def test_empty_questions(tokenizer, question, template):
    with pytest.raises(ValueError, match="the prompt is empty"):
        text(tokenizer, question, template=template)


def test_only_the_answer_is_learned():
    assert supervise([1, 2, 3], [4, 5]) == ([1, 2, 3, 4, 5], [IGNORED] * 3 + [4, 5])


def test_batches_are_padded_on_the_left(pipe):
    ids, mask = pipe.processor.tokenize(["Hi", "What is in this picture?"], [False, True], pipe.device)
    assert ids.shape == mask.shape
    short = int(mask[0].sum())
    assert 0 < short < ids.shape[1]
    assert mask[0].tolist() == [0] * (ids.shape[1] - short) + [1] * short
    assert set(ids[0, :-short].tolist()) == {pipe.processor.tokenizer.pad_token_id}
    assert ids[0, -short:].tolist() == pipe.processor.tokenize(["Hi"], [False], pipe.device)[0][0].tolist()
    assert folders.SYSTEM in pipe.processor.tokenizer.decode(ids[1])
    assert folders.SYSTEM not in pipe.processor.tokenizer.decode(ids[0])
