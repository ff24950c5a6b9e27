"""Limits on decoding: for the thread that sets them and for as long as it says, and for every kind of recording."""

import io
import threading

import numpy
import pytest
from made_films import LOSSLESS, SMALL, film, greys, pictures

from imagebind_encoder.media.audio import load_audio
from imagebind_encoder.media.film import Film
from imagebind_encoder.media.patience import check_time, frame_pixels, reading_limits
from imagebind_encoder.media.source import MediaError
from imagebind_encoder.media.video import load_video

WHOLE = film(greys(9))
TOO_LONG = "takes too long to decode; give a shorter or smaller one"


def webp():
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in pictures(3)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def wav():
    import wave

    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setparams((1, 2, 8000, 0, "NONE", ""))
        made.writeframes((numpy.sin(numpy.arange(8000)) * 9000).astype("<i2").tobytes())
    return file.getvalue()


READERS = {
    "a film": lambda: load_video(WHOLE, SMALL),
    "a film whose times are not told": lambda: load_video(film(greys(9), format="mpegts", codec="mpeg2video"), SMALL),
    "a film without times": lambda: load_video(film(greys(9), **LOSSLESS | {"format": "avi"}), SMALL),
    "an animation": lambda: load_video(webp(), SMALL),
    "a recording": lambda: load_audio(wav()),
}


@pytest.mark.parametrize("read", READERS.values(), ids=list(READERS))
def test_no_time(read):
    read()
    with reading_limits(-1.0), pytest.raises(MediaError, match=TOO_LONG):
        read()
    with reading_limits(60.0):
        read()


def test_opening_a_film_takes_time_too():
    """Of one with millions of frames nothing need be decoded to take for ever."""
    with reading_limits(-1.0), pytest.raises(MediaError, match=TOO_LONG):
        Film(io.BytesIO(WHOLE), "a film", True)
    Film(io.BytesIO(WHOLE), "a film", True)


def test_a_film_that_takes_long_to_decode(monkeypatch):
    """Where it is not the header that takes long: the clock runs out after the times were read."""
    now = [0.0]
    monkeypatch.setattr("imagebind_encoder.media.patience.time.monotonic", lambda: now[0])
    read = Film.read

    def late(self, indices):
        now[0] = 11.0
        return read(self, indices)

    monkeypatch.setattr(Film, "read", late)
    with reading_limits(10.0), pytest.raises(MediaError, match=TOO_LONG):
        load_video(WHOLE, SMALL)


def test_time_is_for_everything_in_the_block(monkeypatch):
    now = iter([0.0, 5.0, 9.0, 11.0])
    monkeypatch.setattr("imagebind_encoder.media.patience.time.monotonic", lambda: next(now))
    with reading_limits(10.0):
        check_time("first")
        check_time("second")
        with pytest.raises(MediaError, match=f"third {TOO_LONG}"):
            check_time("third")


def test_pixels():
    with reading_limits(60.0, 32 * 48 - 1), pytest.raises(MediaError, match="48 x 32 pixels; give at most 1535 pixels"):
        load_video(WHOLE, SMALL)
    with reading_limits(60.0, 32 * 48 - 1), pytest.raises(MediaError, match="48 x 32 pixels; give at most 1535 pixels"):
        load_video(webp(), SMALL)
    with reading_limits(60.0, 32 * 48):
        load_video(WHOLE, SMALL)
        load_video(webp(), SMALL)
    assert frame_pixels(7) == 7
    with reading_limits(60.0, 10):
        assert (frame_pixels(7), frame_pixels(70)) == (7, 10)


def test_frames_that_grow_are_not_decoded():
    """The library would have to make room for them before anybody could look at their size."""
    small = film(greys(9), format="mpegts", codec="mpeg2video", rate=25)
    large = film(greys(2, 1024, 1024), format="mpegts", codec="mpeg2video", rate=25)
    load_video(small + large, SMALL)
    with reading_limits(60.0, 32 * 48), pytest.raises(MediaError) as error:
        load_video(small + large, SMALL)
    assert "1024" not in str(error.value)  # nobody has seen that they are


def test_limits_end_with_the_block_and_hold_for_one_thread():
    seen = []
    with reading_limits(60.0, 10):
        thread = threading.Thread(target=lambda: seen.append(frame_pixels(99)))
        thread.start()
        thread.join()
        with reading_limits(60.0, 5):
            seen.append(frame_pixels(99))
        seen.append(frame_pixels(99))
    assert [*seen, frame_pixels(99)] == [99, 5, 10, 99]
    with pytest.raises(ZeroDivisionError), reading_limits(60.0, 10):
        raise ZeroDivisionError
    assert frame_pixels(99) == 99
