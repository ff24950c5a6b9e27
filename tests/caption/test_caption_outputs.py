"""Outputs: each row once, whatever happened before; nothing of anybody else's is touched."""

import json
import os
import tracemalloc
from dataclasses import replace

import pytest
from output_readers import FORMATS, NAMES, done, found

from adapter_llm.caption import rowlog, tarshards
from adapter_llm.caption.outputs import OutputError, OutputOptions, discard, format_of, merge, open_output
from adapter_llm.caption.rowlog import read_rows
from adapter_llm.caption.rows import COLUMNS, CaptionRow, config_hash

SMALL = OutputOptions(rows_a_part=4, samples_a_tar=2)


@pytest.fixture(params=FORMATS)
def form(request):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return request.param


@pytest.fixture
def path(tmp_path, form):
    return tmp_path / NAMES[form]


def write(path, form, *entries, shard=None, options=SMALL, batch=3):
    """Write what is not finished, a batch at a time; which rows that were."""
    output = open_output(path, form, shard=shard, options=options)
    left = [one for one in entries if not output.finished(one.row.id, one.row.config_hash)]
    try:
        for start in range(0, len(left), batch):
            assert not any(output.refuses(one.item) for one in left[start : start + batch])
            output.write(left[start : start + batch])
    finally:
        output.close()
    return [one.row.id for one in left]


def die(output):
    """What the system does for a process that was killed."""
    output._open.close()
    output._log._file.close()
    if getattr(output, "_file", None):
        output._file.close()


def ids(*numbers):
    return [f"q/{number}.jpg" for number in numbers]


def snapshot(path):
    files = [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file())
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def test_rows_are_there_and_stay(form, path):
    entries = [done(number) for number in range(9)]
    assert write(path, form, *entries) == ids(*range(9))
    wanted = [(one.row.id, "h1", "ok", one.row.caption) for one in entries]
    assert found(form, path) == wanted
    before = snapshot(path)
    assert write(path, form, *entries) == []
    assert snapshot(path) == before
    assert write(path, form, *entries, done(9), done(10)) == ids(9, 10)
    assert found(form, path)[:9] == wanted and len(found(form, path)) == 11
    assert not [name for name in os.listdir(path.parent) if name.endswith((".lock", ".partial"))]


def test_what_is_written_is_seen_by_the_next_process_without_a_close(form, path):
    output = open_output(path, form, options=SMALL)
    for numbers in ((0, 1, 2), (3,), (4, 5)):
        output.write([done(number) for number in numbers])
        sister = open_output(path, form, shard=1, options=SMALL)
        assert all(sister.finished(id, "h1") for id in ids(*range(numbers[-1] + 1)))
        assert not sister.finished(ids(numbers[-1] + 1)[0], "h1") and not sister.finished(ids(0)[0], "h2")
        sister.close()
    output.close()


def test_errors_are_tried_again_and_replaced(form, path):
    write(path, form, done(0), done(1, "bad"), done(2), done(3, "worse"), done(4))
    assert [row[2] for row in found(form, path)] == ["ok", "error", "ok", "error", "ok"]
    assert write(path, form, *(done(number) for number in range(4)), done(3, "worst")) == ids(1, 3, 3)
    rows = found(form, path)
    assert sorted(rows) == sorted((one.row.id, "h1", "ok", one.row.caption) for one in map(done, range(5)))
    write(path, form, done(7, "bad"))
    write(path, form, done(7, "still bad"), done(8))
    assert sorted(row[0] for row in found(form, path)) == sorted(ids(0, 1, 2, 3, 4, 7, 8))
    if form == "jsonl":
        assert [row.error for row in read_rows(path) if not row.ok] == ["still bad"]


def test_errors_that_nobody_tries_again_stay(form, path):
    write(path, form, done(0), done(1, "bad"))
    write(path, form, done(2))
    assert [row[:3:2] for row in found(form, path)] == [("q/0.jpg", "ok"), ("q/1.jpg", "error"), ("q/2.jpg", "ok")]


