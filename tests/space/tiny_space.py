"""A folder of an encoder alone, with a trunk for every kind of file, so small that it answers in milliseconds."""

import json
import math
import wave

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file

from adapter_llm.config import AdapterLLMConfig
from adapter_llm.manifest import Manifest
from adapter_llm.sources import record_of
from imagebind_encoder import (
    AudioConfig,
    EncoderConfig,
    ImageBindEncoder,
    ImageConfig,
    ImuConfig,
    PatchStemConfig,
    PointStemConfig,
    TrunkConfig,
    VideoConfig,
)

WIDTH = 22  # E
FEATURES = 3  # N of every trunk but one
KINDS = ("image", "video", "audio", "text", "depth", "imu", "point")


def encoder_config(**changes) -> EncoderConfig:
    vision = PatchStemConfig(channels=3, size=(2, 28, 28), kernel=(2, 14, 14), stride=(2, 14, 14), norm=False)
    audio = PatchStemConfig(channels=1, size=(32, 40), kernel=(16, 16), stride=(10, 10))
    depth = PatchStemConfig(channels=1, size=(32, 32), kernel=(16, 16), stride=(16, 16))
    imu = PatchStemConfig(channels=6, size=(40,), kernel=(8,), stride=(8,))
    point = PointStemConfig(groups=6, group_size=4, channels=10, output_width=18, points=60)
    trunks = {
        "vision": TrunkConfig(12, 1, 3, num_cls_tokens=FEATURES, stem=vision),
        "text": TrunkConfig(8, 1, 2, num_cls_tokens=FEATURES),
        "audio": TrunkConfig(10, 1, 2, num_cls_tokens=FEATURES, stem=audio),
        "depth": TrunkConfig(14, 1, 2, num_cls_tokens=FEATURES + 1, stem=depth),
        "imu": TrunkConfig(16, 1, 2, num_cls_tokens=FEATURES, stem=imu),
        "point": TrunkConfig(6, 1, 1, num_cls_tokens=FEATURES, stem=point),
    }
    sizes = dict(
        embedding_dim=WIDTH, trunks=trunks, image=ImageConfig(size=28), video=VideoConfig(clips=2, crops=1),
        audio=AudioConfig(clips=2, seconds=0.5), imu=ImuConfig(seconds=2.0),
    )  # fmt: skip
    return EncoderConfig(**{**sizes, **changes})


def save_encoder(folder, seed=3, config=None):
    """Weights of which none is a constant."""
    config = config or encoder_config()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = ImageBindEncoder(config)
        with torch.no_grad():
            for name, parameter in encoder.named_parameters():
                if not name.startswith("postprocessors."):
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    folder.mkdir(exist_ok=True)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    (folder / "config.json").write_text(json.dumps(AdapterLLMConfig(config).to_dict()))
    files = {name: record_of(folder / name) for name in ("encoder.safetensors", "config.json")}
    # as a folder has it whose other files were left where they are
    manifest = Manifest(files={**files, "adapter.safetensors": files["config.json"]})
    (folder / "manifest.json").write_text(json.dumps(manifest.to_dict()))
    return folder


def image(path, seed, size=(40, 30)):
    pixels = numpy.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=numpy.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def sound(path, pitch, seconds=1.0, rate=8000):
    time = numpy.arange(round(seconds * rate)) / rate
    samples = 0.4 * numpy.sin(2 * math.pi * pitch * time) + 0.2 * numpy.sin(2 * math.pi * 3.3 * pitch * time**2)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return path


def motion(path, pace, seconds=5.0, rate=20):
    time = numpy.arange(round(seconds * rate)) / rate
    rows = [",".join(["time_s", "acc_x", "acc_y", "acc_z", "gyro_x", "gyro_y", "gyro_z"])]
    for second in time:
        values = [math.sin(pace * second * (axis + 1) / 3) for axis in range(6)]
        rows.append(",".join(f"{number:.5f}" for number in [second, *values]))
    path.write_text("\n".join(rows) + "\n")
    return path


def points(path, seed, count=60):
    numpy.save(path, numpy.random.default_rng(seed).normal(size=(count, 3)))
    return path


def film(path, seed, seconds=1.0, rate=10):
    import av

    values = numpy.random.default_rng(seed).integers(0, 256, (round(seconds * rate), 4, 4, 3), dtype=numpy.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 48, "yuv420p"
        for pixels in values:
            frame = av.VideoFrame.from_ndarray(pixels.repeat(12, axis=0).repeat(12, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def words(path, text):
    path.write_text(text, encoding="utf-8")
    return path
