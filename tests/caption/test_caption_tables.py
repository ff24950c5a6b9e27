"""Tables of inputs: JSON lines, CSV, parquet; and tar shards."""

import gzip
import json
import os
import tarfile

import fsspec
import pytest
from output_readers import a_tar

from adapter_llm.caption.content import Content
from adapter_llm.caption.inputs import Input, Problem, SourceOptions, read_inputs
from adapter_llm.caption.table import PATHS
from imagebind_encoder.media.source import MediaError

KINDS = ("image", "video", "audio")
ROWS = [
    {"file_name": "a.jpg", "n": 1, "ask": "Who?"},
    {"file_name": "q/b.mp4", "n": 2, "ask": None},
    {"file_name": "https://host/c.jpg", "n": 3, "ask": " "},
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "q").mkdir(parents=True)
    (tmp_path / "data" / "a.jpg").write_bytes(b"picture")
    return tmp_path


def walk(*given, **options):
    return list(read_inputs(given, SourceOptions(**{"keywords": KINDS, **options})))


def message(*given, **options):
    [problem] = walk(*given, **options)
    assert isinstance(problem, Problem) and problem.id is None
    return problem.message


def save(path, rows):
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    else:
        separator = "\t" if path.suffix == ".tsv" else ","
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("\n".join(separator.join("" if v is None else str(v) for v in line) for line in lines))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_tables(place, suffix):
    table = f"data/t.{suffix}"
    save(place / table, ROWS)
    found = walk(table, prompt_column="ask")
    assert [one.id for one in found] == ["data/a.jpg", "data/q/b.mp4", "https://host/c.jpg"]
    assert [one.prompt for one in found] == ["Who?", None, None]
    assert [one.keyword for one in found] == ["image", "video", "image"]
    assert [one.name for one in found] == ["a.jpg", "q/b.mp4", "host/c.jpg"]
    assert found[0].read().source == b"picture" and found[0].place == "data/a.jpg"
    assert [(one.id, one.path) for one in walk(table, id_column="n")] == [
        ("1", "data/a.jpg"), ("2", "data/q/b.mp4"), ("3", "https://host/c.jpg"),
    ]  # fmt: skip
    assert [one.id for one in walk(table, path_column="ask", forced="image")][:1] == ["data/Who?"]
    whose = f"the first row of {table!r}" if suffix == "jsonl" else f"the table {table!r}"
    for option, said in (("path_column", "path"), ("id_column", "id"), ("prompt_column", "prompt")):
        assert message(table, **{option: "zzz"}) == (
            f"--{said}-column zzz: {whose} has no such column, but file_name, n, ask"
        )
    save(place / table, [{"label": "x", "n": 1}])
    assert message(table) == (
        f"{whose} has the columns label, n, of which none is called as paths and URLs usually are; "
        "name it with --path-column"
    )


@pytest.mark.parametrize("names, wanted", [
    (("url", "path"), "path"), (("id", "image_path"), "image_path"), (("video", "caption"), "video"),
    (("Image URL", "x"), None), (("imageUrl", "filename"), "filename"), (("image_url", "alt"), "image_url"),
    (("FILE-NAME", "x"), "FILE-NAME"), (("audio", "image"), "image"),
])  # fmt: skip
def test_usual_names_of_columns(place, names, wanted):
    assert len(set(PATHS)) == len(PATHS)
    save(place / "t.jsonl", [{name: f"{name}.jpg" for name in names}])
    [one] = walk("t.jsonl")
    assert one.id == f"{wanted}.jpg" if wanted else isinstance(one, Problem)


def test_a_column_tells_the_kind_where_the_suffix_does_not(place):
    rows = [{"video": "a"}, {"video": "b.gif"}, {"video": "c.jpg"}, {"video": "https://host/d"}]
    save(place / "t.jsonl", rows)
    assert [one.keyword for one in walk("t.jsonl")] == ["video", "video", "image", "video"]
    save(place / "t.jsonl", [{"path": "a"}, {"path": "b.xyz"}, {"path": "c.jpg"}])
    found = walk("t.jsonl")
    assert [isinstance(one, Problem) for one in found] == [True, True, False]
    assert found[1].id == "b.xyz" and "does not tell what it is; say it with --as" in found[1].message


