"""What was looked at once is not looked at again, and what is remembered is bounded."""

import io

import folders
import pytest
import torch

from adapter_llm.feature_cache import FeatureCache, content_hash
from adapter_llm.pipeline import Pipeline

QUESTION = "What is in this picture?"


@pytest.fixture
def looks(pipe):
    """How many inputs went through the encoder."""
    seen = []
    hook = pipe.model.encoder.register_forward_pre_hook(
        lambda module, args: seen.extend(len(tensor) for tensor in args[0].values())
    )
    with hook:
        yield seen


def png(seed):
    buffer = io.BytesIO()
    folders.picture(seed).save(buffer, "png")
    return buffer.getvalue()


def test_the_same_content_is_encoded_once(pipe, looks, tmp_path):
    cache = FeatureCache()
    cached = pipe.cached(cache)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    one.write_bytes(png(1))
    two.write_bytes(png(1))
    answers = {
        cached.ask(QUESTION, image=source, max_new_tokens=12) for source in (png(1), one, str(two), png(1), (one, 0.5))
    }
    assert sum(looks) == 1
    assert (cache.hits, cache.misses, len(cache)) == (4, 1, 1)
    assert answers == {pipe.ask(QUESTION, image=png(1), max_new_tokens=12)}


def test_a_file_that_changed_is_looked_at_again(pipe, looks, tmp_path):
    cached, path = pipe.cached(FeatureCache()), tmp_path / "one.png"
    path.write_bytes(png(1))
    first = cached.ask(QUESTION, image=path, max_new_tokens=12)
    path.write_bytes(png(2))
    assert cached.ask(QUESTION, image=path, max_new_tokens=12) != first
    assert sum(looks) == 2


def test_mixing_is_done_anew(pipe, looks):
    cached = pipe.cached(FeatureCache())
    for weights in ((1.0, 1.0), (1.0, 0.2), (0.3, 1.0)):
        media = [(png(number), weight) for number, weight in enumerate(weights)]
        assert torch.allclose(cached.features(image=media), pipe.features(image=media), atol=1e-5)
    assert sum(looks) == 2 + 3 * 2


def test_how_a_recording_is_read_counts(pipe, looks, tmp_path):
    import numpy

    path = tmp_path / "motion.npy"
    numpy.save(path, numpy.random.rand(6, 400).astype("float32"))
    slow = Pipeline.cached(pipe, FeatureCache())
    rate = {"imu": path}
    reading = [{}, {"window": 0.4}, {"window": 0.4, "hop": 0.2}, {"window": 0.4, "pool": "max"}]
    with_rate = _with_rate(slow)
    for options in reading * 2:
        with_rate.features(**rate, **options)
    assert with_rate.perception.cache.misses == len(reading) == with_rate.perception.cache.hits


def _with_rate(pipe):
    from dataclasses import replace

    from adapter_llm.settings import with_settings

    config = with_settings(pipe.config, {"imu.rate": 200})
    pipe.perception = replace(pipe.perception, processor=replace(pipe.processor, config=config))
    return pipe


def test_the_pipeline_itself_remembers_nothing(pipe, looks):
    pipe.cached(FeatureCache()).ask(QUESTION, image=png(1), max_new_tokens=2)
    pipe.ask(QUESTION, image=png(1), max_new_tokens=2)
    assert sum(looks) == 2
    assert pipe.perception.cache is None


def test_an_explanation_looks_for_itself(pipe):
    plain = pipe.explain(QUESTION, image=png(1), max_new_tokens=4)
    cached = pipe.cached(FeatureCache())
    cached.ask(QUESTION, image=png(1), max_new_tokens=4)
    found = cached.explain(QUESTION, image=png(1), max_new_tokens=4)
    assert found.answer == plain.answer
    assert len(found.views) == len(plain.views) == 1


def test_what_cannot_be_read_is_not_remembered(pipe):
    cache = FeatureCache()
    for _ in range(2):
        with pytest.raises(ValueError, match="no picture|not a picture|cannot"):
            pipe.cached(cache).ask(QUESTION, image=b"no picture at all")
    assert len(cache) == 0


def test_it_is_bounded_and_forgets_what_was_not_asked_for_longest():
    cache, looked = FeatureCache(max_bytes=3 * 4 * 7), []

    def ask(name, width=7):
        def look():
            looked.append(name)
            return torch.zeros(1, width)

        return cache.features(_item(name.encode()), _options(), look)

    for name in "abcacdab":
        ask(name)
    assert looked == list("abcdb")
    assert (len(cache), cache.bytes) == (3, 84)
    assert ask("large", 22).shape == (1, 22)
    assert (len(cache), cache.bytes) == (3, 84), "what is larger than all of it is not kept"
    with pytest.raises(ValueError, match="max_bytes"):
        FeatureCache(-1)


def _item(source, keyword="image"):
    from adapter_llm.processing import MediaItem

    return MediaItem(keyword, source)


def _options():
    from adapter_llm.processing import InputOptions

    return InputOptions()


def test_kinds_are_kept_apart():
    cache = FeatureCache()
    found = [cache.features(_item(b"x", kind), _options(), lambda kind=kind: torch.full((1, 2), float(len(kind))))
             for kind in ("image", "audio1", "image")]  # fmt: skip
    assert [float(each[0, 0]) for each in found] == [5, 6, 5]


def test_what_has_content(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a dog")
    words = content_hash("a dog", words=True)
    assert words == content_hash(b"a dog") == content_hash(path) == content_hash(str(path))
    assert content_hash(str(path), words=True) != words, "words are words, even if they name a file"
    assert content_hash("data:text/plain,x") != content_hash("data:text/plain,y")
    for nothing in (folders.picture(1), tmp_path, "http://localhost/x.png", tmp_path / "missing", 3):
        assert content_hash(nothing) is None
