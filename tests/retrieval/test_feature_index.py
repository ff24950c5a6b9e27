"""FeatureIndex: exact neighbours, whatever the chunk and the backend."""

import subprocess
import sys

import pytest
import torch

from adapter_llm.retrieval import FeatureIndex, FeatureIndexError

N, E, B = 53, 7, 5


@pytest.fixture
def vectors():
    return torch.randn(N, E)


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss is not installed, which is the extra retrieval")


@pytest.fixture(params=["torch", "faiss"])
def faiss_or_torch(request):
    if request.param == "faiss":
        request.getfixturevalue("faiss")
    return request.param


def brute_force(vectors, queries, k):
    """Every score in float64, all of them sorted; equal ones in the order of their positions."""
    scores = (queries.double() @ vectors.double().T).float()
    found, positions = scores.sort(dim=1, descending=True, stable=True)
    return found[:, :k], positions[:, :k]


@pytest.mark.parametrize("k", [1, 4, N, 3 * N])
def test_neighbours_are_those_of_all_scores_sorted(vectors, k):
    queries = torch.randn(B, E)
    scores, positions = FeatureIndex(vectors).search(queries, k)
    expected, places = brute_force(vectors, queries, k)
    assert positions.shape == (B, min(k, N))
    assert torch.equal(positions, places) and torch.equal(scores, expected)


@pytest.mark.parametrize("chunk", [1, 2, 13, N - 1, N, 1000])
def test_answers_do_not_depend_on_the_chunk(vectors, chunk):
    vectors[30:34] = vectors[3]  # equal scores too
    index, queries = FeatureIndex(vectors), torch.cat([torch.randn(B, E), vectors[3:4]])
    scores, positions = index.search(queries, 6)
    in_chunks = index.search(queries, 6, chunk)
    assert torch.equal(in_chunks[0], scores) and torch.equal(in_chunks[1], positions)
    assert positions[-1, :5].tolist() == [3, 30, 31, 32, 33]


def test_near_ties_are_ordered_by_their_exact_scores():
    """In float32 these scores are noise of their products' order; the winner must not be drawn by lot."""
    width, query = 1024, torch.rand(1, 1024) + 1
    vectors = torch.ones(9, width)
    vectors[torch.arange(9), torch.arange(9)] += torch.tensor([3, 1, 4, 8, 5, 7, 2, 6, 0]) * 1e-6 * 64
    answer, exact = FeatureIndex(vectors).search(query, 3, chunk=2), brute_force(vectors, query, 3)
    assert torch.equal(answer[0], exact[0]) and torch.equal(answer[1], exact[1])


def test_each_query_is_alone(vectors, monkeypatch):
    index, queries = FeatureIndex(vectors), torch.randn(11, E)
    whole = index.search(queries, 4)
    alone = [index.search(query[None], 4) for query in queries]
    monkeypatch.setattr("adapter_llm.retrieval.index.QUERIES_AT_ONCE", 3)
    in_blocks = index.search(queries, 4)
    for part in range(2):
        assert torch.equal(torch.cat([answer[part] for answer in alone]), whole[part])
        assert torch.equal(in_blocks[part], whole[part])
    none = index.search(queries[:0], 4)
    assert none[0].shape == none[1].shape == (0, 4)


def test_memory_of_a_search_is_bounded(vectors, monkeypatch):
    monkeypatch.setattr("adapter_llm.retrieval.index.FLOATS_AT_ONCE", 64)
    index, queries, sizes = FeatureIndex(vectors), torch.randn(B, E), []
    nearest = index._nearest

    def watched(queries, rows, count):
        sizes.append(max(rows.numel(), len(queries) * len(rows)))
        return nearest(queries, rows, count)

    monkeypatch.setattr(index, "_nearest", watched)
    _, positions = index.search(queries, 4)
    assert len(sizes) > 1 and max(sizes) <= 64
    assert torch.equal(positions, brute_force(vectors, queries, 4)[1])
    wide = torch.randn(20, E)  # more queries than a vector has numbers: scores are what fills memory
    sizes.clear()
    index.search(wide, 4)
    assert max(sizes) <= 64


