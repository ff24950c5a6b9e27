"""Who may ask, how much, and by what name; and that every refusal has the shape that OpenAI's clients read."""

import asyncio
import json
import socket
import threading

import httpx
import pytest
from serving import QUESTION, check_error, image, serving, user

from adapter_llm.serve.guards import Doorman
from adapter_llm.serve.service import ServeConfig

pytestmark = pytest.mark.loopback
CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
JSON = {"content-type": "application/json"}


def messages(*content, **more):
    return {"messages": [{"role": "user", "content": list(content), **more}]}


@pytest.mark.parametrize("change, param, says", [
    ({"tools": [{"type": "function"}]}, "tools", "tools is not supported by this server; leave it out, or send []"),
    ({"functions": [{}]}, "functions", "not supported"),
    ({"response_format": {"type": "json_object"}}, "response_format", 'or send {"type": "text"}'),
    ({"logit_bias": {"1": 2}}, "logit_bias", "not supported"),
    ({"presence_penalty": 0.5}, "presence_penalty", "not supported"),
    ({"frequency_penalty": -1}, "frequency_penalty", "not supported"),
    ({"audio": {"voice": "x"}}, "audio", "not supported by this server; leave it out"),
    ({"modalities": ["text", "audio"]}, "modalities", 'or send ["text"]'),
    ({"reasoning_effort": "high"}, "reasoning_effort", "not supported"),
    ({"top_k": 5}, "top_k", "Unrecognized request argument supplied: top_k"),
    ({"temperature": 2.1}, "temperature", "temperature must be a number from 0 to 2, not 2.1"),
    ({"temperature": True}, "temperature", "not true"),
    ({"top_p": "all"}, "top_p", 'top_p must be a number from 0 to 1, not "all"'),
    ({"n": 0}, "n", "n must be a whole number from 1 to 8, not 0"),
    ({"n": 1.5}, "n", "not 1.5"),
    ({"seed": 2**64}, "seed", "seed must be a whole number"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens must be a whole number from 1"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "must be a whole number"),
    ({"stop": ["a"] * 5}, "stop", "at most 4 texts of at most 200 characters, none of them empty"),
    ({"stop": [""]}, "stop", "none of them empty"),
    ({"stop": 5}, "stop", "not 5"),
    ({"stream": "yes"}, "stream", 'stream must be true or false, not "yes"'),
    ({"stream_options": {}}, "stream_options", "needs stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unrecognized"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20, not 21"),
    ({"messages": []}, "messages", "a list of 1 to 1000 messages"),
    ({"messages": "Hi"}, "messages", "a list"),
    ({"messages": ["Hi"]}, "messages[0]", 'messages[0] must be a JSON object, not "Hi"'),
    ({"messages": [{"content": "Hi"}]}, "messages[0].role", "role is missing"),
    ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role", "one of system, developer, user, assis"),
    ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].role", "this server has no tools"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "a text or a list of content parts"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "the last message is empty"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "the last message is empty"),
    ({"messages": [{"role": "user", "content": "Hi", "x": 1}]}, "messages[0].x", "Unrecognized"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls", "not supported"),
    ({"messages": [{"role": "system", "content": [image(1)]}]}, "messages[0].content[0].image_url.url",
     "messages[0].content[0].image_url.url is in a message of the system; only the user's may have media"),
    (messages({"type": "file", "file": {}}), "messages[0].content[0].type", "file"),
    (messages({"type": "image_url", "image_url": {"url": "/etc/passwd"}}), "messages[0].content[0].image_url.url", ""),
    (messages({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
     "messages[0].content[0].image_url.url", "--allow-urls"),
    (messages({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
     "messages[0].content[0].image_url.url", ""),
    (messages({"type": "text", "text": "word " * 600}), "messages", "prompt and answer together may have 512"),
])  # fmt: skip
def test_what_is_wrong_is_named(server, change, param, says):
    assert says in check_error(server.post({**ASK, **change}), 400, param)


def test_a_chat_template_may_refuse(pipe):
    template = "{{ raise_exception('roles must alternate') }}"
    with serving(pipe) as running, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipe.processor.tokenizer, "chat_template", template)
        message = check_error(running.post(ASK), 400, "messages")
    assert message == "the language model's chat template refuses these messages: roles must alternate"


def test_official_errors(server):
    openai = pytest.importorskip("openai")
    with server.client() as client:
        with pytest.raises(openai.NotFoundError) as raised:
            client.chat.completions.create(model="gpt-4o", messages=[user(QUESTION)])
        assert raised.value.code == "model_not_found" and raised.value.param == "model"
        with pytest.raises(openai.BadRequestError) as raised:
            client.chat.completions.create(model="tiny", messages=[user(QUESTION)], temperature=3)
        assert raised.value.param == "temperature" and raised.value.type == "invalid_request_error"


@pytest.mark.parametrize("body, says", [
    (b"", "the body is not JSON in UTF-8"), (b"{", "not JSON"), (b"\xff{}", "not JSON in UTF-8"),
    (b"[]", "the body must be a JSON object, not []"),
    (b'{"temperature": NaN}', "NaN is no number"), (b"[" * 100_000, "not JSON"), (b'{"user": "\\ud800"}', "not JSON"),
    (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"),
])  # fmt: skip
def test_what_is_no_json(server, body, says):
    assert says in check_error(server.post(content=body, headers=JSON), 400)


def test_a_body_of_very_many_values(server):
    body = b'{"user": [' + b"[]," * 700_000 + b"[]]}"
    assert "more than 1000000 values" in check_error(server.post(content=body, headers=JSON), 413)


def test_halves_of_a_character_that_belong_together(server):
    body = b'{"max_tokens": 2, "messages": [{"role": "user", "content": "\\ud83d\\ude00"}]}'
    assert server.post(content=body, headers=JSON).status_code == 200


def test_pages_of_strangers_cannot_send_forms(server):
    body = json.dumps(ASK).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        check_error(server.post(content=body, headers={"content-type": kind}), 415)
    assert server.post(content=body, headers={"content-type": "Application/JSON; charset=utf-8"}).status_code == 200
    check_error(server.post(content=body, headers={**JSON, "content-encoding": "gzip"}), 415)


def test_other_paths_and_methods(server):
    check_error(server.get("/v1/nothing"), 404)
    check_error(server.get("/health/"), 404)
    check_error(server.get("/docs"), 404)
    check_error(server.get("/openapi.json"), 404)
    wrong = server.get(CHAT)
    check_error(wrong, 405)
    assert wrong.headers["allow"] == "POST"
    check_error(server.post({}, "/v1/models"), 405)


def test_bodies_are_limited(pipe):
    def chunks(count):
        for _ in range(count):
            sent.append(1)
            yield b" " * 1000

    with serving(pipe, max_body=20_000) as running:
        large = {**ASK, "user": "x" * 20_000}
        assert "larger than the 20000 bytes" in check_error(running.post(large), 413)
        sent = []
        check_error(running.post(content=chunks(21), headers=JSON), 413)  # states no length
        assert running.post({**ASK, "user": "x" * 19_000}).status_code == 200
        sent = []
        assert "not JSON" in check_error(running.post(content=chunks(20), headers=JSON), 400)
        assert running.service.bodies == running.service.under_way == 0


def test_a_length_that_is_too_large_is_refused_unread(server):
    with socket.create_connection(server.sock.getsockname(), timeout=5) as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: {10**12}\r\n\r\n".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 413")


def test_bodies_of_all_requests_together_are_limited(pipe):
    held, half = threading.Event(), []

    def slow():
        yield b" " * 900
        half.append(1)
        held.wait(10)
        yield b"{}"

    with serving(pipe, max_body=1000) as running:
        url, found = running.url + CHAT, []
        threads = [
            threading.Thread(target=lambda: found.append(httpx.post(url, content=slow(), headers=JSON, verify=False)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        while running.service.bodies < 7200:
            held.wait(0.01)
        assert "too many large requests" in check_error(running.post({**ASK, "user": "x" * 800}), 429)
        held.set()
        for thread in threads:
            thread.join()
        assert [response.status_code for response in found] == [400] * 8
        assert running.post(ASK).status_code == 200


def test_a_body_that_does_not_come(pipe):
    with serving(pipe, timeout=0.2) as running, socket.create_connection(running.sock.getsockname(), timeout=5) as raw:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 408")


def test_the_key(pipe):
    openai = pytest.importorskip("openai")
    with serving(pipe, api_key="s3cret") as running:
        for sent in (None, "Bearer wrong", "Bearer", "s3cret", "Basic s3cret", "Bearer s3cret2", "Bearer \xe9"):
            headers = {"Authorization": sent.encode("latin-1")} if sent else {}
            for path in ("/v1/models", "/metrics", "/nothing"):
                refused = running.get(path, headers=headers)
                assert "Authorization: Bearer KEY" in check_error(refused, 401)
                assert refused.json()["error"]["code"] == "invalid_api_key"
            check_error(running.post(ASK, headers=headers), 401)
        assert running.get("/health").json() == {"status": "ok"}
        with running.client(api_key="s3cret") as client:
            assert client.chat.completions.create(model="default", messages=[user(QUESTION)], max_tokens=2).choices
        with running.client(api_key="else") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


@pytest.mark.parametrize("host, status", [
    ("localhost:80", 200), ("127.0.0.1", 200), ("LOCALHOST.", 200), ("[::1]:8000", 200), ("box.lan", 200),
    ("evil.example", 403), ("127.0.0.1.evil.example:8000", 403), ("localhost.evil.example", 403), ("[::2]", 403),
])  # fmt: skip
def test_names_of_other_machines(host, status):
    hosts = ("localhost", "127.0.0.1", "::1", "box.lan")
    assert asyncio.run(answered(ServeConfig(hosts=hosts), host)) == status
    assert asyncio.run(answered(ServeConfig(hosts=None), host)) == 200


async def answered(config, host):
    """The status that a request to this host gets."""
    found = []

    async def app(scope, receive, send):
        found.append(200)

    async def send(message):
        found.append(message.get("status"))

    await Doorman(app, config)({"type": "http", "path": "/health", "headers": [(b"host", host.encode())]}, None, send)
    return found[0]


def test_pages_of_other_origins(server, pipe):
    page = {"Origin": "https://page.example"}
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    asked |= page
    answer = server.post(ASK, headers=page)
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
    check_error(server.http.options(CHAT, headers=asked), 405)
    with serving(pipe, cors=("https://page.example",), api_key="k") as running:
        allowed = running.http.options(CHAT, headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
        refused = running.post(ASK, headers=page)
        check_error(refused, 401)
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        other = running.post(ASK, headers={"Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
