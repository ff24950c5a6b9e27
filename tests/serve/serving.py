"""A server of a tiny pipeline on a free port of this machine, its clients, and pictures as requests bring them."""

import io
import signal
import threading
import time
from base64 import b64encode
from contextlib import contextmanager

import folders
import httpx

from adapter_llm.serve.launch import Server, serve
from adapter_llm.serve.port import bind, url_of
from adapter_llm.serve.service import ServeConfig, Service

QUESTION = "What is in this picture?"


class Running:
    """A server that runs in a thread."""

    def __init__(self, pipe, config):
        self.left, ready = [], threading.Event()
        self.service = Service(pipe, config)
        self.server = Server(self.service, self.left.append, ready.set)
        self.sock = bind("127.0.0.1", 0)
        self.url = url_of(self.sock)
        self.thread = threading.Thread(target=serve, args=(self.server, self.sock))
        self.thread.start()
        assert ready.wait(10)
        self.http = httpx.Client(base_url=self.url, timeout=10, verify=False)  # certificates take long to read

    def signal(self):
        self.server.handle_exit(signal.SIGTERM, None)

    def stop(self):
        self.signal()
        self.thread.join(10)
        assert not self.thread.is_alive()

    def client(self, **options):
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", **{"api_key": "any", "max_retries": 0, **options})

    def async_client(self):
        import openai

        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def post(self, body=None, path="/v1/chat/completions", **options):
        return self.http.post(path, **({} if body is None else {"json": body}), **options)

    def get(self, path, **options):
        return self.http.get(path, **options)

    def metric(self, name):
        """A line of /metrics."""
        lines = [line.rpartition(" ") for line in self.get("/metrics").text.splitlines()]
        return next(float(value) for found, _, value in lines if found == name)

    def wait_until_idle(self):
        """No answer is waited for, prepared or written."""

        def idle():
            counts = self.service.engine.counts
            return not (counts.running or counts.waiting or self.service.preparing or self.service.reserved)

        assert until(idle), self.service.engine.counts


@contextmanager
def serving(pipe, **config):
    running = Running(pipe, ServeConfig(**config))
    try:
        yield running
    finally:
        running.http.close()
        running.server.should_exit = True
        running.thread.join(10)


def until(true, seconds=5.0):
    """Whether it becomes true in time."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.005)
    return found


@contextmanager
def slowly(pipe, seconds=0.02):
    """Inside, each step of the model takes at least so long."""
    with pipe.model.llama.register_forward_pre_hook(lambda *_: time.sleep(seconds)):
        yield


@contextmanager
def holding(pipe):
    """Inside, the model writes nothing before the function that this gives is called."""
    held = threading.Event()
    with pipe.model.llama.register_forward_pre_hook(lambda *_: held.wait(20) and None):
        try:
            yield held.set
        finally:
            held.set()


def data_uri(picture, kind="PNG"):
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind.lower()};base64,{b64encode(file.getvalue()).decode()}"


def image(seed):
    return {"type": "image_url", "image_url": {"url": data_uri(folders.picture(seed))}}


def user(*content):
    """A message of texts and parts."""
    return {"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}


def check_error(response, status, param=None):
    """The error's message, if its shape is OpenAI's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["param"] == param, body
    assert isinstance(body["error"]["type"], str)
    assert "Traceback" not in response.text
    return body["error"]["message"]
