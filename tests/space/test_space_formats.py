"""Files of vectors: what stands in them, that they come back as they were, and that others are left alone."""

import json

import numpy
import pytest
import torch

from adapter_llm.retrieval import FeatureIndex
from adapter_llm.space import formats as formats_module
from adapter_llm.space.files import MediaFile
from adapter_llm.space.formats import COLUMNS, format_of
from adapter_llm.space.index import IndexFile
from adapter_llm.space.records import OutputError, Record, Row

FILES = (
    MediaFile("photos/a.png", "image", 100, 1_700_000_000_123_456_789),
    MediaFile("long.wav", "audio", 2**40, 0),
    MediaFile("näh\udcff\n.txt", "text", 1, -5),  # a name that is no UTF-8, and more than a line
)


class Stored(list):
    rows = 5


def records(tokens=None):
    shape = (7,) if tokens is None else (tokens, 7)
    numbers = numpy.random.default_rng(1)

    def vectors(rows):
        return numbers.normal(size=(rows, *shape)).astype(numpy.float32)

    spans = ((0.0, 2.5), (1.25, 3.75), (1.5, 4.0))
    parts = zip(FILES, ((), spans, ()), (1, 3, 1), strict=True)
    return Stored(Record(file, places, vectors(rows)) for file, places, rows in parts)


def formats(path):
    return IndexFile("abc") if path.suffix == ".index" else format_of(path)


@pytest.fixture(params=["jsonl", "npz", "parquet", "index"])
def output(request, tmp_path):
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"out.{request.param}"


@pytest.mark.parametrize("tokens", [None, 4])
def test_records_come_back_bit_for_bit(output, tokens):
    if output.suffix == ".index" and tokens is None:
        pytest.skip("an index has all class tokens")
    written = records(tokens)
    formats(output).write(output, written, "hash1")
    made, found = formats(output).read(output)
    found = list(found)
    assert made == "hash1"
    wanted = [record.file for record in written]
    if output.suffix == ".parquet":
        wanted[2] = MediaFile("näh\\udcff\n.txt", "text", 1, -5)
    assert [record.file for record in found] == wanted
    assert [record.spans for record in found] == [record.spans for record in written]
    for one, other in zip(found, written, strict=True):
        assert one.vectors.dtype == numpy.float32
        numpy.testing.assert_array_equal(one.vectors, other.vectors)
    assert [path.name for path in output.parent.iterdir()] == [output.name]


@pytest.mark.parametrize("content", [b"", b"{}\n", b"[1]\n", b"words of somebody\n", b"PK\x03\x04 not really", b"PAR1"])
def test_a_strange_file_is_refused(output, content):
    output.write_bytes(content)
    with pytest.raises(OutputError, match="is there and was not written by this command"):
        formats(output).read(output)
    assert output.read_bytes() == content


def test_a_strange_table_is_refused(tmp_path):
    numpy.savez(tmp_path / "x.npz", embedding=numpy.ones((2, 3)))
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "a", "embedding": [1.0]}) + "\n")
    for name in ("x.npz", "x.jsonl"):
        with pytest.raises(OutputError, match="was not written by this command"):
            format_of(tmp_path / name).read(tmp_path / name)


def test_a_strange_parquet_is_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [1]}), tmp_path / "x.parquet")
    with pytest.raises(OutputError, match="was not written by this command"):
        format_of(tmp_path / "x.parquet").read(tmp_path / "x.parquet")


def test_an_index_without_entries_is_refused(tmp_path):
    FeatureIndex(torch.ones(2, 3), ["a", "b"]).save(tmp_path / "x")
    with pytest.raises(OutputError, match="was not written by this command"):
        IndexFile("abc").read(tmp_path / "x")


