"""Flat indexes of faiss, read and written without it, and other kinds, flattened with it."""

import os
import struct
import sys

import pytest
import torch

from adapter_llm.retrieval import FeatureIndex, FeatureIndexError, flat

N, E = 19, 5
HEADER = 45  # bytes before the vectors, so floats are at odd addresses


@pytest.fixture
def vectors():
    return torch.randn(N, E)


@pytest.fixture
def path(vectors, tmp_path):
    FeatureIndex(vectors, [str(row) for row in range(N)]).to_faiss(tmp_path / "knn.index")
    return tmp_path / "knn.index"


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss is not installed, which is the extra retrieval")


def test_layout(path, vectors):
    data = path.read_bytes()
    assert data[:4] == b"IxFI" and len(data) == HEADER + 4 * N * E
    assert struct.unpack("<iqqq", data[4:32]) == (E, N, 2**20, 2**20)
    assert data[32] == 1 and struct.unpack("<iQ", data[33:45]) == (0, N * E)
    assert data[HEADER:] == vectors.numpy().tobytes()


def test_round_trip(path, vectors, monkeypatch, tmp_path):
    index = FeatureIndex.from_faiss(path)
    assert torch.equal(index.vectors(), vectors) and index.ids is None
    assert torch.equal(index.vectors(3, 7), vectors[3:7])
    assert torch.equal(index.take(torch.tensor([[2, 18]])), vectors[torch.tensor([[2, 18]])])
    monkeypatch.setattr("adapter_llm.retrieval.index.FLOATS_AT_ONCE", 4 * E)  # in several steps
    index.to_faiss(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    index.save(tmp_path / "ours")
    assert torch.equal(FeatureIndex.load(tmp_path / "ours").vectors(), vectors)
    assert set(os.listdir(tmp_path)) == {"knn.index", "again", "ours"}


def test_search_in_the_file_is_search_in_memory(path, vectors):
    queries = torch.randn(3, E)
    for chunk in (None, 1, 6):
        actual = FeatureIndex.from_faiss(path).search(queries, 4, chunk)
        expected = FeatureIndex(vectors).search(queries, 4)
        assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_floats_are_never_read_at_odd_addresses(path, vectors):
    for count in (1, 4, N):
        for _, rows in FeatureIndex.from_faiss(path)._steps(count):
            assert rows.data_ptr() % 4 == 0
    in_memory = FeatureIndex(vectors)
    assert next(in_memory._steps(N))[1].data_ptr() == vectors.data_ptr()  # and copied only where they must be


def test_the_file_is_mapped_and_may_be_larger_than_memory(tmp_path):
    path, rows, width = tmp_path / "knn.index", 2**21, 2**16  # 512 GB that take no room: the file has a hole
    try:
        with path.open("wb") as file:
            file.write(flat.header_of(rows, width))
            file.truncate(HEADER + 4 * rows * width)
    except OSError:
        pytest.skip("the file system has no files with holes")
    index = FeatureIndex.from_faiss(path)
    assert (len(index), index.width) == (rows, width)
    assert torch.equal(index.take(torch.tensor([rows - 1])), torch.zeros(1, width))


def edited(position, kind, value):
    def edit(data):
        return data[:position] + struct.pack(kind, value) + data[position + struct.calcsize(kind) :]

    return edit


@pytest.mark.parametrize("edit, message", [
    (lambda data: data[:-1], f"has {HEADER + 4 * N * E - 1} bytes and its header asks for {HEADER + 4 * N * E}"),
    (lambda data: data + b"\0", f"has {HEADER + 4 * N * E + 1} bytes"),
    (lambda data: data[:HEADER], f"has {HEADER} bytes and its header asks for"),
    (lambda data: data[: HEADER - 1], "ends within its header; download it again"),
    (lambda data: data[:4], "ends within its header"),
    (lambda data: data[:2], "is no index of faiss, it begins with b'Ix'"),
    (lambda data: b"", "is no index of faiss, it begins with b''"),
    (lambda data: b"PK\3\4" + data, "is no index of faiss, it begins with"),
    (lambda data: b"I am no index", "is no index of faiss, it begins with b'I am'"),
    (lambda data: b"\n<html>Sign in</html>", "is a web page, not an index; download the file itself"),
    (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (lambda data: b"IxF2" + data[4:], "is an index of distances, not of inner products"),
    (lambda data: b"IxFl" + data[4:], "is an index of distances, not of inner products"),
    (edited(4, "<i", E - 1), f"says {N} vectors of {E - 1} numbers, metric 0 and {N * E} numbers in all"),
    (edited(4, "<i", -E), "is damaged or empty"),
    (edited(8, "<q", N + 1), f"says {N + 1} vectors of {E} numbers"),
    (edited(8, "<q", 0), "is damaged or empty"),
    (edited(33, "<i", 1), "metric 1"),
    (edited(37, "<Q", 2**63), f"and {2**63} numbers in all"),
    (lambda data: flat.header_of(0, E), "is damaged or empty"),
    (lambda data: flat.header_of(N, 0), "is damaged or empty"),
])  # fmt: skip
def test_files_that_are_no_flat_index(path, edit, message):
    path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(FeatureIndexError, match=message) as caught:
        FeatureIndex.from_faiss(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FeatureIndexError, match=r"knn.index cannot be read \(No such file or directory\); check the"):
        FeatureIndex.from_faiss(tmp_path / "knn.index")


def test_other_kinds_name_the_extra_where_faiss_is_missing(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    path.write_bytes(b"IwFl" + path.read_bytes()[4:])
    message = r'not flat \(IwFl\), and to flatten it needs faiss; pip install "adapter-llm\[retrieval\]"'
    with pytest.raises(FeatureIndexError, match=message):
        FeatureIndex.from_faiss(path)


def test_faiss_writes_the_same_bytes_and_reads_them(faiss, path, vectors, tmp_path):
    index = faiss.IndexFlatIP(E)
    index.add(vectors.numpy())
    faiss.write_index(index, str(tmp_path / "theirs"))
    assert (tmp_path / "theirs").read_bytes() == path.read_bytes()
    assert torch.equal(torch.from_numpy(faiss.read_index(str(path)).reconstruct_n(0, N)), vectors)


@pytest.mark.parametrize("kind", ["IVF3,Flat", "HNSW4", "IVF3,SQ8", "PCAR4,IVF2,Flat", "Flat,IDMap", "PQ5x4"])
def test_other_kinds_are_flattened_by_faiss(faiss, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(flat, "ROWS_AT_ONCE", 17)  # in several steps
    vectors = torch.randn(300, E)
    index = faiss.index_factory(E, kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors.numpy())
    if kind.endswith("IDMap"):
        index.add_with_ids(vectors.numpy(), torch.arange(1000, 1300).numpy())
    else:
        index.add(vectors.numpy())
    faiss.write_index(index, str(tmp_path / "index"))
    if kind.endswith("IDMap"):
        with pytest.raises(FeatureIndexError, match=r"index \(IxMp\) cannot be flattened \(.*\); give a flat index"):
            FeatureIndex.from_faiss(tmp_path / "index")
        return
    found = FeatureIndex.from_faiss(tmp_path / "index").vectors()
    if kind in ("IVF3,Flat", "HNSW4"):
        assert torch.equal(found, vectors)
    else:  # what was compressed comes back roughly
        assert 0 < (found - vectors).abs().mean() < 0.6 * vectors.abs().mean()


def test_what_faiss_cannot_use_is_one_sentence(faiss, path, vectors, tmp_path):
    by_distance = faiss.index_factory(E, "IVF1,Flat", faiss.METRIC_L2)
    by_distance.train(vectors.numpy())
    faiss.write_index(by_distance, str(tmp_path / "distances"))
    empty = faiss.index_factory(E, "HNSW4", faiss.METRIC_INNER_PRODUCT)
    faiss.write_index(empty, str(tmp_path / "empty"))
    path.write_bytes(b"IwFl" + path.read_bytes()[4:])
    expected = {"distances": "not of inner products", "empty": "holds no vectors", "knn.index": "cannot be flattened"}
    for name, message in expected.items():
        with pytest.raises(FeatureIndexError, match=message) as caught:
            FeatureIndex.from_faiss(tmp_path / name)
        assert "\n" not in str(caught.value)
