"""What cannot be answered is refused for its own reason, early; and what is the server's fault is said to be."""

import copy
import threading
from dataclasses import replace

import folders
import pytest
import torch
from serving import QUESTION, check_error, image, serving, until, user

from adapter_llm.config import PromptConfig
from adapter_llm.processing import Processor
from adapter_llm.retrieval import FeatureIndex, RetrievalOptions
from adapter_llm.serve.errors import shown

pytestmark = pytest.mark.loopback
ASK = {"messages": [user(QUESTION)], "max_tokens": 2}
SAID = {"role": "assistant", "content": "Grass."}


def test_a_prompt_that_is_too_long_has_the_official_code(server):
    for words in ("word " * 600, "word " * 6000):
        response = server.post({"messages": [user(words)]})
        assert "512" in check_error(response, 400, "messages")
        assert response.json()["error"]["code"] == "context_length_exceeded"


def test_prompts_of_absurd_length_are_not_tokenized(server, monkeypatch):
    def tokenize(*_, **__):
        raise AssertionError("the tokenizer saw it")

    monkeypatch.setattr(Processor, "prompt_ids", tokenize)
    half = "x" * (8 * 512)
    message = check_error(server.post({"messages": [user(half), SAID, user(half)]}), 400, "messages")
    assert message == (
        "the messages have 8198 characters, and prompt and answer together may have 512 tokens; shorten them"
    )


def test_other_mistakes_have_no_such_code(pipe, monkeypatch):
    monkeypatch.setattr(pipe.processor.tokenizer, "chat_template", None)
    with serving(pipe) as running:
        response = running.post(ASK)
    assert "no chat template" in check_error(response, 400, "messages") and response.json()["error"]["code"] is None


@pytest.fixture
def alpaca(pipe):
    """The pipeline as weights without a chat would have it."""
    other = copy.copy(pipe)
    other.config = replace(pipe.config, prompt=PromptConfig("alpaca"))
    other.processor = Processor(pipe.processor.tokenizer, other.config)
    other.answerer = replace(pipe.answerer, processor=other.processor)
    other.perception = replace(pipe.perception, processor=other.processor)
    return other


def test_weights_without_a_chat_answer_the_user_alone(alpaca):
    with serving(alpaca) as running:
        for role in ("assistant", "system"):
            message = check_error(running.post({"messages": [user(QUESTION), {"role": role, "content": "Yes"}]}), 400,
                                  "messages[1].role")  # fmt: skip
            assert "the last message is of the " + role in message and "answer the user's last message alone" in message
        earlier = [user("x" * (20 * 512)), SAID]
        answer = running.post({**ASK, "messages": [*earlier, user(QUESTION)]})
        assert answer.status_code == 200, "what is not read may be long"
        assert answer.json()["choices"] == running.post(ASK).json()["choices"]


def test_a_chat_may_end_with_another_role(server):
    assert server.post({**ASK, "messages": [user(QUESTION), SAID]}).status_code == 200


@pytest.mark.parametrize("stop", ["x" * 201, ["a", "x" * 201]])
def test_stop_texts_are_short(server, stop):
    assert "of at most 200 characters" in check_error(server.post({**ASK, "stop": stop}), 400, "stop")
    assert server.post({**ASK, "stop": "x" * 200}).status_code == 200


def test_nobody_takes_more_than_a_batch(pipe):
    with serving(pipe, batch_size=3) as running:
        assert "n must be a whole number from 1 to 3, not 4" in check_error(running.post({**ASK, "n": 4}), 400, "n")
        assert len(running.post({**ASK, "n": 3}).json()["choices"]) == 3


class Counted(list):
    """Says how many of its items were asked for."""

    asked = 0

    def __iter__(self):
        for item in super().__iter__():
            self.asked += 1
            yield item


def test_values_are_looked_at_no_further_than_they_are_shown():
    many = Counted(range(100_000))
    assert shown(many) == "[" + ", ".join(map(str, range(20)))[:59] + "..." and many.asked < 40
    assert shown({"a": "x" * 10**7}) == '{"a": "' + "x" * 53 + "..."
    assert shown({"a": [1, None, True, "ö"], "b": {}}) == '{"a": [1, null, true, "ö"], "b": {}}'
    assert shown("ö" * 58) == '"' + "ö" * 58 + '"' and shown("ö" * 59) == '"' + "ö" * 59 + "..."


def test_an_answer_that_is_no_numbers_is_said_to_be(pipe, caplog):
    sentence = "the model computed no numbers for this input; give another dtype, such as float32"
    with serving(pipe) as running:
        with pipe.model.llama.lm_head.register_forward_hook(lambda head, inputs, logits: logits * float("nan")):
            response = running.post(ASK)
            assert check_error(response, 500) == sentence
            assert sentence in running.post({**ASK, "stream": True}).text
        assert response.json()["error"]["type"] == "server_error"
        assert running.post(ASK).status_code == 200
    assert sentence in caplog.text and "Traceback" not in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_tells_that_the_engine_is_gone(pipe, monkeypatch):
    with serving(pipe) as running:
        engine = running.service.engine
        assert running.get("/health").status_code == 200
        monkeypatch.setattr(engine, "_advance", lambda: 1 / 0)
        check_error(running.post(ASK), 503)
        assert until(lambda: not engine.alive)
        health = running.get("/health")
        assert health.status_code == 503 and health.json() == {"status": "broken"}
        response = running.post(ASK)
        assert "start it again" in check_error(response, 503) and "stopping" not in response.text
        running.signal()


def test_weights_that_come_and_go_are_the_engines_alone(pipe):
    threads = set()
    projection = pipe.model.llama.model.layers[-1].self_attn.k_proj
    body = {"messages": [user(QUESTION, image(70))], "max_tokens": 1}
    with serving(pipe) as running:
        running.service.engine._visiting = True
        with projection.register_forward_pre_hook(lambda *_: threads.add(threading.current_thread().name)):
            assert running.post(body).status_code == 200
    assert threads == {"engine"}


def test_a_blend_is_what_was_set(pipe):
    vectors = torch.randn(30, 20, generator=torch.Generator().manual_seed(3))
    looking = copy.copy(pipe)
    looking.perception = replace(pipe.perception, index=FeatureIndex(torch.nn.functional.normalize(vectors)))
    body = {"messages": [user(QUESTION, image(71))], "max_tokens": 9, "logprobs": True}
    found = []
    for blend in (None, 0.0, 1.0):
        with serving(looking, blend=blend) as running:
            found.append([token["logprob"] for token in running.post(body).json()["choices"][0]["logprobs"]["content"]])
        retrieval = None if blend is None else RetrievalOptions(weight=blend)
        asked = looking.result(QUESTION, image=folders.picture(71), retrieval=retrieval, max_new_tokens=9,
                               top_logprobs=0)  # fmt: skip
        assert found[-1] == pytest.approx([token.logprob for token in asked.logprobs])
    assert found[0] != found[1] != found[2]
