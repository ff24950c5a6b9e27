"""Pictures: any source -> RGB picture -> (3, size, size) tensor.

With `ImageConfig(orient=False)` the pixels are those of the original preprocessing, bit for
bit, and with convert="last" in addition those of CLIP's, except for 16-bit grey, which both
clip to white and which is scaled here.
"""

import io
import sys
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from ..config import ImageConfig
from .source import Fetch, MediaError, Source, describe, read_source

if TYPE_CHECKING:
    import numpy
    import torch

    ImageSource = Source | Image.Image | numpy.ndarray | torch.Tensor

MAX_PIXELS = 178_956_970  # of a file; the size at which Pillow, too, takes it for an attack
MAX_RESIZED_PIXELS = 32_000_000  # of the resized picture before it is cropped: 96 MB


def load_image(
    source: "ImageSource", config: ImageConfig = ImageConfig(), *, fetch: Fetch | None = None
) -> "torch.Tensor":
    """float32 (3, size, size), normalised by `config.mean` and `config.std`, from any source.

    See `open_image` for sources and errors, `fit_image` for the geometry. Colours become RGB before
    that, or after it if `config.convert` says "last": then palettes are resized by nearest neighbour,
    and what is transparent does not spread into its surroundings.
    """
    image = fit_image(open_image(source, orient=config.orient, fetch=fetch, rgb=config.convert == "first"), config)
    return normalise(_to_rgb(image, describe(source)), config)


def open_image(
    source: "ImageSource", *, orient: bool = True, fetch: Fetch | None = None, rgb: bool = True
) -> Image.Image:
    """The RGB picture of a path, bytes, http(s) URL, data: URI, PIL image, uint8 numpy array
    (H, W, 3) or (H, W), or uint8 torch tensor (3, H, W).

    Animations give their first frame. Alpha is dropped, not blended; palettes and CMYK are
    converted; 16-bit grey is scaled to 8 bits. `orient` turns the picture as its EXIF tag says
    (phones store photos sideways); the original ignores the tag. `fetch(url) -> bytes` replaces
    the download. Without `rgb` palettes, alpha and the like are left as they are.
    Raises MediaError: unreadable source, not a picture, truncated, above MAX_PIXELS.
    """
    name = describe(source)
    image = _decode(source, name, fetch)
    try:
        image = _plain(_upright(image) if orient else image, name)
        return _to_rgb(image, name) if rgb else image
    except MediaError:
        raise
    except Exception as error:  # a PIL image given by the caller may still be undecoded
        raise _unreadable(name, error) from error


def fit_image(image: Image.Image, config: ImageConfig) -> Image.Image:
    """A picture as size x size pixels, bicubic with antialias.

    "center": shorter side to size, longer side to floor(size * long / short), middle cut out,
    offset rounded half to even. "squash": the whole picture, proportions lost.
    """
    size = config.size
    if config.crop == "squash":
        return image.resize((size, size), Image.Resampling.BICUBIC)
    short = min(image.size)
    width, height = (size * side // short for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > MAX_RESIZED_PIXELS:
        # A thread of a picture: resize only what is kept. Equal up to rounding, so not the rule.
        x, y = image.width / width, image.height / height
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + size, top + size))


def normalise(image: Image.Image, config: ImageConfig) -> "torch.Tensor":
    """float32 (3, H, W): (u / 255 - mean) / std of an RGB picture, channels in the order of the config."""
    import numpy
    import torch

    pixels = torch.from_numpy(numpy.array(image)).permute(2, 0, 1)
    pixels = (pixels.flip(0) if config.channels == "bgr" else pixels).contiguous()
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (config.mean, config.std))
    return pixels.float().div_(255).sub_(mean).div_(std)


def _decode(source: "ImageSource", name: str, fetch: Fetch | None) -> Image.Image:
    if isinstance(source, Image.Image):
        image = source
    elif (array := _as_array(source)) is not None:
        return _from_array(array)
    elif not (isinstance(source, (str, bytes, bytearray, memoryview)) or hasattr(source, "__fspath__")):
        raise MediaError(
            f"an object of type {name} is no picture; "
            "give a path, URL, data: URI, bytes, PIL image, numpy array or torch tensor"
        )
    else:
        data = read_source(source, fetch=fetch)
        try:
            image = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError as error:
            raise MediaError(f"{name} has more than {MAX_PIXELS} pixels; make it smaller first") from error
        except Exception as error:  # headers of broken files fail in ways no list of types covers
            raise MediaError(f"{name} is not a picture that can be read; give a JPEG, PNG, WebP or GIF") from error
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise MediaError(f"{name} has {image.width} x {image.height} pixels; give 1 to {MAX_PIXELS} pixels")
    if image is source:
        return image
    try:
        image.load()
    except Exception as error:
        raise _unreadable(name, error) from error
    return image


def _unreadable(name: str, error: Exception) -> MediaError:
    return MediaError(f"{name} is broken or cut off ({error}); copy or download it again")


def _as_array(source: object) -> "numpy.ndarray | None":
    """The (H, W[, 3]) array of a numpy array or torch tensor; None for anything else."""
    # Who holds a tensor has imported torch, so a look at what is loaded is enough.
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(source, torch.Tensor):
        if source.dtype != torch.uint8 or source.ndim != 3 or source.shape[0] != 3:
            raise MediaError(
                f"a tensor of shape {tuple(source.shape)} and type {source.dtype} is no picture; "
                "give uint8 (3, H, W) with values 0 to 255"
            )
        return source.detach().cpu().permute(1, 2, 0).numpy()
    if numpy is not None and isinstance(source, numpy.ndarray):
        if source.dtype != numpy.uint8 or source.ndim not in (2, 3) or source.shape[2:] not in ((), (3,)):
            raise MediaError(
                f"an array of shape {source.shape} and type {source.dtype} is no picture; "
                "give uint8 (H, W, 3) or (H, W) with values 0 to 255"
            )
        return source
    return None


def _from_array(array: "numpy.ndarray") -> Image.Image:
    height, width = array.shape[:2]
    if not 0 < height * width <= MAX_PIXELS:
        raise MediaError(f"an array has {width} x {height} pixels; give 1 to {MAX_PIXELS} pixels")
    return Image.fromarray(array.copy(order="C"))


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block is common and says nothing about the pixels
        return image


def _plain(image: Image.Image, name: str) -> Image.Image:
    """Decoded, of 8 bits a channel, and without the notes on transparency that Pillow acts on."""
    image.load()
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_grey(image, name)
    if "transparency" in image.info:
        # Alpha is dropped anyway; without this Pillow warns about palettes with several.
        image = image.copy()
        del image.info["transparency"]
    return image


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise MediaError(f"{name} has the colour mode {image.mode}; save it as RGB first") from error


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    """16 bits of grey as 8, rounded; Pillow's own conversion would clip at 255."""
    import numpy

    values = numpy.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise MediaError(f"{name} has {image.mode} pixels beyond 16 bits, whose white is unknown; save it as 8-bit")
    grey = (values.astype(numpy.uint32) + 128) // 257
    return Image.fromarray(grey.astype(numpy.uint8)).convert("RGB")
