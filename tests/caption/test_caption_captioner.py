"""One process's work: whatever is captioned together, each input gets the caption it would get alone."""

import time
from dataclasses import replace

import folders
import pytest
import torch

from adapter_llm.caption.captioner import GIVEN_UP, Captioner, CaptionOptions, nearest
from adapter_llm.caption.content import LocalFile
from adapter_llm.caption.inputs import Input
from adapter_llm.caption.model import ModelIdentity
from adapter_llm.processing import InputOptions
from adapter_llm.results import GenerationOptions
from adapter_llm.retrieval import RetrievalOptions

MODEL = ModelIdentity("tiny@01234567", "0123456789abcdef", "float32")
QUESTIONS = [None, "What is in this picture?", "Hi", "Is it raining on the grass? " * 5]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    found = []
    for seed in range(23):
        path = folder / f"{seed}.png"
        folders.picture(seed, 30 + seed, 70 - seed).save(path)
        found.append(Input(f"id {seed}", str(path), "image", QUESTIONS[seed % 4], LocalFile(str(path))))
    return found


def options(batch_size=16, prompt=None, readers=2, reading=InputOptions(), retrieval=None, **generation):
    generation = GenerationOptions(**{"max_new_tokens": 9, **generation})
    return CaptionOptions(prompt, generation, reading, retrieval, batch_size, readers)


def captions(pipe, inputs, *args, keep_content=False, **kwargs):
    captioner = Captioner(pipe, MODEL, options(*args, **kwargs), keep_content)
    return [one for done in captioner.captions(inputs) for one in done]


@pytest.mark.parametrize("batch_size", [1, 3, 16, 50])
@pytest.mark.parametrize("drawing", [{}, {"temperature": 1.5, "seed": 3, "top_p": 0.9}])
def test_rows_are_what_single_questions_get(pipe, inputs, batch_size, drawing):
    done = captions(pipe, inputs, batch_size, "Describe it.", **drawing)
    rows = {one.row.id: one.row for one in done}
    assert len(done) == len(rows) == len(inputs)
    for entry in inputs:
        row, prompt = rows[entry.id], entry.prompt or "Describe it."
        single = pipe.result(prompt, image=entry.path, max_new_tokens=9, **drawing)
        assert (row.caption, row.n_tokens, row.finish_reason) == (single.text, single.n_tokens, single.finish_reason)
        assert (row.prompt, row.path, row.status, row.error) == (prompt, entry.path, "ok", None)
        assert (row.model, row.sha256) == (MODEL.name, entry.read().sha256) and row.seconds >= 0
        assert row.generation == {"max_new_tokens": 9, "temperature": 0.0, "top_p": 1.0, "seed": None, **drawing}
    assert len({row.caption for row in rows.values()}) > 5


def test_rows_leave_at_once_and_others_take_their_places(pipe, inputs, monkeypatch):
    """Step by step, how many rows there are in the batch while answers end at different lengths."""
    make, make_drafts, sizes, joins = pipe.batch, pipe.drafts, [], []

    def drafts(*args):
        found = make_drafts(*args)
        for draft in found:
            draft.room = 3 + int(1000 * draft.state.keys.abs().sum()) % 29
        return found

    def batch():
        found = make()
        join, step = found.join, found.step
        monkeypatch.setattr(found, "join", lambda drafts: (joins.append(len(drafts)), join(drafts))[1])
        monkeypatch.setattr(found, "step", lambda: (sizes.append(len(found)), step())[1])
        return found

    monkeypatch.setattr(pipe, "drafts", drafts)
    monkeypatch.setattr(pipe, "batch", batch)
    many = [replace(entry, id=f"{entry.id} {number}") for number in range(3) for entry in inputs]
    lengths = [one.row.n_tokens for one in captions(pipe, many, 8, readers=4)]
    assert len(lengths) == len(many) and len({*lengths}) > 8 and sum(joins) == len(many)
    assert max(sizes) == 8
    waits = sum(lengths) / 8  # steps, if the batch were always full
    assert len(sizes) < 1.3 * waits, "rows wait for the longest of their batch"
    assert sum(join >= 2 for join in joins) > 0.7 * len(joins), "prompts are read one by one"


def test_rows_come_as_soon_as_they_are_finished(pipe, inputs):
    """Not when all have been read: an endless list has rows, too."""
    taken = []

    def endless():
        while True:
            for entry in inputs:
                taken.append(entry)
                yield entry

    found = []
    results = Captioner(pipe, MODEL, options(4, readers=3)).captions(endless())
    for done in results:
        found += done
        if len(found) >= 30:
            break
    assert len(taken) <= len(found) + 2 * (4 + 3) + 4  # a batch, what waits for it, and what is encoded with it
    results.close()