def test_bad_lines_are_named_and_the_others_kept(place):
    lines = ['{"path": "a.jpg"}', "oops", '["a.jpg"]', "", '{"path": ""}', '{"path": 5}', '{"path": ["x"]}', "{" * 9999,
             '{"x": 1}', '{"path": "b.jpg"}']  # fmt: skip
    (place / "t.jsonl").write_text("\n".join(lines))
    found = walk("t.jsonl")
    assert [one.id for one in found if isinstance(one, Input)] == ["a.jpg", "b.jpg"]
    told = [one.message for one in found if isinstance(one, Problem)]
    assert [text.split(" of 't.jsonl' ")[0] for text in told] == [f"line {n}" for n in (2, 3, 5, 6, 7, 8, 9)]
    assert told[0].startswith("line 2 of 't.jsonl' is not a JSON object (Expecting value")
    assert told[2:5] == [
        "line 5 of 't.jsonl' has nothing in the column 'path'",
        "line 6 of 't.jsonl' has '5' in the column 'path', which is no path",
        "line 7 of 't.jsonl' has \"['x']\" in the column 'path', which is no path",
    ]


def test_ids_of_a_column_are_each_of_one_input(place):
    rows = [("1", "a.jpg"), ("1", "a.jpg"), ("2", "a.jpg"), ("1", "b.jpg"), (None, "c.jpg"), (7, "d.jpg")]
    save(place / "t.jsonl", [{"id": id, "path": path} for id, path in rows])
    found = walk("t.jsonl", id_column="id")
    assert [getattr(one, "message", one.id) for one in found] == [
        "1", "2", "the id '1' of 'b.jpg' is that of another input, too; give each its own",
        "line 5 of 't.jsonl' has no id in the column 'id'", "7",
    ]  # fmt: skip


def test_ids_of_a_column_with_several_prompts(place):
    rows = [("1", "a.jpg", "Who?"), ("1", "a.jpg", "Why?"), ("1", "b.jpg", "Who?"), ("1", "b.jpg", "Why?")]
    save(place / "t.jsonl", [{"id": id, "path": path, "ask": ask} for id, path, ask in rows])
    found = walk("t.jsonl", id_column="id", prompt_column="ask")
    assert [(one.id, one.prompt) for one in found[:2]] == [("1", "Who?"), ("1", "Why?")]
    assert ["that of another input" in one.message for one in found[2:]] == [True, True]


def test_csv_as_people_have_it(place):
    (place / "t.csv").write_bytes('\ufeffpath;note\n"a;b.jpg";"two\nlines"\nc.jpg;x;y\nd.jpg\n'.encode())
    found = walk("t.csv")
    assert [getattr(one, "message", one.id) for one in found] == [
        "a;b.jpg", "line 4 of 't.csv' has more values than the table has columns; quote those with commas", "d.jpg",
    ]  # fmt: skip
    (place / "t.csv").write_bytes(b"path\na.jpg\n\xff.jpg\n")
    assert walk("t.csv")[-1].message.startswith("the table 't.csv' cannot be read ('utf-8' codec")
    (place / "t.csv").write_bytes(b"")
    assert message("t.csv").startswith("the table 't.csv' has the columns (none)")
    (place / "t.csv").write_text('path\na.jpg\n"b\n.jpg"\n"c.jpg\n' + "d.jpg\n" * 9)
    assert [getattr(one, "message", one.id) for one in walk("t.csv")] == [
        "a.jpg", "b\n.jpg",
        "the row that begins in line 5 of 't.csv' cannot be read (a quote in it is not closed); what comes behind is "
        "missing",
    ]  # fmt: skip
    (place / "t.csv").write_text('path\na.jpg\n"c.jpg\n' + "d.jpg\n" * 40000)  # more than a value may hold
    [_, problem] = walk("t.csv")
    assert problem.message.startswith("the row that begins in line 3 of 't.csv' cannot be read (field larger than")


