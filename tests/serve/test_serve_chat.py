"""/v1/chat/completions as OpenAI's own client sees it: what the pipeline says, whole or in a stream."""

import asyncio
import json
import math

import folders
import httpx
import pytest
from serving import QUESTION, image, serving, user

from adapter_llm.results import TokenLogprob
from adapter_llm.serve.completions import logprobs

pytestmark = pytest.mark.loopback
SAMPLED = {"temperature": 1.0, "seed": 3}
WAYS = [{}, SAMPLED, {"temperature": 0.7, "top_p": 0.8, "seed": 5}, {"stop": ["e", "a"]}, {"max_completion_tokens": 7}]
HISTORY = [
    {"role": "system", "content": "You see."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Ho"},
]


def of_pipeline(pipe, question, picture=None, **options):
    """The same through the pipeline: its names of the options are its own."""
    if "max_completion_tokens" in options:
        options["max_tokens"] = options.pop("max_completion_tokens")
    options["max_new_tokens"] = options.pop("max_tokens", 24)
    if "stop" in options:
        options["stop"] = tuple(options["stop"])
    media = {} if picture is None else {"image": folders.picture(picture)}
    return pipe.result(question, **media, **options)


def ask(client, *messages, **options):
    return client.chat.completions.create(model="tiny", messages=list(messages), **options)


def joined(chunks):
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seen", [None, 1])
def test_answers_are_the_pipelines(client, everything, way, seen):
    message = user(QUESTION) if seen is None else user(QUESTION, image(seen))
    answer = ask(client, message, **way)
    result = of_pipeline(everything, QUESTION, seen, **way)
    choice = answer.choices[0]
    assert (choice.message.content, choice.finish_reason) == (result.text, result.finish_reason)
    assert choice.message.role == "assistant" and choice.logprobs is None and choice.index == 0
    assert answer.object == "chat.completion" and answer.model == "tiny" and answer.id.startswith("chatcmpl-")
    assert answer.usage.completion_tokens == result.n_tokens
    assert answer.usage.prompt_tokens == result.prompt_tokens
    assert answer.usage.total_tokens == result.n_tokens + result.prompt_tokens


@pytest.mark.parametrize("way", WAYS)
def test_a_stream_joins_to_the_answer(client, way):
    whole = ask(client, user(QUESTION, image(1)), **way)
    chunks = list(ask(client, user(QUESTION, image(1)), stream=True, stream_options={"include_usage": True}, **way))
    assert joined(chunks) == whole.choices[0].message.content
    first, *_, last, usage = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:-1])
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason and last.choices[0].delta.content is None
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert usage.choices == [] and usage.usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_lines_of_a_stream(server):
    body = {"messages": [{"role": "user", "content": QUESTION}], "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode("ascii")
    *events, end = text.split("\n\n")
    assert end == "" and events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert not any("usage" in chunk for chunk in chunks)


def test_any_character_arrives(pipe):
    said = "A dog 🐕\u2028 naïve ☕ 日本語"
    with serving(pipe) as running, running.client() as client:
        for stream in (False, True):
            with folders.says(pipe, said):
                answer = client.chat.completions.create(
                    model="default", messages=[user(QUESTION)], stream=stream, max_tokens=200
                )
                assert (joined(answer) if stream else answer.choices[0].message.content) == said


def test_several_choices_share_a_question_and_have_their_own_seeds(client, server):
    images = server.service.pipe.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    calls = []
    with images:
        answer = ask(client, user(QUESTION, image(40)), n=4, **SAMPLED)
    assert len(calls) == 1
    texts = [choice.message.content for choice in answer.choices]
    alone = [
        ask(client, user(QUESTION, image(40)), **{**SAMPLED, "seed": SAMPLED["seed"] + n}).choices[0].message.content
        for n in range(4)
    ]
    assert texts == alone and len(set(texts)) == 4
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    streams = [""] * 4
    chunks = list(ask(client, user(QUESTION, image(40)), n=4, stream=True, **SAMPLED))
    for chunk in chunks:
        streams[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streams == texts
    assert sorted(chunk.choices[0].index for chunk in chunks if chunk.choices[0].finish_reason) == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == ask(client, user(QUESTION, image(40))).usage.prompt_tokens


def test_seeds_repeat_an_answer_and_none_does_not(client):
    texts = {ask(client, user(QUESTION), temperature=1.5, seed=-7).choices[0].message.content for _ in range(3)}
    assert len(texts) == 1
    texts = {ask(client, user(QUESTION), temperature=1.5).choices[0].message.content for _ in range(3)}
    assert len(texts) == 3


@pytest.mark.parametrize("way", [{}, SAMPLED, {"stop": "e"}])
def test_log_probabilities(client, everything, way):
    options = {"logprobs": True, "top_logprobs": 3, **way}
    answer = ask(client, user(QUESTION), **options)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        values = [other.logprob for other in token.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True) and values[0] >= token.logprob
        assert sum(map(math.exp, values)) <= 1 + 1e-5
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    if not way:
        assert all(token.logprob == token.top_logprobs[0].logprob for token in content)
    chunks = list(ask(client, user(QUESTION), stream=True, **options))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == content
    assert ask(client, user(QUESTION), logprobs=True, **way).choices[0].logprobs.content[0].top_logprobs == []


def test_impossible_tokens_and_halves_of_characters():
    found = logprobs((TokenLogprob("ö", -math.inf, (("\ufffd", -1.0),)),))["content"]
    other = {"token": "\ufffd", "logprob": -1.0, "bytes": None}
    assert found == [{"token": "ö", "logprob": -9999.0, "bytes": [0xC3, 0xB6], "top_logprobs": [other]}]


def test_a_conversation_reaches_the_chat_template(client, everything):
    messages = [*HISTORY, {"role": "user", "content": QUESTION}]
    assert ask(client, *messages).choices[0].message.content == of_pipeline(everything, messages).text
    developer = [{"role": "developer", "content": "You see."}, *messages[1:]]
    assert ask(client, *developer).choices[0].message.content == of_pipeline(everything, messages).text
    parts = [*HISTORY, user("What is in", "this picture?")]
    lines = [*HISTORY, {"role": "user", "content": "What is in\nthis picture?"}]
    assert ask(client, *parts).choices[0].message.content == of_pipeline(everything, lines).text


def test_media_are_those_of_the_last_message_that_has_any(client, everything):
    said = {"role": "assistant", "content": "Grass."}
    earlier = [user(QUESTION, image(1)), said, user("And now?", image(2)), said, user("Are you sure?")]
    texts = [{"role": "user", "content": QUESTION}, said, {"role": "user", "content": "And now?"}, said,
             {"role": "user", "content": "Are you sure?"}]  # fmt: skip
    answer = ask(client, *earlier, logprobs=True).choices[0]
    second, first = (of_pipeline(everything, texts, seen, top_logprobs=0) for seen in (2, 1))
    likely = [token.logprob for token in answer.logprobs.content]
    assert answer.message.content == second.text
    assert likely == pytest.approx([token.logprob for token in second.logprobs])
    assert likely != pytest.approx([token.logprob for token in first.logprobs])


def test_media_without_words_ask_for_a_description(client, everything):
    answer = ask(client, user(image(2)))
    assert answer.choices[0].message.content == of_pipeline(everything, None, 2).text


@pytest.mark.parametrize("options", [{"temperature": 1e-300}, {"temperature": 1.0, "top_p": 0}, {"temperature": 0}])
def test_the_coldest_answers_are_the_likeliest(client, options):
    likeliest = ask(client, user(QUESTION))
    assert ask(client, user(QUESTION), **options).choices == likeliest.choices


def test_what_is_ignored_changes_nothing(client):
    plain = ask(client, user(QUESTION))
    accounted = ask(
        client, user(QUESTION), user="me", metadata={"a": "b"}, store=True, service_tier="auto", tools=[],
        logit_bias={}, frequency_penalty=0, presence_penalty=0, response_format={"type": "text"}, top_p=None,
        modalities=["text"], parallel_tool_calls=True,
    )  # fmt: skip
    assert accounted.choices == plain.choices


def test_the_asynchronous_client(server, client):
    async def work():
        async with server.async_client() as other:
            answer = await other.chat.completions.create(model="tiny", messages=[user(QUESTION)])
            stream = await other.chat.completions.create(model="tiny", messages=[user(QUESTION)], stream=True)
            return answer, [chunk async for chunk in stream]

    answer, chunks = asyncio.run(work())
    assert joined(chunks) == answer.choices[0].message.content == ask(client, user(QUESTION)).choices[0].message.content


def test_the_clients_own_accumulation_of_a_stream(client):
    options = {"logprobs": True, "stop": ["e", "a"]}  # it raises an error for what ends by its length
    whole = ask(client, user(QUESTION), **options).choices[0]
    assert whole.finish_reason == "stop"
    with client.chat.completions.stream(model="tiny", messages=[user(QUESTION)], **options) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion().choices[0]
    assert deltas == final.message.content == whole.message.content
    assert final.logprobs.content == whole.logprobs.content


def test_models(client, server):
    import openai

    found = client.models.list().data
    assert [model.id for model in found] == ["tiny"] and client.models.retrieve("tiny") == found[0]
    with pytest.raises(openai.NotFoundError, match='the model "gpt/4" does not exist; this server has "tiny"'):
        client.models.retrieve("gpt/4")
