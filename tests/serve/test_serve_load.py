"""Many at once: nobody's answer depends on another's, and who has to go is told why and leaves nothing behind."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import QUESTION, check_error, holding, image, serving, slowly, until, user

from adapter_llm.serve import run

pytestmark = pytest.mark.loopback


def bodies(count):
    """Requests that differ in all that a request can."""
    questions = ["Hi", QUESTION, "Is it raining on the grass, or is it not?"]
    for number in range(count):
        content = [questions[number % 3]] if number % 4 == 3 else [questions[number % 3], image(number % 5)]
        drawn = {} if number % 2 else {"temperature": 1.0, "seed": number}
        more = {"stop": ["e"]} if number % 5 == 4 else {"n": 2} if number % 7 == 6 else {}
        yield {"messages": [user(*content)], "max_tokens": 3 + 5 * number % 17, **drawn, **more}


def choices(response):
    assert response.status_code == 200, response.text
    return response.json()["choices"]


def test_together_as_one_by_one(pipe):
    with serving(pipe, batch_size=4) as running:
        alone = [choices(running.post(body)) for body in bodies(16)]
        with ThreadPoolExecutor(16) as pool:
            together = [choices(response) for response in pool.map(running.post, bodies(16))]
        assert together == alone
        assert len({str(found) for found in alone}) > 11
        running.wait_until_idle()
        assert running.service.engine.counts.steps < running.service.engine.counts.tokens


def test_too_many_are_turned_away_at_once_and_the_others_answered(pipe):
    body = {"messages": [user(QUESTION)], "max_tokens": 9}
    with serving(pipe, batch_size=2, queue_size=3) as running, ThreadPoolExecutor(12) as pool:
        with holding(pipe) as go:
            begun = [pool.submit(running.post, body) for _ in range(12)]
            assert until(lambda: sum(future.done() for future in begun) == 7)
            go()
            responses = [future.result() for future in begun]
        found = [response.status_code for response in responses]
        assert found.count(200) == 5 and found.count(429) == 7
        refused = next(response for response in responses if response.status_code == 429)
        assert "try again" in check_error(refused, 429)
        assert refused.json()["error"]["type"] == "rate_limit_error" and int(refused.headers["retry-after"]) > 0
        running.wait_until_idle()
        assert running.post(body).status_code == 200
        check_error(running.post({**body, "n": 3}), 400, "n")  # nobody takes more than a batch


def test_the_official_client_tries_again(pipe):
    pytest.importorskip("openai")
    line = 'adapter_llm_requests_total{route="/v1/chat/completions",status="429"}'
    body = {"model": "default", "messages": [user(QUESTION)], "max_tokens": 3}
    with (
        serving(pipe, batch_size=1, queue_size=0) as running,
        running.client(max_retries=5) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        with holding(pipe):
            first = pool.submit(running.post, body)
            assert until(lambda: running.service.reserved == 1)
            second = pool.submit(client.chat.completions.create, **body)
            assert until(lambda: f"{line} 1.0" in running.get("/metrics").text)
        text = first.result().json()["choices"][0]["message"]["content"]
        assert second.result().choices[0].message.content == text


def test_what_finds_no_place_costs_nothing(pipe):
    calls = []
    with serving(pipe, batch_size=1, queue_size=0) as running, ThreadPoolExecutor(1) as pool:
        with holding(pipe), pipe.model.encoder.register_forward_hook(lambda *_: calls.append(1)):
            begun = pool.submit(running.post, {"messages": [user(QUESTION)], "max_tokens": 3})
            assert until(lambda: running.service.engine.counts.running == 1)
            check_error(running.post({"messages": [user(QUESTION, image(20))]}), 429)
        assert begun.result().status_code == 200 and not calls


def test_media_that_wait_to_be_read_are_bounded_too(pipe):
    held = threading.Event()
    body = {"input": [image(1)]}
    with serving(pipe, batch_size=1, queue_size=1, media_threads=1) as running:
        with (
            pipe.model.encoder.register_forward_pre_hook(lambda *_: held.wait(10) and None),
            ThreadPoolExecutor(2) as pool,
        ):
            begun = [pool.submit(running.post, body, "/v1/embeddings") for _ in range(2)]
            assert until(lambda: running.service.preparing == 2)
            assert "waiting to be read" in check_error(running.post(body, "/v1/embeddings"), 429)
            held.set()
            assert [one.result().status_code for one in begun] == [200, 200]
        running.wait_until_idle()


def leave_stream(running, body):
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, verify=False) as response:
        for _ in response.iter_lines():
            if running.service.engine.counts.steps > 5:
                break


def leave_answer(running, body):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{running.url}/v1/chat/completions", json=body, timeout=0.3, verify=False)


@pytest.mark.parametrize("leave", [leave_stream, leave_answer])
def test_a_client_that_leaves_leaves_the_batch(pipe, leave):
    body = {"messages": [user(QUESTION, image(3))], "max_tokens": 400, "n": 2, "stream": leave is leave_stream}
    with serving(pipe, batch_size=2) as running, slowly(pipe, 0.01):
        leave(running, body)
        left = time.monotonic()
        assert until(lambda: running.service.engine.counts.running == 0)
        assert time.monotonic() - left < 1
        running.wait_until_idle()
        assert running.service.engine.counts.tokens < 200
        assert running.service.under_way == running.service.bodies == 0
        assert running.post({**body, "max_tokens": 3, "stream": False}).status_code == 200


def test_a_client_that_leaves_while_waiting_is_never_written(pipe):
    body = {"messages": [user(QUESTION)], "max_tokens": 9}
    with serving(pipe, batch_size=1) as running, ThreadPoolExecutor(1) as pool:
        with holding(pipe):
            first = pool.submit(running.post, body)
            assert until(lambda: running.service.engine.counts.running == 1)
            leave_answer(running, body)
            assert until(lambda: running.service.reserved == 1)
        assert first.result().status_code == 200
        running.wait_until_idle()
        assert running.service.engine.counts.tokens == first.result().json()["usage"]["completion_tokens"]


def test_breaking_out_of_the_official_stream(pipe):
    pytest.importorskip("openai")
    with serving(pipe) as running, slowly(pipe, 0.01):

        async def leave():
            async with running.async_client() as client:
                stream = await client.chat.completions.create(
                    model="default", messages=[user(QUESTION)], stream=True, max_tokens=400
                )
                async with stream:
                    async for chunk in stream:
                        if chunk.choices[0].delta.content:
                            break

        asyncio.run(leave())
        running.wait_until_idle()
        assert running.service.engine.counts.tokens < 200


def test_answers_that_take_too_long(pipe):
    body = {"messages": [user(QUESTION)], "max_tokens": 400}
    with serving(pipe, timeout=0.4) as running, slowly(pipe):
        message = check_error(running.post(body), 504)
        assert "within 0.4 s" in message and running.post(body).json()["error"]["code"] == "timeout"
        running.wait_until_idle()
        response = running.post({**body, "stream": True})
        assert response.status_code == 200
        *begun, last = [line for line in response.text.split("\n\n") if line]
        assert len(begun) > 2 and "within 0.4 s" in last and last.startswith('data: {"error":')
        running.wait_until_idle()
        assert running.service.under_way == 0


def test_streams_that_wait_give_signs_of_life(pipe, monkeypatch):
    monkeypatch.setattr(run, "QUIET", 0.05)
    openai = pytest.importorskip("openai")
    body = {"model": "default", "messages": [user(QUESTION)], "max_tokens": 9}
    with serving(pipe, batch_size=1) as running, ThreadPoolExecutor(2) as pool:
        with holding(pipe):
            begun = pool.submit(running.post, body)
            assert until(lambda: running.service.engine.counts.running == 1)
            waiting = pool.submit(running.post, {**body, "stream": True})
            assert until(lambda: running.service.engine.counts.waiting == 1)
            time.sleep(0.2)
        with running.client() as client:
            chunks = list(client.chat.completions.create(**body, stream=True))
        assert all(isinstance(chunk, openai.types.chat.ChatCompletionChunk) for chunk in chunks)
        text = begun.result().json()["choices"][0]["message"]["content"]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        assert ": waiting\n\n" in waiting.result().text


def test_media_that_take_too_long(pipe):
    held = threading.Event()
    with serving(pipe, timeout=0.2) as running:
        with pipe.model.encoder.register_forward_pre_hook(lambda *_: held.wait(10) and None):
            check_error(running.post({"messages": [user(QUESTION, image(30))]}), 504)
            check_error(running.post({"input": [image(31)]}, "/v1/embeddings"), 504)
            assert running.service.preparing == 2, "threads cannot be stopped, so they go on counting"
            held.set()
        running.wait_until_idle()


def test_what_breaks_one_answer_is_not_told_and_breaks_no_other(pipe, caplog):
    def broken(*_):
        raise RuntimeError("a secret of the server")

    with serving(pipe) as running:
        body = {"messages": [user(QUESTION)]}
        with pipe.model.llama.register_forward_pre_hook(broken):
            message = check_error(running.post(body), 500)
            stream = running.post({**body, "stream": True}).text
        assert "secret" not in message + stream and "its log has the reason under number" in message
        assert "its log has the reason" in stream and "[DONE]" not in stream
        assert message.split()[-1] in caplog.text and "a secret of the server" in caplog.text
        assert running.post(body).status_code == 200


def test_metrics_add_up(pipe):
    body = {"messages": [user(QUESTION)], "max_tokens": 6}
    with serving(pipe) as running:
        usages = [running.post(body).json()["usage"] for _ in range(3)]
        running.post({**body, "stream": True})
        running.post({**body, "tools": [1]})
        for path in ("/a", "/b"):
            running.get(path)
        route = 'route="/v1/chat/completions"'
        assert running.metric(f'adapter_llm_requests_total{{{route},status="200"}}') == 4
        assert running.metric(f'adapter_llm_requests_total{{{route},status="400"}}') == 1
        assert running.metric('adapter_llm_requests_total{route="other",status="404"}') == 2
        assert running.metric('adapter_llm_tokens_total{kind="completion"}') == 4 * usages[0]["completion_tokens"]
        assert running.metric('adapter_llm_tokens_total{kind="prompt"}') == 4 * usages[0]["prompt_tokens"]
        assert running.metric("adapter_llm_time_to_first_token_seconds_count") == 4
        assert running.metric(f"adapter_llm_request_seconds_count{{{route}}}") == 5
        assert running.metric("adapter_llm_running") == running.metric("adapter_llm_waiting") == 0