def test_other_prompts_make_rows_of_their_own(form, path):
    write(path, form, done(0), done(1, "bad"), done(2))
    assert write(path, form, done(0, config_hash="h2"), done(1, config_hash="h2")) == ids(0, 1)
    rows = [row[:3] for row in found(form, path)]
    if form == "txt":  # there is one text beside an input
        assert rows == [("q/2.jpg", "h1", "ok"), ("q/0.jpg", "h2", "ok"), ("q/1.jpg", "h2", "ok")]
        assert write(path, form, done(0), done(2)) == ids(0)
    else:
        first = [("q/0.jpg", "h1", "ok"), ("q/2.jpg", "h1", "ok")]
        assert rows == [*first, ("q/0.jpg", "h2", "ok"), ("q/1.jpg", "h2", "ok")]
        assert write(path, form, done(0), done(2)) == []


def test_an_error_goes_with_the_next_caption_however_it_is_asked_for(form, path):
    """A broken prompt fails under the hash of another: what is finished leaves no error of an earlier run behind."""
    write(path, form, done(0), done(1, "no prompt"), done(2, "no prompt"))
    write(path, form, done(1, config_hash="h2"))
    assert [row[:3] for row in found(form, path)] == [
        ("q/0.jpg", "h1", "ok"), ("q/2.jpg", "h1", "error"), ("q/1.jpg", "h2", "ok"),
    ]  # fmt: skip
    write(path, form, done(0, "no prompt", config_hash="h3"))
    assert ("q/0.jpg", "h3", "error") in [row[:3] for row in found(form, path)]
    write(path, form, done(0), done(1, config_hash="h2"))  # mended, and there is nothing to do
    assert {row[:3] for row in found(form, path)} == {
        ("q/0.jpg", "h1", "ok"), ("q/1.jpg", "h2", "ok"), ("q/2.jpg", "h1", "error"),
    }  # fmt: skip


def test_an_error_goes_when_shards_are_brought_together(form, path):
    write(path, form, done(0), done(1, "no prompt"))
    write(path, form, done(1, config_hash="h2"), shard=1)
    merge(path, form, SMALL)
    assert [row[:3] for row in found(form, path)] == [("q/0.jpg", "h1", "ok"), ("q/1.jpg", "h2", "ok")]


@pytest.mark.parametrize("shard", [None, 1])
def test_other_questions_of_the_same_run_may_fail(form, path, shard):
    if form == "txt":
        pytest.skip("one text an input")
    write(path, form, done(0, "too long", config_hash="h2"), done(0), done(0, "too long", config_hash="h3"),
          *(done(number) for number in range(1, 5)), shard=shard)  # fmt: skip
    merge(path, form, SMALL)
    rows = [row[:3] for row in found(form, path)]
    assert rows[:3] == [("q/0.jpg", "h2", "error"), ("q/0.jpg", "h1", "ok"), ("q/0.jpg", "h3", "error")]


def test_one_writer_at_a_time(form, path):
    output = open_output(path, form)
    with pytest.raises(OutputError, match="another process is writing"):
        open_output(path, form)
    open_output(path, form, shard=0).close()
    output.close()
    open_output(path, form).close()


def test_a_full_disk_keeps_what_is_finished(form, path, monkeypatch):
    entries = [done(number) for number in range(9)]

    def full(file, data):
        file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    output = open_output(path, form, options=SMALL)
    output.write(entries[:3])
    with monkeypatch.context() as patch:
        patch.setattr(rowlog, "write_all", full)
        patch.setattr(tarshards, "write_all", full)
        with pytest.raises(OutputError, match="No space left on device.*run again, what is finished is kept"):
            output.write(entries[3:6])
        assert not output.finished("q/3.jpg", "h1") and output.finished("q/2.jpg", "h1")
        if form == "webdataset":
            with pytest.raises(OutputError, match="No space left"):
                output.close()
    if form != "webdataset":
        output.close()
    assert write(path, form, *entries) == ids(*range(3, 9))
    assert sorted(row[0] for row in found(form, path)) == ids(*range(9))