def test_many_neighbours_are_taken_a_few_at_a_time(vectors, monkeypatch):
    monkeypatch.setattr("adapter_llm.retrieval.index.FLOATS_AT_ONCE", 3 * E)
    index, queries, sizes = FeatureIndex(vectors), torch.randn(2, E), []
    take = index.take
    monkeypatch.setattr(index, "take", lambda positions: sizes.append(len(positions)) or take(positions))
    scores, positions = index.search(queries, N)
    assert max(sizes) == 3 and sum(sizes) == 2 * N
    torch.testing.assert_close(scores, (queries @ vectors.T).gather(1, positions))


def test_queries_of_any_float_type_are_read_as_float32_and_without_gradients(faiss_or_torch, vectors):
    index = FeatureIndex(vectors, backend=faiss_or_torch)
    for queries in (torch.randn(B, E).half(), torch.randn(B, E).double(), torch.randn(B, E).requires_grad_()):
        actual, expected = index.search(queries, 4), brute_force(vectors, queries.detach().float(), 4)
        assert torch.equal(actual[1], expected[1]) and torch.equal(actual[0], expected[0])
        assert not actual[0].requires_grad


@pytest.mark.parametrize("mapped", [False, True])
def test_faiss_gives_equal_answers(faiss, vectors, tmp_path, mapped):
    index = FeatureIndex(vectors, backend="faiss")
    if mapped:
        index.to_faiss(tmp_path / "knn.index")
        index = FeatureIndex.from_faiss(tmp_path / "knn.index", backend="faiss")
    for queries in (torch.randn(B, E), torch.randn(40, E)):  # faiss changes its method with many queries
        for k, chunk in ((1, None), (6, 7), (3 * N, None)):
            expected = FeatureIndex(vectors).search(queries, k)
            actual = index.search(queries, k, chunk)
            assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])


def test_every_way_to_an_index_keeps_the_backend(faiss, vectors, tmp_path):
    ways = (
        lambda: FeatureIndex.build([(None, vectors)], backend="faiss"),
        lambda: FeatureIndex.build([(None, vectors)], tmp_path / "index", backend="faiss"),
        lambda: FeatureIndex.load(tmp_path / "index", backend="faiss"),
    )
    assert [way().backend for way in ways] == ["faiss"] * 3


def test_faiss_that_is_not_installed_is_named_with_its_extra(vectors, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "faiss", None)
    FeatureIndex(vectors).save(tmp_path / "index")
    for build in (
        lambda: FeatureIndex(vectors, backend="faiss"),
        lambda: FeatureIndex.load(tmp_path / "index", backend="faiss"),
    ):
        with pytest.raises(FeatureIndexError, match=r'pip install "adapter-llm\[retrieval\]"'):
            build()
    with pytest.raises(FeatureIndexError, match="there is no backend 'annoy'; there are torch, faiss"):
        FeatureIndex(vectors, backend="annoy")


def test_taking_and_copying_vectors(vectors):
    index = FeatureIndex(vectors)
    assert (len(index), index.width) == (N, E)
    positions = torch.tensor([[3, 0], [N - 1, 3]])
    assert torch.equal(index.take(positions), vectors[positions])
    assert torch.equal(index.vectors(), vectors)
    assert torch.equal(index.vectors(4, 9), vectors[4:9])
    index.vectors()[:] = 0
    assert vectors.any() and torch.equal(index.vectors(), vectors)


@pytest.mark.parametrize("queries", [torch.zeros(2, E + 1), torch.zeros(E), torch.zeros(1, 2, E)])
def test_queries_of_another_width_are_refused(vectors, queries):
    with pytest.raises(FeatureIndexError, match=r"holds vectors of 7 numbers .* built with the same encoder"):
        FeatureIndex(vectors).search(queries, 3)
    with pytest.raises(FeatureIndexError, match="at least one neighbour, not 0"):
        FeatureIndex(vectors).search(torch.zeros(2, E), 0)


def test_importing_retrieval_loads_neither_faiss_nor_transformers():
    code = "import sys, adapter_llm.retrieval; print(sorted({'faiss', 'transformers', 'timm'} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert answer.stdout.strip() == "[]", answer.stderr
