"""The job: every input exactly once, whatever happens to it, and to the process."""

import json
import os
import signal
import threading
import time

import folders
import pytest

from adapter_llm.caption import captioner as captioners
from adapter_llm.caption import job as jobs
from adapter_llm.caption.captioner import Captioner, CaptionOptions
from adapter_llm.caption.inputs import SourceOptions
from adapter_llm.caption.interrupts import stopped_by_term, undisturbed
from adapter_llm.caption.job import CaptionError, Job, Outcome, run_job, write_here
from adapter_llm.caption.model import ModelFolders
from adapter_llm.caption.outputs import merge, open_output
from adapter_llm.caption.workers import Share
from adapter_llm.processing import InputOptions
from adapter_llm.results import GenerationOptions
from adapter_llm.retrieval import RetrievalOptions

COUNT = 13


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for seed in range(COUNT):
        folders.picture(seed, 40 + seed, 50).save(folder / f"{seed:02}.png")
    return folder


@pytest.fixture(scope="module")
def model(weights, decoder):
    return ModelFolders.find(weights, str(decoder), device="cpu", dtype="float32")


@pytest.fixture
def run(pipe, model, tmp_path):
    """An outcome, the rows of the output, and the kinds that a model was loaded for."""

    def call(*given, output=tmp_path / "rows.jsonl", share=Share(), on_error="skip", keywords=("image", "imu"),
             writer=None, tokens=6, forced=None, resume=True, suffix=None, **options):  # fmt: skip
        options = CaptionOptions(**{"generation": GenerationOptions(max_new_tokens=tokens), "batch_size": 4, **options})
        sources = SourceOptions(keywords, forced, prompt_suffix=suffix)
        job = Job(model, [str(one) for one in given], sources, options, share, on_error)
        loaded = []

        def write(job, kinds, keep_content, inputs):
            loaded.append(kinds)
            return jobs.Captioner(pipe, job.model.identity, job.options, keep_content).captions(inputs)

        found = open_output(output, shard=share.number, resume=resume)
        try:
            outcome = run_job(job, found, writer=writer or write)
        finally:
            found.close()
        return outcome, rows_of(output), loaded

    return call


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def names(rows, status="ok"):
    return sorted(os.path.basename(row["id"]) for row in rows if row["status"] == status)


ALL = [f"{seed:02}.png" for seed in range(COUNT)]


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_every_input_has_the_caption_it_would_get_alone(run, pipe, media, batch_size):
    outcome, rows, loaded = run(media, batch_size=batch_size, prompt="What is this?")
    assert names(rows) == ALL and loaded == [{"image"}]
    for row in rows:
        single = pipe.result("What is this?", image=row["path"], max_new_tokens=6)
        assert (row["caption"], row["n_tokens"], row["finish_reason"]) == (
            single.text, single.n_tokens, single.finish_reason,
        )  # fmt: skip
    assert (outcome.captioned, outcome.kept, outcome.failed) == (COUNT, 0, 0)
    assert outcome.tokens == sum(row["n_tokens"] for row in rows) > 0 and outcome.seconds > 0


def test_what_is_finished_is_left_alone_and_no_model_is_loaded_for_it(run, media, tmp_path):
    run(media)
    before = (tmp_path / "rows.jsonl").read_bytes()
    outcome, _, loaded = run(media)
    assert (outcome.captioned, outcome.kept, loaded) == (0, COUNT, [])
    assert (tmp_path / "rows.jsonl").read_bytes() == before
    folders.picture(99).save(media / "new.png")
    outcome, rows, _ = run(media)
    assert (outcome.captioned, outcome.kept) == (1, COUNT) and names(rows) == [*ALL, "new.png"]
    outcome, rows, _ = run(media, resume=False)
    assert (outcome.captioned, outcome.kept) == (COUNT + 1, 0) and names(rows) == [*ALL, "new.png"]


def test_another_question_or_way_makes_new_rows(run, media, model, monkeypatch):
    run(media)
    for number, options in enumerate([{"prompt": "Why?"}, {"tokens": 5}, {"reading": InputOptions(pool="max")}], 2):
        outcome, rows, _ = run(media, **options)
        assert (outcome.captioned, outcome.kept, len(rows)) == (COUNT, 0, number * COUNT)
    outcome, rows, _ = run(media, prompt="Describe this picture.")  # what is asked where nothing is
    assert (outcome.captioned, outcome.kept) == (0, COUNT)


