"""Training rows: the originals' to the token, and what we train on by default."""

import json

import pytest
from made_pieces import model
from transformers import AutoTokenizer

from adapter_llm.config import PromptConfig
from adapter_llm.convert.tokenizer import convert_tokenizer
from adapter_llm.instructions import CAPTION, Instruction, TrainingRow, training_row
from adapter_llm.prompts import IGNORED, alpaca, render, with_context

PROMPTS = {
    "adapter_v2": PromptConfig("alpaca", empty_input=True),
    "imagebind_llm": PromptConfig("alpaca", empty_input=False),
}
CHAT = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
TEXT = {"instruction": "Name the dog.", "input": "", "output": "ha ha"}
PICTURE = {"image": "a.jpg", "conversations": [
    {"from": "human", "value": "<image>\nWhat is the dog?"}, {"from": "gpt", "value": "tion"},
    {"from": "human", "value": "more"}, {"from": "gpt", "value": "less"},
]}  # fmt: skip


def load(path, folder):
    convert_tokenizer(path, folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "tokenizer.model").write_bytes(model())
    return load(folder / "tokenizer.model", folder / "converted")


@pytest.mark.parametrize("family", PROMPTS)
def test_recorded_rows(golden, family, tmp_path):
    pieces = golden / family / "llama" / "tokenizer.model"
    if not ((golden / family / "dataset.json").is_file() and pieces.is_file()):
        pytest.skip(f"no {family} rows in {golden}")
    tokenizer = load(pieces, tmp_path)
    recorded = json.loads((golden / family / "dataset.json").read_text(encoding="utf-8"))
    assert recorded["rows"]
    for expected in recorded["rows"]:
        row = training_row(expected["record"], tokenizer, PROMPTS[family], recorded["max_words"], faithful=True)
        name = str(expected["record"])[:60]
        assert row.input_ids == expected["tokens"], name
        assert row.labels == expected["labels"], name
        length = round(expected["mask_sum"])
        assert row.attention_mask == [1] * length + [0] * (recorded["max_words"] - length), name
        assert sum(label != 0 for label in row.labels) == expected["supervised"], name
        assert tokenizer.decode(row.input_ids[:length], skip_special_tokens=True) == expected["decoded"], name


def test_faithful_rows_have_the_originals_slips(tokenizer):
    v2, other = (training_row(TEXT, tokenizer, prompt, 300, faithful=True) for prompt in PROMPTS.values())
    texts = [tokenizer.decode(row.input_ids[: sum(row.attention_mask)]) for row in (v2, other)]
    assert all("### Instruction:\n('Name the dog.',)\n\n" in text for text in texts)
    assert ["### Input:\n\n\n### Response:ha ha" in text for text in texts] == [True, False]
    for row in (v2, other):
        assert len(row.input_ids) == len(row.labels) == len(row.attention_mask) == 300
        assert row.input_ids[sum(row.attention_mask) :] == row.labels[sum(row.attention_mask) :]
        assert row.labels[sum(row.attention_mask) - 1] == tokenizer.eos_token_id
    quoted = training_row({**TEXT, "instruction": "It's."}, tokenizer, PROMPTS["adapter_v2"], 300, faithful=True)
    assert """### Instruction:\n("It's.",)\n\n""" in tokenizer.decode(quoted.input_ids)
    cut = training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], sum(v2.attention_mask) - 2, faithful=True)
    assert cut.input_ids == v2.input_ids[: sum(v2.attention_mask) - 2]
    assert cut.labels == v2.labels[: sum(v2.attention_mask) - 2]
    too_short = training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], 20, faithful=True)
    assert too_short == TrainingRow(v2.input_ids[:20], [1] * 20, [0] * 20)