def test_a_column_that_no_table_has(place):
    save(place / "data/t.csv", ROWS)
    save(place / "data/u.csv", [{"path": "a.jpg"}])
    save(place / "data/v.jsonl", [{"path": "a.jpg", "ask": "Why?"}])

    def missing(*given, **options):
        return read_inputs(given, SourceOptions(keywords=KINDS, **options)).missing_column()

    said = "--prompt-column zzz: the table 'data/t.csv' has no such column, but file_name, n, ask"
    assert missing("data", "data/t.csv", "data/u.csv", prompt_column="zzz") == said
    assert missing("data/{t,u}.csv", prompt_column="zzz") == missing("data/*.csv", prompt_column="zzz") == said
    assert missing("data/v.jsonl", id_column="zzz").startswith("--id-column zzz: the first row of 'data/v.jsonl' has")
    assert missing("data/u.csv", path_column="zzz").startswith("--path-column zzz: the table 'data/u.csv' has no")
    assert missing("data/u.csv", "data/v.jsonl", prompt_column="ask") is None
    for given in (["data"], ["data/t.csv", "x.tar"], ["data/t.csv", "-"], ["data/none.csv"]):
        assert missing(*given, prompt_column="zzz") is None
    assert missing("data/t.csv") is None


def test_parquet_with_media_inside(place):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    pictures = [{"bytes": b"one", "path": "x/1.jpg"}, {"bytes": b"two", "path": None}, {"bytes": None, "path": "a.jpg"}]
    parquet.write_table(pyarrow.table({"image": pictures, "n": [1, 2, 3]}), place / "data" / "t.parquet")
    found = walk("data/t.parquet")
    assert [one.id for one in found] == ["data/t.parquet/x/1.jpg", "data/t.parquet/row-2", "data/a.jpg"]
    assert [one.read().source for one in found] == [b"one", b"two", b"picture"]
    assert [one.name for one in found] == ["data/t/x/1.jpg", "data/t/row-2", "a.jpg"]
    assert [one.id for one in walk("data/t.parquet", id_column="n")] == ["1", "2", "3"]
    parquet.write_table(pyarrow.table({"audio": [b"one", None]}), place / "s.parquet")
    first, second = walk("s.parquet")
    assert (first.keyword, first.id) == ("audio", "s.parquet/row-1")
    assert second.message == "row 2 of 's.parquet' has nothing in the column 'audio'"
    (place / "s.parquet").write_bytes(b"PAR1 nonsense")
    assert message("s.parquet").startswith("the table 's.parquet' is no whole parquet file")


