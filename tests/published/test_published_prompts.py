"""Prompts and answers of the published families, to the letter and to the token."""

import json

import pytest
from transformers import AutoTokenizer

from adapter_llm.config import PromptConfig
from adapter_llm.convert.tokenizer import convert_tokenizer
from adapter_llm.prompts import alpaca, render, with_context

PROMPTS = {
    "adapter_v2": PromptConfig("alpaca", empty_input=True),
    "imagebind_llm": PromptConfig("alpaca", empty_input=False),
}


@pytest.fixture(scope="module", params=list(PROMPTS))
def published(request, golden, tmp_path_factory):
    """The recorded cases of a family, its prompt config and its tokenizer."""
    folder = golden / request.param
    if not ((folder / "cases.json").is_file() and (folder / "llama" / "tokenizer.model").is_file()):
        pytest.skip(f"no {request.param} data in {golden}")
    converted = tmp_path_factory.mktemp(request.param)
    convert_tokenizer(folder / "llama" / "tokenizer.model", converted)
    cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    return cases, PROMPTS[request.param], AutoTokenizer.from_pretrained(converted)


def test_tokenizer(published):
    cases, _, tokenizer = published
    recorded = cases["tokenizer"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (
        recorded["bos"], recorded["eos"], recorded["n_words"],
    )  # fmt: skip
    assert recorded["pad"] == -1 and tokenizer.pad_token_id is None


def test_prompts(published):
    cases, config, tokenizer = published
    assert cases["prompts"]
    for name, prompt in cases["prompts"].items():
        assert alpaca(config, prompt["instruction"], prompt["input"]) == prompt["text"], name
        question = with_context(prompt["instruction"], prompt["input"])
        assert render(tokenizer, config, question, has_media=True) == prompt["token_ids"], name
        decoded = tokenizer.decode(prompt["token_ids"], skip_special_tokens=True)
        assert decoded == prompt["text"], name


def test_prompts_of_every_case(published):
    cases, _, tokenizer = published
    written = {name: case for name, case in cases["cases"].items() if "prompts" in case}
    assert written
    for name, case in written.items():
        assert tokenizer(case["prompts"]).input_ids == case["prompt_token_ids"], name


def test_an_empty_input(published):
    cases, config, _ = published
    if "empty_string_input_text" not in cases:
        pytest.skip("not recorded for this family; the training rows tell")
    recorded = cases["empty_string_input_text"]
    instruction = recorded.partition("### Instruction:\n")[2].partition("\n\n###")[0]
    assert instruction
    assert alpaca(config, instruction, "") == recorded


def test_answers(published):
    cases, _, tokenizer = published
    for name, case in cases["cases"].items():
        for row, steps in enumerate(case["argmax_ids_per_step"]):
            given = len(case["prompt_token_ids"][row]) - case["prefill_length"]  # steps whose token the prompt has
            ids = steps[given:][: case["max_gen_len"]]
            ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
            assert tokenizer.decode(ids, skip_special_tokens=True) == case["decoded_text"][row], f"{name}, row {row}"