def test_bad_inputs_are_rows_and_tried_again(run, media, capsys):
    good = (media / "03.png").read_bytes()
    (media / "03.png").write_bytes(b"no picture")
    outcome, rows, _ = run(media, media / "missing.png")
    assert (outcome.captioned, outcome.failed) == (COUNT - 1, 2)
    assert names(rows, "error") == ["03.png", "missing.png"] and names(rows) == [*ALL[:3], *ALL[4:]]
    said = capsys.readouterr().err
    assert all(row["error"] in said for row in rows if row["status"] == "error") and said.count("\n") == 2
    (media / "03.png").write_bytes(good)
    outcome, rows, _ = run(media, media / "missing.png")
    assert (outcome.captioned, outcome.kept, outcome.failed) == (1, COUNT - 1, 1)
    assert names(rows, "error") == ["missing.png"] and names(rows) == ALL


def test_what_stands_for_nothing_is_told_and_counts(run, media, tmp_path, capsys):
    outcome, rows, _ = run(media, tmp_path / "*.gif")
    assert (outcome.captioned, outcome.failed, names(rows)) == (COUNT, 1, ALL) and len(rows) == COUNT
    assert "nothing matches" in capsys.readouterr().err
    outcome, rows, loaded = run(tmp_path / "*.gif", output=tmp_path / "none.jsonl")
    assert (outcome.captioned, outcome.failed, rows, loaded) == (0, 1, [], [])


def test_few_errors_are_told_and_all_are_rows(run, media, capsys):
    for number in range(30):
        (media / f"bad {number}.png").write_bytes(b"no")
    outcome, rows, _ = run(media)
    assert outcome.failed == 30 == len(names(rows, "error"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == jobs.TOLD + 1 and lines[-1] == "further errors are in the rows with status error alone"


def test_stopping_at_the_first_error(run, media):
    (media / "06.png").write_bytes(b"no picture")
    with pytest.raises(CaptionError, match=r"06.png.* is not a picture .*; with --on-error fail nothing more is done"):
        run(media, on_error="fail", batch_size=2, readers=1)
    (media / "06.png").unlink()
    outcome = run(media, on_error="fail")[0]
    assert outcome.kept > 0 and outcome.kept + outcome.captioned == COUNT - 1
    with pytest.raises(CaptionError, match="nothing matches"):
        run(media / "*.gif", on_error="fail")


@pytest.mark.parametrize("count", [2, 3])
def test_shares_make_the_same_rows(run, media, tmp_path, count):
    _, whole, _ = run(media)
    output = tmp_path / "shared.jsonl"
    outcomes = [run(media, output=output, share=Share(index, count))[0] for index in range(count)]
    assert sum(outcome.captioned for outcome in outcomes) == COUNT and all(one.captioned for one in outcomes)
    merge(output)

    def plain(rows):
        return sorted(json.dumps({**row, "seconds": 0}) for row in rows)

    assert plain(rows_of(output)) == plain(whole)


def test_shares_that_were_not_finished_are_taken_up_in_other_numbers(run, media, tmp_path):
    output = tmp_path / "shared.jsonl"
    first, *_ = run(media, output=output, share=Share(0, 3))
    second = [run(media, output=output, share=Share(index, 2))[0] for index in range(2)]
    assert first.captioned + sum(one.captioned for one in second) == COUNT
    assert sum(one.kept for one in second) == first.captioned > 0
    merge(output)
    assert names(rows_of(output)) == ALL


def test_only_the_trunks_of_what_is_left_are_asked_for(run, media, tmp_path):
    (media / "m.csv").write_text("time,ax,ay,az,gx,gy,gz\n" + "".join(f"{n / 50},1,2,3,4,5,6\n" for n in range(100)))
    assert run(media, keywords=("image",))[2] == [{"image"}]
    kinds = []

    def write(job, found, keep_content, inputs):
        kinds.append((found, [entry.keyword for entry in inputs]))
        yield []

    run(media / "m.csv", forced="imu", writer=write)
    run(media, forced="imu", writer=write)
    run(media / "00.png", prompt="Why?", writer=write)
    assert kinds == [({"imu"}, ["imu"]), ({"imu"}, ["imu"]), ({"image"}, ["image"])]


def test_a_list_that_comes_by_once(run, media, monkeypatch):
    """Nothing can be counted, and nothing is loaded for what is finished."""
    import io

    def listed():
        lines = "".join(f"{path}\n" for path in sorted(media.iterdir()))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))

    listed()
    outcome, rows, loaded = run("-")
    assert (outcome.captioned, loaded) == (COUNT, [None]) and names(rows) == ALL
    listed()
    outcome, rows, loaded = run("-")
    assert (outcome.captioned, outcome.kept, loaded) == (0, COUNT, [])
    listed()
    assert run("-", forced="image", prompt="Why?")[2] == [{"image"}]


