"""A picture of what you give it: media in, one picture out.

    python examples/generate_image.py --image street.jpg --point bicycle.ply:0.5 --output bicycle-in-the-street.png

ImageBind's features go, as they leave its heads, to a Stable Diffusion model that was trained to draw from the
features of the same image encoder (unCLIP). The language model of the weights has no part in it. Needs ImageBind-LLM's
published weights, converted (see weights/README.md), and diffusers: pip install "adapter-llm[image]".
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a checkout, without installing it

from adapter_llm import cli
from adapter_llm.config import KEYWORDS

if TYPE_CHECKING:
    from diffusers import StableUnCLIPImg2ImgPipeline
    from PIL import Image
    from torch import Tensor

MEDIA = tuple(KEYWORDS)
# The owner took the original down in November 2025; this is the copy that diffusers' users go on with. It has the
# image encoder ImageBind was built around, with features of 1024 numbers; its little sister, "-small", has not.
UNCLIP = "sd2-community/stable-diffusion-2-1-unclip"


def draw(
    unclip: StableUnCLIPImg2ImgPipeline,
    image_embeds: Tensor,
    *,
    prompt: str = "",
    steps: int = 20,
    guidance: float = 10.0,
    noise_level: int = 0,
    seed: int = 0,
) -> list[Image.Image]:
    """A picture for each image embedding (B, E), whose length counts. Raises ValueError for another width.

    `noise_level` from 0 up lets the picture stray further from the features. The seed draws on the CPU, so it
    gives the same start on every device.
    """
    import torch

    width = unclip.image_normalizer.config.embedding_dim
    if image_embeds.ndim != 2 or image_embeds.shape[1] != width:
        raise ValueError(
            f"the image model draws from features of {width} numbers and these are {tuple(image_embeds.shape)}; "
            f"use the published ImageBind weights and {UNCLIP}"
        )
    answer = unclip(
        image_embeds=image_embeds.to(unclip.device, unclip.dtype),
        prompt=[prompt] * len(image_embeds),
        num_inference_steps=steps,
        guidance_scale=guidance,
        noise_level=noise_level,
        generator=torch.Generator("cpu").manual_seed(seed),
    )
    return answer.images


def load_unclip(model: str, device: str) -> StableUnCLIPImg2ImgPipeline:
    """The image model, in half precision on a GPU. Raises ValueError where it or diffusers cannot be had."""
    import torch

    try:
        from diffusers import StableUnCLIPImg2ImgPipeline
    except ImportError:
        raise ValueError('drawing needs diffusers; pip install "adapter-llm[image]"') from None
    try:
        unclip = StableUnCLIPImg2ImgPipeline.from_pretrained(
            model, dtype=torch.float32 if device == "cpu" else torch.float16
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the image model {model} cannot be loaded ({reason}); check name and network") from None
    return unclip.to(device)


def parser() -> argparse.ArgumentParser:
    number = cli.number
    made = cli.Parser(prog="generate_image.py", description="Draw a picture of what media have in common.")
    for name in MEDIA:
        made.add_argument(
            f"--{name}", action="append", type=cli.media_argument, metavar="PATH[:WEIGHT]",
            help=f"{name} to draw from; may be given several times",
        )  # fmt: skip
    made.add_argument("--output", type=Path, default=Path("generated.png"), help="default: generated.png")
    made.add_argument("--weights", default="weights/imagebind-llm-7b", help="default: weights/imagebind-llm-7b")
    made.add_argument("--model", default=UNCLIP, help=f"folder or hub id of the image model; default: {UNCLIP}")
    made.add_argument("--index", help="feature index whose neighbours the features are blended with; default: none")
    made.add_argument("--prompt", default="", help="text that guides the picture as well")
    made.add_argument("--steps", type=number(1, whole=True), default=20, help="denoising steps, default: 20")
    made.add_argument("--guidance", type=number(0), default=10.0, help="how closely to follow, default: 10")
    made.add_argument("--noise-level", type=number(0, whole=True), default=0, help="freedom, default: 0")
    made.add_argument("--seed", type=number(0, whole=True), default=0, help="default: 0")
    made.add_argument("--device", type=cli.device_argument, default="auto", help="auto, cpu, cuda or mps")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def generate(options: argparse.Namespace, out: TextIO) -> int:
    """Media to a picture file, whose path goes to `out`."""
    media: dict[str, Any] = {name: getattr(options, name) for name in MEDIA if getattr(options, name)}
    if not media:
        raise ValueError(f"there is nothing to draw from; give {' or '.join(f'--{name}' for name in MEDIA)}")
    if not options.output.parent.is_dir():
        raise ValueError(f"there is no folder {options.output.parent} for the picture; make it, or change --output")
    from adapter_llm import Pipeline
    from adapter_llm.device import choose_device

    device = choose_device(options.device)
    unclip = load_unclip(options.model, device.type)  # what most often is not there comes first
    pipe = Pipeline.from_pretrained(options.weights, device=str(device), index=options.index)
    [picture] = draw(
        unclip, pipe.image_embeds(**media), prompt=options.prompt, steps=options.steps, guidance=options.guidance,
        noise_level=options.noise_level, seed=options.seed,
    )  # fmt: skip
    picture.save(options.output)
    print(options.output, file=out)
    return cli.OK


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    cli.quiet()
    return cli.run("generate_image.py", lambda out: generate(options, out), options.debug)


if __name__ == "__main__":
    sys.exit(main())
