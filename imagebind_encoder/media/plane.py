"""Pictures whose pixels are measurements, not colours: depth and thermal. Values stay as they are stored."""

import io
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from .source import Fetch, MediaError, Source, describe, read_source

if TYPE_CHECKING:
    import numpy
    import torch

    PlaneSource = Source | Image.Image | numpy.ndarray | torch.Tensor


MAX_PIXELS = 50_000_000  # of a plane: no sensor has so many


@dataclass(frozen=True, eq=False)
class Plane:
    """Values (height, width), or (height, width, 3) of a colour picture, and what they were stored as."""

    values: "numpy.ndarray"  # uint8, uint16, another integer or a float type
    name: str  # of the source, for messages

    @property
    def is_colour(self) -> bool:
        return self.values.ndim == 3

    @property
    def is_float(self) -> bool:
        return self.values.dtype.kind == "f"

    @property
    def kind(self) -> str:
        """ "8-bit colour", "16-bit grey", "32-bit float". """
        form = "float" if self.is_float else "colour" if self.is_colour else "grey"
        return f"{self.values.dtype.itemsize * 8}-bit {form}"


def open_plane(source: "PlaneSource", *, fetch: Fetch | None = None) -> Plane:
    """The values of a picture file (PNG, TIFF, ...), a .npy file, a PIL picture, an array or a tensor.

    Files: path, bytes, http(s) URL, data: URI; `fetch(url) -> bytes` replaces the download. Arrays and tensors are
    (H, W), (1, H, W) or (H, W, 1); 8-bit ones may be (H, W, 3) or, tensors, (3, H, W). Palettes and alpha become
    plain colours; colours that are all grey become grey. Rotation tags are passed over: sensors have none.
    Raises MediaError: unreadable source, neither a picture nor numbers, no pixels, above MAX_PIXELS.
    """
    import numpy

    name = describe(source)
    torch = sys.modules.get("torch")  # who holds a tensor has imported it
    if torch is not None and isinstance(source, torch.Tensor):
        if source.layout is not torch.strided or source.dtype == torch.bfloat16:
            raise MediaError(f"{name} of type {source.dtype} is no plane of numbers; give a dense one of floats")
        values = source.detach().cpu().numpy()
        values = values.transpose(1, 2, 0) if values.ndim == 3 and len(values) == 3 else values
    elif isinstance(source, numpy.ndarray):
        values = source
    elif isinstance(source, Image.Image):
        values = _pixels(source, name)
    else:
        values = _read(source, name, fetch)
    return Plane(_checked(values, name), name)


def fit_plane(values: "numpy.ndarray", size: tuple[int, int], resample: Image.Resampling) -> "torch.Tensor":
    """float32 (1, *size) of values (H, W): resized with antialias until it covers `size`, the middle cut out."""
    import numpy
    import torch

    (height, width), (rows, columns) = values.shape, size
    if height * columns > width * rows:
        new_height, new_width = columns * height // width, columns
    else:
        new_height, new_width = rows, rows * width // height
    top, left = round((new_height - rows) / 2), round((new_width - columns) / 2)
    y, x = height / new_height, width / new_width
    box = (left * x, top * y, (left + columns) * x, (top + rows) * y)
    image = Image.fromarray(values.astype(numpy.float32))
    return torch.from_numpy(numpy.array(image.resize((columns, rows), resample, box=box)))[None]


def _read(source: Source, name: str, fetch: Fetch | None) -> "numpy.ndarray":
    import numpy

    if not (isinstance(source, (str, bytes, bytearray, memoryview)) or hasattr(source, "__fspath__")):
        raise MediaError(
            f"an object of type {name} is no picture; give a path, URL, data: URI, bytes, PIL picture, array or tensor"
        )
    data = read_source(source, fetch=fetch)
    if data.startswith(b"\x93NUMPY"):
        try:
            return numpy.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # broken files fail in ways no list of types covers
            raise MediaError(f"{name} is no NumPy file of numbers, or is cut off ({error}); save it again") from error
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError as error:
        raise MediaError(f"{name} has more than {MAX_PIXELS} pixels; make it smaller first") from error
    except Exception as error:
        raise MediaError(f"{name} is not a picture that can be read; give a PNG, TIFF or .npy file") from error
    return _pixels(image, name)


def _pixels(image: Image.Image, name: str) -> "numpy.ndarray":
    import numpy

    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise MediaError(f"{name} has {image.width} x {image.height} pixels; give 1 to {MAX_PIXELS} pixels")
    try:
        image.load()
    except Exception as error:
        raise MediaError(f"{name} is broken or cut off ({error}); copy or download it again") from error
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return numpy.asarray(image)
    if image.mode in ("1", "LA", "La"):
        return numpy.asarray(image.convert("L"))
    if "transparency" in image.info:  # dropped anyway, and Pillow warns about palettes with several
        image = image.copy()
        del image.info["transparency"]
    try:
        return numpy.asarray(image.convert("RGB"))
    except ValueError as error:
        raise MediaError(f"{name} has the colour mode {image.mode}; save it as grey first") from error


def _checked(values: "numpy.ndarray", name: str) -> "numpy.ndarray":
    """(H, W) or (H, W, 3), in the processor's own byte order."""
    colour = values.ndim == 3 and values.shape[2] == 3 and values.dtype == "uint8"
    if not colour and values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.dtype.kind not in "uif" or not (values.ndim == 2 or colour):
        raise MediaError(
            f"{name} holds values of shape {tuple(values.shape)} and type {values.dtype} "
            "but must hold one plane of numbers (height, width)"
        )
    if not 0 < values.shape[0] * values.shape[1] <= MAX_PIXELS:
        raise MediaError(f"{name} has {values.shape[1]} x {values.shape[0]} pixels; give 1 to {MAX_PIXELS} pixels")
    if colour and (values == values[..., :1]).all():
        values = values[..., 0]
    return values.astype(values.dtype.newbyteorder("="), copy=False)
