"""Streams: the pieces are the answer, and who stops reading stops the model."""

import time

import folders
import pytest
import torch

QUESTION = "What is in this picture?"
WAYS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "cut": {"temperature": 0.7, "top_p": 0.8, "seed": 5},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("question", [QUESTION, "Hello", "Is it raining on the grass, or is it not?"])
@pytest.mark.parametrize("seen", [True, False])
def test_stream_joins_to_ask(pipe, question, way, seen):
    options = {"image": folders.picture(1) if seen else None, "max_new_tokens": 60, **WAYS[way]}
    pieces = list(pipe.stream(question, **options))
    assert "".join(pieces) == pipe.ask(question, **options)
    assert all(pieces)


@pytest.mark.parametrize("text", [
    "A dog 🐕 and a 👩‍👩‍👧 on the grass.", "🐕", "日本語の写真です。 犬", "Zwölf Boxkämpfer\njagen Viktor.\n",
    "naïve ☕\n\n☕ x", "  leading and trailing  \n", "a  b\t c", "",
])  # fmt: skip
def test_all_of_unicode_arrives_whole(pipe, text):
    with folders.says(pipe, text):
        answer = pipe.ask(QUESTION, max_new_tokens=200)
    with folders.says(pipe, text):
        pieces = list(pipe.stream(QUESTION, max_new_tokens=200))
    assert "".join(pieces) == answer == text.strip()
    assert not any("\ufffd" in piece for piece in pieces)


def test_pieces_come_while_the_model_writes(pipe):
    with folders.says(pipe, "one two three four five six") as calls:
        seen = []
        with pipe.model.llama.register_forward_pre_hook(lambda *_: time.sleep(0.005)):
            for piece in pipe.stream(QUESTION):
                seen.append((piece, len(calls)))
    assert len(seen) > 3
    assert seen[0][1] < len(calls) / 2, "the first piece waited for the last"


def test_leaving_stops_the_model(pipe):
    with folders.says(pipe, "word " * 300) as calls:
        stream = pipe.stream(QUESTION, max_new_tokens=1000)
        assert "word".startswith(next(stream))
        stream.close()
        stopped = len(calls)
        assert stopped < 10
        assert not list(stream)
        assert len(calls) == stopped


def test_a_stream_that_is_never_read_starts_nothing(pipe):
    with folders.says(pipe, "word " * 300) as calls:
        stream = pipe.stream(QUESTION)
        stream.close()
        assert not calls


def test_what_breaks_while_writing_is_raised_to_the_reader(pipe):
    def fail(*_):
        if len(calls) == 6:
            raise KeyError("broken in the middle")

    read = []
    with folders.says(pipe, "one two three four five six") as calls, pipe.model.llama.register_forward_pre_hook(fail):
        stream = pipe.stream(QUESTION)
        with pytest.raises(KeyError, match="broken in the middle"):
            read.extend(stream)
    assert read
    assert pipe.ask(QUESTION, max_new_tokens=4) == pipe.ask(QUESTION, max_new_tokens=4)


def test_bad_prompts_and_pictures_are_refused(pipe, tmp_path):
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(pipe.stream(" "))
    with pytest.raises(ValueError, match=r"missing\.png"):
        pipe.stream(QUESTION, image=tmp_path / "missing.png")
    with pytest.raises(ValueError, match="beams cannot be streamed"):
        pipe.stream(QUESTION, num_beams=2)


@pytest.mark.parametrize("stop", [True, False])
def test_seeded_streams_leave_random_numbers_alone(pipe, stop):
    before = torch.get_rng_state()
    stream = pipe.stream(QUESTION, temperature=1.0, seed=4, max_new_tokens=60)
    if stop:
        next(stream)
        stream.close()
    else:
        list(stream)
    assert torch.equal(torch.get_rng_state(), before)
