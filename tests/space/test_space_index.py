"""Searching an index of inputs: the nearest by the one rule, whatever they are of, also in older files."""

import pytest
import tiny_space as tiny
import torch
from torch.nn import functional as F

from adapter_llm.processing import InputOptions
from adapter_llm.retrieval import FeatureIndex, FeatureIndexError, RetrievalOptions, blend
from adapter_llm.retrieval.files import read_entries
from adapter_llm.space import combine, similarity, vector_of
from adapter_llm.space import index as module
from adapter_llm.space.files import find_media
from adapter_llm.space.index import Hit, IndexFile, SpaceIndex
from adapter_llm.space.job import EmbedOptions, run_job


def build(embedder, media, path, **options):
    found = find_media([str(media)], tiny.KINDS)
    run_job(embedder, found, path, IndexFile(embedder.fingerprint), EmbedOptions(tokens=True, device="cpu", **options))
    return SpaceIndex.open(path)


@pytest.fixture
def index(embedder, media, tmp_path):
    return build(embedder, media, tmp_path / "all.index")


def test_a_search_is_by_the_cosine_of_embeds_vectors(embedder, index, media):
    files = find_media([str(media)], tiny.KINDS).files
    vectors = torch.stack([embedder.embed(**{file.keyword: media / file.path}) for file in files])
    for file, query in zip(files, vectors, strict=True):
        scores = similarity(query, vectors)
        hits = index.search(query, top=20)
        assert [hit.rank for hit in hits] == list(range(1, 12))
        assert [hit.path for hit in hits] == [files[place].path for place in scores.argsort(descending=True)]
        torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), scores.sort(descending=True).values)
        assert hits[0].path == file.path and hits[0].modality == file.keyword
        assert hits[0].score == pytest.approx(1, abs=1e-4)


def test_top_and_one_kind_alone(embedder, index, media):
    query = embedder.embed(image=media / "0.png")
    assert index.search(query, 3) == index.search(query, 20)[:3]
    sounds = index.search(query, 3, "audio")
    assert [hit.modality for hit in sounds] == ["audio"] * 2 and [hit.rank for hit in sounds] == [1, 2]
    assert {hit.score for hit in sounds} <= {hit.score for hit in index.search(query, 20)}
    assert index.search(query, 3, "thermal") == []


def test_arithmetic_finds_what_is_left(embedder, index, media):
    dog, cat = (embedder.embed(image=media / name) for name in ("0.png", "1.png"))
    both = embedder.embed(image=[media / "0.png", media / "1.png"])
    torch.testing.assert_close(both, combine([dog, cat]))
    torch.testing.assert_close(
        embedder.embed(image=[(media / "0.png", 2.0), (media / "1.png", -0.5)], weights={"image": 3}),
        F.normalize(2 * dog - 0.5 * cat, dim=0),
    )
    assert {hit.path for hit in index.search(both, 2)} == {str(media / "0.png"), str(media / "1.png")}
    more, less = (
        {hit.path: hit.score for hit in index.search(vector, 20)} for vector in (both, combine([both, cat], [1, -0.5]))
    )
    cat_before, cat_after = more[str(media / "1.png")], less[str(media / "1.png")]
    assert cat_after < cat_before and less[str(media / "0.png")] > cat_after


def test_equals_come_in_the_order_in_which_they_were_stored(embedder, media, tmp_path):
    for name in ("y.png", "x.png", "z.png"):
        (media / name).write_bytes((media / "0.png").read_bytes())
    index = build(embedder, media, tmp_path / "x.index")
    hits = index.search(embedder.embed(image=media / "0.png"), 4)
    assert [hit.path.rpartition("/")[2] for hit in hits] == ["0.png", "x.png", "y.png", "z.png"]


def test_many_equals_come_in_their_order_too():
    vectors = torch.ones(4000, 3)
    index = SpaceIndex(FeatureIndex(vectors, [str(number) for number in range(4000)]))
    assert [hit.path for hit in index.search(torch.ones(3), 4000)] == [str(number) for number in range(4000)]


def test_windows_are_found_with_their_place(embedder, media, tmp_path):
    options = InputOptions(window=0.5, pool="none")
    index = build(embedder, media / "deep", tmp_path / "x.index", inputs=options)
    assert len(index) == 1 + 3
    [item] = embedder.encode([embedder.load("audio", media / "deep" / "b.wav", options)])
    [hit] = index.search(vector_of(item[1]), 1)
    assert (hit.path, hit.modality, hit.span) == (str(media / "deep" / "b.wav"), "audio", (0.5, 1.0))
    assert str(hit) == f"1\t1.000\t{media / 'deep' / 'b.wav'}\t0.5-1.0 s"
    assert hit.to_dict()["start"] == 0.5 and hit.to_dict()["end"] == 1.0
    assert index.index.ids[3] == f"{media / 'deep' / 'b.wav'}#t=0,0.5"