@pytest.mark.parametrize("config", PROMPTS.values())
@pytest.mark.parametrize(
    "record", [TEXT, {**TEXT, "input": "a station"}, {**TEXT, "input": None}, PICTURE, {"caption": "a dog"}]
)
def test_rows_continue_the_prompt_that_is_asked_later(tokenizer, config, record):
    row = training_row(record, tokenizer, config, 300)
    asked = Instruction.of(record)
    question = "What is the dog?" if record is PICTURE else asked.question
    prompt = render(tokenizer, config, with_context(question, asked.context), asked.has_media)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels == [IGNORED] * len(prompt) + row.input_ids[len(prompt) :]
    assert row.attention_mask == [1] * len(row.input_ids)
    assert row.labels[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(row.input_ids, skip_special_tokens=True)
    assert text == tokenizer.decode(prompt, skip_special_tokens=True) + asked.answer
    assert "(" not in text and "<image>" not in text


def test_rows_that_are_too_long_keep_their_end(tokenizer):
    whole = training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], 300)
    assert training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], len(whole.input_ids)) == whole
    cut = training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], len(whole.input_ids) - 1)
    assert cut.input_ids == [*whole.input_ids[:-2], tokenizer.eos_token_id]
    assert cut.labels == [*whole.labels[:-2], tokenizer.eos_token_id]
    prompt = whole.labels.count(IGNORED)
    assert len(training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], prompt + 2).input_ids) == prompt + 2
    with pytest.raises(
        ValueError, match=f"'Name the dog.'... has {prompt} tokens, which leaves no room .* {prompt + 1};"
    ):
        training_row(TEXT, tokenizer, PROMPTS["adapter_v2"], prompt + 1)


def test_an_answer_that_would_melt_into_the_prompt(tokenizer):
    """The colon and "//" are one token together; a prompt ends with its own tokens, or no answer can follow it."""
    record = {**TEXT, "output": "//the dog"}
    joined = tokenizer("### Response:" + record["output"]).input_ids
    prompt = tokenizer("### Response:").input_ids
    assert joined[: len(prompt)] != prompt
    row = training_row(record, tokenizer, PROMPTS["adapter_v2"], 300)
    learned = row.labels.count(IGNORED)
    asked = render(tokenizer, PROMPTS["adapter_v2"], with_context(record["instruction"], ""), has_media=False)
    assert row.input_ids[:learned] == asked
    assert tokenizer.decode(row.labels[learned:-1]) == record["output"]
    faithful = training_row(record, tokenizer, PROMPTS["adapter_v2"], 300, faithful=True)
    masked = len(tokenizer(alpaca(PROMPTS["adapter_v2"], "('Name the dog.',)", "")).input_ids)
    assert faithful.labels[: masked + 1] == [0] * masked + faithful.input_ids[masked : masked + 1]


def test_chat_models(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    chat = AutoTokenizer.from_pretrained(tmp_path, chat_template=CHAT)
    row = training_row({**TEXT, "input": "a station"}, chat, PromptConfig(), 300)
    prompt = chat.apply_chat_template([{"role": "user", "content": "Name the dog.\n\na station"}])["input_ids"]
    assert row.input_ids == [*prompt, *chat("ha ha", add_special_tokens=False).input_ids, chat.eos_token_id]


def test_shapes_of_records():
    assert Instruction.of(TEXT) == Instruction("Name the dog.", "", "ha ha", False)
    assert Instruction.of({"instruction": "a", "output": "b"}) == Instruction("a", None, "b", False)
    assert Instruction.of({**TEXT, "image": "x.jpg"}).has_media
    assert Instruction.of(PICTURE) == Instruction("<image>\nWhat is the dog?", None, "tion", True)
    assert not Instruction.of({"conversations": PICTURE["conversations"]}).has_media
    assert Instruction.of({"caption": "a dog", "url": "x"}) == Instruction(CAPTION, None, "a dog", True)


@pytest.mark.parametrize("record, sentence", [
    ({"image": "a.jpg", "text": "b"}, "keys image, text is no training record; it needs instruction and output, or"),
    ({}, r"keys \(none\) is no training record"),
    ({"instruction": "a"}, "keys instruction is no"),
    ({"instruction": "a", "output": None}, '"output" of a training record must be a text, not None'),
    ({"instruction": ["a"], "output": "b"}, '"instruction" of a training record must be a text'),
    ({**TEXT, "input": 3}, '"input" of a training record must be a text, not 3'),
    ({"caption": 3}, '"caption" of a training record must be a text, not 3'),
    ({"conversations": [{"value": "a"}]}, "needs a question and an answer, not"),
    ({"conversations": "ab"}, "needs a question and an answer, not 'ab'"),
    ({"conversations": ["a", "b"]}, "needs a question and an answer"),
    ({"conversations": [{"value": "a"}, {"text": "b"}]}, '"value" of a training record must be a text, not None'),
])  # fmt: skip
@pytest.mark.parametrize("faithful", [False, True])
def test_records_of_no_known_shape(tokenizer, record, sentence, faithful):
    with pytest.raises(ValueError, match=sentence):
        training_row(record, tokenizer, PROMPTS["adapter_v2"], 300, faithful=faithful)