def test_what_no_input_can_be_blamed_for_is_no_row(model, media, tmp_path):
    """One sentence, not a million rows."""
    options = CaptionOptions(retrieval=RetrievalOptions(weight=0.5))
    job = Job(model, [str(media)], SourceOptions(("image",)), options)
    output = open_output(tmp_path / "rows.jsonl")
    with pytest.raises(ValueError, match="there is no index to look into"):
        run_job(job, output, writer=write_here)
    output.close()
    assert rows_of(tmp_path / "rows.jsonl") == []


class Slow:
    """An output that remembers what it was given at once, and can be told to fail."""

    keeps_media = False

    def __init__(self, then=lambda rows: None):
        self.batches, self.then = [], then

    def finished(self, id, config_hash):
        return False

    def refuses(self, item):
        return f"{item.id} is in the way" if item.id.endswith("02.png") else None

    def write(self, done):
        self.batches.append([one.row.id for one in done])
        return self.then(done) or ()


def watched(pipe, model, media, output, **options):
    options = CaptionOptions(generation=GenerationOptions(max_new_tokens=4), **options)
    job = Job(model, [str(media)], SourceOptions(("image",)), options)

    def write(job, kinds, keep_content, inputs):
        return jobs.Captioner(pipe, job.model.identity, job.options, keep_content).captions(inputs)

    return run_job(job, output, writer=write)


def test_rows_are_written_batch_by_batch(pipe, model, media):
    output = Slow()
    watched(pipe, model, media, output, batch_size=3)
    assert sum(map(len, output.batches)) == COUNT and len(output.batches) > 2
    assert all(len(batch) >= 3 for batch in output.batches[:-1])


def test_rows_do_not_wait_for_others_for_long(pipe, model, media, monkeypatch):
    monkeypatch.setattr(jobs, "FLUSH", 0.0)
    output = Slow()
    watched(pipe, model, media, output, batch_size=COUNT, readers=1)
    assert len(output.batches) > 1


def test_what_an_output_refuses_is_not_captioned(pipe, model, media):
    errors = []
    output = Slow(lambda done: errors.extend(one.row for one in done if not one.row.ok))
    outcome = watched(pipe, model, media, output)
    assert (outcome.captioned, outcome.failed) == (COUNT - 1, 1)
    [row] = errors
    assert row.id.endswith("02.png") and row.error == f"{row.id} is in the way" and row.sha256 is None


