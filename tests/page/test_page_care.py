"""What the page takes care of, without a browser: costly files, files of pages that are gone, what is explained."""

import asyncio
import copy
import json
import re
from contextlib import ExitStack
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import folders
import pytest
import test_page_writing
from PIL import Image
from test_page_writing import LONG, OTHER, WHAT, until_words

from adapter_llm.page import visitors as module
from adapter_llm.page.asking import checked
from adapter_llm.page.attachments import from_file
from adapter_llm.page.explaining import explain
from adapter_llm.page.owners import new_folder, new_name
from adapter_llm.page.readers import Readers
from adapter_llm.page.sessions import PageClosed, Sessions
from adapter_llm.page.settings import PageSettings

person = test_page_writing.person
PICTURES = ("image", "depth", "thermal")


def put(person, *pictures):
    """Files of this person's, as their question box names them."""
    folder = new_folder(person.events.context.sessions.folder / person.session.visitor)
    for name in pictures:
        folders.picture(7).save(folder / name)
    return {"text": "", "files": [str(folder / name) for name in pictures]}


# files that cost more than they look


@pytest.mark.parametrize("keyword", PICTURES)
def test_a_small_file_of_a_huge_picture_is_refused_by_its_header_whatever_it_is_read_as(talkative, tmp_path, keyword):
    Image.new("1", (8000, 8000)).save(tmp_path / "huge.png")
    huge = replace(from_file(tmp_path / "huge.png", PICTURES), keyword=keyword)
    assert checked(huge, talkative.pipe).problem == ("'huge.png' has 8000 x 8000 pixels; give at most 50000000 pixels")


@pytest.mark.parametrize("keyword", PICTURES)
def test_a_tiff_is_taken_from_who_owns_the_machine_and_not_from_strangers(talkative, tmp_path, keyword):
    Image.new("F", (16, 16), 2.0).convert("F" if keyword == "depth" else "L").save(tmp_path / "map.tif")
    tiff = replace(from_file(tmp_path / "map.tif", PICTURES), keyword=keyword)
    assert checked(tiff, talkative.pipe).problem is None
    assert "'map.tif' is no picture that can be read; give PNG" in checked(tiff, talkative.pipe, strangers=True).problem


def test_whoever_has_to_give_a_password_is_a_stranger_behind_another_server_too():
    assert not PageSettings().strangers and PageSettings().hosts
    for other in [{"auth": ("ann", "secret")}, {"share": True}, {"host": "0.0.0.0"}]:
        assert PageSettings(**other).strangers and PageSettings(**other).hosts is None


def test_words_that_the_encoder_would_refuse_are_refused_before_they_are_attached(person):
    def said(words):
        return [shown[1] for shown in person.events.media.add_words(words, person.request)][-1]

    assert "these are 10001 characters; give at most 10000" in said("a" * 10_001)
    assert said("a" * 10_000) == "" and person.session.conversation.attachments[0].problem is None


# files of others


def test_files_are_looked_at_a_few_at_a_time_and_too_many_are_refused():
    readers = Readers(at_once=2, waiting=0)
    with readers.place():
        assert readers.before == 0
        with readers.place():
            assert readers.before == 2
            with pytest.raises(ValueError, match="too many files are waiting"), readers.place():
                pass
        assert readers.before == 0


def test_while_files_of_others_are_looked_at_questions_are_asked_and_files_wait_for_their_turn(person, talkative):
    from threading import Thread

    readers, picture = person.events.context.readers, put(person, "photo.png")
    seen = []
    with ExitStack() as others:
        for _ in range(readers.at_once):
            others.enter_context(readers.place())
        assert person.ask(WHAT) == ""  # words alone
        list(person.writing())
        waiting = Thread(target=lambda: seen.extend(person.events.media.gather(picture, person.request)))
        waiting.start()
        waiting.join(0.3)
        assert [shown[0] for shown in seen] == ["2 files are before yours; then it is looked at …"]
    waiting.join(20)
    assert seen[-1][0] == "" and [one.problem for one in person.session.conversation.attachments] == [None]
    assert person.turns[0].answered


# files of pages that are gone


def test_a_file_that_is_looked_at_when_the_conversation_begins_anew_is_not_part_of_it(person, talkative, monkeypatch):
    features, box = talkative.pipe.features, put(person, "photo.png")

    def looking(**media):
        person.clear()
        return features(**media)

    monkeypatch.setattr(talkative.pipe, "features", looking)
    *_, (status, *_) = person.events.media.gather(box, person.request)
    assert status == "" and person.session.conversation.attachments == []
    assert not Path(box["files"][0]).exists()


def test_a_question_whose_file_is_looked_at_when_the_conversation_begins_anew_is_not_asked(
    person, talkative, monkeypatch
):
    features, box = talkative.pipe.features, put(person, "photo.png")

    def looking(**media):
        person.clear()
        return features(**media)

    monkeypatch.setattr(talkative.pipe, "features", looking)
    assert person.events.ask({**box, "text": WHAT}, person.request)[0] == []
    assert person.turns == [] and person.session.turn is None
    assert person.ask(OTHER) == ""


