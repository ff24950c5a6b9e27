"""Who brings slow or large things waits for them alone: everybody else is served meanwhile."""

import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import folders
import pytest
import torch
from hostile_files import picture
from serving import QUESTION, check_error, image, serving, until, user

from adapter_llm.perception import Perception
from adapter_llm.serve import embeddings, waiting
from adapter_llm.serve.failures import ClientGone
from adapter_llm.serve.parts import read_part
from adapter_llm.strangers import fetching
from adapter_llm.strangers.limits import MediaLimits
from imagebind_encoder.media import patience

pytestmark = pytest.mark.loopback
ASK = {"messages": [user(QUESTION)], "max_tokens": 2}
OPEN = MediaLimits(allow_urls=True)


def url(number):
    return {"type": "image_url", "image_url": {"url": f"https://example.org/{number}.png"}}


def seen(*parts):
    return {"messages": [user(QUESTION, *parts)], "max_tokens": 2}


def data_uri_of(data):
    return f"data:image/png;base64,{b64encode(data).decode()}"


@contextmanager
def no_looking(pipe):
    """Inside, nothing is encoded before the function that this gives is called."""
    held = threading.Event()
    with pipe.model.encoder.register_forward_pre_hook(lambda *_: held.wait(10) and None):
        try:
            yield held.set
        finally:
            held.set()


def test_every_place_may_be_taken_in_one_moment(pipe):
    with serving(pipe, batch_size=6, queue_size=0) as running, ThreadPoolExecutor(6) as pool:
        with no_looking(pipe) as go:
            begun = [pool.submit(running.post, seen(image(50 + number))) for number in range(6)]
            assert until(lambda: running.service.reserved == 6)
            time.sleep(0.05)
            go()
        assert [one.result().status_code for one in begun] == [200] * 6


def test_words_do_not_wait_behind_films(pipe):
    with serving(pipe, media_threads=1) as running, ThreadPoolExecutor(2) as pool:
        with no_looking(pipe):
            begun = [pool.submit(running.post, seen(image(60 + number))) for number in range(2)]
            assert until(lambda: running.service.reserved == 2)
            assert running.post(ASK, timeout=5).status_code == 200
            assert not any(one.done() for one in begun)
        assert [one.result().status_code for one in begun] == [200, 200]


def test_slow_web_servers_stop_nobodys_pictures(pipe, monkeypatch):
    held = threading.Event()
    monkeypatch.setattr(fetching, "fetch_public", lambda *_: held.wait(10) and picture(size=(40, 30)))
    with serving(pipe, media=OPEN) as running, ThreadPoolExecutor(20) as pool:
        begun = [pool.submit(running.post, seen(url(number))) for number in range(20)]
        try:
            assert until(lambda: running.service.reserved == 20)
            assert running.post(seen(image(1)), timeout=5).status_code == 200
        finally:
            held.set()
        assert [one.result().status_code for one in begun] == [200] * 20


def test_a_download_takes_no_time_from_decoding(pipe, monkeypatch):
    clocks = []

    def fetch(*_):
        clocks.append(patience._deadline.get())
        return picture(size=(40, 30))

    monkeypatch.setattr(fetching, "fetch_public", fetch)
    with serving(pipe, media=OPEN) as running:
        assert running.post(seen(url(1))).status_code == 200
        assert running.post({"input": [url(1)]}, "/v1/embeddings").status_code == 200
    assert clocks == [None, None]


def test_limits_are_of_all_inputs_of_an_embeddings_request(everything, monkeypatch):
    seconds, clocks, look = [], set(), Perception.look

    def fetch(_, __, left):
        seconds.append(left)
        time.sleep(0.02)
        return picture(size=(40, 30))

    def watched(self, inputs):
        clocks.add(patience._deadline.get())
        return look(self, inputs)

    monkeypatch.setattr(fetching, "fetch_public", fetch)
    monkeypatch.setattr(Perception, "look", watched)
    limits = MediaLimits(allow_urls=True, max_parts=3, max_bytes=20_000)
    with serving(everything, media=limits) as running:

        def post(*given):
            return running.post({"input": list(given)}, "/v1/embeddings")

        assert post(url(1), "a dog", url(2), url(3)).status_code == 200
        assert seconds[0] - 0.02 >= seconds[1] and seconds[1] - 0.02 >= seconds[2]
        assert len(clocks) == 1 and None not in clocks
        message = check_error(post(image(1), "a dog", image(2), image(3), image(4)), 400, "input[4].image_url.url")
        assert "the request has 4 media; give at most 3" in message
        large = {"type": "image_url", "image_url": {"url": data_uri_of(picture() + bytes(11_000))}}
        assert "larger than the limit" in check_error(post(large, "a dog", large), 400, "input[2].image_url.url")


def test_inputs_of_all_kinds_keep_their_order(everything):
    with serving(everything) as running:
        answer = running.post({"input": [image(2), "a dog", image(1), "rain"]}, "/v1/embeddings").json()
    wanted = [everything.embed(image=folders.picture(2)), everything.embed(text="a dog"),
              everything.embed(image=folders.picture(1)), everything.embed(text="rain")]  # fmt: skip
    found = torch.tensor([row["embedding"] for row in answer["data"]])
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-6)


def test_nothing_more_is_read_for_a_client_that_is_gone(everything, monkeypatch):
    left, looked, look = threading.Event(), [], Perception.look

    def leaving(self, inputs):
        looked.append(inputs)
        left.set()
        return look(self, inputs)

    monkeypatch.setattr(Perception, "look", leaving)
    inputs = [(f"input[{number}]", "a dog") for number in range(5)]
    with serving(everything) as running, pytest.raises(ClientGone):
        embeddings.embed(running.service, inputs, {}, left)
    assert len(looked) == 1


def test_large_bodies_and_answers_are_not_the_event_loops_work(everything, monkeypatch):
    threads = {}

    def watched(name, work):
        def call(*given):
            threads[name] = threading.current_thread().name
            return work(*given)

        return call

    monkeypatch.setattr(waiting, "parse", watched("parse", waiting.parse))
    monkeypatch.setattr(embeddings, "to_json", watched("answer", embeddings.to_json))
    with serving(everything) as running:
        assert running.post({**ASK, "user": "x" * 2_000_000}).status_code == 200
        assert threads["parse"].startswith("clerk")
        assert running.post({"input": "a dog"}, "/v1/embeddings").status_code == 200
        assert threads["answer"].startswith("clerk") and threads["parse"] == running.thread.name


def test_parts_of_the_web_are_known():
    remote = [read_part(part, "input").remote for part in (url(1), image(1))]
    assert remote == [True, False]