def test_a_disk_that_is_full_when_rows_are_taken_out(form, path, monkeypatch):
    write(path, form, done(0, "bad"), done(1))
    before = sorted(found(form, path))
    output = open_output(path, form, options=SMALL)
    output.write([done(0)])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises((OutputError, ValueError), match="No space left on device"):
            output.close()
    assert before[1] in (found(form, path) if form == "jsonl" else [before[1]])
    assert write(path, form, done(0), done(1)) == []
    assert sorted(row[:3:2] for row in found(form, path)) == [("q/0.jpg", "ok"), ("q/1.jpg", "ok")]
    open_output(path, form).close()  # the lock was not kept


def test_shards_become_one_output_in_their_order(form, path):
    write(path, form, done(0), done(1, "bad"))
    outputs = [open_output(path, form, shard=shard, options=SMALL) for shard in (2, 0)]
    for shard, output in zip((2, 0), outputs, strict=True):
        output.write([done(10 * shard + number + 2) for number in range(3)])
    with pytest.raises(OutputError, match="another process is writing"):
        merge(path, form)
    outputs[1].write([done(1), done(5, "bad")])
    for output in outputs:
        output.close()
    assert write(path, form, *map(done, (0, 1, 2, 3, 4, 22, 23, 24))) == []  # finished wherever they are
    merge(path, form)
    rows = found(form, path)
    assert [row[0] for row in rows] == ids(0, 2, 3, 4, 1, 5, 22, 23, 24)
    assert [row[2] for row in rows].count("error") == 1
    before = snapshot(path)
    merge(path, form)
    assert snapshot(path) == before
    assert write(path, form, *map(done, (1, 5, 22)), shard=2) == ids(5)
    merge(path, form)
    assert [row[2] for row in found(form, path)] == ["ok"] * 9
    assert not [name for name in os.listdir(path.parent) if "shard-" in name]


def test_shards_without_a_first_output(form, path):
    write(path, form, done(1), shard=1)
    write(path, form, done(0), done(2, "bad"), shard=0)
    merge(path, form)
    assert [row[0] for row in found(form, path)] == ids(0, 2, 1)


def test_a_shard_whose_process_was_killed_is_merged(form, path):
    output = open_output(path, form, shard=3, options=SMALL)
    output.write([done(number) for number in range(5)])
    die(output)
    merge(path, form, SMALL)
    assert [row[0] for row in found(form, path)] == ids(*range(5))
    assert write(path, form, *map(done, range(6)), shard=3) == ids(5)


def test_an_output_is_begun_anew(form, path):
    write(path, form, *map(done, range(3)))
    write(path, form, *map(done, (3, 4)), shard=1)
    output = open_output(path, form, resume=False, options=SMALL)
    assert not any(output.finished(id, "h1") for id in ids(*range(5)))
    assert output.refuses(done(1).item) is None
    output.write([done(1)])
    output.close()
    assert [row[0] for row in found(form, path)] == ids(1)
    discard(path, form)
    assert not path.exists() or not [entry for entry in path.rglob("*") if entry.is_file()]
    discard(path, form)
    with pytest.raises(ValueError, match="discarded before the first of them opens it"):
        open_output(path, form, shard=1, resume=False)


def test_what_others_wrote_is_left_alone(form, path):
    if form == "jsonl":
        theirs = path
    else:
        path.mkdir()
        theirs = path / {"parquet": "part-00000.parquet", "txt": "captions.jsonl", "webdataset": "000000.tar"}[form]
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"id": ["x"]}), theirs)
    else:
        theirs.write_text('{"id": "x", "label": "dog"}\n')
    before = theirs.read_bytes()
    for resume in (True, False):
        with pytest.raises(OutputError, match="give another --output|take that line out"):
            open_output(path, form, resume=resume)
    assert theirs.read_bytes() == before
    assert not [entry for entry in path.parent.rglob("*") if entry.name.endswith(".lock")]