def test_what_is_decoded_ahead_is_bounded(pipe, inputs):
    """While the model stands still, no more is decoded than what fits into a batch and one a thread."""
    decoded = []

    def counted(number):
        def read():
            decoded.append(number)
            return LocalFile(inputs[number % len(inputs)].path)()

        return replace(inputs[number % len(inputs)], id=str(number), read=read)

    captioner, ahead = Captioner(pipe, MODEL, options(5, readers=2)), []

    def stand_still(*_):
        time.sleep(0.05)
        ahead.append(len(decoded))

    with pipe.model.llama.register_forward_pre_hook(stand_still):
        results = captioner.captions(map(counted, range(10_000)))
        for _ in results:
            if len(ahead) >= 4:
                break
        results.close()
    assert ahead[-1] == ahead[-2] <= 5 + 2 * (5 + 2)


def test_bad_inputs_among_good_ones(pipe, inputs, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(LocalFile(inputs[3].path)().data()[:60])
    bad = [Input(name, str(tmp_path / name), "image", None, LocalFile(str(tmp_path / name)))
           for name in ("text.png", "missing.png", "cut.png")]  # fmt: skip

    def broken():
        raise KeyError("a library's own")

    bad.append(replace(inputs[0], id="broken", read=broken))
    bad.append(replace(inputs[1], id="long", prompt="What? " * 400))  # longer than the decoder reads
    bad.append(replace(inputs[2], id="sound", keyword="audio"))
    prompts = [entry.prompt or "Describe this picture." for entry in inputs]
    alone = [pipe.ask(prompt, image=entry.path, max_new_tokens=9)
             for prompt, entry in zip(prompts, inputs, strict=True)]  # fmt: skip
    for batch_size in (1, 4, 32):
        mixed = [entry for pair in zip(inputs, bad, strict=False) for entry in pair] + inputs[len(bad) :]
        done = captions(pipe, mixed, batch_size)
        rows = {one.row.id: one.row for one in done}
        assert sorted(rows) == sorted(entry.id for entry in mixed) and len(done) == len(mixed)
        for entry in bad:
            row = rows[entry.id]
            assert (row.status, row.finish_reason, row.caption, row.n_tokens) == ("error", "error", None, 0)
            assert row.error and "\n" not in row.error and row.prompt
        assert str(tmp_path / "text.png") in rows["text.png"].error and "bytes is" not in rows["text.png"].error
        assert rows["broken"].error == "unexpected KeyError: \"a library's own\""
        assert "tokens" in rows["long"].error and "shorten it" in rows["long"].error
        assert [rows[entry.id].caption for entry in inputs] == alone


@pytest.mark.parametrize("place", ["encode", "join", "step"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_what_breaks_everything_is_one_row(pipe, inputs, monkeypatch, place, batch_size):
    """An input that a library of tensors breaks over, wherever it is, spoils no other and ends nothing."""
    whole = {one.row.id: one.row.caption for one in captions(pipe, inputs, batch_size)}
    make_drafts, make = pipe.drafts, pipe.batch
    bad = "What is in this picture?"
    poison = [entry.id for entry in inputs if entry.prompt == bad][2]
    many = [replace(entry, prompt=f"{bad} " if entry.id == poison else entry.prompt) for entry in inputs]

    def drafts(questions, *args):
        if place == "encode" and f"{bad} " in questions:
            raise RuntimeError("shapes\ndiffer")
        return make_drafts(questions, *args)

    def batch():
        found = make()

        def watched(name, call):
            def write(*joining):  # with that row in it, from its first token on or later
                drafts = joining[0] if joining else found.drafts
                at = {"join": lambda draft: True, "step": lambda draft: draft.ids}.get(place, lambda draft: False)
                if any(draft.prompt == f"{bad} " and at(draft) for draft in drafts):
                    raise RuntimeError("shapes\ndiffer")
                return call(*joining)

            monkeypatch.setattr(found, name, write)

        watched("join", found.join)
        watched("step", found.step)
        return found

    monkeypatch.setattr(pipe, "drafts", drafts)
    monkeypatch.setattr(pipe, "batch", batch)
    rows = {one.row.id: one.row for one in captions(pipe, many, batch_size)}
    assert rows.keys() == whole.keys()
    [row] = [row for row in rows.values() if not row.ok]
    assert (row.id, row.error, row.finish_reason) == (poison, "unexpected RuntimeError: shapes differ", "error")
    assert {row.id: row.caption for row in rows.values() if row.ok} == {
        id: caption for id, caption in whole.items() if id != poison
    }


def test_what_breaks_with_all_inputs_is_no_input(pipe, inputs, monkeypatch):
    """A device that is lost makes no million rows; and nothing stops Ctrl-C."""

    def broken(*args):
        raise RuntimeError("the device is lost")

    def pressed(*args):
        raise KeyboardInterrupt

    many = [replace(entry, id=f"{entry.id} {number}") for number in range(12) for entry in inputs]
    found = []
    monkeypatch.setattr(pipe, "drafts", broken)
    with pytest.raises(RuntimeError, match="the device is lost"):
        found.extend(done for done in Captioner(pipe, MODEL, options(4)).captions(many))
    assert 0 < sum(map(len, found)) < GIVEN_UP and not any(one.row.ok for done in found for one in done)
    monkeypatch.setattr(pipe, "drafts", pressed)
    with pytest.raises(KeyboardInterrupt):
        captions(pipe, inputs)


def test_an_answer_of_no_numbers_is_an_error(pipe, inputs, monkeypatch):
    make_drafts = pipe.drafts

    def drafts(*args):
        found = make_drafts(*args)
        add = found[0].add
        monkeypatch.setattr(found[0], "add", lambda token, logits: add(None if found[0].ids else token, logits))
        return found

    monkeypatch.setattr(pipe, "drafts", drafts)
    [done] = captions(pipe, inputs[:1])
    row = done.row
    assert (row.status, row.finish_reason, row.caption, row.n_tokens) == ("error", "error", None, 0)
    assert row.error.startswith("the model computed no numbers for this input") and row.sha256


def test_all_bad(pipe, inputs, tmp_path):
    bad = [replace(entry, read=LocalFile(str(tmp_path / "none"))) for entry in inputs]
    assert [one.row.status for one in captions(pipe, bad, 3)] == ["error"] * len(bad)
    assert captions(pipe, [], 3) == []


def test_an_error_of_the_list_ends_it_after_what_was_before(pipe, inputs):
    def listed():
        yield from inputs[:5]
        raise RuntimeError("the table ends here")

    found = []
    with pytest.raises(RuntimeError, match="the table ends here"):
        found += [one for done in Captioner(pipe, MODEL, options(2)).captions(listed()) for one in done]


def test_content_is_kept_where_it_is_wanted(pipe, inputs):
    kept = captions(pipe, inputs[:3], keep_content=True)
    assert {one.content.source for one in kept} == {entry.read().source for entry in inputs[:3]}
    assert all(one.item in inputs for one in kept)
    assert [one.content for one in captions(pipe, inputs[:3])] == [None] * 3
    waiting = [Captioner(pipe, MODEL, options(), keep)._read(inputs[0]).content.source for keep in (True, False)]
    assert waiting == [inputs[0].read().source, b""], "what waits takes memory"


def test_the_hash_is_of_all_that_a_caption_depends_on(inputs):
    entry, plain = inputs[0], options()
    others = [
        (plain, replace(MODEL, fingerprint="fedcba9876543210"), entry),
        (plain, replace(MODEL, dtype="bfloat16"), entry),
        (plain, MODEL, replace(entry, prompt="Why?")),
        (plain, MODEL, replace(entry, keyword="thermal")),
        (options(reading=InputOptions(window=2.0)), MODEL, entry),
        (options(reading=InputOptions(pool="max")), MODEL, entry),
        (options(retrieval=RetrievalOptions(weight=0.25)), MODEL, entry),
        *((options(**{name: value}), MODEL, entry) for name, value in
          [("max_new_tokens", 8), ("temperature", 0.5), ("top_p", 0.5), ("seed", 1), ("stop", ("x",))]),
    ]  # fmt: skip
    found = {chosen.config_hash(model, one) for chosen, model, one in [(plain, MODEL, entry), *others]}
    assert len(found) == len(others) + 1
    same = [(options(3, readers=5), MODEL, entry), (plain, replace(MODEL, name="moved"), entry),
            (plain, MODEL, replace(entry, id="other", path="elsewhere")),
            (plain, MODEL, replace(entry, prompt="Describe this picture."))]  # fmt: skip
    assert options(prompt="Why?").config_hash(MODEL, entry) == plain.config_hash(MODEL, replace(entry, prompt="Why?"))
    assert {chosen.config_hash(model, one) for chosen, model, one in same} == {plain.config_hash(MODEL, entry)}


def test_equal_lengths_join_together():
    class One:
        def __init__(self, length):
            self.draft = type("Draft", (), {"prompt_tokens": length})

    waiting = [One(length) for length in (20, 90, 22, 40, 19, 20)]
    assert nearest(waiting, 9) == waiting
    assert [one.draft.prompt_tokens for one in nearest(waiting, 3)] == [20, 20, 19]
    assert nearest(waiting[1:], 1) == [waiting[1]]  # the first is never passed over
    assert nearest(waiting, 1) == [waiting[0]]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"readers": 0}, {"prompt": " "}])
def test_wrong_options(wrong):
    with pytest.raises(ValueError, match="at least 1|the prompt is empty"):
        CaptionOptions(**wrong)


def test_the_model_is_left_alone(pipe, inputs):
    """Nothing is remembered, and the program's random numbers are its own."""
    state = torch.get_rng_state()
    twice = [captions(pipe, inputs[:4], temperature=1.0, seed=1) for _ in range(2)]
    assert {one.row.caption for one in twice[0]} == {one.row.caption for one in twice[1]}
    assert torch.equal(torch.get_rng_state(), state)
