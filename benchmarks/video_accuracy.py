"""Whether films are recognised like photos: pans over held-out photos, and films of your own.

    python benchmarks/video_accuracy.py --labels objects.csv --images objects/ [--weights DIR] [--limit N]
    python benchmarks/video_accuracy.py --film a.mp4 --film b.webm

Labels and photos are those of `python -m adapter_llm evaluate --labels`. Of every photo that training left
alone a film is made in a temporary folder: a camera that moves and zooms over it for four seconds while the
light changes, as H.264. Photo and film go through the vision trunk of the weights; the class is the one whose
own class token is nearest to the first token of the feature. The films of --film are only described.
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import av
import torch
from PIL import Image, ImageEnhance
from torch.nn import functional as F

from adapter_llm.encoders import find_encoder, load_encoder
from adapter_llm.evaluate import held_out, read_labels
from adapter_llm.vocabulary import class_names
from imagebind_encoder.media import load_image
from imagebind_encoder.media.video import load_video

SIZE = (320, 240)
RATE, SECONDS = 10, 4


class Recogniser:
    """The vision trunk of a weights folder, and what its first class token is for every class."""

    def __init__(self, weights: str) -> None:
        self.encoder = load_encoder(*find_encoder(weights), ["vision"])
        self.image, self.video = self.encoder.config.image, self.encoder.config.video
        stem = self.encoder.stems["vision"]
        if not hasattr(stem, "evidence"):
            sys.exit(f"{weights} has no classifier in its vision trunk, so there are no classes to compare with")
        classes = stem.backbone.num_classes
        certain = torch.cat([torch.zeros(classes, stem.backbone.num_features), torch.eye(classes)], dim=1)
        trunk, head = self.encoder.trunks["vision"], self.encoder.heads["vision"]
        with torch.inference_mode():
            tokens = trunk(stem.unflatten(stem.summary(certain)), None, None)
            self.classes = F.normalize(head(trunk.select(tokens, None))[:, 0], dim=-1)

    def features(self, tensor: torch.Tensor) -> torch.Tensor:
        """(N, E) of a photo (3, H, W) or a film (clips * crops, 3, frames, H, W)."""
        with torch.inference_mode():
            return self.encoder({"vision": tensor[None]})["vision"][0]

    def similarities(self, features: torch.Tensor) -> torch.Tensor:
        """Cosine of the first token to that of every class."""
        return self.classes @ F.normalize(features[0], dim=-1)


def pan_over(photo: Path, film: Path) -> None:
    """From the top left, dim and near, to the bottom right, bright and all in view."""
    with Image.open(photo) as opened:
        picture = opened.convert("RGB")
    count = RATE * SECONDS
    with av.open(str(film), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        for number in range(count):
            done = number / (count - 1)
            width, height = (side * (0.7 + 0.3 * done) for side in picture.size)
            left, top = ((whole - part) * done for whole, part in zip(picture.size, (width, height), strict=True))
            seen = picture.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
            frame = av.VideoFrame.from_image(ImageEnhance.Brightness(seen).enhance(0.7 + 0.6 * done))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def measure(recogniser: Recogniser, labels: Path, images: Path, share: float, limit: int | None) -> None:
    photos = held_out(read_labels(labels, images), share)[:limit]
    synsets, image, video = list(class_names()), recogniser.image, recogniser.video
    right = {"photo": 0, "film": 0, "both": 0, "same": 0}
    cosines = []
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "pan.mp4"
        for number, photo in enumerate(photos, start=1):
            pan_over(photo.path, film)
            still = recogniser.features(load_image(photo.path, image))
            moving = recogniser.features(load_video(film, image, video))
            of_still, of_moving = (synsets[recogniser.similarities(f).argmax()] for f in (still, moving))
            right["photo"] += of_still == photo.synset
            right["film"] += of_moving == photo.synset
            right["both"] += of_still == of_moving == photo.synset
            right["same"] += of_still == of_moving
            cosines.append(F.cosine_similarity(still.mean(0), moving.mean(0), dim=0).item())
            print(f"\r{number} of {len(photos)}, right: {right}", end="", file=sys.stderr, flush=True)
    count = len(photos)
    print(f"\nheld-out photos                    {count}")
    for name, meaning in (
        ("photo", "class right, photo"),
        ("film", "class right, film"),
        ("both", "class right, both"),
        ("same", "film and photo agree"),
    ):
        print(f"{meaning:34} {right[name]:4} {right[name] / count:.3f}")
    print(f"cosine of film and photo           {sum(cosines) / count:.3f} on average, {min(cosines):.3f} at least")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", default=str(Path(__file__).parent.parent / "weights" / "default"))
    parser.add_argument("--labels", type=Path, help="CSV with the columns image, synset and label")
    parser.add_argument("--images", type=Path, help="the folder of the photos")
    parser.add_argument("--held-out", type=float, default=0.3, help="share of the photos that training left alone")
    parser.add_argument("--limit", type=int, help="so many photos at most")
    parser.add_argument("--clips", type=int, help="clips of a film, if not as many as the weights' config says")
    parser.add_argument("--crops", type=int, help="squares of a frame, 1 or 3, likewise")
    parser.add_argument("--film", action="append", default=[], help="a film to be described; repeatable")
    args = parser.parse_args()
    if bool(args.labels) != bool(args.images) or not (args.labels or args.film):
        parser.error("give --labels and --images, or --film")
    recogniser = Recogniser(args.weights)
    chosen = {name: getattr(args, name) for name in ("clips", "crops") if getattr(args, name) is not None}
    recogniser.video = replace(recogniser.video, **chosen)
    names = list(class_names().values())
    for film in args.film:
        tensor = load_video(film, recogniser.image, recogniser.video)
        nearest = recogniser.similarities(recogniser.features(tensor)).topk(5)
        said = ", ".join(f"{names[i][0]} {s:.2f}" for s, i in zip(*map(torch.Tensor.tolist, nearest), strict=True))
        print(f"{film}: {said}")
    if args.labels:
        measure(recogniser, args.labels, args.images, args.held_out, args.limit)


if __name__ == "__main__":
    main()