def test_parquet_without_pyarrow(place, monkeypatch):
    import sys

    (place / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert 'pip install "adapter-llm[parquet]"' in message("t.parquet")


def test_far_tables_name_files_beside_them():
    files = fsspec.filesystem("memory")
    files.pipe("/data/t.csv", b"path\nq/a.jpg\n/abs.jpg\n")
    files.pipe("/data/q/a.jpg", b"picture")
    found = walk("memory://data/t.csv")
    assert [one.id for one in found][:1] == ["memory://data/q/a.jpg"] and found[0].read().source == b"picture"
    files.store.clear()


# tar shards

MEMBERS = {
    "1.jpg": b"one", "1.txt": b"What is 1?", "1.json": b'{"prompt": "Who?", "ask": 3}',
    "dir/2.x.png": b"two", "dir/2.txt": b"", ".hidden.jpg": b"-", "3.cls": b"7", "4.wav": b"four", "4.mp4": b"film",
}  # fmt: skip


def test_shards(place):
    a_tar(place / "s-0.tar", MEMBERS)
    found = walk("s-0.tar")
    assert [one.id for one in found] == ["s-0.tar/1.jpg", "s-0.tar/dir/2.x.png", "s-0.tar/4.wav", "s-0.tar/4.mp4"]
    assert [one.keyword for one in found] == ["image", "image", "audio", "video"]
    assert [one.read().source for one in found] == [b"one", b"two", b"four", b"film"]
    assert [one.name for one in found][:2] == ["s-0/1.jpg", "s-0/dir/2.x.png"] and found[0].place is None
    assert all(one.prompt is None for one in found)
    assert [one.prompt for one in walk("s-0.tar", prompt_suffix=".txt")][:2] == ["What is 1?", None]
    assert [one.prompt for one in walk("s-0.tar", prompt_suffix=".json")] == ["Who?", None, None, None]
    first = walk("s-0.tar", prompt_suffix=".json", prompt_column="ask")[0]
    assert first.id == "s-0.tar/1.jpg" and "'1.json' holds no prompt ('ask' is no text)" in first.message
    a_tar(place / "s-1.tar", {"9.jpg": b"nine"})
    for pattern in ("s-{0..1}.tar", "s-*.tar"):
        assert len(walk(pattern)) == 5 and walk(pattern)[-1].id == "s-1.tar/9.jpg"
    assert read_inputs(["s-0.tar"], SourceOptions(KINDS)).left_out is None
    assert len(walk("s-0.tar", "./s-0.tar")) == 4


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_packed_shards_are_read_as_they_come(place, mode):
    a_tar(place / f"s.tar.{mode}", MEMBERS, f"w:{mode}")
    found = walk(f"s.tar.{mode}", prompt_suffix=".txt")
    assert [(one.read().source, one.prompt) for one in found][:2] == [(b"one", "What is 1?"), (b"two", None)]
    assert len(found) == 4
    os.rename(place / f"s.tar.{mode}", place / "s.tar")  # whatever it is called
    assert walk("s.tar")[0].id == "s.tar/1.jpg" and walk("s.tar")[3].read().source == b"film"


def test_far_shards(place):
    files = fsspec.filesystem("memory")
    files.pipe("/sets/s-0.tar", a_tar(place / "x.tar", MEMBERS).read_bytes())
    found = walk("memory://sets/s-{0..0}.tar")
    assert [one.read().source for one in found] == [b"one", b"two", b"four", b"film"]
    assert found[0].id == "memory://sets/s-0.tar/1.jpg" and found[0].name == "sets/s-0/1.jpg"
    files.store.clear()


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_shard_cut_off_anywhere_is_named(place, mode):
    members = {f"{number}.jpg": bytes([number]) * 700 for number in range(5)}
    path = a_tar(place / "s.tar", members, "w")
    plain = path.read_bytes()
    for cut in range(0, 5 * 1536, 256):
        data = plain[:cut]
        path.write_bytes(gzip.compress(data) if mode == "w:gz" else data)
        *found, last = walk("s.tar")
        assert isinstance(last, Problem) and last.message.startswith("'s.tar' is damaged ("), cut
        assert last.message.endswith("what comes behind that place is missing: get it again")
        number = (cut + 1536 - 512 - 700) // 1536  # the filling behind the bytes may be missing
        whole, half = found[:number], found[number:]
        assert [one.read().data() for one in whole] == list(members.values())[: len(whole)]
        assert len(half) == (mode == "w" and 512 <= cut % 1536 < 512 + 700)
        for one in half:
            with pytest.raises(MediaError, match="is cut off within"):
                one.read()


def test_damage_within_a_shard_is_no_end(place):
    members = {f"{number}.jpg": bytes([number + 1]) * 700 for number in range(5)}
    path = a_tar(place / "s.tar", members)
    whole = path.read_bytes()
    for damage in (bytes(1536), b"x" * 1536):
        path.write_bytes(whole[:3072] + damage + whole[4608:])
        *found, last = walk("s.tar")
        assert [one.read().data() for one in found] == list(members.values())[:2]
        assert "'s.tar' is damaged (at byte 3" in last.message
    path.write_bytes(whole[:3072] + b"x" + whole[3073:])
    assert "bad checksum" in walk("s.tar")[-1].message
    path.write_bytes(b"no tar at all")
    assert message("s.tar").startswith("'s.tar' is damaged (")
    a_tar(path, {"x.txt": b"words"})
    assert message("s.tar") == "'s.tar' holds no member of a kind that these weights take"


def test_a_shard_that_changes_while_it_is_read(place):
    path = a_tar(place / "s.tar", MEMBERS)
    found = walk("s.tar")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(MediaError, match=r"'s.tar' is cut off within 'dir/2.x.png'; get it again"):
        found[1].read()
    path.unlink()
    with pytest.raises(MediaError, match="'s.tar' cannot be read"):
        found[0].read()


def test_links_and_folders_in_shards_are_passed_over(place):
    with tarfile.open(place / "s.tar", "w") as archive:
        for name, kind in (("d.jpg", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert message("s.tar") == "'s.tar' holds no member of a kind that these weights take"


def test_content_says_what_is_wrong_with_it(monkeypatch):
    from imagebind_encoder.media.source import Limits

    monkeypatch.setattr("adapter_llm.caption.content.DEFAULT_LIMITS", Limits(max_bytes=5))
    with pytest.raises(MediaError, match="'x.jpg' is larger than the limit of 5 bytes"):
        Content.of(b"123456", "x.jpg")