def test_places_that_cannot_be_written(form, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written|is a file, and this output is a folder"):
        open_output(tmp_path / "file" / NAMES[form], form)
    with pytest.raises(OutputError, match=r"cannot be|is a file|was not written by this command"):
        open_output(tmp_path if form == "jsonl" else tmp_path / "file", form)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_read_only(form, tmp_path):
    (tmp_path / "folder").mkdir(mode=0o555)
    with pytest.raises(OutputError, match="Permission denied.*give another --output"):
        open_output(tmp_path / "folder" / NAMES[form], form)


def test_names_that_are_no_text(form, path):
    strange = done(0)
    name = os.fsdecode(b"q/\xff\xfe.jpg")
    strange = replace(strange, row=replace(strange.row, id=name, path=name), item=replace(strange.item, name=name))
    write(path, form, strange, done(1))
    assert write(path, form, strange, done(1)) == []
    if form == "jsonl":
        assert [row.id for row in read_rows(path)] == [name, "q/1.jpg"]


def test_formats_by_name(tmp_path):
    assert [format_of(tmp_path / name) for name in ("a.jsonl", "b.PARQUET")] == ["jsonl", "parquet"]
    assert format_of(tmp_path / "a.parquet", "txt") == "txt"
    with pytest.raises(OutputError, match=r"ends in none of .jsonl, .parquet.*say --format txt, webdataset or parquet"):
        open_output(tmp_path / "captions")
    with pytest.raises(OutputError, match="there is no format 'xml'; there are jsonl, parquet, txt, webdataset"):
        open_output(tmp_path / "a.jsonl", "xml")
    with pytest.raises(ValueError, match="at least one row, sample or byte"):
        OutputOptions(samples_a_tar=0)


def test_rows_have_the_columns_of_the_design():
    assert COLUMNS == ("id", "path", "sha256", "prompt", "caption", "model", "config_hash", "generation", "n_tokens",
                       "finish_reason", "seconds", "status", "error")  # fmt: skip
    row = done(3).row
    assert CaptionRow.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    for change in ({"status": "fine"}, {"caption": None}, {"id": 3}):
        with pytest.raises(ValueError, match="a value is not of the kind|a row that is finished has no caption"):
            CaptionRow.from_dict({**row.to_dict(), **change})
    with pytest.raises(ValueError, match="the columns are"):
        CaptionRow.from_dict({"id": "x"})


def test_the_config_hash_is_of_all_that_counts_and_stable():
    given = dict(fingerprint="abc", prompt="What?", generation={"a": 1, "b": None}, reading={"keyword": "image"})
    first = config_hash(**given, dtype="float32")
    assert first == config_hash(**{**given, "generation": {"b": None, "a": 1}}, dtype="float32")
    assert first == "fd5a3081a8865e08"  # rows of earlier runs count
    changes = dict(fingerprint="abd", prompt="What", generation={"a": 2, "b": None}, reading={"keyword": "depth"})
    others = [config_hash(**{**given, name: value}, dtype="float32") for name, value in changes.items()]
    others.append(config_hash(**given, dtype="bfloat16"))
    assert len({first, *others}) == 6


def test_a_row_costs_little_memory(tmp_path):
    path, count = tmp_path / "out.jsonl", 20_000
    line = json.dumps(done(0).row.to_dict()) + "\n"
    path.write_text("".join(line.replace("q/0.jpg", f"some/photos/{number}.jpg") for number in range(count)))
    tracemalloc.start()
    output = open_output(path)
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert output.finished("some/photos/19999.jpg", "h1") and not output.finished("some/photos/20000.jpg", "h1")
    output.close()
    assert used < 160 * count
