"""Films for the tests, made on the spot: few and small frames, of which each can be told from the others."""

import io
import struct
from fractions import Fraction

import av
import numpy

from imagebind_encoder import ImageConfig

SMALL = ImageConfig(size=16)
LEVELS = ImageConfig(size=16, mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # the tensor holds 0 to 255
HEIGHT, WIDTH = 32, 48
LOSSLESS = {"format": "matroska", "codec": "ffv1", "pixels": "bgr0"}  # decoded to the very pixels that went in


def pictures(count, height=HEIGHT, width=WIDTH, seed=0):
    """uint8 (count, height, width, 3): noise in blocks, so that every pixel matters."""
    rng = numpy.random.default_rng(seed)
    blocks = rng.integers(0, 256, (count, -(-height // 8), -(-width // 8), 3), dtype=numpy.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]


def greys(count, height=HEIGHT, width=WIDTH):
    """uint8 (count, height, width, 3): frame k is all 10 + 8 * k, at most 30 of them."""
    levels = numpy.arange(10, 10 + 8 * count, 8, dtype=numpy.uint8)
    return numpy.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def numbers(tensor):
    """Which of `greys` each clip shows: (clips * crops, frames), from a tensor made with LEVELS."""
    return ((tensor.mean((1, 3, 4)) - 10) / 8).round().int().tolist()


def film(
    frames, rate=10, *, format="mp4", codec="mpeg4", pixels="yuv420p", times=None, sound=0.0, movflags="", **options
):
    """Bytes of a film. `times`: when each frame is shown, in milliseconds; `sound`: seconds of silence beside it."""
    file = io.BytesIO()
    with av.open(file, "w", format=format, container_options={"movflags": movflags} if movflags else {}) as container:
        options = {name.replace("_", "-"): str(value) for name, value in options.items()}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            track = container.add_stream("aac", rate=8000, layout="mono")
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(numpy.ascontiguousarray(picture), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            frame = av.AudioFrame.from_ndarray(numpy.zeros((1, int(8000 * sound)), "int16"), "s16", "mono")
            frame.rate = 8000
            container.mux(track.encode(frame))
            container.mux(track.encode(None))
    return file.getvalue()


def recording(seconds=1.0):
    """Bytes of a WAV file without any film."""
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(numpy.zeros((1, int(8000 * seconds)), "int16"), "s16", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def with_matrix(mp4, a, b, c, d):
    """The same MP4 with another display matrix: column x, row y go to a * x + c * y and b * x + d * y."""
    start = mp4.index(b"tkhd") + 4 + 40  # behind version, flags, dates, track, duration, layer, volume
    one = 1 << 16
    matrix = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    return mp4[:start] + matrix + mp4[start + len(matrix) :]


def remuxed(data, format, change):
    """The film with other packets: `change` gets all (packet bytes, time in ticks) and gives those to be written."""
    file = io.BytesIO()
    with av.open(io.BytesIO(data)) as old, av.open(file, "w", format=format) as new:
        source = old.streams.video[0]
        stream = new.add_stream_from_template(source)
        packets = [(bytes(packet), packet.pts, packet.is_keyframe) for packet in old.demux(source) if packet.size]
        for content, time, is_key in change(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = time
            packet.time_base, packet.stream, packet.is_keyframe = source.time_base, stream, is_key
            new.mux(packet)
    return file.getvalue()