def test_arrays_of_an_npz(tmp_path):
    written = records()
    format_of(tmp_path / "x.npz").write(tmp_path / "x.npz", written, "hash1")
    with numpy.load(tmp_path / "x.npz") as arrays:  # without pickle
        assert set(arrays) == {"ids", "embedding", *COLUMNS[1:]}
        assert arrays["ids"].tolist() == [
            "photos/a.png", "long.wav#t=0,2.5", "long.wav#t=1.25,3.75", "long.wav#t=1.5,4", "näh\udcff\n.txt"
        ]  # fmt: skip
        assert arrays["modality"].tolist() == ["image", "audio", "audio", "audio", "text"]
        numpy.testing.assert_array_equal(arrays["start"], [numpy.nan, 0, 1.25, 1.5, numpy.nan])
        numpy.testing.assert_array_equal(arrays["end"], [numpy.nan, 2.5, 3.75, 4, numpy.nan])
        numpy.testing.assert_array_equal(arrays["embedding"], numpy.concatenate([r.vectors for r in written]))
        assert arrays["embedding"].dtype == numpy.float32
        assert set(arrays["config_hash"].tolist()) == {"hash1"}


def test_lines_of_a_jsonl(tmp_path):
    format_of(tmp_path / "x.jsonl").write(tmp_path / "x.jsonl", records(), "hash1")
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text("ascii").splitlines()]
    assert [set(line) for line in lines] == [{*COLUMNS, "embedding"}] * 5
    assert lines[2]["start"] == 1.25 and lines[0]["start"] is None and lines[0]["id"] == "photos/a.png"


def test_columns_of_a_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for tokens in (None, 4):
        format_of(tmp_path / "x.parquet").write(tmp_path / "x.parquet", records(tokens), "hash1")
        table = parquet.read_table(tmp_path / "x.parquet")
        assert table.column_names == [*COLUMNS, "embedding"]
        one = pyarrow.list_(pyarrow.float32())
        assert table.schema.field("embedding").type == (one if tokens is None else pyarrow.list_(one))
        assert table["end"].to_pylist() == [None, 2.5, 3.75, 4, None]
        found = numpy.array(table["embedding"].to_pylist(), numpy.float32)
        numpy.testing.assert_array_equal(found, numpy.concatenate([r.vectors for r in records(tokens)]))


def test_more_rows_than_go_into_one_batch(output, monkeypatch):
    monkeypatch.setattr("adapter_llm.space.formats.ROWS_AT_ONCE", 2)
    formats(output).write(output, records(2), "hash1")
    found = list(formats(output).read(output)[1])
    assert [len(record.vectors) for record in found] == [1, 3, 1]
    numpy.testing.assert_array_equal(found[1].vectors, records(2)[1].vectors)


def test_parquet_without_its_library(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(OutputError) as caught:
        format_of(tmp_path / "x.parquet").check({1})
    assert str(caught.value) == 'parquet needs pyarrow; pip install "adapter-llm[parquet]", or write .npz or .jsonl'


def test_one_array_has_one_number_of_tokens(tmp_path):
    with pytest.raises(OutputError, match="these inputs have 3 and 4 class tokens, and one array holds one number"):
        format_of(tmp_path / "x.npz").check({4, 3})
    format_of(tmp_path / "x.npz").check({3})
    format_of(tmp_path / "x.jsonl").check({4, 3})


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(OutputError, match=r"ends in none of \.jsonl, \.npz, \.parquet"):
        format_of(tmp_path / "x.csv")
    assert type(format_of(tmp_path / "X.NPZ")) is type(format_of(tmp_path / "x.npz"))


def test_a_folder_that_is_not_there_is_one_sentence(output):
    place = output.parent / "nowhere" / output.name
    with pytest.raises(ValueError, match="cannot be written .*; make room, or give another path"):
        formats(place).write(place, records(2), "hash1")


@pytest.mark.parametrize("span, name", [
    (None, "a.wav"), ((0.0, 2.0), "a.wav#t=0,2"), ((10.5, 12.25), "a.wav#t=10.5,12.25"),
    ((36000.024, 36002.1), "a.wav#t=36000.024,36002.1"), ((100.0, 200.0), "a.wav#t=100,200"),
])  # fmt: skip
def test_ids_say_which_stretch(span, name):
    assert Row(MediaFile("a.wav", "audio", 1, 1), span, None).id == name


def test_one_table_has_one_number_of_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(formats_module, "_pyarrow", lambda: None)
    with pytest.raises(OutputError, match="these inputs have 3 and 4 class tokens, and one table holds one number"):
        format_of(tmp_path / "x.parquet").check({4, 3})
    format_of(tmp_path / "x.parquet").check({3})