@pytest.fixture
def keyboard():
    """Ctrl-C as it is in a terminal, also where the tests run in the background and it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_loses_no_finished_row_and_writes_none_twice(pipe, model, media, keyboard):
    def press(done):
        if len(output.batches) == 2:
            signal.raise_signal(signal.SIGINT)
            written.append(True)

    output, written = Slow(press), []
    with pytest.raises(KeyboardInterrupt):
        watched(pipe, model, media, output, batch_size=2)
    rows = [name for batch in output.batches for name in batch]
    assert written and len(rows) == len(set(rows)) and 4 <= len(rows) < COUNT


def test_ctrl_c_waits_until_rows_are_whole(keyboard):
    seen = []

    def write():
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            seen.append("whole")
        seen.append("never")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert seen == ["whole"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    thread = threading.Thread(target=lambda: undisturbed().__enter__() or seen.append("thread"))
    thread.start()
    thread.join()
    assert seen == ["whole", "thread"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with undisturbed():
        signal.raise_signal(signal.SIGINT)


def test_sigterm_waits_until_rows_are_whole():
    seen = []

    def write():
        with stopped_by_term():
            with undisturbed():
                signal.raise_signal(signal.SIGTERM)
                seen.append("whole")
            seen.append("never")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert seen == ["whole"] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_rows_are_written_while_an_input_does_not_come(run, media, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "FLUSH", 0.1)
    monkeypatch.setattr(captioners, "PATIENCE", 0.05)
    read, written = Captioner._read, []

    def slow(self, entry):
        if entry.path.endswith("03.png"):  # until all that can be written is
            end = time.monotonic() + 20
            while len(rows_of(tmp_path / "rows.jsonl")) < COUNT - 1 and time.monotonic() < end:
                time.sleep(0.01)
            written.append(len(rows_of(tmp_path / "rows.jsonl")))
        return read(self, entry)

    monkeypatch.setattr(Captioner, "_read", slow)
    outcome, rows, _ = run(media, batch_size=50)
    assert written == [COUNT - 1] and outcome.captioned == len(rows) == COUNT


def test_a_full_disk_ends_it(pipe, model, media):
    def full(done):
        raise OSError("no room")

    output = Slow(full)
    with pytest.raises(OSError, match="no room"):
        watched(pipe, model, media, output, batch_size=2)
    assert len(output.batches) == 1, "rows that may have been written are not written again"


def test_what_could_not_be_kept_is_no_caption(pipe, model, media, capsys):
    """It was captioned; while it was written something was in the way."""
    output = Slow(lambda done: [one.failed("it is in the way") for one in done if one.row.id.endswith("05.png")])
    outcome = watched(pipe, model, media, output)
    assert (outcome.captioned, outcome.failed) == (COUNT - 2, 2)
    assert "05.png: it is in the way" in capsys.readouterr().err


def test_a_broken_prompt_leaves_no_row_when_it_is_mended(run, media, pipe, tmp_path):
    ask = media / "03.ask"
    for words, expected in ((b"\xff", "error"), (b"Why?", "ok"), (b"\xff", "error"), (b"Why?", "ok")):
        ask.write_bytes(words)
        _, rows, _ = run(media, suffix=".ask")
        assert sorted(row["id"] for row in rows) == sorted({row["id"] for row in rows}) or words == b"\xff"
        assert [row["status"] for row in rows if "03" in row["id"]][-1] == expected
    assert len(rows) == COUNT and names(rows) == ALL


def test_the_summary():
    assert str(Outcome(8, 0, 0, 96, 4.0)) == "8 inputs: 8 captioned; 4.0 s, 2 captions/s, 24 tokens/s"
    assert str(Outcome(1, 0, 0, 5, 0.0)).startswith("1 input: 1 captioned; 0.0 s")
    assert str(Outcome(2, 30, 4, 10, 20.0)) == (
        "36 inputs: 2 captioned, 30 there already, 4 failed; 20.0 s, 0.1 captions/s, 0.5 tokens/s"
    )
    assert str(Outcome(0, 3, 0, 0, 0.0)) == "3 inputs: 0 captioned, 3 there already; 0.0 s"


def test_wrong_use(model):
    with pytest.raises(ValueError, match="on_error must be skip or fail, not 'ignore'"):
        Job(model, [], SourceOptions(), CaptionOptions(), on_error="ignore")


def test_to_say_that_files_are_missing_no_model_is_loaded(run, media, tmp_path):
    missing = [tmp_path / f"{number}.png" for number in range(3)]
    for given, expected in (([*missing], (0, 0)), ([*missing, media], (COUNT, 0)), ([*missing, media], (0, COUNT))):
        outcome, rows, loaded = run(*given)
        assert (outcome.captioned, outcome.kept, outcome.failed) == (*expected, 3)
        assert len(loaded) == (expected[0] > 0) and names(rows, "error") == ["0.png", "1.png", "2.png"]
    assert all("there is no file" in row["error"] for row in rows if row["status"] == "error")
