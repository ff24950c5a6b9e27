"""Prompt templates, to the letter."""

import folders
import pytest

from adapter_llm.config import PromptConfig
from adapter_llm.prompts import IGNORED, render, supervise


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
