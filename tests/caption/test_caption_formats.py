"""What is peculiar to each format of captions."""

import json
import os
import shutil
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from output_readers import done, found

from adapter_llm.caption.content import Content, LocalFile
from adapter_llm.caption.items import Input
from adapter_llm.caption.outputs import OutputError, OutputOptions, merge, open_output
from adapter_llm.caption.rowlog import RowLog, read_rows
from adapter_llm.caption.rows import COLUMNS, CaptionRow
from imagebind_encoder.media.source import MediaError

SMALL = OutputOptions(rows_a_part=4, samples_a_tar=2)


def write(path, form, *entries, options=SMALL):
    output = open_output(path, form, options=options)
    output.write(entries)
    output.close()


def row_of(line):
    values = json.loads(line)
    return CaptionRow.from_dict({name: values[name] for name in COLUMNS})


# JSON lines


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, None, done(0), done(1), done(2, "bad"))
    return path


def test_lines_are_plain_json_in_the_columns_order(lines):
    first, _, third = lines.read_bytes().splitlines()
    assert first.startswith(b'{"id": "q/0.jpg", "path": "q/0.jpg", "sha256": "')
    assert list(json.loads(third))[-3:] == ["seconds", "status", "error"] and json.loads(third)["error"] == "bad"
    write(lines, None, replace(done(3), row=replace(done(3).row, caption="eine Hündin \u2028 🐕")))
    assert "eine Hündin \u2028 🐕".encode() in lines.read_bytes()


def test_a_line_torn_anywhere_is_written_again(lines):
    whole = lines.read_bytes()
    last = whole[:-1].rindex(b"\n") + 1
    for cut in (*range(last, len(whole), 13), len(whole) - 1):
        lines.write_bytes(whole[:cut])
        assert [row.id for row in read_rows(lines)] == ["q/0.jpg", "q/1.jpg"]
        write(lines, None, done(2, "bad"))
        assert lines.read_bytes() == whole
    for cut in (1, 5, 30):  # and within the first line
        lines.write_bytes(whole[:cut])
        write(lines, None, done(0), done(1), done(2, "bad"))
        assert lines.read_bytes() == whole


def test_zeros_of_a_crashed_machine_are_cut_off(lines):
    whole = lines.read_bytes()
    for tail in (bytes(4096), bytes(100) + b'"}\n'):
        lines.write_bytes(whole + tail)
        open_output(lines).close()
        assert lines.read_bytes() == whole


@pytest.mark.parametrize("damage", [b"no row\n", b'{"id": "x"}\n', b"\n", bytes(20) + b"\n", b"[1]\n"])
def test_damage_in_the_middle_is_named_and_nothing_is_lost(lines, damage):
    first, rest = lines.read_bytes().split(b"\n", 1)
    lines.write_bytes(first + b"\n" + damage + rest)
    before = lines.read_bytes()
    with pytest.raises(OutputError, match=rf"out.jsonl is damaged, or not of this command, at byte {len(first) + 1} "):
        open_output(lines)
    assert lines.read_bytes() == before


def test_a_link_stays_a_link(lines, tmp_path):
    link = tmp_path / "link.jsonl"
    link.symlink_to(lines)
    write(link, None, done(2))
    assert link.is_symlink() and [row.status for row in read_rows(lines)] == ["ok"] * 3


def test_a_failure_in_the_middle_of_a_batch_writes_none_of_it(lines, monkeypatch):
    before = lines.read_bytes()
    output = open_output(lines)
    with pytest.raises(TypeError):
        output.write([done(5), replace(done(6), row=replace(done(6).row, generation={"x": object()}))])
    output.close()
    assert lines.read_bytes() == before


# parquet


