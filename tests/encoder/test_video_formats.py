"""Films of every format show the same frames, and seeking finds the frames that decoding from the start finds."""

import io

import av
import numpy
import pytest
import torch
from made_films import HEIGHT, LEVELS, SMALL, WIDTH, film, greys, numbers, pictures, remuxed
from PIL import Image

from imagebind_encoder import VideoConfig
from imagebind_encoder.media import MediaError, animation
from imagebind_encoder.media import film as film_module
from imagebind_encoder.media.animation import Animation
from imagebind_encoder.media.film import Film
from imagebind_encoder.media.video import Frames, load_video

MIDDLE = VideoConfig(crops=1)

FORMATS = {
    "mp4": {"codec": "libx264"},
    "mp4 in pieces": {"codec": "libx264", "movflags": "frag_keyframe+empty_moov"},
    "mov": {"format": "mov", "codec": "mjpeg", "pixels": "yuvj420p"},
    "mkv": {"format": "matroska", "codec": "libx264"},
    "webm": {"format": "webm", "codec": "libvpx-vp9"},
    "webm, VP8": {"format": "webm", "codec": "libvpx", "auto_alt_ref": 1, "lag_in_frames": 16},
    "avi": {"format": "avi"},
    "flv": {"format": "flv", "codec": "flv"},
    "ts": {"format": "mpegts", "codec": "libx264"},
    "without times": {"format": "h264", "codec": "libx264"},
    "gif": {"format": "gif", "codec": "gif", "pixels": "gray"},
    "apng": {"format": "apng", "codec": "apng", "pixels": "rgb24"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_show_the_same(name):
    tensor = load_video(film(greys(30), **FORMATS[name]), LEVELS, MIDDLE)
    assert numbers(tensor) == numbers(load_video(Frames(greys(30), 10), LEVELS, MIDDLE))


def webp(frames, milliseconds):
    first, *rest = (Image.fromarray(frame) for frame in frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=rest, duration=milliseconds, lossless=True)
    return file.getvalue()


def test_animated_webp_pictures_are_films():
    frames = pictures(30)
    assert torch.equal(load_video(webp(frames, 100), SMALL), load_video(Frames(frames, 10), SMALL))
    chosen = numbers(load_video(webp(greys(3), [2500, 100, 400]), LEVELS, VideoConfig(clips=2, crops=1)))
    assert chosen == [[0, 0], [1, 2]]
    unsaid = Animation(io.BytesIO(webp(greys(3), 0)), "it").timeline
    assert unsaid.duration == pytest.approx(0.3)  # browsers show such frames for a tenth of a second, too


def test_a_webp_picture_is_no_film():
    for data, why in (
        (webp(greys(1), 100), "a picture that does not move; give it as an image"),
        (b"RIFF1234WEBP", "no"),
    ):
        with pytest.raises(MediaError, match=f"is {why}"):
            load_video(data)


@pytest.mark.parametrize("limit, value", [("MAX_CANVAS", HEIGHT * WIDTH), ("MAX_ALL", HEIGHT * WIDTH * 3)])
def test_animations_that_are_too_large_are_refused_before_they_are_decoded(limit, value, monkeypatch):
    data = webp(greys(3), 100)
    monkeypatch.setattr(animation, limit, value)
    load_video(data, SMALL)
    monkeypatch.setattr(animation, limit, value - 1)
    monkeypatch.setattr(animation.Animation, "_show", None)
    with pytest.raises(MediaError, match=rf"{len(data)} bytes has 3 frames of 48 x 32 pixels; give .* {value - 1} "):
        load_video(data, SMALL)


@pytest.mark.parametrize(
    ("name", "frames"),
    [(name, frames) for name in FORMATS for frames in (1, 2) if (name, frames) != ("apng", 1)],  # that is a picture
)
def test_films_of_one_and_two_frames(name, frames):
    tensor = load_video(film(greys(frames), **FORMATS[name]), LEVELS, MIDDLE)
    assert numbers(tensor) == [[0, frames - 1]] * 5


def test_packets_that_are_not_shown_are_no_frames():
    # Frames that only serve others as a reference, as VP8 has them: here a copy of each, with its "show" bit off.
    def doubled(packets):
        for content, time, is_key in packets:
            yield bytes([content[0] & ~0x10]) + content[1:], time, is_key
            yield content, time + 40, is_key

    data = remuxed(film(greys(20), format="webm", codec="libvpx", g=1), "webm", doubled)
    made = Film(io.BytesIO(data), "it", orient=True)
    assert made.timeline.count == 20
    assert numbers(load_video(data, LEVELS, VideoConfig(clips=1, crops=1))) == [[0, 19]]


def test_frames_in_front_of_the_first_that_can_be_decoded_are_passed_over():
    data = remuxed(film(greys(20), format="webm", codec="libvpx", g=8), "webm", lambda packets: packets[3:])
    assert numbers(load_video(data, LEVELS, VideoConfig(clips=1, crops=1))) == [[8, 19]]


def test_frames_that_claim_the_same_time_are_counted():
    def paired(packets):
        return [(content, time // 200 * 200, is_key) for content, time, is_key in packets]

    data = remuxed(film(greys(20), **FORMATS["mov"]), "matroska", lambda packets: packets)
    data = remuxed(data, "matroska", paired)
    made = Film(io.BytesIO(data), "it", orient=True)
    assert made.timeline.count == 20 and made.timeline.rate
    assert [round((frame.mean() - 10) / 8) for _, frame in made.read(range(20))] == list(range(20))


def test_frames_that_an_edit_list_leaves_out_are_not_shown():
    data = bytearray(film(greys(20), codec="libx264", g=20, bf=2))
    entry = data.index(b"elst") + 12  # behind version, flags and the number of entries
    duration, start = (int.from_bytes(data[at : at + 4], "big") for at in (entry, entry + 4))
    data[entry : entry + 4] = (duration - 4 * duration // 20).to_bytes(4, "big")
    with av.open(io.BytesIO(data)) as opened:
        frame = int(0.1 / opened.streams.video[0].time_base)
    data[entry + 4 : entry + 8] = (start + 4 * frame).to_bytes(4, "big")
    assert Film(io.BytesIO(data), "it", orient=True).timeline.count == 16
    assert numbers(load_video(bytes(data), LEVELS, VideoConfig(clips=1, crops=1))) == [[4, 19]]


# --- seeking

WITH_KEYS = {
    "mp4": {"codec": "libx264", "g": 12, "bf": 3},
    "open groups": {"codec": "libx264", "x264_params": "keyint=12:bframes=3:open-gop=1"},
    "mkv": {"format": "matroska", "codec": "libx264", "g": 12, "bf": 3},
    "webm": {"format": "webm", "codec": "libvpx-vp9", "g": 12},
    "mpeg4": {"codec": "mpeg4", "g": 12, "bf": 2},
    "mjpeg": {"format": "mov", "codec": "mjpeg", "pixels": "yuvj420p"},
}


def moving(count):
    """Frames that a codec predicts from one another: a square that wanders over a picture."""
    frames = pictures(1).repeat(count, axis=0)
    for number, frame in enumerate(frames):
        frame[number % HEIGHT :, number % WIDTH :] = 255 - frame[number % HEIGHT :, number % WIDTH :]
    return frames


def read(data, indices, monkeypatch, leap):
    monkeypatch.setattr(film_module, "LEAP", leap)
    made = Film(io.BytesIO(data), "it", orient=True)
    return made, [frame.copy() for _, frame in made.read(indices)]


@pytest.mark.parametrize("name", WITH_KEYS)
def test_seeking_finds_the_same_frames_as_decoding_from_the_start(name, monkeypatch):
    data = film(moving(60), **WITH_KEYS[name])
    indices = [5, 30, 31, 44, 59]
    sought, found = read(data, indices, monkeypatch, leap=0)
    assert len(sought._keys) > 4  # seeking was possible, and not given up
    _, expected = read(data, indices, monkeypatch, leap=10**6)
    for ours, theirs in zip(found, expected, strict=True):
        assert numpy.array_equal(ours, theirs)
    _, every = read(data, range(60), monkeypatch, leap=10**6)
    for ours, index in zip(found, indices, strict=True):
        assert numpy.array_equal(ours, every[index])


@pytest.mark.parametrize("name", ["ts", "avi"])
def test_formats_that_do_not_know_their_key_frames_are_decoded_from_the_start(name, monkeypatch):
    data = film(moving(60), **FORMATS[name], g=12)
    made, found = read(data, [20, 50], monkeypatch, leap=0)
    assert not len(made._keys)
    _, every = read(data, range(60), monkeypatch, leap=10**6)
    assert numpy.array_equal(found[0], every[20]) and numpy.array_equal(found[1], every[50])


def test_key_frames_that_are_none_are_given_up(monkeypatch):
    # With intra refresh a frame is whole only some frames after the one that is called a key.
    data = film(moving(60), codec="libx264", g=12, intra_refresh=1)
    sought, found = read(data, [20, 50], monkeypatch, leap=0)
    _, every = read(data, range(60), monkeypatch, leap=10**6)
    assert not len(sought._keys)
    assert numpy.array_equal(found[0], every[20]) and numpy.array_equal(found[1], every[50])


def test_frames_between_two_that_are_wanted_are_not_decoded_where_that_saves_time(monkeypatch):
    decoded = []
    original = Film._decode

    def counted(self, container, stream):
        for time, frame in original(self, container, stream):
            decoded.append(time)
            yield time, frame

    monkeypatch.setattr(Film, "_decode", counted)
    made = Film(io.BytesIO(film(moving(60), codec="libx264", g=12)), "it", orient=True)
    assert not decoded  # the times are known from the packets
    list(made.read([2, 50]))
    assert len(decoded) < 10