def test_nothing_is_kept_for_a_page_that_has_ended(tmp_path):
    sessions = Sessions(tmp_path)
    session = sessions.get("page", "ann")
    sessions.end("page")
    folder = new_folder(tmp_path / "ann")
    with pytest.raises(PageClosed, match="reload the page"):
        session.keep(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_arrives_when_its_page_is_closed_is_deleted(tmp_path, monkeypatch):
    sessions, ann = Sessions(tmp_path), new_name()
    sessions.get("page", ann)

    async def uploading(request, folder, *limits, **options):
        sessions.end("page")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "photo.png").write_bytes(b"pixels")
        return [folder / "photo.png"], [], []

    monkeypatch.setattr(module, "upload_fn", uploading)
    request = SimpleNamespace(cookies={"cookie": ann}, method="POST", headers={"content-length": "6"}, query_params={})
    answer = asyncio.run(module.Visitors(None, sessions, "cookie", 2**20)._upload(request))
    assert answer.status_code == 403 and list(tmp_path.iterdir()) == []


# what is explained


def explained(words):
    return unescape("".join(re.findall("<mark [^>]*>(.*?)</mark>", words)))


def test_the_very_answer_that_is_shown_is_explained_also_one_that_was_stopped(person, talkative, tmp_path, monkeypatch):
    box = put(person, "photo.png")
    person.events.ask({**box, "text": WHAT}, person.request)
    with talkative.slowly(0.01):
        writing = person.writing(200, 1.0, 1.0, "")
        until_words(person, writing)
        person.session.stop()
        list(writing)
    turn, context = person.turns[0], person.events.context
    monkeypatch.setattr(type(talkative.pipe.answerer), "generate", None)  # nothing is written anew
    words, _ = explain(turn, talkative.pipe, context.engine, tmp_path / "figure.png")
    assert explained(words).strip() == turn.answer and "stopped" in turn.note


def test_answers_are_explained_when_they_are_written_and_one_at_a_time_of_each_page(person, talkative):
    person.events.ask({**put(person, "photo.png"), "text": WHAT}, person.request)
    assert "still being written" in person.events.explain(person.request)[0]
    list(person.writing(9, 0.0, 1.0, ""))
    with person.session.explaining:
        assert "explained already" in person.events.explain(person.request)[0]
    words = person.events.explain(person.request)[0]
    assert explained(words).strip() == person.turns[0].answer


# what else


def test_a_model_that_computes_no_numbers_is_a_sentence_and_nothing_to_log(person, talkative, capfd):
    person.ask(WHAT)
    capfd.readouterr()
    handle = talkative.pipe.model.llama.lm_head.register_forward_hook(
        lambda module, inputs, logits: logits * float("nan")
    )
    try:
        list(person.writing())
    finally:
        handle.remove()
    assert person.turns[0].problem.startswith("the model computed no numbers for this input; give another dtype")
    assert "Traceback" not in capfd.readouterr().err


def test_drafts_are_made_where_the_engine_wants_them(person, talkative, monkeypatch):
    engine, made = person.events.context.engine, []
    monkeypatch.setattr(engine, "prepare", lambda work: made.append(work()) or made[-1])
    person.ask(WHAT)
    list(person.writing())
    assert len(made) == 1 and made[0].ids == person.turns[0].ids


def test_the_sliders_of_the_index_are_the_options_of_the_blend(person, monkeypatch):
    from adapter_llm.page import questions
    from adapter_llm.retrieval import RetrievalOptions

    given = []
    monkeypatch.setattr(questions, "write", lambda *arguments: given.append(arguments) or iter(()))
    person.events.context = replace(person.events.context, pipe=SimpleNamespace(index=object()))
    person.ask(WHAT)
    list(person.writing(*LONG, 0.25, 7, 30))  # weight, neighbours, sharpness, as they are on the page
    assert given[0][-1] == RetrievalOptions(neighbours=7, sharpness=30.0, weight=0.25)


def test_weights_that_know_no_conversations_say_so(person, talkative):
    from adapter_llm.page.app import build

    pipe, config = copy.copy(talkative.pipe), talkative.pipe.config
    pipe.config = replace(config, prompt=replace(config.prompt, template="alpaca"))

    async def built(used):  # where there is an event loop, so that Gradio need not make one
        return json.dumps(build(replace(person.events.context, pipe=used)).get_config_file(), default=str)

    for used, said in [(pipe, True), (talkative.pipe, False)]:
        assert ("without what was said before" in asyncio.run(built(used))) == said


@pytest.mark.parametrize("host, let_in", [
    ("127.0.0.1:7860", True), ("localhost:7860", True), ("[::1]:7860", True), ("LOCALHOST", True),
    ("elsewhere.example:7860", False), ("127.0.0.1.elsewhere.example", False), ("some_where.example", False),
    ("", False),
])  # fmt: skip
def test_a_page_elsewhere_whose_name_points_here_is_not_let_in(tmp_path, host, let_in):
    came, sent = [], []

    async def inside(scope, receive, send):
        came.append(scope["path"])

    async def send(message):
        sent.append(message)

    layer = module.Visitors(inside, Sessions(tmp_path), "cookie", 2**20, PageSettings().hosts)
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": [(b"host", host.encode())]}
    scope["server"], scope["scheme"], scope["root_path"] = ("127.0.0.1", 7860), "http", ""
    asyncio.run(layer(scope, None, send))
    assert came == (["/"] if let_in else [])
    assert let_in or sent[0]["status"] == 421


@pytest.mark.loopback
@pytest.mark.parametrize("platform, shared", [("win32", False), ("linux", True)])
def test_a_port_that_another_server_has_is_never_shared_with_it(monkeypatch, platform, shared):
    from adapter_llm.page import address

    options = []

    class Probe(address.socket.socket):
        def setsockopt(self, level, option, value):
            options.append(option)

    with monkeypatch.context() as patch:
        patch.setattr(address.sys, "platform", platform)
        patch.setattr(address.socket, "socket", Probe)
        assert address.find_port("127.0.0.1", 0)
    assert (address.socket.SO_REUSEADDR in options) == shared