def test_parts_have_their_size_and_types(tmp_path):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "out.parquet"
    output = open_output(path, options=SMALL)
    for number in range(0, 11, 2):
        output.write([done(number), done(number + 1)])
    assert sorted(entry.name for entry in path.iterdir() if entry.name[0] != ".") == [
        f"part-{number:05d}.parquet" for number in range(3)
    ]
    output.close()
    table = parquet.read_table(path)
    assert [len(parquet.read_table(part)) for part in sorted(path.iterdir())] == [4, 4, 4]
    kinds = {field.name: str(field.type) for field in table.schema}
    assert kinds.pop("n_tokens") == "int64" and kinds.pop("seconds") == "double" and set(kinds.values()) == {"string"}
    assert json.loads(table["generation"][0].as_py()) == {"max_new_tokens": 5, "temperature": 0.0}
    assert sorted(entry.name for entry in path.iterdir()) == [f"part-{number:05d}.parquet" for number in range(3)]


def test_a_row_that_waits_may_be_replaced(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    output = open_output(path, options=SMALL)
    for entry in (done(0, "bad"), done(1), done(0), done(2), done(3)):
        output.write([entry])
    output.close()
    rows = [(f"q/{number}.jpg", "ok") for number in (1, 0, 2, 3)]
    assert [row[:3:2] for row in found("parquet", path)] == rows
    assert [entry.name for entry in path.iterdir()] == ["part-00000.parquet"]


def test_killed_when_a_part_has_its_name_already(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    output = open_output(path, options=SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(RowLog, "remove", RowLog.release)
        output.write([done(number) for number in range(4)])
    output._log.release()
    output._open.close()
    assert (path / ".rows-00000.jsonl").exists() and (path / "part-00000.parquet").exists()
    write(path, None, done(4))
    assert [row[0] for row in found("parquet", path)] == [f"q/{number}.jpg" for number in range(5)]


def test_a_part_of_nothing_but_errors_goes_when_they_are_replaced(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    write(path, None, done(0, "bad"), done(1, "bad"))
    write(path, None, done(0), done(1))
    assert [entry.name for entry in path.iterdir()] == ["part-00001.parquet"]
    write(path, None, done(2))
    assert [row[0] for row in found("parquet", path)] == ["q/0.jpg", "q/1.jpg", "q/2.jpg"]


def test_a_damaged_part_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "out.parquet"
    write(path, None, *map(done, range(4)))
    part = path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-30])
    with pytest.raises(OutputError, match=r"part-00000.parquet is damaged .*; remove it, its rows are made again"):
        open_output(path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OutputError, match=r'pip install "adapter-llm\[parquet\]", or write .jsonl'):
        open_output(tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


# texts beside the inputs


@pytest.fixture
def photos(tmp_path):
    """A folder of files that are named as those of `done`."""
    folder = tmp_path / "photos"
    (folder / "q").mkdir(parents=True)
    for number in range(4):
        (folder / "q" / f"{number}.jpg").write_bytes(b"x")
    return folder


def test_texts_lie_beside_files_below_the_output(photos, tmp_path):
    write(photos, "txt", done(0, media=photos), done(1, media=photos))
    assert (photos / "q" / "0.txt").read_text() == "caption 0 by h1\n"
    assert sorted(os.listdir(photos)) == ["captions.jsonl", "q"]
    write(tmp_path, "txt", done(2, media=photos))  # the folder above
    assert (photos / "q" / "2.txt").exists()
    write(tmp_path / "elsewhere", "txt", done(3, media=photos), done(1, media=photos))
    assert (tmp_path / "elsewhere" / "q" / "3.txt").exists() and not (photos / "q" / "3.txt").exists()


def test_other_names_of_a_folder_are_the_same_folder(photos, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(photos)
    write(photos, "txt", done(0, media=tmp_path / "link"))
    assert (photos / "q" / "0.txt").exists()
    monkeypatch.chdir(photos)
    write(Path("."), "txt", done(1, media=Path(".")))
    assert (photos / "q" / "1.txt").exists()


def test_a_text_of_somebody_else_is_left_alone(photos):
    theirs = photos / "q" / "1.txt"
    theirs.write_text("a good dog\n")
    output = open_output(photos, "txt")
    assert output.refuses(done(0, media=photos).item) is None
    refused = output.refuses(done(1, media=photos).item)
    whose = "was written or changed by somebody else"
    assert refused == f"{theirs} {whose}; move it, or let it be replaced with --overwrite"
    output.write([done(1, media=photos), done(0, media=photos)])  # all the same
    output.close()
    assert [row.error for row in map(row_of, (photos / "captions.jsonl").read_text().splitlines())] == [refused, None]
    assert theirs.read_text() == "a good dog\n"
    output = open_output(photos, "txt", options=OutputOptions(overwrite=True))
    assert output.refuses(done(1, media=photos).item) is None
    output.write([done(1, media=photos)])
    output.close()
    assert theirs.read_text() == "caption 1 by h1\n"
    assert [row[2] for row in found("txt", photos)] == ["ok", "ok"]


def test_a_caption_that_somebody_mended_is_left_alone(photos):
    write(photos, "txt", done(0, media=photos), done(1, media=photos))
    (photos / "q" / "0.txt").write_text("a better caption\n")
    output = open_output(photos, "txt")
    assert "changed by somebody else" in output.refuses(done(0, config_hash="h2", media=photos).item)
    assert output.refuses(done(1, config_hash="h2", media=photos).item) is None
    output.close()
    assert (photos / "q" / "0.txt").read_text() == "a better caption\n"
    output = open_output(photos, "txt", resume=False)
    assert output.refuses(done(0, media=photos).item) and output.refuses(done(1, media=photos).item) is None
    output.close()
    assert not (photos / "q" / "1.txt").exists() and (photos / "q" / "0.txt").exists()


def test_one_text_is_of_one_input(photos):
    one, other = done(0, media=photos), done(0, media=photos)
    other = replace(other, row=replace(other.row, id="0.png"), item=replace(other.item, id="0.png", place=None))
    output = open_output(photos, "txt")
    assert output.refuses(one.item) is None and output.refuses(one.item) is None
    assert output.refuses(other.item).endswith("0.txt will be the caption of another input; rename one of the two")
    output.write([replace(other, row=replace(done(0, "refused").row, id="0.png"))])
    assert output.refuses(other.item) is not None
    output.write([one])
    assert "is the caption of another input; rename one of the two" in output.refuses(other.item)
    output.close()
    output = open_output(photos, "txt", options=OutputOptions(overwrite=True))
    assert "is the caption of another input; rename one of the two" in output.refuses(other.item)
    output.close()


def test_a_text_is_replaced_whenever_the_process_ends(photos, monkeypatch):
    write(photos, "txt", done(0, media=photos))
    output = open_output(photos, "txt")
    output.refuses(done(0, config_hash="h2", media=photos).item)
    with monkeypatch.context() as patch:
        patch.setattr(type(output), "_write_text", lambda self, path, caption: None)  # killed before it
        output.write([done(0, config_hash="h2", media=photos)])
    output.close()
    open_output(photos, "txt").close()
    assert (photos / "q" / "0.txt").read_text() == "caption 0 by h2\n"


def test_a_folder_that_begins_with_the_same_letters_is_another(photos, tmp_path):
    (tmp_path / "photos2" / "q").mkdir(parents=True)
    (tmp_path / "photos2" / "q" / "0.jpg").write_bytes(b"x")
    write(photos, "txt", done(0, media=tmp_path / "photos2"))
    assert (photos / "q" / "0.txt").exists() and not (tmp_path / "photos2" / "q" / "0.txt").exists()


def test_an_input_is_not_its_own_caption(tmp_path):
    """Words that are looked at end in .txt, too."""
    words = tmp_path / "words.txt"
    words.write_text("a dog barks")
    item = Input(str(words), str(words), "text", None, LocalFile(str(words)), "words.txt", str(words))
    one = replace(done(0), item=item)
    for overwrite in (False, True):
        output = open_output(tmp_path, "txt", options=OutputOptions(overwrite=overwrite))
        assert output.refuses(item).endswith("would be its own caption; give another --output, or --format jsonl")
        [failed] = output.write([one])
        output.close()
        assert not failed.row.ok and words.read_text() == "a dog barks"


def test_inputs_on_another_drive_lie_below_no_output(photos, tmp_path, monkeypatch):
    """Windows knows no path from one drive to another."""

    def drives(paths):
        raise ValueError("Paths don't have the same drive")

    output = open_output(tmp_path / "texts", "txt")
    monkeypatch.setattr(os.path, "commonpath", drives)
    assert output.refuses(done(0, media=photos).item) is None
    output.write([done(0, media=photos)])
    output.close()
    assert (tmp_path / "texts" / "q" / "0.txt").read_text() == "caption 0 by h1\n"


def test_texts_of_sister_processes_are_ours(photos):
    write(photos, "txt", done(0, media=photos), done(1, media=photos))
    output = open_output(photos, "txt", shard=1)
    entry = done(1, config_hash="h2", media=photos)
    assert output.refuses(entry.item) is None
    output.write([entry])
    output.close()
    merge(photos, "txt")
    assert [row[1:3] for row in found("txt", photos)] == [("h1", "ok"), ("h2", "ok")]


def test_texts_that_are_missing_come_back(photos):
    write(photos, "txt", done(0, media=photos), done(1, media=photos), done(2, "bad", media=photos))
    write(photos, "txt", done(1, config_hash="h2", media=photos))
    (photos / "q" / "0.txt").unlink()
    (photos / "q" / "1.txt").write_bytes(b"")  # as after a crash
    (photos / "q" / ".0.txt.77.partial").write_bytes(b"half")
    open_output(photos, "txt").close()
    assert (photos / "q" / "1.txt").read_text() == "caption 1 by h2\n"
    assert sorted(name for name in os.listdir(photos / "q") if "txt" in name) == ["0.txt", "1.txt"]
    assert (photos / "q" / "0.txt").read_text() == "caption 0 by h1\n"


def test_a_new_prompt_that_fails_leaves_the_text_that_is_there(photos):
    write(photos, "txt", done(0, media=photos))
    write(photos, "txt", done(0, "bad", config_hash="h2", media=photos))
    assert (photos / "q" / "0.txt").read_text() == "caption 0 by h1\n"
    output = open_output(photos, "txt")
    assert output.refuses(done(0, config_hash="h2", media=photos).item) is None  # it is still ours
    output.write([done(0, config_hash="h2", media=photos)])
    output.close()
    assert [row[1:3] for row in found("txt", photos)] == [("h2", "ok")]


# webdataset


def samples(path):
    with tarfile.open(path) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_samples_have_medium_text_and_row(tmp_path):
    odd = done(1)
    odd = replace(odd, item=replace(odd.item, name="a.b/c.d.x.png", path="https://host/c?x=1.5"))
    odd = replace(odd, content=Content.of(b"\x89PNG rest", "x"))
    write(tmp_path / "out", "webdataset", done(0), odd, done(2, "bad"), done(3))
    first, second = samples(tmp_path / "out" / "000000.tar"), samples(tmp_path / "out" / "000001.tar")
    keys = list(dict.fromkeys(name.rpartition("/")[2].partition(".")[0] for name in first))
    assert len(keys) == 2 and keys[0].startswith("0-") and keys[1].startswith("c_d_x-")
    names = list(first)
    assert names[0] == f"q/{keys[0]}.jpg" and names[3] == f"a.b/{keys[1]}.png" and names[4].endswith(".txt")
    assert first[names[0]] == done(0).content.source and first[names[1]] == b"caption 0 by h1"
    assert json.loads(first[names[2]]) == json.loads(json.dumps(done(0).row.to_dict()))
    assert len(second) == 3 and sorted(os.listdir(tmp_path / "out")) == ["000000.tar", "000001.tar", "captions.jsonl"]


def test_shards_end_at_a_size(tmp_path):
    options = OutputOptions(samples_a_tar=100, bytes_a_tar=12_000)
    write(tmp_path / "out", "webdataset", *map(done, range(9)), options=options)
    sizes = [entry.stat().st_size for entry in sorted((tmp_path / "out").glob("*.tar"))]
    assert len(sizes) > 2 and all(12_000 <= size < 17_000 for size in sizes[:-1])


def test_a_shard_that_was_removed_is_made_again(tmp_path):
    path = tmp_path / "out"
    write(path, "webdataset", *map(done, range(5)))
    (path / "000000.tar").unlink()
    output = open_output(path, "webdataset", options=SMALL)
    left = [number for number in range(5) if not output.finished(f"q/{number}.jpg", "h1")]
    assert left == [0, 1]
    output.write([done(0), done(1)])
    output.close()
    assert sorted(row[0] for row in found("webdataset", path)) == [f"q/{number}.jpg" for number in range(5)]


def test_a_shard_that_was_not_finished_is_when_others_are_merged(tmp_path):
    path = tmp_path / "out"
    output = open_output(path, "webdataset", options=SMALL)
    output.write([done(number) for number in range(3)])
    for open_file in (output._open, output._log._file, output._file):  # killed
        open_file.close()
    sister = open_output(path, "webdataset", shard=2, options=SMALL)
    sister.write([done(7)])
    sister.close()
    merge(path, "webdataset")
    write(path, "webdataset", done(8))
    assert [row[0] for row in found("webdataset", path)] == [f"q/{number}.jpg" for number in (0, 1, 2, 7, 8)]
    names = ["000000.tar", "000001.tar", "000002.tar", "captions.jsonl", "s00002-000000.tar"]
    assert sorted(os.listdir(path)) == names


def test_rows_of_sisters_do_not_hide_the_shard_that_is_being_written(tmp_path):
    path = tmp_path / "out"
    output = open_output(path, "webdataset", options=SMALL)
    output.write([done(0)])
    for open_file in (output._open, output._log._file, output._file):  # killed
        open_file.close()
    write(tmp_path / "other", "webdataset", done(7))
    (tmp_path / "other" / "000000.tar").rename(path / "s00002-000000.tar")
    rows = (tmp_path / "other" / "captions.jsonl").read_text().replace('"000000.tar"', '"s00002-000000.tar"')
    with (path / "captions.jsonl").open("a") as log:
        log.write(rows)
    write(path, "webdataset", done(8))
    assert [row[0] for row in found("webdataset", path)] == ["q/0.jpg", "q/7.jpg", "q/8.jpg"]


def test_a_sample_whose_medium_is_gone_is_told(tmp_path):
    """A film lies on the disk until it is written; it was captioned, and cannot be kept."""
    one = done(1)

    class Gone:
        def data(self):
            raise MediaError("'q/1.jpg' is gone")

    output = open_output(tmp_path / "shards", "webdataset")
    [failed] = output.write([done(0), replace(one, content=Gone()), done(2)])
    output.close()
    assert (failed.item, failed.row.status, failed.row.error) == (one.item, "error", "'q/1.jpg' is gone")
    assert [row[2] for row in found("webdataset", tmp_path / "shards")] == ["ok", "error", "ok"]


def test_a_file_that_changed_is_no_longer_the_one_that_was_captioned(tmp_path):
    film = tmp_path / "film.mp4"
    film.write_bytes(b"film")
    entry = replace(done(0), content=Content(film, Content.of(b"film", "x").sha256, 4))
    write(tmp_path / "out", "webdataset", entry)
    film.write_bytes(b"another")
    output = open_output(tmp_path / "out", "webdataset")
    output.write([replace(entry, row=replace(entry.row, id="x")), done(1)])
    output.close()
    rows = list(map(json.loads, (tmp_path / "out" / "captions.jsonl").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["ok", "error", "ok"]
    assert "was changed while it was captioned; run again" in rows[1]["error"] and rows[1]["caption"] is None


def test_a_dataset_of_somebody_else_is_not_begun_anew(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "000000.tar").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="holds other things than this command's captions"):
        open_output(path, "webdataset", resume=False)
    assert (path / "000000.tar").read_bytes() == b"theirs"
    shutil.rmtree(path)
    write(path, "webdataset", done(0))
    (path / "000007.tar").write_bytes(b"theirs")
    with pytest.raises(OutputError, match="holds other things than this command's captions"):
        open_output(path, "webdataset", resume=False)
    assert os.listdir(path) == ["000007.tar"]
