"""Small files that cost much to read, made on the spot."""

import io
import struct
import wave
import zlib
from fractions import Fraction

import av
import numpy
from PIL import Image


def png(width, height, data=b""):
    """A PNG that claims so many pixels of grey."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def picture(format="PNG", size=(9, 7), mode="RGB", **options):
    file = io.BytesIO()
    Image.new(mode, size, 7).save(file, format, **options)
    return file.getvalue()


def animation(format="WEBP", size=(9, 7)):
    return picture(format, size, save_all=True, append_images=[Image.new("RGB", size, "red")])


def with_bytes(data, at, new):
    return data[:at] + new + data[at + len(new) :]


def jpeg_of_scans(count):
    """A grey JPEG whose last scan is repeated."""
    whole = picture("JPEG", (64, 64), "L", progressive=True)
    last = whole[whole.rindex(b"\xff\xc4") : -2]
    return whole[:-2] + last * (count - whole.count(b"\xff\xda")) + b"\xff\xd9"


def jpeg_that_claims(width, height):
    data = picture("JPEG")
    return with_bytes(data, data.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))


def webp_that_claims(width, height):
    data = animation()
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return with_bytes(data, data.index(b"VP8X") + 12, size)


def webp_and_pcd():
    """A file that one reader takes for WebP, and another for a Photo CD."""
    data = picture("WEBP", icc_profile=bytes(4000))
    return with_bytes(data, 2048, b"PCD_")


def film(frames=3, size=(48, 32), format="mp4", codec="mpeg4", times=None, **options):
    """A film of grey; `times` are in milliseconds."""
    file = io.BytesIO()
    with av.open(file, "w", format=format, container_options=options) as made:
        stream = made.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            pixels = numpy.full((size[1], size[0], 3), number % 200, numpy.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times:
                frame.pts, frame.time_base = times[number], stream.codec_context.time_base
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return file.getvalue()


def film_that_claims(samples, tracks=1):
    """An MP4 whose table says that it has so many frames, all of one size and in one place."""
    data = film()
    for name, at, values in (("stsz", 8, (1, samples)), ("stts", 12, (samples, 1)), ("stsc", 12, (1, samples, 1))):
        place = data.index(name.encode()) + at
        data = with_bytes(data, place, struct.pack(f">{len(values)}I", *values))
    start = data.index(b"trak") - 4
    track = data[start : start + int.from_bytes(data[start : start + 4], "big")]
    moov = data.index(b"moov") - 4
    size = int.from_bytes(data[moov : moov + 4], "big") + len(track) * (tracks - 1)
    number = track.index(b"tkhd") + 16
    more = (with_bytes(track, number, struct.pack(">I", 2 + copy)) for copy in range(tracks - 1))
    data = data[: start + len(track)] + b"".join(more) + data[start + len(track) :]
    return with_bytes(data, moov, struct.pack(">I", size))


def fragment_that_claims(samples):
    """An MP4 in fragments, one of which says that it has so many frames, all alike."""
    data = film(movflags="empty_moov+default_base_moof+frag_keyframe")
    place = data.index(b"trun") - 4
    size = int.from_bytes(data[place : place + 4], "big")
    # No field says anything about a frame of its own; what is left of the box is skipped.
    run = struct.pack(">I4sII", 16, b"trun", 0, samples)
    return with_bytes(data, place, run + struct.pack(">I4s", size - 16, b"free"))


def yuv4mpeg(width, height):
    return f"YUV4MPEG2 W{width} H{height} F25:1 Ip A1:1 C420jpeg\nFRAME\n".encode()


def sound(seconds, rate=8000):
    """A WAV of a tone."""
    file = io.BytesIO()
    with wave.open(file, "wb") as made:
        made.setnchannels(1)
        made.setsampwidth(2)
        made.setframerate(rate)
        tone = numpy.sin(numpy.arange(int(seconds * rate)) / 7) * 9000
        made.writeframes(tone.astype("<i2").tobytes())
    return file.getvalue()


def silence(seconds, rate=8000, format="flac"):
    """A FLAC of nothing, which takes hardly any bytes."""
    file = io.BytesIO()
    with av.open(file, "w", format=format) as made:
        stream = made.add_stream("flac", rate=rate, layout="mono")
        block = av.AudioFrame.from_ndarray(numpy.zeros((1, 60 * rate), "int16"), "s16", "mono")
        block.rate = rate
        for number in range(int(seconds / 60)):
            block.pts = number * 60 * rate
            made.mux(stream.encode(block))
        made.mux(stream.encode(None))
    return file.getvalue()
