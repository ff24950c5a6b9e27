"""When a picture's colours become RGB, and in which order they end up in the tensor."""

import json
from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from imagebind_encoder import ImageConfig, MediaError, load_image, open_image
from imagebind_encoder.media import fit_image

PLAIN = ImageConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), orient=False)  # the tensor is pixels / 255
MODES = ("1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@pytest.fixture(scope="module")
def folder(golden):
    if not (golden / "preprocess" / "images.safetensors").exists():
        pytest.skip(f"no pictures in {golden}")
    return golden / "preprocess"


def picture(mode, size=(61, 37)):
    """Noise in colour and, where there is one, in the alpha channel."""
    pixels = numpy.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=numpy.uint8)
    image = Image.fromarray(pixels)
    if mode == "PA":
        return image.convert("P").convert("PA")
    return image.convert(mode) if mode in ("RGBA", "LA") else image.convert("RGB").convert(mode)


def pixels_of(source, config):
    return (load_image(source, config) * 255).round().to(torch.uint8)


def clip_transform(image, size):
    """CLIP's own steps, from the library it uses."""
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    steps = Compose([Resize(size, interpolation=InterpolationMode.BICUBIC), CenterCrop(size)])
    return torch.from_numpy(numpy.array(steps(image).convert("RGB"))).permute(2, 0, 1)


def test_recorded_pixels_of_clip_in_blue_green_red_order(folder):
    described = json.loads((folder / "preprocess.json").read_text())["images"]
    recorded = load_file(folder / "images.safetensors")
    pictures = [name for name in described if f"{name}.clip_bgr_uint8" in recorded]
    if not pictures:
        pytest.skip(f"no CLIP pictures in {folder}")
    config = replace(PLAIN, channels="bgr", convert="last")
    for name in pictures:
        expected = recorded[f"{name}.clip_bgr_uint8"]
        assert torch.equal(pixels_of(folder / described[name]["file"], config), expected), name


def test_recorded_pictures_differ_where_the_original_says_so(folder):
    described = json.loads((folder / "preprocess.json").read_text())["images"]
    for name, entry in described.items():
        first, last = (pixels_of(folder / entry["file"], replace(PLAIN, convert=when)) for when in ("first", "last"))
        assert torch.equal(first, last) == entry["clip_transform_of_same_file_equals_imagebind"], name
        with Image.open(folder / entry["file"]) as image:
            assert torch.equal(last, clip_transform(image, PLAIN.size)), name


@pytest.mark.parametrize("mode", MODES)
def test_converting_last_is_what_clip_does(mode):
    image, config = picture(mode), replace(PLAIN, size=20, convert="last")
    assert image.mode == mode
    assert torch.equal(pixels_of(image, config), clip_transform(image, 20))


@pytest.mark.parametrize("mode", MODES)
def test_converting_first_only_sees_the_rgb_picture(mode):
    image, config = picture(mode), replace(PLAIN, size=20)
    rgb = pixels_of(image.convert("RGB"), config)
    assert torch.equal(pixels_of(image, config), rgb)
    same = torch.equal(pixels_of(image, replace(config, convert="last")), rgb)
    assert same == (mode in ("RGB", "L", "CMYK"))  # others mix their channels, or their neighbours, differently


def test_open_image_may_keep_the_colours_it_finds():
    for mode in MODES:
        image = picture(mode)
        kept = open_image(image, rgb=False)
        assert kept.mode == mode and kept.tobytes() == image.tobytes()
        assert fit_image(kept, replace(PLAIN, size=20)).mode == mode
        assert open_image(image).mode == "RGB"
    deep = Image.fromarray(numpy.full((30, 30), 65535, dtype=numpy.uint16))
    for when in ("first", "last"):  # 16 bits are scaled, whatever CLIP does with them
        assert (pixels_of(deep, replace(PLAIN, size=20, convert=when)) == 255).all()
    with pytest.raises(MediaError, match="colour mode La"):
        load_image(Image.new("La", (30, 30)), replace(PLAIN, convert="last"))


@pytest.mark.parametrize("convert", ["first", "last"])
def test_blue_green_red_is_the_flipped_picture(convert):
    """Mean and std stand in the tensor's order, so they do not flip along."""
    config = ImageConfig(size=20, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), convert=convert)
    for mode in MODES:
        image = picture(mode)
        flipped = load_image(image, replace(config, channels="bgr"))
        turned = replace(config, mean=config.mean[::-1], std=config.std[::-1])
        assert torch.equal(flipped, load_image(image, turned).flip(0)) and flipped.is_contiguous()
    red = load_image(Image.new("RGB", (30, 30), (255, 0, 0)), replace(PLAIN, size=20, channels="bgr"))
    assert red.mean(dim=(1, 2)).tolist() == [0, 0, 1]