def test_steps_change_nothing(embedder, index, media, monkeypatch):
    query = embedder.embed(audio=media / "a.wav")
    whole = index.search(query, 20)
    for floats in (1, 200):
        monkeypatch.setattr(module, "FLOATS_AT_ONCE", floats)
        assert [hit.path for hit in index.search(query, 20)] == [hit.path for hit in whole]


def test_inputs_of_other_numbers_of_features():
    counts = [2, 2, 5, 1, 1, 2]
    vectors = torch.randn(sum(counts), 7)
    ids = [f"input {number}" for number, count in enumerate(counts) for _ in range(count)]
    index = SpaceIndex(FeatureIndex(vectors, ids))
    query = F.normalize(torch.randn(7), dim=0)
    expected = torch.stack([similarity(query, vector_of(part)[None])[0] for part in vectors.split(counts)])
    hits = sorted(index.search(query, 9), key=lambda hit: hit.path)
    torch.testing.assert_close(torch.tensor([hit.score for hit in hits]), expected)
    assert len(index) == 6


def test_older_files_are_searched_by_their_ids(tmp_path):
    vectors = F.normalize(torch.randn(6, 7), dim=-1)
    FeatureIndex(vectors, ["a.png", "a.png", "b.png", "b.png", "c.png", "c.png"]).save(tmp_path / "ids")
    index = SpaceIndex.open(tmp_path / "ids")
    hits = index.search(vector_of(vectors[2:4]), 1)
    assert hits == [Hit(1, pytest.approx(1.0, abs=1e-5), "b.png")] and str(hits[0]) == "1\t1.000\tb.png"
    index.check_encoder("whatever")  # nobody knows
    FeatureIndex(vectors).save(tmp_path / "plain")
    assert SpaceIndex.open(tmp_path / "plain").search(vectors[3], 1)[0].path == "row 3"
    FeatureIndex(vectors).to_faiss(tmp_path / "faiss")
    assert SpaceIndex.open(tmp_path / "faiss").search(vectors[3], 1)[0].path == "row 3"


def test_the_same_file_is_what_blends_look_into(embedder, index, media, tmp_path):
    plain = FeatureIndex.load(tmp_path / "all.index")
    count = tiny.FEATURES
    assert plain.ids[:count] == [str(media / "0.png")] * count and len(plain) == 11 * count
    expected = F.normalize(embedder.encode([embedder.load("image", media / "0.png")])[0][0], dim=-1)
    torch.testing.assert_close(plain.vectors(0, count), expected)
    features = torch.randn(1, count, tiny.WIDTH)
    assert blend(features, plain, RetrievalOptions(neighbours=3)).shape == features.shape
    plain.save(tmp_path / "copy")
    assert FeatureIndex.load(tmp_path / "copy").ids == plain.ids


def test_an_index_remembers_its_encoder(index, embedder):
    index.check_encoder(embedder.fingerprint)
    with pytest.raises(FeatureIndexError, match="the index was made with another encoder than that of these weights"):
        index.check_encoder("another")
    with pytest.raises(FeatureIndexError, match=r"vectors of 22 numbers and was asked for the neighbours of \(7,\)"):
        index.search(torch.ones(7), 1)


def test_an_index_whose_parts_do_not_fit(tmp_path):
    with pytest.raises(FeatureIndexError, match="the index has 2 ids and says what 1 are; build it again"):
        SpaceIndex(FeatureIndex(torch.ones(2, 3), ["a", "b"]), ["{}"])


def test_what_is_said_about_an_index(index, tmp_path, embedder):
    entries, about = read_entries(tmp_path / "all.index")
    assert len(entries) == 11 and set(about) == {"config_hash", "encoder"}
    assert about["encoder"] == embedder.fingerprint


@pytest.mark.parametrize("seconds, window, hop, count", [
    (1.0005, 0.5, 0.25, 3),  # the last window would begin half a millisecond behind the third
    (1.0, 0.5, 0.17, 4),
    (1.0, 0.99, 0.0004, 26),  # several in a millisecond
])  # fmt: skip
def test_windows_that_begin_close_together_are_told_apart(embedder, media, tmp_path, seconds, window, hop, count):
    path = tiny.sound(tmp_path / "x.wav", 300, seconds)
    index = build(embedder, path, tmp_path / "x.index", inputs=InputOptions(window, hop, "none"))
    spans = [row.span for row in index.rows()]
    assert len(index) == len(set(index.index.ids)) == count
    assert all(end - start == pytest.approx(window) for start, end in spans)
    assert spans[0][0] == 0 and spans[-1][1] == pytest.approx(seconds)
