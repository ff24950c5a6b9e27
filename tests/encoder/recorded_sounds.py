"""Sound files made for the tests, and the naming of recorded numbers about them."""

import io
import re
import struct
import tempfile
from pathlib import Path

import av
import numpy


def every_nth(key, value):
    """`value` as it is recorded under `key`: "....every8" keeps the entries 0, 8, 16, ... of the last axis."""
    found = re.search(r"\.every(\d+)$", key)
    return value[..., :: int(found[1])] if found else value


def wav(data, rate=16000, channels=1, bits=16, tag=1, size=None):
    """The bytes of a WAV file that holds `data`; tag 1 is whole numbers, 3 is floats."""
    width = channels * bits // 8
    size = len(data) if size is None else size
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * width % 2**32, width % 2**16, bits)
    return b"".join((b"RIFF", struct.pack("<I", size + 36), b"WAVEfmt ", struct.pack("<I", 16), form,
                     b"data", struct.pack("<I", size), data))  # fmt: skip


def wav_of(samples, rate=16000):
    """A WAV file of float samples (channels, n) without loss."""
    return wav(numpy.ascontiguousarray(samples.T, dtype="<f4").tobytes(), rate, len(samples), 32, 3)


def silent_film():
    """An MP4 of two pictures and no sound track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        _film_of(container, "mpeg4", 2)
    return file.getvalue()


def _film_of(container, codec, seconds):
    """Adds a track of one grey picture a second."""
    stream = container.add_stream(codec, rate=1)
    stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
    for second in range(seconds):
        picture = av.VideoFrame.from_ndarray(numpy.full((16, 32, 3), 40 * second % 256, numpy.uint8))
        picture.pts = second
        container.mux(stream.encode(picture))
    container.mux(stream.encode(None))


def encoded(samples, rate, form, codec, *, film=False, gap=0, **options):
    """A file of samples (channels, n) in [-1, 1], with one grey picture a second if it is a film.

    The second half comes `gap` seconds after the first, with nothing in between.
    """
    layout = {1: "mono", 2: "stereo"}[len(samples)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound")  # and not a file in memory: some options have it read again
        with av.open(path, "w", format=form, options=options) as container:
            stream = container.add_stream(codec, rate=rate, layout=layout)
            sample = stream.codec_context.codec.audio_formats[0].name
            if sample.startswith("s"):
                bits = int(sample[1:3])
                samples = (samples * (2 ** (bits - 1) - 1.0)).round().astype(f"int{bits}")
            if film:
                _film_of(container, "libvpx" if form == "webm" else "mpeg4", samples.shape[1] // rate + 1)
            start = 0
            for part in numpy.array_split(samples, 2, axis=1) if gap else (samples,):
                packed = part if sample.endswith("p") else part.T.reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(numpy.ascontiguousarray(packed), format=sample, layout=layout)
                frame.sample_rate, frame.pts = rate, start
                start += frame.samples + gap * rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()
