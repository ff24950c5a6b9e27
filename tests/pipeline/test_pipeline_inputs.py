"""Inputs of every kind through the pipeline: alone, together, in windows, and what cannot be had."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

import folders
from adapter_llm import encoding
from adapter_llm.config import ConnectorConfig
from adapter_llm.pipeline import Pipeline
from adapter_llm.processing import KEYWORDS, InputOptions, keywords_of, media_items
from imagebind_encoder import MediaError
from imagebind_encoder.media.audio import Waveform
from imagebind_encoder.media.imu import Motion
from imagebind_encoder.media.video import Frames

QUESTION = "What is in this picture?"
N = 7  # features an input


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sound(seconds=1.0, seed=0):
    return Waveform(0.2 * noise(int(16000 * seconds), seed=seed), 16000)


def motion(seconds=1.0, seed=0):
    return Motion(noise(6, int(80 * seconds), seed=seed), 80)


def film(frames=10, seed=0):
    pixels = (noise(frames, 3, 44, 60, seed=seed) * 40 + 120).clamp(0, 255).to(torch.uint8)
    return Frames(pixels, 10)


def media(seed=0):
    """One input of every keyword that these weights take."""
    grey = np.abs(noise(40, 50, seed=seed).numpy())
    return {
        "image": folders.picture(seed),
        "video": film(seed=seed),
        "audio": sound(seed=seed),
        "text": f"a dog of kind {seed}",
        "depth": (1 + grey).astype(np.float32),
        "thermal": Image.fromarray((grey * 60).astype(np.uint8)),
        "imu": motion(seed=seed),
    }


SENSES = tuple(media())


@pytest.fixture(scope="module")
def pipe(tmp_path_factory, decoder):
    folder = tmp_path_factory.mktemp("senses")
    folders.save_weights(folder, decoder, sizes=folders.every_sense())
    return Pipeline.from_pretrained(folder, llm=decoder, device="cpu", dtype="float32")


def near(left, right):
    return left.shape == right.shape and (left - right).abs().max() <= 1e-5 * right.abs().max()


@torch.inference_mode()
def adapted(pipe, features):
    return pipe.model.adapt(features[None]).values


def test_every_keyword_but_the_one_without_a_trunk(pipe):
    assert pipe.keywords == list(SENSES) == [name for name in KEYWORDS if name != "point"]


@pytest.mark.parametrize("name", SENSES)
def test_every_way_to_ask(pipe, name):
    first, second = media(0)[name], media(1)[name]
    answer = pipe.ask(QUESTION, **{name: first}, max_new_tokens=9)
    assert answer == "".join(pipe.stream(QUESTION, **{name: first}, max_new_tokens=9)) != ""
    assert answer == pipe.ask(QUESTION, state=pipe.adapt(**{name: first}), max_new_tokens=9)
    batch = pipe.caption([first, second, first], QUESTION, keyword=name, batch_size=2, max_new_tokens=9)
    assert [result.text for result in batch[::2]] == [answer, answer]
    vector = pipe.embed(**{name: first})
    assert vector.shape == (20,) and abs(vector.norm() - 1) < 1e-5
    assert not near(vector, pipe.embed(**{name: second}))


def test_a_still_film_is_its_picture(pipe):
    pixels = torch.from_numpy(np.array(folders.picture(3, 42, 42))).permute(2, 0, 1)
    still = Frames(pixels.expand(8, -1, -1, -1), 10)
    assert (pipe.embed(video=still) @ pipe.embed(image=pixels)) > 0.99999


def test_the_average_has_no_order_and_counts_weights(pipe):
    given = media()
    forward, backward = pipe.features(**given), pipe.features(**dict(reversed(given.items())))
    assert near(forward, backward)
    assert near(forward, pipe.features(**given, weights=dict.fromkeys(given, 3.0)))
    alone = pipe.features(audio=given["audio"])
    assert near(pipe.features(**given, weights={name: 0.0 for name in given if name != "audio"}), alone)
    pair = pipe.features(audio=given["audio"], text=(given["text"], 3.0))
    assert near(pair, (alone + 3 * pipe.features(text=given["text"])) / 4)


def test_side_by_side_the_connector_reads_all(pipe):
    """Features behind one another; whose they are shows in what they are, so their order changes no answer."""
    given = media()
    pair = {name: given[name] for name in ("image", "audio")}
    features = pipe.features(**pair, mix="concat")
    assert near(features, torch.cat([pipe.features(**{name: one}) for name, one in pair.items()]))
    state = pipe.adapt(**pair, mix="concat")
    assert near(state.values, adapted(pipe, features))
    turned = pipe.adapt(**dict(reversed(pair.items())), mix="concat")
    assert near(turned.values, state.values)
    assert not near(pipe.adapt(**pair).values, state.values)
    assert near(pipe.features(**pair, weights={"audio": 0.0}, mix="concat"), pipe.features(image=given["image"]))
    heavy = pipe.features(**pair, weights={"audio": 3.0}, mix="concat").norm(dim=-1)
    assert near(heavy, torch.tensor([0.5] * N + [1.5] * N))


def test_one_input_is_itself_however_it_is_mixed(pipe):
    for name, one in media().items():
        assert near(pipe.features(**{name: one}, mix="concat"), pipe.features(**{name: one}))


def pieces(samples, rate, seconds, starts):
    return [samples[..., int(start * rate) : int((start + seconds) * rate)] for start in starts]


@pytest.mark.parametrize("pool", ["mean", "max", "none"])
def test_windows_are_files_of_their_own(pipe, pool):
    """The last window is moved back to end with the recording."""
    whole = sound(1.0)
    cuts = [Waveform(piece, 16000) for piece in pieces(whole.samples, 16000, 0.3, (0, 0.25, 0.5, 0.7))]
    each = torch.stack([pipe.perception.mixed([pipe.processor.load(media_items(audio=cut))], InputOptions())[0]
                        for cut in cuts])  # fmt: skip
    found = pipe.features(audio=whole, window=0.3, hop=0.25, pool=pool)
    unit = torch.nn.functional.normalize
    wanted = {"mean": unit(each.mean(0), dim=-1), "max": unit(each.amax(0), dim=-1), "none": each.flatten(0, 1)}[pool]
    assert near(found, wanted)
    if pool == "none":
        assert near(pipe.adapt(audio=whole, window=0.3, hop=0.25, pool=pool).values, adapted(pipe, found))


@pytest.mark.parametrize("name, whole, clip", [
    ("audio", sound(2.0), 0.3), ("video", film(20), 0.4), ("imu", motion(4.0), 1.0),
])  # fmt: skip
def test_without_a_length_a_window_is_a_clip(pipe, name, whole, clip):
    assert near(pipe.features(**{name: whole}, pool="none"), pipe.features(**{name: whole}, window=clip, pool="none"))
    assert near(pipe.features(**{name: whole}, pool="mean"), pipe.features(**{name: whole}, window=clip))


def test_long_motion_is_the_mean_of_its_windows(pipe):
    assert near(pipe.features(imu=motion(3.0)), pipe.features(imu=motion(3.0), window=1.0))


def test_windows_with_other_inputs_need_concat(pipe):
    given = {"audio": sound(1.0), "image": folders.picture(1)}
    with pytest.raises(ValueError, match='add mix="concat"'):
        pipe.ask(QUESTION, **given, pool="none")
    features = pipe.features(**given, pool="none", mix="concat")
    assert features.shape == ((4 + 1) * N, 20)
    assert pipe.ask(QUESTION, **given, pool="none", mix="concat", max_new_tokens=5)


def test_a_batch_of_many_windows_each_is_like_single_questions(pipe):
    sounds = [sound(seconds, seed=number) for number, seconds in enumerate((0.3, 1.0, 0.6, 1.0))]
    options = {"pool": "none", "max_new_tokens": 8}
    batch = pipe.caption(sounds, QUESTION, keyword="audio", batch_size=4, **options)
    assert [one.text for one in batch] == [pipe.ask(QUESTION, audio=one, **options) for one in sounds]


def test_windows_are_read_as_they_are_encoded(pipe):
    """A day of sound is never in memory: the next windows are read when the ones before have been encoded."""
    read, encoded, item = [], [], pipe.processor.load(media_items(audio=sound(0.5)), InputOptions(window=0.3))[0]
    first = next(item.windows)

    def endless():
        for number in itertools.count():
            read.append(number)
            yield first

    def encoder(inputs):
        encoded.append(len(read))
        if len(encoded) == 3:
            raise InterruptedError
        return pipe.model.encoder(inputs)

    stream = type(item)(item.modality, 1.0, windows=endless())
    with pytest.raises(InterruptedError):
        encoding.settled(encoder, stream, torch.device("cpu"))
    assert encoded == [encoding.WINDOWS_AT_ONCE * count for count in (1, 2, 3)]


def broken_windows(pipe, good):
    yield good
    raise MediaError("x.mp3 breaks off at 12 s; download it again")


def test_a_recording_that_breaks_off_breaks_no_other(pipe, monkeypatch):
    from imagebind_encoder.media import audio

    real = audio.audio_windows

    def windows(source, *settings):
        if source == "broken":
            return broken_windows(pipe, next(real(sound(1.0), *settings)))
        return real(source, *settings)

    monkeypatch.setattr(audio, "audio_windows", windows)
    results = pipe.caption([sound(1.0), "broken", sound(0.5)], QUESTION, keyword="audio", window=0.3, max_new_tokens=5)
    assert results[1].error == "x.mp3 breaks off at 12 s; download it again"
    assert [bool(one.text) for one in results] == [True, False, True]
    with pytest.raises(MediaError, match="breaks off at 12 s"):
        pipe.ask(QUESTION, audio="broken", window=0.3)


@pytest.mark.parametrize("options, message", [
    ({"window": 0}, "seconds must be a positive number of seconds, not 0"),
    ({"hop": -1.0}, "hop must be a positive number of seconds, not -1.0"),
    ({"pool": "median"}, "pool must be one of mean, max, none, not 'median'"),
    ({"mix": "sum"}, "mix must be one of average, concat, not 'sum'"),
])  # fmt: skip
def test_options_that_make_no_sense(pipe, options, message):
    for call in (pipe.ask, pipe.adapt, pipe.features, pipe.embed):
        with pytest.raises(ValueError, match=message):
            call(audio="nowhere.wav", **options)
    with pytest.raises(ValueError, match=message):
        pipe.caption(["nowhere.wav"], keyword="audio", **options)


def test_what_the_weights_lack_is_told_before_anything_is_read(pipe):
    for call in (pipe.ask, pipe.stream, pipe.embed):
        with pytest.raises(ValueError, match="these weights take image, video, .*, imu, not point") as error:
            call(image="nowhere.png", point="nowhere.ply")
        assert "weights/README.md" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="unknown media smell"):
        pipe.caption(["x"], keyword="smell")
    with pytest.raises(TypeError, match="unknown keyword smell"):
        pipe.embed(smell="x")


def test_only_what_is_needed_is_loaded(pipe, tmp_path, decoder):
    folders.save_weights(tmp_path, decoder, sizes=folders.every_sense())
    some = Pipeline.from_pretrained(tmp_path, llm=decoder, device="cpu", dtype="float32", media=iter(["audio", "video"]))
    assert some.keywords == ["image", "video", "audio"]
    assert near(some.features(audio=sound()), pipe.features(audio=sound()))


def test_weights_that_read_one_feature_say_so(tmp_path, decoder):
    from dataclasses import replace

    sizes = folders.every_sense()
    trunks = {name: replace(trunk, num_cls_tokens=4) for name, trunk in sizes.encoder.trunks.items()}
    sizes = replace(sizes, encoder=replace(sizes.encoder, trunks=trunks), connector=ConnectorConfig("bridge", depth=2))
    folders.save_weights(tmp_path, decoder, sizes=sizes)
    bridge = Pipeline.from_pretrained(tmp_path, llm=decoder, device="cpu", dtype="float32")
    pair = {"audio": sound(1.0), "text": "a dog"}
    assert bridge.ask(QUESTION, **pair, window=0.3, max_new_tokens=4)
    for options in ({"mix": "concat"}, {"pool": "none", "weights": {"text": 0.0}}):
        with pytest.raises(ValueError, match="the connector of these weights reads one feature an input"):
            bridge.ask(QUESTION, **pair, **options)
    assert bridge.ask(QUESTION, audio=pair["audio"], mix="concat", max_new_tokens=4)


def test_clip_takes_no_films():
    from adapter_llm.config import ClipConfig

    assert keywords_of(ClipConfig()) == ["image"]


@pytest.mark.parametrize("weight", [1e39, 1e-46, 1e-6, -1, float("nan")])
def test_a_weight_that_rounding_would_decide_about_is_refused(pipe, weight):
    """1e39 made NaN of everything in float32, 1e-46 nothing."""
    with pytest.raises(ValueError, match="the weight of 'a dog' is .*; it must be 0, or a number from 0.001 to 1e"):
        pipe.embed(text=("a dog", weight))


@pytest.mark.parametrize("entry", [("a.png", "b.png"), ("a.png", 1, 2), ("a.png", None), ("a.png", True)])
def test_a_tuple_is_a_source_and_its_weight(pipe, entry):
    with pytest.raises(ValueError, match="several sources go in a list, not in a tuple"):
        pipe.ask(QUESTION, image=entry)


def test_a_message_does_not_repeat_a_file(pipe):
    with pytest.raises(ValueError) as error:
        pipe.ask(QUESTION, image=(b"x" * 10**6, -1.0))
    assert len(str(error.value)) < 200


def test_what_weighs_nothing_is_not_even_read(pipe):
    alone = pipe.features(text="a dog")
    assert near(pipe.features(text="a dog", audio=("nowhere.wav", 0.0)), alone)


def test_long_sums_do_not_stand_still_in_half_precision(pipe):
    """In bfloat16 a sum of 3600 windows lost a fourteenth of its length."""
    item = pipe.processor.load(media_items(audio=sound(0.3)), InputOptions(window=0.3))[0]
    one = next(item.windows)
    feature = encoding.settled(pipe.model.encoder, type(item)(item.modality, 1.0, windows=iter([one])), "cpu").features

    def encoder(inputs):
        (modality, batch), = inputs.items()
        return {modality: feature.bfloat16().expand(len(batch), -1, -1)}

    many = type(item)(item.modality, 1.0, windows=itertools.repeat(one, 1600))
    found = encoding.settled(encoder, many, torch.device("cpu")).features
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, feature.bfloat16())


def test_kinds_with_other_numbers_of_features_go_side_by_side(tmp_path, decoder):
    from dataclasses import replace

    sizes = folders.every_sense()
    trunks = dict(sizes.encoder.trunks)
    trunks["audio"] = replace(trunks["audio"], num_cls_tokens=3)
    folders.save_weights(tmp_path, decoder, sizes=replace(sizes, encoder=replace(sizes.encoder, trunks=trunks)))
    pipe = Pipeline.from_pretrained(tmp_path, llm=decoder, device="cpu", dtype="float32")
    given = {"audio": sound(), "text": "a dog"}
    with pytest.raises(ValueError, match='different numbers of features to average; use mix="concat"'):
        pipe.ask(QUESTION, **given)
    assert pipe.features(**given, mix="concat").shape == (N + 3, 20)
    loaded = [pipe.processor.load(media_items(**{name: one})) for name, one in given.items()]
    calls = []
    with pipe.model.encoder.register_forward_hook(lambda *given: calls.append(1)):
        both = pipe.perception.adapt(loaded)
    assert len(calls) == len(given), "each kind goes through the encoder once"
    for row, (name, one) in enumerate(given.items()):
        assert near(both.values[row : row + 1], pipe.adapt(**{name: one}).values)


def test_options_of_media_without_media_are_a_mistake(pipe):
    with pytest.raises(ValueError, match="window, hop, pool, mix are about media"):
        pipe.ask(QUESTION, window=2.0)
    with pytest.raises(ValueError, match="about media"):
        pipe.ask(QUESTION, state=pipe.adapt(text="a dog"), mix="concat")


def test_what_was_not_loaded_is_told_before_anything_is_read(tmp_path, decoder):
    folders.save_weights(tmp_path, decoder, sizes=folders.every_sense())
    pipe = Pipeline.from_pretrained(tmp_path, llm=decoder, device="cpu", dtype="float32", media=["text"])
    with pytest.raises(ValueError, match="this pipeline was loaded without audio; name it in media="):
        pipe.ask(QUESTION, audio="nowhere.wav")


def test_words_keep_their_numbers():
    """"Psalm 23:4" once became "Psalm 23" with a weight of 4."""
    from adapter_llm.cli import words_argument

    assert words_argument("Psalm 23:4") == ("Psalm 23:4", 1.0)
    assert words_argument("it is 12:30") == ("it is 12:30", 1.0)
    assert words_argument("a dog:0.5") == ("a dog", 0.5)


def test_silence_is_nothing_to_hear(pipe):
    """A recording of zeros was answered with the sound that happened to lie nearest."""
    for seconds in (0.1, 1.0):
        with pytest.raises(ValueError, match="is silent, so there is nothing to hear"):
            pipe.ask(QUESTION, audio=Waveform(torch.zeros(int(16000 * seconds)), 16000))
    assert pipe.features(audio=Waveform(1e-3 * noise(16000), 16000)).isfinite().all()


def test_settings_change_how_files_are_read(tmp_path, decoder):
    folders.save_weights(tmp_path, decoder, sizes=folders.every_sense())
    array = motion(1.0).samples.numpy()

    def load(**settings):
        return Pipeline.from_pretrained(tmp_path, llm=decoder, device="cpu", dtype="float32", settings=settings)

    with pytest.raises(MediaError, match="rate"):
        load().embed(imu=array)
    set_rate = load(**{"imu.rate": 80, "depth.unit": "metres"})
    assert near(set_rate.embed(imu=array), load().embed(imu=Motion(array, 80)))
    for settings, message in (
        ({"imu.rat": 5}, "there is no setting 'imu.rat'; there are imu.seconds, imu.rate"),
        ({"smell.rate": 5}, "there is no setting 'smell.rate'; there are image..., video"),
        ({"imu.rate": -5}, "ImuConfig.rate must be a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            load(**settings)


def test_unknown_keywords_are_named(pipe):
    with pytest.raises(TypeError, match="unknown keyword sound; there are image, video"):
        pipe.ask(QUESTION, sound="x.wav")
