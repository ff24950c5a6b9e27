"""Building an index, its own file, and what is wrong with others."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_llm.retrieval import FeatureIndex, FeatureIndexError
from adapter_llm.retrieval import files as index_files

N, E = 53, 7


@pytest.fixture
def vectors():
    return torch.randn(N, E)


@pytest.fixture
def names():
    return [f"pictures/{position} é\n.jpg" for position in range(N)]


@pytest.mark.parametrize("with_ids", [True, False])
def test_batches_build_one_index_in_memory_or_in_a_file(vectors, names, tmp_path, with_ids):
    def batches():
        for start in range(0, N, 10):
            yield (names[start : start + 10] if with_ids else None), vectors[start : start + 10].double()

    built = FeatureIndex.build(batches())
    written = FeatureIndex.build(batches(), tmp_path / "index.safetensors")
    for index in (built, written):
        assert torch.equal(index.vectors(), vectors)
        assert index.ids == (names if with_ids else None)
    assert torch.equal(written.search(vectors, 2)[1], built.search(vectors, 2)[1])
    assert os.listdir(tmp_path) == ["index.safetensors"]


@pytest.mark.parametrize("ids", [None, "names"])
def test_save_and_load(vectors, names, tmp_path, monkeypatch, ids):
    monkeypatch.setattr("adapter_llm.retrieval.index.FLOATS_AT_ONCE", 10 * E)  # in several steps
    ids = names if ids else None
    path = tmp_path / "index.safetensors"
    FeatureIndex(vectors, ids).save(path)
    loaded = FeatureIndex.load(path)
    assert torch.equal(loaded.vectors(), vectors) and loaded.ids == ids
    loaded.save(path)  # onto the file it is mapped from
    assert torch.equal(FeatureIndex.load(path).vectors(), vectors)
    tensors = load_file(path)  # any reader of safetensors can have it
    assert torch.equal(tensors.pop("vectors"), vectors)
    assert set(tensors) == ({"ids"} if ids else set())
    assert os.listdir(tmp_path) == ["index.safetensors"]


def test_paths_may_begin_at_home(vectors, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    index = FeatureIndex.build([(None, vectors)], "~/own")
    index.save("~/saved")
    index.to_faiss("~/knn.index")
    assert sorted(os.listdir(tmp_path)) == ["knn.index", "own", "saved"]
    opened = [FeatureIndex.open(f"~/{name}") for name in ("own", "saved", "knn.index")]
    opened += [FeatureIndex.load("~/own"), FeatureIndex.from_faiss("~/knn.index")]
    assert all(torch.equal(found.vectors(), vectors) for found in opened)


def test_ids_that_are_no_unicode_come_back(vectors, tmp_path):
    ids = [os.fsdecode(b"\xff.jpg"), *["x"] * (N - 1)]
    FeatureIndex(vectors, ids).save(tmp_path / "index")
    assert FeatureIndex.load(tmp_path / "index").ids == ids


def test_a_loaded_index_is_mapped_and_may_be_larger_than_memory(tmp_path):
    path, rows, width = tmp_path / "index", 2**21, 2**16  # 512 GB that take no room: the file has a hole
    header = {"__metadata__": {"format": index_files.FORMAT},
              "vectors": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, 4 * rows * width]}}  # fmt: skip
    try:
        with path.open("wb") as file:
            text = json.dumps(header).encode()
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + 4 * rows * width)
    except OSError:
        pytest.skip("the file system has no files with holes")
    index = FeatureIndex.load(path)
    assert (len(index), index.width) == (rows, width)
    assert torch.equal(index.take(torch.tensor([rows - 1])), torch.zeros(1, width))


@pytest.mark.parametrize("batches, message", [
    ([], "needs at least one vector"),
    ([(None, torch.zeros(0, E))], "lists of ids and vectors"),
    ([(None, torch.zeros(E))], r"lists of ids and vectors \(b, E\), not from None and vectors \(7,\)"),
    ([("ab", torch.zeros(2, E))], "lists of ids and vectors"),
    ([(["a"], torch.zeros(2, E))], "each of the 2 vectors of a batch needs an id"),
    ([(["a", 3], torch.zeros(2, E))], "needs an id that is a string"),
    ([(["a", "b\0"], torch.zeros(2, E))], "without zero bytes"),
    ([(None, torch.zeros(1, E)), (None, torch.zeros(1, E + 1))], "vectors of 7 numbers without ids, a later one of 8"),
    ([(["a"], torch.zeros(1, E)), (None, torch.zeros(1, E))], "7 numbers with ids, a later one of 7 without ids"),
    ([(["a", "b"], torch.tensor([[1.0], [float("nan")]]))], "the vector of b is not finite; leave it out"),
    ([(None, torch.tensor([[1.0], [float("inf")]]))], "the vector of row 1 is not finite"),
])  # fmt: skip
def test_batches_that_are_no_index(batches, message, tmp_path):
    for path in (None, tmp_path / "index"):
        with pytest.raises(FeatureIndexError, match=message):
            FeatureIndex.build(batches, path)
    assert os.listdir(tmp_path) == []


def test_an_interrupted_build_leaves_what_was_there(vectors, names, tmp_path):
    FeatureIndex(vectors, names).save(tmp_path / "index")

    def batches():
        yield names, vectors + 1
        raise FileNotFoundError(2, "No such file or directory", "gone.jpg")

    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        FeatureIndex.build(batches(), tmp_path / "index")
    assert torch.equal(FeatureIndex.load(tmp_path / "index").vectors(), vectors)
    assert os.listdir(tmp_path) == ["index"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
@pytest.mark.parametrize("method", ["save", "to_faiss"])
def test_a_full_disk_is_one_sentence(vectors, tmp_path, monkeypatch, method):
    """/dev/full takes nothing: what is written to it fails as on a full disk."""
    opened = Path.open

    def on_a_full_disk(self, mode="r", *args, **kwargs):
        return opened(Path("/dev/full") if "w" in mode else self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", on_a_full_disk)
    with pytest.raises(FeatureIndexError, match=r"index cannot be written \(No space left on device\); make room"):
        getattr(FeatureIndex(vectors), method)(tmp_path / "index")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there_is_one_sentence(vectors, tmp_path):
    with pytest.raises(FeatureIndexError, match=r"nowhere/index cannot be written \(No such file or directory\)"):
        FeatureIndex(vectors).save(tmp_path / "nowhere" / "index")


def cut(path):
    path.write_bytes(path.read_bytes()[:-3])


def longer(path):
    path.write_bytes(path.read_bytes() + b"x")


def foreign(path):
    save_file({"weight": torch.zeros(3, 2)}, path)


def with_more(path):
    save_file({"vectors": torch.zeros(3, 2), "extra": torch.zeros(1)}, path, {"format": index_files.FORMAT})


def in_half_precision(path):
    save_file({"vectors": torch.zeros(3, 2).half()}, path, {"format": index_files.FORMAT})


def with_one_id_missing(path):
    tensors = {"vectors": torch.zeros(3, 2), "ids": torch.tensor(list(b"a\0b\0"), dtype=torch.uint8)}
    save_file(tensors, path, {"format": index_files.FORMAT})


@pytest.mark.parametrize("damage, message", [
    (cut, "is cut off or no feature index"),
    (longer, "is cut off or no feature index"),
    (lambda path: path.write_bytes(b""), "is cut off or no feature index"),
    (lambda path: path.write_bytes(b"some text that is longer than eight bytes"), "is cut off or no feature index"),
    (foreign, "holds tensors and is no feature index"),
    (with_more, "holds extra, vectors where vectors"),
    (in_half_precision, "in float32 and ids are wanted"),
    (with_one_id_missing, "has 3 vectors of 2 numbers and 2 ids"),
    (lambda path: path.write_bytes(b"  <!DOCTYPE html><html>"), "is a web page, not an index; download the file"),
    (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    (lambda path: FeatureIndex(torch.ones(2, 3)).to_faiss(path), "read it with FeatureIndex.from_faiss"),
    (lambda path: path.unlink(), r"cannot be read \(No such file or directory\); check the path"),
])  # fmt: skip
def test_files_that_are_no_index(vectors, tmp_path, damage, message):
    path = tmp_path / "index"
    FeatureIndex(vectors).save(path)
    damage(path)
    with pytest.raises(FeatureIndexError, match=message) as caught:
        FeatureIndex.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_index(tmp_path):
    with pytest.raises(FeatureIndexError, match="cannot be read"):
        FeatureIndex.load(tmp_path)
