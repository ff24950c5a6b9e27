"""The end of a server: what was begun is finished, newcomers are told, and nothing waits for ever."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import QUESTION, check_error, holding, image, serving, slowly, until, user

from adapter_llm.serve import launch
from adapter_llm.serve.errors import ApiError
from adapter_llm.serve.launch import Server, serve
from adapter_llm.serve.port import bind, url_of
from adapter_llm.serve.service import ServeConfig, Service
from adapter_llm.serve.workers import Workers

pytestmark = pytest.mark.loopback


def body(**more):
    return {"messages": [user(QUESTION)], "max_tokens": 25, **more}


def test_running_answers_are_finished_and_newcomers_turned_away(pipe, capfd):
    with serving(pipe, batch_size=1) as running, ThreadPoolExecutor(3) as pool:
        whole = running.post(body()).json()["choices"]
        with holding(pipe):
            begun = [pool.submit(running.post, body()), pool.submit(running.post, body(stream=True))]
            assert until(lambda: running.service.engine.counts.waiting == 1)
            running.signal()
            assert "stopping: 2 requests are answered first, for " in capfd.readouterr().err
            check_error(running.post(body()), 503)
            check_error(running.post({"input": "a"}, "/v1/embeddings"), 503)
            health = running.get("/health")
            assert health.status_code == 503 and health.json() == {"status": "stopping"}
            assert running.get("/metrics").status_code == 200
        answer, stream = (future.result() for future in begun)
        assert answer.json()["choices"] == whole
        assert stream.text.endswith("data: [DONE]\n\n")
        running.thread.join(5)
        assert not running.thread.is_alive() and not running.left
        with pytest.raises(httpx.ConnectError):
            running.get("/health")


def test_an_idle_server_ends_at_once(pipe):
    with serving(pipe) as running:
        running.get("/health")  # whose connection stays open
        began = time.monotonic()
        running.stop()
        assert time.monotonic() - began < 2


def test_what_is_not_finished_in_time_is_told(pipe, monkeypatch):
    monkeypatch.setattr(launch, "FLUSH", 1)
    held = threading.Event()
    with serving(pipe, shutdown_timeout=0.3) as running, slowly(pipe), ThreadPoolExecutor(3) as pool:
        begun = [pool.submit(running.post, body(max_tokens=450, stream=stream)) for stream in (False, True)]
        assert until(lambda: running.service.engine.counts.running == 2)
        with pipe.model.encoder.register_forward_pre_hook(lambda *_: held.wait(10) and None):
            begun.append(pool.submit(running.post, {"messages": [user(QUESTION, image(33))]}))
            assert until(lambda: running.service.preparing == 1)
            running.signal()
            answer, stream = begun[0].result(), begun[1].result()
            check_error(begun[2].result(), 503)
            held.set()
        assert "the server is stopping" in check_error(answer, 503)
        last = json.loads(stream.text.rstrip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "server_stopping"
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_a_second_signal_ends_at_once(pipe):
    with serving(pipe) as running, slowly(pipe), ThreadPoolExecutor(1) as pool:
        pool.submit(running.post, body())
        assert until(lambda: running.service.engine.counts.running == 1)
        running.signal()
        assert running.left == []
        running.signal()
        assert running.left == [128 + signal.SIGTERM]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_real_signals(pipe, number):
    """The server takes them in the main thread, which is where this test is."""
    service, found = Service(pipe, ServeConfig()), []
    sock = bind("127.0.0.1", 0)
    url = url_of(sock)

    def visit():
        found.append(httpx.post(f"{url}/v1/chat/completions", json=body(max_tokens=3), verify=False).status_code)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=visit)
    serve(Server(service, ready=thread.start), sock)
    thread.join()
    assert found == [200]


def test_ports(pipe):
    with serving(pipe) as running:
        port = running.sock.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is in use; give another --port, or 0"):
            bind("127.0.0.1", port)
    with bind("127.0.0.1", port), socket.socket() as visitor:  # of a server that has ended
        assert visitor.connect_ex(("127.0.0.1", port)), "the port is open while the model is loaded"


def test_addresses_that_are_not_here(monkeypatch):
    def elsewhere(host, port, **_):
        if host == "nowhere":
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", elsewhere)
    with pytest.raises(ValueError, match=r"192\.0\.2\.1 is no address of this machine; give another --host"):
        bind("192.0.2.1", 0)
    with pytest.raises(ValueError, match="'nowhere' is no address of this machine .*; give another --host"):
        bind("nowhere", 0)


def test_two_that_start_at_once(pipe):
    with bind("127.0.0.1", 0) as first, bind("127.0.0.1", first.getsockname()[1]) as second:
        first.listen()
        with pytest.raises(ValueError, match="is in use"):
            serve(Server(Service(pipe)), second)


def test_addresses_as_urls():
    with bind("127.0.0.1", 0) as sock:
        assert url_of(sock) == f"http://127.0.0.1:{sock.getsockname()[1]}"
    if socket.has_ipv6:
        try:
            with bind("::1", 0) as sock:
                assert url_of(sock).startswith("http://[::1]:")
        except ValueError:
            pytest.skip("this machine has no IPv6")


def test_workers_that_are_closed_begin_nothing():
    workers, held = Workers("media", 1, 3), threading.Event()

    async def work():
        begun = [asyncio.ensure_future(workers.run(held.wait)) for _ in range(2)]
        await asyncio.sleep(0.05)
        workers.close()
        with pytest.raises(ApiError, match="the server is stopping"):
            await workers.run(held.wait)
        held.set()
        return await asyncio.gather(*begun, return_exceptions=True)

    first, second = asyncio.run(work())
    assert first is True and isinstance(second, asyncio.CancelledError)
